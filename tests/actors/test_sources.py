"""The order of sources, and the anonymous source."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from attrs import frozen
from hypothesis import given
from hypothesis import strategies as st

from cgw.actors.anonymous import AnonymousSource
from cgw.actors.concurrency import DAY_MS, derive_concurrent_requests
from cgw.actors.source import AccessTokenDenied, NotFromSource, Sources
from cgw.errors import StoreUnavailable
from cgw.model import MAX_TOKEN_MS, Actor, Feature, LimitUnit, rate_limit_problems

ACME = Actor(id="acme", name="", source="static", access_enabled=True)


@frozen
class ListedSource:
    """A source of some actors, by their tokens."""

    actors: Mapping[str, Actor]
    name: str = "static"

    async def get(self, token: str, client: str = "") -> Actor:
        if token not in self.actors:
            raise NotFromSource
        return self.actors[token]


@frozen
class FailingSource:
    """A source that raises one error for every token."""

    error: Exception
    name: str = "failing"

    async def get(self, token: str, client: str = "") -> Actor:
        raise self.error


def anonymous_source() -> AnonymousSource:
    return AnonymousSource(percentage=50, interval_ms=10_000)


async def test_the_first_source_that_knows_a_token_answers() -> None:
    """Sources that do not know the token are skipped; the anonymous source knows only the empty one."""
    sources = Sources([anonymous_source(), ListedSource({"secret": ACME})])
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
    """If no source knows it, the error has the reference's text, which does not contain the token."""
    sources = Sources([ListedSource({"secret": ACME})])
    with pytest.raises(NotFromSource) as caught:
        await sources.get(token)
    assert str(caught.value) == text


@pytest.mark.parametrize(
    "error", [AccessTokenDenied("revoked", "failing"), StoreUnavailable("down")], ids=["denied", "unavailable"]
)
async def test_a_denial_or_failure_ends_the_search(error: Exception) -> None:
    """Any other error than ``NotFromSource`` is final, even if a later source knows the token; it names the source."""
    sources = Sources([FailingSource(error), ListedSource({"secret": ACME})])
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
    """The short-term rate derived from any limit is one that a bucket counts exactly."""
    rate = derive_concurrent_requests(limit, interval_ms, percentage, window_ms)
    assert rate >= 1
    assert rate * window_ms <= MAX_TOKEN_MS
