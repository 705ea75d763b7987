"""The rate of requests that cost nothing upstream: its own per actor, exact, and apart from every quota."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
import trio

from cgw.limits.headers import build_limit_headers
from cgw.limits.limiter import Limiter
from cgw.limits.options import LimiterOptions
from cgw.limits.states import LimitExceeded
from cgw.model import Actor, Feature, RateLimit
from cgw.redis.opening import Store, open_redis
from tests.support.redis_server import RedisServer, wait_until

CHAT, CODE = Feature.CHAT_COMPLETIONS, Feature.CODE_COMPLETIONS
LIMIT = RateLimit(100, 86_400_000, ("*",), 50, 10_000)
ACME = Actor("acme", "Acme Inc.", "static", True, {CHAT: LIMIT, CODE: LIMIT})
OTHER = Actor("initech", "Initech", "static", True, {CHAT: LIMIT})


@pytest.fixture
async def links(server: RedisServer) -> AsyncIterator[Store]:
    """Return links to the emptied server."""
    async with open_redis(server.url, timeout_seconds=20) as connected:
        yield connected


async def test_the_rate_is_the_actors_own_over_all_features(links: Store) -> None:
    """All features of an actor share the rate; another actor has its own; no quota is touched."""
    limiter = Limiter(links, LimiterOptions(free_per_minute=2))
    admission = await limiter.admit_free(ACME, CHAT)
    assert build_limit_headers(admission.states) == [
        (b"ratelimit-policy", b'"free";q=2;w=60'),
        (b"ratelimit", b'"free";r=1;t=30'),
    ]
    assert admission.build_headers() == build_limit_headers(admission.states)
    await limiter.admit_free(ACME, CODE, provider="anthropic")
    with pytest.raises(LimitExceeded, match="rate of 2 requests that cost nothing per 1m exceeded") as refusal:
        await limiter.admit_free(ACME, CHAT)
    assert (refusal.value.cause, refusal.value.refused.remaining) == ("free", 0)
    assert refusal.value.retry_after_ms is not None
    assert 20_000 < refusal.value.retry_after_ms <= 30_000
    await limiter.admit_free(OTHER, CHAT)
    assert (await limiter.peek(ACME))[CHAT].usage == 0
    await limiter.admit(ACME, CHAT, LIMIT)


async def test_exactly_the_rate_over_many_replicas(server: RedisServer) -> None:
    """However many replicas ask at once, exactly the rate is admitted."""
    admitted = refused = 0
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(open_redis(server.url, timeout_seconds=20)) for _ in range(4)]
        limiters = [Limiter(store, LimiterOptions(free_per_minute=30)) for store in stores]

        async def ask(limiter: Limiter) -> None:
            nonlocal admitted, refused
            for _ in range(20):
                try:
                    limiter.settle_later(await limiter.admit_free(ACME, CHAT), is_charged=True)
                    admitted += 1
                except LimitExceeded:
                    refused += 1

        async with trio.open_nursery() as nursery:
            for limiter in limiters:
                nursery.start_soon(ask, limiter)
    # A token of the rate comes back every two seconds.
    assert 30 <= admitted <= 32
    assert admitted + refused == 80


async def test_what_failed_is_given_back_and_records_end(links: Store) -> None:
    """A request that is not charged gives its part of the rate back, and no reservation is left."""
    limiter = Limiter(links, LimiterOptions(free_per_minute=1))
    await limiter.settle(await limiter.admit_free(ACME, CHAT), is_charged=False)
    admission = await limiter.admit_free(ACME, CHAT)
    limiter.settle_later(admission, is_charged=True)
    with pytest.raises(LimitExceeded):
        await limiter.admit_free(ACME, CHAT)

    async def has_no_record() -> bool:
        return not await links.execute_command("KEYS", "cgw:*reservation*")

    await wait_until(has_no_record)


async def test_slots_of_the_provider_count(links: Store) -> None:
    """What goes upstream takes one of the provider's slots, where they are bounded, and frees it."""
    limiter = Limiter(links, LimiterOptions(provider_max_in_flight={"anthropic": 1}))
    admission = await limiter.admit_free(ACME, CHAT, provider="anthropic")
    with pytest.raises(LimitExceeded) as refusal:
        await limiter.admit_free(OTHER, CHAT, provider="anthropic")
    assert refusal.value.cause == "provider"
    await limiter.admit_free(OTHER, CHAT)  # answered by cgw itself
    await limiter.settle(admission, is_charged=True)
    await limiter.admit_free(OTHER, CHAT, provider="anthropic")


async def test_counted_in_the_process_while_redis_is_away() -> None:
    """Without Redis the rate holds in each process."""
    async with open_redis("redis://127.0.0.1:1", timeout_seconds=0.05, may_be_away=True) as store:
        limiter = Limiter(store, LimiterOptions(free_per_minute=2))
        for _ in range(2):
            assert (await limiter.admit_free(ACME, CHAT)).is_local
        with pytest.raises(LimitExceeded):
            await limiter.admit_free(ACME, CHAT)
