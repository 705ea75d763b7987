"""Builders of usage events, with the reference's names and metadata keys. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cgw.model import Actor, EventName, Feature, Usage, UsageEvent, UsageQuality

UNKNOWN_IDENTIFIER = "unknown"
"""The identifier of an event whose actor could not be told."""


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
    metadata: Mapping[str, Any] | None = None,
    trace_id: str | None = None,
) -> UsageEvent:
    """The event of a completion that passed the model check, whatever became of it.

    ``model`` is ``provider/model``. ``metadata`` is what the dialect adds (``stream``, ``max_tokens``); it comes
    first, so that it cannot displace a key of ours. ``resolved_status`` is what the client was answered,
    ``upstream_status`` what the upstream answered (``None``: nothing). ``sg_actor_id`` and ``sg_actor_anonymous_uid``
    are the request's ``X-Sourcegraph-Actor-UID`` and ``-Anonymous-UID``. Figures that are ``None`` are left out;
    the reference writes −1. ``actor_name``, ``usage_quality`` and the tokens that the provider's cache had or got, left
    out where there are none, are cgw's own keys.
    """
    # One dictionary, filled in the order of the keys: half the time of filling one and leaving out what is None.
    fields: dict[str, Any] = {**metadata} if metadata else {}
    fields["feature"] = feature.value
    fields["model"] = model
    fields["provider"] = provider
    _add_usage(fields, usage)
    if upstream_request_duration_ms is not None:
        fields["upstream_request_duration_ms"] = upstream_request_duration_ms
    if upstream_status is not None:
        fields["upstream_status_code"] = upstream_status
    fields["resolved_status_code"] = resolved_status
    if sg_actor_id:
        fields["sg_actor_id"] = sg_actor_id
    if sg_actor_anonymous_uid:
        fields["sg_actor_anonymous_uid"] = sg_actor_anonymous_uid
    if actor_name := actor.name.strip():
        fields["actor_name"] = actor_name
    if trace_id is not None:
        fields["trace_id"] = trace_id
    return UsageEvent(EventName.COMPLETIONS_FINISHED, actor.source, actor.id, fields)


def _add_usage(fields: dict[str, Any], usage: Usage) -> None:
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
    fields["usage_quality"] = usage.quality.value


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
) -> UsageEvent:
    """The event of embeddings that passed the model check, whatever became of them.

    ``metadata`` has ``batch_size``. The reference writes 0 ``tokens_used`` for a failure, which is left out here;
    ``provider``, ``upstream_status_code``, ``actor_name`` and ``usage_quality`` are cgw's own keys.
    """
    fields: dict[str, Any] = {
        **metadata,
        "feature": Feature.EMBEDDINGS.value,
        "model": model,
        "provider": provider,
        "input_character_count": input_character_count,
        "resolved_status_code": resolved_status,
    }
    optional = {
        "tokens_used": tokens_used,
        "usage_quality": None if tokens_used is None else quality.value,
        "upstream_request_duration_ms": upstream_request_duration_ms,
        "upstream_status_code": upstream_status,
        "actor_name": actor.name.strip() or None,
    }
    fields.update((key, value) for key, value in optional.items() if value is not None)
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
) -> UsageEvent:
    """The event of a request that a limit refused.

    ``error`` is a stable text for each ``cause``, as in the reference; the numbers are keys of cgw's own: the limit of
    so many ``unit`` per ``window_ms`` (0: at once), and when the caller was told to come back. ``count`` is the number
    of refusals that the event stands for, see :mod:`cgw.events.repeats`.
    """
    metadata: dict[str, Any] = {"error": error, "feature": feature.value, "cause": cause}
    metadata |= {"limit": limit, "unit": unit}
    if window_ms:
        metadata["window_ms"] = window_ms
    if retry_after_ms is not None:
        metadata["retry_after_ms"] = retry_after_ms
    metadata["count"] = 1
    return UsageEvent(EventName.RATE_LIMITED, actor.source, actor.id, metadata)


def request_blocked(
    actor: Actor,
    feature: Feature,
    *,
    metadata: Mapping[str, Any],
    sg_actor_id: str | None,
    sg_actor_anonymous_uid: str | None,
) -> UsageEvent:
    """The event of a request that was refused for its prompt; ``metadata`` is what flagging found.

    ``count`` is the number of refusals that the event stands for, see :mod:`cgw.events.repeats`.
    """
    fields: dict[str, Any] = {**metadata, "feature": feature.value}
    if sg_actor_id:
        fields["sg_actor_id"] = sg_actor_id
    if sg_actor_anonymous_uid:
        fields["sg_actor_anonymous_uid"] = sg_actor_anonymous_uid
    fields["count"] = 1
    return UsageEvent(EventName.REQUEST_BLOCKED, actor.source, actor.id, fields)


def unauthorized(source: str, reason: str) -> UsageEvent:
    """The event of a token that ``source`` knows and denies. ``reason`` must not hold the token."""
    return UsageEvent(
        name=EventName.UNAUTHORIZED, source=source, identifier=UNKNOWN_IDENTIFIER, metadata={"reason": reason}
    )


def access_denied(actor: Actor) -> UsageEvent:
    """The event of an actor whose access is switched off. No metadata, as in the reference."""
    return UsageEvent(name=EventName.ACCESS_DENIED, source=actor.source, identifier=actor.id)
