"""Reading a request's head, and building the head of its answer. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

from cgw.errors import Headers, Refusal
from cgw.model import Feature
from cgw.providers.dialect import Dialect
from cgw.wire.heads import NOT_PASSED_ON, select_response_headers
from cgw.wire.messages import RequestHead, ResponseHead

COMPLETION_FEATURES = (Feature.CHAT_COMPLETIONS, Feature.CODE_COMPLETIONS)
"""The values of ``X-Sourcegraph-Feature`` that the completions routes accept."""

_COMPLETION_FEATURES = {feature.encode("ascii"): feature for feature in COMPLETION_FEATURES}
_EVENT_STREAM = b"text/event-stream"
_MODEL_FIELD = b"x-cody-resolved-model"
_OVERLOADED = (429, 503, 529)
"""The statuses for which clients get a 503."""
_UNBUFFERED = (b"x-accel-buffering", b"no")
_NUMBER = re.compile(rb"(-?)\+?([0-9]+)")


def read_text(head: RequestHead, name: bytes) -> str | None:
    """Return the value of a header field as text; ``None`` if it is not there."""
    value = head.header(name)
    return None if value is None else value.decode("utf-8", "replace")


def select_feature(head: RequestHead, dialect: Dialect) -> Feature:
    """Return the feature that a request is charged to; the embeddings route has only one.

    Raises :exc:`~cgw.errors.Refusal` 400 when the header is required and missing, or has another value.
    """
    if dialect.default_feature is Feature.EMBEDDINGS:
        return Feature.EMBEDDINGS
    value = head.header(b"x-sourcegraph-feature")
    if value is None:
        if dialect.default_feature is None:
            raise Refusal(400, "X-Sourcegraph-Feature header is required")
        return dialect.default_feature
    if (known := _COMPLETION_FEATURES.get(value)) is not None:
        return known
    text = value.decode("latin-1").strip()
    for feature in COMPLETION_FEATURES:
        if text == feature:
            return feature
    allowed = ", ".join(COMPLETION_FEATURES)
    raise Refusal(400, f"invalid value for X-Sourcegraph-Feature: {text!r}, allowed: {allowed}")


def read_timeout_seconds(head: RequestHead, default_seconds: float, maximum_seconds: float) -> float:
    """Return how long the exchange may take: ``X-Timeout-Ms`` up to the maximum, the default without it.

    As in the reference, a value that is not a number is ignored. Raises :exc:`~cgw.errors.Refusal` 400 for one that
    is not positive, which would turn every request into a 504.
    """
    value = head.header(b"x-timeout-ms")
    if value is None:
        return min(default_seconds, maximum_seconds)
    match = _NUMBER.fullmatch(value)
    if match is None:
        return min(default_seconds, maximum_seconds)
    # Fifteen digits exceed any maximum; converting a hostile number of thousands of digits would take long.
    milliseconds = int(match[2][:15]) * (-1 if match[1] else 1)
    if milliseconds <= 0:
        raise Refusal(400, "X-Timeout-Ms must be a positive number of milliseconds")
    # Capped before the division: the client may have written more digits than a float can hold.
    return min(milliseconds, maximum_seconds * 1000) / 1000


def read_timeouts(head: RequestHead, default_seconds: float, maximum_seconds: float) -> tuple[float, float | None]:
    """Return what :func:`read_timeout_seconds` does, and the time for the head of the upstream's response.

    That is all of what the client asks for, because who sends ``X-Timeout-Ms`` wants to wait that long, as in the
    reference; ``None`` is the default.
    """
    value = head.header(b"x-timeout-ms")
    if value is None:
        return min(default_seconds, maximum_seconds), None
    seconds = read_timeout_seconds(head, default_seconds, maximum_seconds)
    return seconds, None if _NUMBER.fullmatch(value) is None else seconds


def describe_unread_timeout(head: RequestHead) -> str | None:
    """Return a sentence about an ``X-Timeout-Ms`` that is ignored because it is not a number; ``None`` otherwise.

    It does not repeat the value, which goes to the log and may be anything.
    """
    value = head.header(b"x-timeout-ms")
    if value is None or _NUMBER.fullmatch(value) is not None:
        return None
    return "X-Timeout-Ms is not a whole number of milliseconds, so the default applies"


def is_event_stream(head: ResponseHead) -> bool:
    """Return whether a response is a stream of server-sent events."""
    content_type = head.header(b"content-type")
    return content_type is not None and content_type.lower().startswith(_EVENT_STREAM)


def content_length_of(head: ResponseHead) -> int | None:
    """Return the body's announced length, or ``None``; a transfer coding overrides it (RFC 9112 §6.3)."""
    if head.header(b"transfer-encoding") is not None:
        return None
    value = head.header(b"content-length")
    return None if value is None else int(value)


