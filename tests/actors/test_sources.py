"""The order of sources, and the anonymous one."""

from __future__ import annotations

import pytest
from attrs import frozen
from hypothesis import given
from hypothesis import strategies as st

from cgw.actors.anonymous import AnonymousSource
from cgw.actors.concurrency import DAY_MS, derive_concurrent_requests
from cgw.actors.source import AccessTokenDenied, NotFromSource, Sources
from cgw.actors.static import StaticSource
from cgw.actors.tokens import hash_token
from cgw.errors import StoreUnavailable
from cgw.model import MAX_TOKEN_MS, Actor, Feature, LimitUnit, rate_limit_problems

ACME = Actor(id="acme", name="", source="static", access_enabled=True)


@frozen
class FailingSource:
    """A source that answers every token with one error."""

    error: Exception
    name: str = "failing"

    async def get(self, token: str) -> Actor:
        raise self.error


def anonymous_source(*, is_allowed: bool = True, percentage: int = 50) -> AnonymousSource:
    return AnonymousSource(is_allowed=is_allowed, percentage=percentage, interval_ms=10_000)


async def test_the_first_source_that_knows_a_token_answers() -> None:
    """Sources that pass on are skipped; the empty token is the anonymous source's, others are not."""
    sources = Sources([anonymous_source(), StaticSource({hash_token("secret"): ACME})])
    assert await sources.get("secret") is ACME
    assert (await sources.get("")).id == "anonymous"


@pytest.mark.parametrize(
    ("token", "text"),
    [
        ("", "token not from source: no token provided"),
        ("unknown-token", "token not from source: no source found for token"),
    ],
)
async def test_a_token_of_no_source_is_reported_without_the_token(token: str, text: str) -> None:
    """Where all pass on, the error has the reference's text, which does not hold the token."""
    sources = Sources([StaticSource({hash_token("secret"): ACME})])
    with pytest.raises(NotFromSource) as caught:
        await sources.get(token)
    assert str(caught.value) == text


@pytest.mark.parametrize(
    "error", [AccessTokenDenied("revoked", "failing"), StoreUnavailable("down")], ids=["denied", "unavailable"]
)
async def test_a_denial_or_failure_ends_the_search(error: Exception) -> None:
    """What is no ``NotFromSource`` is final, even where a later source knows the token; it names the source."""
    sources = Sources([FailingSource(error), StaticSource({hash_token("secret"): ACME})])
    with pytest.raises(type(error)) as caught:
        await sources.get("secret")
    assert caught.value.__notes__ == ["from the actor source 'failing'"]


def test_errors_have_the_texts_of_the_reference() -> None:
    """Clients and logs know these sentences (reference §1.7)."""
    assert str(NotFromSource()) == "token not from source"
    assert str(NotFromSource("unknown prefix")) == "token not from source: unknown prefix"
    denied = AccessTokenDenied("revoked", "static")
    assert (str(denied), denied.reason, denied.source) == ("access token denied: revoked", "revoked", "static")


async def test_the_anonymous_actor_has_the_limits_of_the_reference() -> None:
    """Per day; the short-term rate is half of it per 10 s. Embeddings count tokens, at a fixed rate (§2.4)."""
    actor = await anonymous_source().get("")
    assert (actor.id, actor.name, actor.source, actor.access_enabled) == ("anonymous", "anonymous", "anonymous", True)
    figures = {
        feature: (limit.limit, limit.interval_ms, limit.concurrent_requests, limit.concurrent_interval_ms, limit.unit)
        for feature, limit in actor.rate_limits.items()
    }
    assert figures == {
        Feature.CHAT_COMPLETIONS: (50, DAY_MS, 25, 10_000, LimitUnit.REQUESTS),
        Feature.CODE_COMPLETIONS: (1000, DAY_MS, 500, 10_000, LimitUnit.REQUESTS),
        Feature.EMBEDDINGS: (100_000, DAY_MS, 10, 10_000, LimitUnit.TOKENS),
    }
    assert "anthropic/claude-2" in actor.rate_limits[Feature.CHAT_COMPLETIONS].allowed_models
    assert all(
        rate_limit_problems(limit.limit, limit.interval_ms, limit.concurrent_requests, limit.concurrent_interval_ms)
        == []
        for limit in actor.rate_limits.values()
    )


async def test_anonymous_access_can_be_off() -> None:
    """With anonymous access off there is still an actor, without access: the answer is 403 and not 401."""
    actor = await anonymous_source(is_allowed=False).get("")
    assert not actor.access_enabled


@pytest.mark.parametrize(
    ("limit", "interval_ms", "percentage", "expected"),
    [
        (100, DAY_MS, 50, 50),
        (3, DAY_MS, 50, 1),
        (1, DAY_MS, 50, 1),
        (100, DAY_MS, 0, 1),
        (100, 30 * DAY_MS, 50, 1),
        (100, DAY_MS // 24, 50, 1200),
        (7, DAY_MS, 50, 3),
    ],
)
def test_the_short_term_rate_is_derived_as_in_the_reference(
    limit: int, interval_ms: int, percentage: int, expected: int
) -> None:
    """The integer part of the daily limit times the percentage, raised to at least 1 (reference §1.2)."""
    assert derive_concurrent_requests(limit, interval_ms, percentage, 10_000) == expected


@given(st.integers(1, 10**9), st.integers(1, 365 * DAY_MS), st.integers(0, 100), st.integers(1, DAY_MS))
def test_a_derived_rate_can_always_be_enforced(limit: int, interval_ms: int, percentage: int, window_ms: int) -> None:
    """Whatever the limit, its derived short-term rate is one that a bucket counts exactly."""
    rate = derive_concurrent_requests(limit, interval_ms, percentage, window_ms)
    assert rate >= 1
    assert rate * window_ms <= MAX_TOKEN_MS
