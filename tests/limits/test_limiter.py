"""The limiter on real servers: exact across connections, charged only when it should be, never leaking."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import redis
import trio
from attrs import evolve
from redis.crc import key_slot

from cgw.errors import StoreUnavailable
from cgw.limits.limiter import Admission, Limiter, build_key_prefix
from cgw.limits.states import LimitExceeded
from cgw.model import Actor, Feature, RateLimit
from cgw.transport.redis_links import Redis, open_redis
from tests.support.redis_server import RedisServer, run_redis_server, wait_until

CHAT, CODE = Feature.CHAT_COMPLETIONS, Feature.CODE_COMPLETIONS
DAY_MS = 86_400_000
LIMIT = RateLimit(100, DAY_MS, ("*",), 50, 10_000)


def _actor(**limits: RateLimit) -> Actor:
    return Actor("acme", "Acme Inc.", "static", True, {Feature(name): limit for name, limit in limits.items()})


@pytest.fixture
async def links(server: RedisServer) -> AsyncIterator[Redis]:
    """Links to the emptied server."""
    async with open_redis(server.url, timeout_seconds=2) as connected:
        yield connected


@pytest.fixture
def limiter(links: Redis) -> Limiter:
    """A limiter on them."""
    return Limiter(links)


async def test_admission_says_how_the_limits_stand(limiter: Limiter) -> None:
    """An admitted request sees its quota and short-term rate after it was counted."""
    admission = await limiter.admit(_actor(), CHAT, LIMIT)
    quota, rate = admission.states
    assert (quota.name, quota.limit, quota.remaining, quota.usage, quota.window_ms) == ("quota", 100, 99, 1, DAY_MS)
    assert quota.reset_ms == quota.more_ms == 864_000
    assert (rate.name, rate.limit, rate.remaining, rate.window_ms, rate.more_ms) == ("concurrency", 50, 49, 10_000, 200)


async def test_quota_and_rate_refuse(limiter: Limiter) -> None:
    """The limit that is used up refuses, says when to come back, and the other one is not touched."""
    tight = evolve(LIMIT, concurrent_requests=1)
    await limiter.admit(_actor(), CHAT, tight)
    with pytest.raises(LimitExceeded, match="concurrency limit of 1 requests exceeded") as refusal:
        await limiter.admit(_actor(), CHAT, tight)
    assert refusal.value.cause == "concurrency"
    assert refusal.value.retry_after_ms is not None
    assert 9_000 < refusal.value.retry_after_ms <= 10_000
    assert refusal.value.states[0].remaining == 99
    small = evolve(LIMIT, limit=1)
    await limiter.admit(_actor(), CODE, small)
    with pytest.raises(LimitExceeded, match="rate limit of 1 requests exceeded") as refusal:
        await limiter.admit(_actor(), CODE, small)
    assert (refusal.value.cause, refusal.value.refused.remaining) == ("quota", 0)
    assert refusal.value.states[1].remaining == 49


async def test_the_longer_wait_speaks(limiter: Limiter) -> None:
    """When both limits refuse, the one that keeps the caller longest is named."""
    both = evolve(LIMIT, limit=1, concurrent_requests=1)
    await limiter.admit(_actor(), CHAT, both)
    with pytest.raises(LimitExceeded) as refusal:
        await limiter.admit(_actor(), CHAT, both)
    assert refusal.value.cause == "quota"
    assert refusal.value.retry_after_ms is not None
    assert refusal.value.retry_after_ms > DAY_MS - 5_000


async def test_only_charged_requests_count(limiter: Limiter) -> None:
    """A request that is not charged gives back quota and rate, once; a charged one stays counted."""
    actor = _actor(chat_completions=LIMIT)
    kept = await limiter.admit(actor, CHAT, LIMIT)
    given_back = await limiter.admit(actor, CHAT, LIMIT)
    await limiter.settle(kept, is_charged=True)
    for _ in range(2):
        await limiter.settle(given_back, is_charged=False)
    await limiter.settle(kept, is_charged=False)
    assert (await limiter.peek(actor))[CHAT].remaining == 99
    states = (await limiter.admit(actor, CHAT, LIMIT)).states
    assert [state.remaining for state in states] == [98, 48]


async def test_peek_lists_the_quotas(limiter: Limiter) -> None:
    """Peeking consumes nothing, and leaves out what has no limit."""
    assert await limiter.peek(_actor()) == {}
    actor = _actor(embeddings=LIMIT, code_completions=evolve(LIMIT, limit=7))
    await limiter.admit(actor, CODE, actor.rate_limits[CODE])
    states = await limiter.peek(actor)
    assert [state.usage for state in (await limiter.peek(actor)).values()] == [1, 0]
    assert list(states) == [Feature.CODE_COMPLETIONS, Feature.EMBEDDINGS]
    assert [(state.limit, state.usage) for state in states.values()] == [(7, 1), (100, 0)]


@pytest.mark.parametrize("source", ["dotcom-product-subscriptions", "dotcom-user"])
async def test_limit_of_one_means_cut_off_where_abuse_handling_sets_it(limiter: Limiter, source: str) -> None:
    """From Sourcegraph.com's sources a limit of 1 admits nothing; elsewhere it admits one (see above)."""
    actor = evolve(_actor(), source=source)
    with pytest.raises(LimitExceeded) as refusal:
        await limiter.admit(actor, CHAT, evolve(LIMIT, limit=1))
    assert (refusal.value.is_cut_off, refusal.value.retry_after_ms, refusal.value.cause) == (True, None, "quota")
    assert (await limiter.admit(actor, CHAT, evolve(LIMIT, limit=2))).states[0].remaining == 1