def answer_status(upstream_status: int) -> int:
    """Return the status that the client gets: 503 for an upstream's 429, which is about cgw's quota there, and for 529.

    529 is Anthropic's own status for an overload, which other APIs' clients do not know.
    """
    return 503 if upstream_status in (429, 529) else upstream_status


def build_answer_headers(
    head: ResponseHead, model: str, retry_after_seconds: int, own: Headers, *, passes_account_fields: bool = False
) -> Headers:
    """Return the answer's header fields: those of the upstream that may be passed on, and ``own``.

    ``own`` replace fields of the same name. ``retry_after_seconds`` is for a 503 without a ``retry-after``. Fields of
    the provider's account (:func:`is_account_field`) pass only if asked for.
    """
    header = head.header
    added: list[tuple[bytes, bytes]] = [*own, (_MODEL_FIELD, model.encode("utf-8", "replace"))]
    if is_event_stream(head):
        added.append(_UNBUFFERED)  # or nginx in front would gather events before sending them
    if head.status in _OVERLOADED and header(b"retry-after") is None:
        added.append((b"retry-after", b"%d" % retry_after_seconds))
    replaced = tuple([name for name, _ in added])
    if header(b"transfer-encoding") is not None or head.status == 204:
        replaced += (b"content-length",)  # beside a coding, or in a 204, a second framing (RFC 9110 §8.6)
    fields = head.headers
    if header(b"connection") is not None:
        fields = _drop_named(fields, replaced)
    kept = _list_kept(replaced, passes_account_fields)
    return [field for field in fields if kept[field[0]]] + added


def _drop_named(fields: Headers, replaced: tuple[bytes, ...]) -> Headers:
    """Return ``fields`` without those that ``Connection`` names, in usual heads none."""
    named = {value for name, value in fields if name == b"connection"}
    return fields if named == {b"keep-alive"} else select_response_headers(fields, replaced)


def build_model_header(model: str) -> tuple[bytes, bytes]:
    """Return the field that names the ``provider/model`` that was asked."""
    return _MODEL_FIELD, model.encode("utf-8", "replace")


_ACCOUNT_FIELD = re.compile(rb".*ratelimit.*|.+-(organization|project)(-id)?")


def is_account_field(name: bytes) -> bool:
    """Return whether a field (lower case) tells of the operator's account: its rate limits, organization or project.

    ``x-ratelimit-remaining-tokens``, ``anthropic-ratelimit-…``, ``openai-organization``, ``anthropic-organization-id``.
    A client would take the limits for its own.
    """
    return _ACCOUNT_FIELD.fullmatch(name) is not None


MAX_REMEMBERED_FIELDS = 2048
"""Names of fields of which it is remembered whether they are kept: upstreams choose them."""


class _Kept(dict[bytes, bool]):
    """Tells of each name whether the field is kept: a look-up, instead of a match for each field of each head."""

    def __init__(self, dropped: Iterable[bytes], *, passes_account_fields: bool) -> None:
        super().__init__()
        self._dropped = frozenset(dropped)
        self._passes_account_fields = passes_account_fields

    def __missing__(self, name: bytes) -> bool:
        if len(self) >= MAX_REMEMBERED_FIELDS:
            self.clear()
        about_account = not self._passes_account_fields and is_account_field(name)
        is_kept = self[name] = name not in self._dropped and not about_account
        return is_kept


@lru_cache(maxsize=64)
def _list_kept(replaced: tuple[bytes, ...], passes_account_fields: bool) -> _Kept:
    # The names are cgw's own, so there are a few combinations only.
    return _Kept(NOT_PASSED_ON.union(replaced), passes_account_fields=passes_account_fields)


def allowed_methods(methods: Sequence[str]) -> Headers:
    """Return the ``Allow`` field of a 405 (RFC 9110 §15.5.6)."""
    return [(b"allow", ", ".join(methods).encode("ascii"))]
