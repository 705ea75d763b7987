"""Builders of usage events, with the metadata that :mod:`cgw.events.kinds` declares. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from cgw.events.kinds import (
    AccessDenied,
    EmbeddingsFinished,
    FlaggingResult,
    RateLimited,
    RequestBlocked,
    SgActor,
    Traced,
    Unauthorized,
)
from cgw.model import Actor, EventName, Feature, Usage, UsageEvent, UsageQuality

UNKNOWN_IDENTIFIER = "unknown"
"""The identifier of an event whose actor could not be told."""

MAX_DIGITS = 18
"""Of a user's number, which a client may make as long as a header: so many fit 64 bits in every database."""

_NOTHING: Mapping[str, Any] = MappingProxyType({})


ExchangeFigures = tuple[
    str | None, str | None, float | None, float | None, int | None, int | None, int | None, float | None, float | None
]
"""What an event tells of its exchange: the keys of :class:`~cgw.events.kinds.Exchanged`, in their order."""

_NO_FIGURES: ExchangeFigures = (None, None, None, None, None, None, None, None, None)


# Each exchange makes one. Filling a dictionary takes three times as long, as it has to ask of each figure whether it is
# known: here, the encoder does that.
class _Completion(msgspec.Struct, omit_defaults=True, gc=False):
    """The keys of :class:`~cgw.events.kinds.CompletionsFinished`, in the order of the line; ``None`` is left out."""

    # Those that dialects and flagging know of come first, as in the reference.
    stream: bool | None = None
    max_tokens: int | None = None
    max_tokens_to_sample: int | None = None
    route: str | None = None
    flagged: bool | None = None
    flagging_result: FlaggingResult | None = None
    full_prompt: str | None = None
    feature: str | None = None
    model: str | None = None
    provider: str | None = None
    prompt_character_count: int | None = None
    prompt_token_count: int | None = None
    prompt_cache_read_token_count: int | None = None
    prompt_cache_write_token_count: int | None = None
    completion_character_count: int | None = None
    completion_token_count: int | None = None
    completion_reasoning_token_count: int | None = None
    usage_quality: str | None = None
    upstream_request_duration_ms: int | None = None
    upstream_status_code: int | None = None
    resolved_status_code: int | None = None
    sg_actor_id: str | None = None
    sg_actor_anonymous_uid: str | None = None
    sg_actor: SgActor | None = msgspec.field(default=None, name="sg.actor")
    actor_name: str | None = None
    # The figures of the exchange.
    trace_id: str | None = None
    outcome: str | None = None
    started_at: float | None = None
    ended_at: float | None = None
    request_bytes: int | None = None
    response_bytes: int | None = None
    response_chunks: int | None = None
    time_to_first_byte_ms: float | None = None
    overhead_ms: float | None = None


_FIGURES = _Completion.__struct_fields__[-len(_NO_FIGURES) :]


def completions_finished(
    actor: Actor,
    *,
    feature: Feature,
    model: str,
    provider: str,
    usage: Usage,
    resolved_status: int,
    upstream_status: int | None = None,
    upstream_request_duration_ms: int | None = None,
    sg_actor_id: str | None = None,
    sg_actor_anonymous_uid: str | None = None,
    metadata: Mapping[str, Any] = _NOTHING,
    exchange: ExchangeFigures = _NO_FIGURES,
) -> UsageEvent:
    """The event of a completion that passed the model check, whatever became of it.

    ``model`` is ``provider/model``. ``metadata`` is what the dialect and flagging add (``stream``, ``max_tokens``);
    only keys that are declared are taken. ``resolved_status`` is what the client was answered, ``upstream_status`` what
    the upstream answered (``None``: nothing). ``sg_actor_id`` and ``sg_actor_anonymous_uid`` are the request's
    ``X-Sourcegraph-Actor-UID`` and ``-Anonymous-UID``. ``exchange`` is of :func:`build_exchanged`. Figures that are
    ``None`` are left out; the reference writes −1.
    """
    find = metadata.get
    # By position, which takes a tenth of what so many keywords take. Enums stand for their values, as they are strings:
    # asking for the value takes 0.1 µs. Zero tokens of a cache, or of thinking, are none.
    fields = _Completion(
        find("stream"),
        find("max_tokens"),
        find("max_tokens_to_sample"),
        find("route"),
        find("flagged"),
        find("flagging_result"),
        find("full_prompt"),
        feature,
        model,
        provider,
        usage.prompt_character_count,
        usage.prompt_token_count,
        usage.cache_read_token_count or None,
        usage.cache_write_token_count or None,
        usage.completion_character_count,
        usage.completion_token_count,
        usage.reasoning_token_count or None,
        usage.quality,
        upstream_request_duration_ms,
        upstream_status,
        resolved_status,
        None,
        None,
        None,
        actor.name.strip() or None,
        *exchange,
    )
    if sg_actor_id or sg_actor_anonymous_uid:
        fields.sg_actor_id, fields.sg_actor_anonymous_uid = sg_actor_id or None, sg_actor_anonymous_uid or None
        fields.sg_actor = _describe_user(sg_actor_id, sg_actor_anonymous_uid)
    return UsageEvent(EventName.COMPLETIONS_FINISHED, actor.source, actor.id, fields)