async def test_exactly_the_limit_over_many_connections(server: RedisServer) -> None:
    """200 callers on 5 connections against a limit of 50: 50 are admitted, never 49 or 51."""
    actor, limit = _actor(), evolve(LIMIT, concurrent_requests=50, concurrent_interval_ms=DAY_MS)
    outcomes: list[bool] = []

    async def call(limiter: Limiter) -> None:
        try:
            await limiter.admit(actor, CHAT, limit)
        except LimitExceeded:
            outcomes.append(False)
        else:
            outcomes.append(True)

    async def serve() -> None:
        async with open_redis(server.url, timeout_seconds=5) as links, trio.open_nursery() as callers_nursery:
            for _ in range(40):
                callers_nursery.start_soon(call, Limiter(links))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(serve)
    assert (len(outcomes), sum(outcomes)) == (200, 50)


async def test_cancelled_admissions_leak_nothing(limiter: Limiter, links: Redis) -> None:
    """Callers who leave while they wait for Redis are not charged, wherever the answer was by then."""
    actor = _actor(chat_completions=evolve(LIMIT, concurrent_requests=1_000, limit=1_000))
    limit = actor.rate_limits[CHAT]
    admitted: list[Admission] = []

    async def call(patience_seconds: float) -> None:
        with trio.move_on_after(patience_seconds):
            admitted.append(await limiter.admit(actor, CHAT, limit))

    async with trio.open_nursery() as callers_nursery:
        for number in range(300):
            callers_nursery.start_soon(call, number * 0.00005)
    assert links.statistics().cancelled > 0
    assert (await limiter.peek(actor))[CHAT].usage == len(admitted)
    for admission in admitted:
        await limiter.settle(admission, is_charged=False)
    assert (await limiter.peek(actor))[CHAT].usage == 0
    assert await links.keys("*reservation*") == []


async def test_two_calls_an_exchange(limiter: Limiter, links: Redis) -> None:
    """One trip to admit, one to settle, once the server knows the scripts."""
    await limiter.settle(await limiter.admit(_actor(), CHAT, LIMIT), is_charged=True)
    before = links.statistics().calls
    for _ in range(10):
        await limiter.settle(await limiter.admit(_actor(), CHAT, LIMIT), is_charged=True)
    assert links.statistics().calls - before == 20


async def test_forgotten_scripts_are_sent_again(limiter: Limiter, links: Redis) -> None:
    """SCRIPT FLUSH between two calls goes unnoticed."""
    admission = await limiter.admit(_actor(), CHAT, LIMIT)
    await links.script_flush()
    await limiter.settle(admission, is_charged=False)
    assert (await limiter.admit(_actor(), CHAT, LIMIT)).states[0].remaining == 99


@pytest.mark.parametrize("name", ["a}b{c", "{}", "x:y", "käse \r\n%", ""])
async def test_odd_ids_keep_to_one_slot(limiter: Limiter, name: str) -> None:
    """Whatever an actor is called, its keys share a slot, and no other actor's keys can be meant."""
    actor = evolve(_actor(), id=name)
    admission = await limiter.admit(actor, CHAT, LIMIT)
    assert len({key_slot(key.encode()) for key in admission.keys}) == 1
    assert build_key_prefix(actor).count("{") == build_key_prefix(actor).count("}") == 1


def test_sources_and_ids_cant_be_mixed_up() -> None:
    """A colon in an id does not make it look like another source's."""
    actors = [evolve(_actor(), source="a", id="b:c"), evolve(_actor(), source="a:b", id="c")]
    assert len({build_key_prefix(actor) for actor in actors}) == 2


async def test_a_foreign_key_makes_the_limit_unavailable(limiter: Limiter, client: redis.Redis) -> None:
    """A key of another type under our name is an outage of that limit, said clearly, and of no other."""
    client.lpush("cgw:{static:acme}:chat_completions:quota", "x")
    with pytest.raises(StoreUnavailable, match="can't count this limit: WRONGTYPE"):
        await limiter.admit(_actor(), CHAT, LIMIT)
    assert (await limiter.admit(_actor(), CODE, LIMIT)).states[0].remaining == 99


async def test_settlement_survives_an_outage(tmp_path: Path) -> None:
    """A settlement that finds Redis away says so, and is made up for when it is back."""
    actor = _actor(chat_completions=LIMIT)
    with run_redis_server(tmp_path) as own:
        async with open_redis(own.url, timeout_seconds=0.1) as links:
            limiter = Limiter(links)
            admission = await limiter.admit(actor, CHAT, LIMIT)
            own.send_signal(signal.SIGSTOP)
            for _ in range(2):
                with pytest.raises(StoreUnavailable):
                    await limiter.settle(admission, is_charged=False)
            own.send_signal(signal.SIGCONT)
            await wait_until(lambda: _has_usage(limiter, actor, 0))


async def test_an_admission_lost_in_an_outage_is_given_back(tmp_path: Path) -> None:
    """A request that got no answer in time is not charged, although the server counted it later."""
    actor = _actor(chat_completions=LIMIT)
    with run_redis_server(tmp_path) as own:
        async with open_redis(own.url, timeout_seconds=0.1) as links:
            limiter = Limiter(links)
            await limiter.admit(actor, CHAT, LIMIT)
            own.send_signal(signal.SIGSTOP)
            with pytest.raises(StoreUnavailable):
                await limiter.admit(actor, CHAT, LIMIT)
            own.send_signal(signal.SIGCONT)
            await wait_until(lambda: _has_usage(limiter, actor, 1))


async def _has_usage(limiter: Limiter, actor: Actor, usage: int) -> bool:
    try:
        return (await limiter.peek(actor))[CHAT].usage == usage
    except StoreUnavailable:
        return False
