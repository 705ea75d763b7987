"""Anthropic's Text Completions API, the predecessor of Messages, on the reference's route.

Its responses have no token counts. Streams are those of version 2023-01-01, which the reference's clients decode: each
event repeats the whole text so far, and ``[DONE]`` ends the stream.
"""

from __future__ import annotations

from typing import ClassVar

import attrs
import msgspec
from attrs import define, field, frozen

from cgw.errors import Headers, Refusal
from cgw.model import BodyWindow, Feature
from cgw.providers.anthropic.messages import PROVIDER, check_max_tokens
from cgw.providers.dialect import Caller, ErrorStyle, PreparedRequest
from cgw.providers.error_styles import ReferenceErrors
from cgw.providers.json_body import encode_object, keep_fields
from cgw.providers.prompts import Prompt
from cgw.providers.request_body import BodyReader, JsonObject, StringOrStrings
from cgw.providers.route import ReadBody, Route
from cgw.providers.upstream_requests import Endpoint, secret_value
from cgw.providers.usage_reading import PartsDecoder, Reading
from cgw.wire.messages import RequestHead
from cgw.wire.sse import parse_data

_DONE = b"[DONE]"


@define
class CompleteBody:
    """The known fields of a request. They are passed on, all others are dropped."""

    model: str
    prompt: str | None = None
    max_tokens_to_sample: int | None = None
    stop_sequences: StringOrStrings | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    metadata: JsonObject | None = None


BODY_FIELDS = frozenset(attribute.name for attribute in attrs.fields(CompleteBody))


class _Completion(msgspec.Struct, gc=False):
    completion: str | None = None


_COMPLETIONS = PartsDecoder(_Completion)


def build_endpoint(api_url: str, access_token: str) -> Endpoint:
    """Return the endpoint of the Text Completions API. Raises :exc:`ValueError` for an unusable base URL or key."""
    headers: Headers = (
        (b"x-api-key", secret_value(access_token, "Anthropic's access token")),
        (b"anthropic-version", b"2023-01-01"),
        (b"cache-control", b"no-cache"),
    )
    return Endpoint.parse(api_url, "/v1/complete", headers)


def read_completion(body: BodyWindow) -> Reading:
    """Read the length of a completion that was not streamed."""
    if not body.is_whole:
        return Reading()
    completion = _COMPLETIONS.decode(body.head + body.tail)
    if completion is None or completion.completion is None:
        return Reading()
    return Reading(completion_character_count=len(completion.completion), is_final=True)


def read_completion_stream(body: BodyWindow) -> Reading:
    """Read the length of a streamed completion from its last event."""
    contents = parse_data(body.head + body.tail) if body.is_whole else parse_data(body.tail, mid_frame=True)
    for data in reversed(contents):
        completion = _COMPLETIONS.decode(data)
        if completion is not None and completion.completion is not None:
            return Reading(completion_character_count=len(completion.completion), is_final=contents[-1] == _DONE)
    # An event that is larger than the window: the text is at least as long as that, and not as the whole body.
    return Reading(completion_character_count=0 if body.is_whole else len(body.tail))


def _build_reader() -> BodyReader[CompleteBody]:
    return BodyReader(CompleteBody)


@frozen
class AnthropicComplete(Route):
    """``/v1/completions/anthropic``, as in the reference. A missing ``prompt`` is refused here, and not upstream."""

    max_tokens_cap: int = field(kw_only=True)
    provider: str = field(default=PROVIDER, kw_only=True)
    # Built with the route, because cattrs takes milliseconds to compile its functions.
    _reader: BodyReader[CompleteBody] = field(factory=_build_reader, init=False, repr=False, eq=False)

    path: ClassVar[str] = "/v1/completions/anthropic"
    errors: ClassVar[ErrorStyle] = ReferenceErrors()
    default_feature: ClassVar[Feature | None] = None
    final_markers: ClassVar[tuple[bytes, ...]] = (b"data: " + _DONE,)
    read_whole: ClassVar[ReadBody] = read_completion
    read_stream: ClassVar[ReadBody] = read_completion_stream
    # From the reference (§6.1): below the 3 s up to which Sourcegraph's clients retry by themselves.
    retry_after_seconds: ClassVar[int] = 2

    def prepare(self, head: RequestHead, body: bytes, caller: Caller) -> PreparedRequest:
        """See :meth:`cgw.providers.dialect.Dialect.prepare`. Drops fields that are unknown or ``null``."""
        parsed, raw = self._reader.read(body)
        if not parsed.prompt:
            raise Refusal(400, 'request body must contain "prompt" field', param="prompt")
        most = parsed.max_tokens_to_sample
        check_max_tokens("max_tokens_to_sample", most, self.max_tokens_cap)
        outgoing = keep_fields(raw, BODY_FIELDS)
        model = outgoing["model"] = parsed.model.removeprefix(self.prefix)
        # Replaced, not merged: the reference passes on no other metadata.
        outgoing["metadata"] = {"user_id": caller.identifier}
        return self.build_request(
            encode_object(outgoing),
            model,
            is_stream=parsed.stream is True,
            prompt_character_count=len(parsed.prompt),
            max_completion_tokens=most,
            metadata=None if most is None else {"max_tokens_to_sample": most},
            prompt=Prompt.of_text(parsed.prompt),
        )