def build_exchanged(
    trace_id: str | None,
    outcome: str | None,
    started_at: float | None,
    ended_at: float | None,
    request_bytes: int | None,
    response_bytes: int | None,
    response_chunks: int | None,
    time_to_first_byte_ms: float | None,
    overhead_ms: float,
) -> ExchangeFigures:
    """Return what events of completions and embeddings tell of their exchange.

    ``started_at`` and ``ended_at`` are in Unix seconds. Figures that are ``None`` are left out.
    """
    # Microseconds are enough; round() takes twice as long.
    if time_to_first_byte_ms is not None:
        time_to_first_byte_ms = int(time_to_first_byte_ms * 1000) / 1000
    return (
        trace_id,
        outcome,
        started_at,
        ended_at,
        request_bytes,
        response_bytes,
        response_chunks,
        time_to_first_byte_ms,
        int(overhead_ms * 1000) / 1000,
    )


def _add_trace_id(fields: Traced, trace_id: str | None) -> None:
    if trace_id is not None:
        fields["trace_id"] = trace_id


def _describe_user(user_id: str | None, anonymous_uid: str | None) -> SgActor:
    """Return the Sourcegraph user in the form of its own services; the headers are told as they came, too."""
    if user_id:
        if len(user_id) <= MAX_DIGITS and user_id.isascii() and user_id.isdigit():
            return {"UID": int(user_id)}
        if user_id == "internal":
            return {"Internal": True}
    return {"AnonymousUID": anonymous_uid} if anonymous_uid else {}


def embeddings_finished(
    actor: Actor,
    *,
    model: str,
    provider: str,
    input_character_count: int,
    tokens_used: int | None,
    quality: UsageQuality,
    resolved_status: int,
    upstream_status: int | None,
    upstream_request_duration_ms: int | None,
    metadata: Mapping[str, Any],
    exchange: ExchangeFigures = _NO_FIGURES,
) -> UsageEvent:
    """The event of embeddings that passed the model check, whatever became of them.

    ``metadata`` has ``batch_size``; ``exchange`` is as for completions. The reference writes 0
    ``tokens_used`` for a failure, which is left out here.
    """
    fields: EmbeddingsFinished = {**metadata}  # type: ignore[typeddict-item]
    # Dialects tell it of every request; embeddings are never streamed.
    fields.pop("stream", None)  # type: ignore[typeddict-item]
    fields["feature"] = Feature.EMBEDDINGS
    fields["model"] = model
    fields["provider"] = provider
    fields["input_character_count"] = input_character_count
    fields["resolved_status_code"] = resolved_status
    if tokens_used is not None:
        fields["tokens_used"] = tokens_used
        fields["usage_quality"] = quality
    if upstream_request_duration_ms is not None:
        fields["upstream_request_duration_ms"] = upstream_request_duration_ms
    if upstream_status is not None:
        fields["upstream_status_code"] = upstream_status
    if actor_name := actor.name.strip():
        fields["actor_name"] = actor_name
    known = {name: figure for name, figure in zip(_FIGURES, exchange, strict=True) if figure is not None}
    fields.update(known)  # type: ignore[typeddict-item]
    return UsageEvent(EventName.EMBEDDINGS_FINISHED, actor.source, actor.id, fields)


def rate_limited(
    actor: Actor,
    feature: Feature,
    *,
    error: str,
    cause: str,
    limit: int,
    unit: str,
    window_ms: int,
    retry_after_ms: int | None,
    trace_id: str | None = None,
) -> UsageEvent:
    """The event of a request that a limit refused.

    ``error`` is a stable text for each ``cause``, as in the reference; the numbers are keys of cgw's own: the limit of
    so many ``unit`` per ``window_ms`` (0: at once), and when the caller was told to come back. ``count`` is the number
    of refusals that the event stands for, see :mod:`cgw.events.repeats`.
    """
    metadata: RateLimited = {
        "error": error,
        "feature": feature,
        "cause": cause,
        "limit": limit,
        "unit": unit,
    }
    if window_ms:
        metadata["window_ms"] = window_ms
    if retry_after_ms is not None:
        metadata["retry_after_ms"] = retry_after_ms
    metadata["count"] = 1
    _add_trace_id(metadata, trace_id)
    return UsageEvent(EventName.RATE_LIMITED, actor.source, actor.id, metadata)


def request_blocked(
    actor: Actor,
    feature: Feature,
    *,
    metadata: Mapping[str, Any],
    sg_actor_id: str | None,
    sg_actor_anonymous_uid: str | None,
    trace_id: str | None = None,
) -> UsageEvent:
    """The event of a request that was refused for its prompt; ``metadata`` is what flagging found.

    ``count`` is the number of refusals that the event stands for, see :mod:`cgw.events.repeats`.
    """
    fields: RequestBlocked = {**metadata}  # type: ignore[typeddict-item]
    fields["feature"] = feature
    if sg_actor_id:
        fields["sg_actor_id"] = sg_actor_id
    if sg_actor_anonymous_uid:
        fields["sg_actor_anonymous_uid"] = sg_actor_anonymous_uid
    if sg_actor_id or sg_actor_anonymous_uid:
        fields["sg.actor"] = _describe_user(sg_actor_id, sg_actor_anonymous_uid)
    fields["count"] = 1
    _add_trace_id(fields, trace_id)
    return UsageEvent(EventName.REQUEST_BLOCKED, actor.source, actor.id, fields)


def unauthorized(source: str, reason: str, *, trace_id: str | None = None) -> UsageEvent:
    """The event of a token that ``source`` knows and denies. ``reason`` must not hold the token."""
    metadata: Unauthorized = {"reason": reason}
    _add_trace_id(metadata, trace_id)
    return UsageEvent(EventName.UNAUTHORIZED, source, UNKNOWN_IDENTIFIER, metadata)


def access_denied(actor: Actor, *, trace_id: str | None = None) -> UsageEvent:
    """The event of an actor whose access is switched off."""
    metadata: AccessDenied = {}
    _add_trace_id(metadata, trace_id)
    return UsageEvent(EventName.ACCESS_DENIED, actor.source, actor.id, metadata)
