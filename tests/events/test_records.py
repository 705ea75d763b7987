"""The contents of events: the reference's names and keys, without the unknown ones."""

from __future__ import annotations

from typing import Any

from attrs import evolve

from cgw.events.records import (
    access_denied,
    build_exchanged,
    completions_finished,
    embeddings_finished,
    rate_limited,
    request_blocked,
    unauthorized,
)
from cgw.model import Actor, EventName, Feature, Usage, UsageQuality
from tests.events.conftest import read_metadata

ACTOR = Actor(id="acme", name="Acme Inc.", source="static", access_enabled=True)

EXCHANGE: dict[str, Any] = {
    "trace_id": "0af7651916cd43dd8448eb211c80319c",
    "outcome": "completed",
    "started_at": 1764105672.25,
    "ended_at": 1764105673.5,
    "request_bytes": 2000,
    "response_bytes": 20_000,
    "response_chunks": 44,
    "time_to_first_byte_ms": 312.345,
    "overhead_ms": 0.234,
}


def test_completion_carries_the_reference_keys() -> None:
    """A complete response has every key of the reference, the dialect's own, and cgw's usage_quality and actor_name."""
    event = completions_finished(
        ACTOR,
        feature=Feature.CHAT_COMPLETIONS,
        model="anthropic/claude-3-5-sonnet-20240620",
        provider="anthropic",
        usage=Usage(11, 22, 33, 44, UsageQuality.EXACT),
        resolved_status=200,
        upstream_status=200,
        upstream_request_duration_ms=1234,
        sg_actor_id="7",
        sg_actor_anonymous_uid="anon",
        metadata={"stream": True, "max_tokens": 1000},
        exchange=build_exchanged(**EXCHANGE),
    )
    assert (event.name, event.source, event.identifier) == (EventName.COMPLETIONS_FINISHED, "static", "acme")
    assert read_metadata(event) == {
        "feature": "chat_completions",
        "model": "anthropic/claude-3-5-sonnet-20240620",
        "provider": "anthropic",
        "stream": True,
        "max_tokens": 1000,
        "prompt_token_count": 11,
        "completion_token_count": 22,
        "prompt_character_count": 33,
        "completion_character_count": 44,
        "usage_quality": "exact",
        "upstream_request_duration_ms": 1234,
        "upstream_status_code": 200,
        "resolved_status_code": 200,
        "sg_actor_id": "7",
        "sg_actor_anonymous_uid": "anon",
        "sg.actor": {"UID": 7},
        "actor_name": "Acme Inc.",
        **EXCHANGE,
    }
    assert list(read_metadata(event))[:5] == ["stream", "max_tokens", "feature", "model", "provider"]


def test_exchange_is_described() -> None:
    """Completions and embeddings say what became of their exchange, when, and how large; times are to the µs."""
    precise = build_exchanged(**EXCHANGE | {"time_to_first_byte_ms": 312.3456789, "overhead_ms": 0.23456})
    completion = completions_finished(
        ACTOR,
        feature=Feature.CHAT_COMPLETIONS,
        model="openai/gpt-4o",
        provider="openai",
        usage=Usage(),
        resolved_status=200,
        exchange=precise,
    )
    embeddings = embeddings_finished(
        ACTOR,
        model="openai/text-embedding-3-small",
        provider="openai",
        input_character_count=9,
        tokens_used=3,
        quality=UsageQuality.EXACT,
        resolved_status=200,
        upstream_status=200,
        upstream_request_duration_ms=5,
        metadata={"batch_size": 1},
        exchange=precise,
    )
    for event in (completion, embeddings):
        assert {key: read_metadata(event)[key] for key in EXCHANGE} == EXCHANGE


def test_refusals_are_traced() -> None:
    """Every refusal has the trace id of its exchange."""
    numbers: dict[str, Any] = {"limit": 5, "unit": "tokens", "window_ms": 0, "retry_after_ms": None}
    blocked: dict[str, Any] = {"sg_actor_id": None, "sg_actor_anonymous_uid": None, "trace_id": "a" * 32}
    events = [
        rate_limited(ACTOR, Feature.EMBEDDINGS, error="e", cause="quota", **numbers, trace_id="a" * 32),
        request_blocked(ACTOR, Feature.CHAT_COMPLETIONS, metadata={"flagged": True}, **blocked),
        unauthorized("dotcom-user", "token expired", trace_id="a" * 32),
        access_denied(ACTOR, trace_id="a" * 32),
    ]
    assert [read_metadata(event)["trace_id"] for event in events] == ["a" * 32] * 4


def test_unknown_figures_are_left_out() -> None:
    """Unknown figures have no key: no −1 and no null."""
    event = completions_finished(
        evolve(ACTOR, name=" "),
        feature=Feature.CODE_COMPLETIONS,
        model="openai/gpt-4o",
        provider="openai",
        usage=Usage(),
        resolved_status=502,
        sg_actor_id="",
    )
    assert read_metadata(event) == {
        "feature": "code_completions",
        "model": "openai/gpt-4o",
        "provider": "openai",
        "usage_quality": "estimated",
        "resolved_status_code": 502,
    }


def test_dialect_cannot_displace_our_keys() -> None:
    """A key that the dialect and cgw both set has cgw's value."""
    event = completions_finished(
        ACTOR,
        feature=Feature.CHAT_COMPLETIONS,
        model="openai/gpt-4o",
        provider="openai",
        usage=Usage(),
        resolved_status=200,
        metadata={"model": "forged", "resolved_status_code": 1},
    )
    assert read_metadata(event)["model"] == "openai/gpt-4o"
    assert read_metadata(event)["resolved_status_code"] == 200


def test_refusals_carry_the_reference_keys() -> None:
    """RateLimited has the error and its cause, Unauthorized the identifier "unknown", AccessDenied no metadata."""
    numbers: dict[str, Any] = {"limit": 5, "unit": "tokens", "window_ms": 60_000, "retry_after_ms": 12}
    limited = rate_limited(ACTOR, Feature.EMBEDDINGS, error="rate limit exceeded", cause="quota", **numbers)
    assert (limited.name, limited.source, limited.identifier) == (EventName.RATE_LIMITED, "static", "acme")
    texts = {"error": "rate limit exceeded", "feature": "embeddings", "cause": "quota"}
    assert limited.metadata == {**texts, **numbers, "count": 1}
    denied = unauthorized("dotcom-user", "token expired")
    assert (denied.name, denied.source, denied.identifier) == (EventName.UNAUTHORIZED, "dotcom-user", "unknown")
    assert denied.metadata == {"reason": "token expired"}
    refused = access_denied(ACTOR)
    assert (refused.name, refused.source, refused.identifier) == (EventName.ACCESS_DENIED, "static", "acme")
    assert refused.metadata == {}


def test_events_have_ids_of_their_own() -> None:
    """Two events with the same content have different ids."""
    assert access_denied(ACTOR).id != access_denied(ACTOR).id
