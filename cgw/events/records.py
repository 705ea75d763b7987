"""Builders of usage events, with the metadata that :mod:`cgw.events.kinds` declares. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from cgw.events.kinds import (
    AccessDenied,
    CompletionsFinished,
    EmbeddingsFinished,
    Exchanged,
    InstanceUser,
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
    exchange: Exchanged | None = None,
) -> UsageEvent:
    """The event of a completion that passed the model check, whatever became of it.

    ``model`` is ``provider/model``. ``metadata`` is what the dialect adds (``stream``, ``max_tokens``); it comes
    first, so that it cannot displace a key of ours. ``resolved_status`` is what the client was answered,
    ``upstream_status`` what the upstream answered (``None``: nothing). ``sg_actor_id`` and ``sg_actor_anonymous_uid``
    are the request's ``X-Sourcegraph-Actor-UID`` and ``-Anonymous-UID``. ``exchange`` is of
    :func:`build_exchanged`. Figures that are ``None`` are left out; the reference writes −1.
    """
    # One dictionary, filled in the order of the keys: half the time of filling one and leaving out what is None.
    # Enums stand for their values, as they are strings: asking for the value takes 0.1 µs.
    fields: CompletionsFinished = {**metadata, "feature": feature, "model": model, "provider": provider}  # type: ignore[typeddict-item]
    # Not a function of its own, although it could be one: a call costs as much as three of these keys.
    if usage.prompt_character_count is not None:
        fields["prompt_character_count"] = usage.prompt_character_count
    if usage.prompt_token_count is not None:
        fields["prompt_token_count"] = usage.prompt_token_count
    if usage.cache_read_token_count:
        fields["prompt_cache_read_token_count"] = usage.cache_read_token_count
    if usage.cache_write_token_count:
        fields["prompt_cache_write_token_count"] = usage.cache_write_token_count
    if usage.completion_character_count is not None:
        fields["completion_character_count"] = usage.completion_character_count
    if usage.completion_token_count is not None:
        fields["completion_token_count"] = usage.completion_token_count
    if usage.reasoning_token_count:
        fields["completion_reasoning_token_count"] = usage.reasoning_token_count
    fields["usage_quality"] = usage.quality
    if upstream_request_duration_ms is not None:
        fields["upstream_request_duration_ms"] = upstream_request_duration_ms
    if upstream_status is not None:
        fields["upstream_status_code"] = upstream_status
    fields["resolved_status_code"] = resolved_status
    if sg_actor_id or sg_actor_anonymous_uid:
        _add_instance_user(fields, sg_actor_id, sg_actor_anonymous_uid)
    if actor_name := actor.name.strip():
        fields["actor_name"] = actor_name
    fields.update(exchange or {})  # type: ignore[typeddict-item]
    return UsageEvent(EventName.COMPLETIONS_FINISHED, actor.source, actor.id, fields)


def build_exchanged(
    trace_id: str,
    outcome: str,
    started_at: float,
    ended_at: float,
    request_bytes: int,
    response_bytes: int,
    response_chunks: int | None,
    time_to_first_byte_ms: float | None,
    overhead_ms: float,
) -> Exchanged:
    """Return what events of completions and embeddings tell of their exchange.

    ``started_at`` and ``ended_at`` are in Unix seconds. Figures that are ``None`` are left out.
    """
    fields: Exchanged = {
        "trace_id": trace_id,
        "outcome": outcome,
        "started_at": started_at,
        "ended_at": ended_at,
        "request_bytes": request_bytes,
        "response_bytes": response_bytes,
    }
    if response_chunks is not None:
        fields["response_chunks"] = response_chunks
    # Microseconds are enough; round() takes twice as long.
    if time_to_first_byte_ms is not None:
        fields["time_to_first_byte_ms"] = int(time_to_first_byte_ms * 1000) / 1000
    fields["overhead_ms"] = int(overhead_ms * 1000) / 1000
    return fields


def _add_trace_id(fields: Traced, trace_id: str | None) -> None:
    if trace_id is not None:
        fields["trace_id"] = trace_id


def _add_instance_user(fields: InstanceUser, user_id: str | None, anonymous_uid: str | None) -> None:
    """Add the Sourcegraph user twice, as the reference does: the headers as they came, and as its services write it."""
    actor: SgActor = {}
    if user_id:
        fields["sg_actor_id"] = user_id
        if len(user_id) <= MAX_DIGITS and user_id.isascii() and user_id.isdigit():
            actor["UID"] = int(user_id)
        elif user_id == "internal":
            actor["Internal"] = True
    if anonymous_uid:
        fields["sg_actor_anonymous_uid"] = anonymous_uid
        if not actor:
            actor["AnonymousUID"] = anonymous_uid
    fields["sg.actor"] = actor


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
    exchange: Exchanged | None = None,
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
    if exchange is not None:
        fields.update(exchange)  # type: ignore[typeddict-item]
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
    if sg_actor_id or sg_actor_anonymous_uid:
        _add_instance_user(fields, sg_actor_id, sg_actor_anonymous_uid)
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
