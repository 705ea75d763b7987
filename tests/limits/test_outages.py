"""Limits while Redis is away: the three policies, the settlements afterwards, and the log lines for operators."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pytest
import redis
import trio
from attrs import evolve, frozen

from cgw.errors import StoreUnavailable
from cgw.limits.limiter import Limiter
from cgw.limits.offline.outage import WhenDown
from cgw.limits.options import LimiterOptions
from cgw.limits.states import LimitExceeded
from cgw.model import Actor, Feature, LimitUnit, RateLimit
from cgw.redis.opening import open_redis
from tests.support.limits import MARKS
from tests.support.redis_server import RedisServer, run_redis_server, wait_until

CHAT = Feature.CHAT_COMPLETIONS
DAY_MS = 86_400_000
LIMIT = RateLimit(100, DAY_MS, ("*",), 50, 10_000, max_in_flight=5)
ACTOR = Actor("acme", "Acme Inc.", "static", True, {CHAT: LIMIT})
PREFIX = "cgw:{static:acme}:chat_completions:"


@frozen
class Setup:
    """A running limiter and its server."""

    limiter: Limiter
    server: RedisServer

    def stop_server(self) -> None:
        self.server.send_signal(signal.SIGSTOP)

    def continue_server(self) -> None:
        self.server.send_signal(signal.SIGCONT)

    async def is_back(self) -> bool:
        return self.limiter.outage.describe() is None

    def open_client(self) -> redis.Redis:
        return redis.Redis(unix_socket_path=str(self.server.path))


@asynccontextmanager
async def open_setup(
    folder: Path, when_down: WhenDown = "local", *, heartbeat_seconds: float = 0.2
) -> AsyncIterator[Setup]:
    with run_redis_server(folder) as server:
        async with open_redis(server.url, timeout_seconds=0.1) as links, trio.open_nursery() as nursery:
            limiter = Limiter(links, LimiterOptions(when_down=when_down, heartbeat_seconds=heartbeat_seconds))
            nursery.start_soon(limiter.run)
            yield Setup(limiter, server)
            nursery.cancel_scope.cancel()


async def run_exchange(limiter: Limiter, limit: RateLimit = LIMIT, *, is_charged: bool = True) -> bool:
    """Admit and settle one request; returns whether it was admitted."""
    try:
        admission = await limiter.admit(ACTOR, CHAT, limit)
    except LimitExceeded:
        return False
    await limiter.settle(admission, is_charged=is_charged)
    return True


async def test_local_goes_on_counting_from_what_redis_last_said(tmp_path: Path) -> None:
    """Of 10 with 4 used before the outage, 6 are admitted during it; all 10 are counted in Redis afterwards."""
    limit = evolve(LIMIT, limit=10)
    async with open_setup(tmp_path) as setup:
        for _ in range(4):
            assert await run_exchange(setup.limiter, limit)
        setup.stop_server()
        outcomes = [await run_exchange(setup.limiter, limit) for _ in range(9)]
        assert outcomes == [True] * 6 + [False] * 3
        setup.continue_server()
        await wait_until(setup.is_back, seconds=2)
        await wait_until(lambda: _has_remaining(setup, limit, 0), seconds=1)
        assert not await run_exchange(setup.limiter, limit)


async def _has_remaining(setup: Setup, limit: RateLimit, remaining: int) -> bool:
    states = await setup.limiter.peek(evolve(ACTOR, rate_limits={CHAT: limit}))
    return states[CHAT].remaining == remaining


async def test_local_holds_slots(tmp_path: Path) -> None:
    """Slots taken before and during an outage are held during it, and in Redis afterwards."""
    # Leases of 3 s: what is freed within the second that this waits was freed, and did not end by itself.
    async with open_setup(tmp_path, heartbeat_seconds=1) as setup:
        held = [await setup.limiter.admit(ACTOR, CHAT, LIMIT) for _ in range(2)]
        setup.stop_server()
        held += [await setup.limiter.admit(ACTOR, CHAT, LIMIT) for _ in range(3)]
        with pytest.raises(LimitExceeded) as refusal:
            await setup.limiter.admit(ACTOR, CHAT, LIMIT)
        assert refusal.value.cause == "in_flight"
        await setup.limiter.settle(held.pop(0), is_charged=True)
        setup.continue_server()
        await wait_until(setup.is_back, seconds=2)
        with setup.open_client() as client:
            await wait_until(lambda: _counts(client, 4))
            for admission in held:
                await setup.limiter.settle(admission, is_charged=True)
            await wait_until(lambda: _counts(client, 0), seconds=1)


async def _counts(client: redis.Redis, slots: int) -> bool:
    await trio.lowlevel.checkpoint()
    return client.zcard(f"{PREFIX}in_flight") == slots


async def test_open_admits_all_and_charges_afterwards(tmp_path: Path) -> None:
    """All requests are admitted, without states of limits, and the usage is charged when Redis is back."""
    limit = evolve(LIMIT, limit=10)
    async with open_setup(tmp_path, "open") as setup:
        assert await run_exchange(setup.limiter, limit)
        setup.stop_server()
        admission = await setup.limiter.admit(ACTOR, CHAT, limit)
        assert admission.states == ()
        for _ in range(2):
            await setup.limiter.settle(admission, is_charged=True)
        assert all([await run_exchange(setup.limiter, limit) for _ in range(5)])
        assert await run_exchange(setup.limiter, limit, is_charged=False)
        setup.continue_server()
        await wait_until(setup.is_back, seconds=2)
        await wait_until(lambda: _has_remaining(setup, limit, 3), seconds=1)


async def test_closed_refuses_all(tmp_path: Path) -> None:
    """Every request is refused as long as Redis is away, and none afterwards."""
    async with open_setup(tmp_path, "closed") as setup:
        assert not setup.limiter.serves_without_redis
        setup.stop_server()
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                await setup.limiter.admit(ACTOR, CHAT, LIMIT)
        with pytest.raises(StoreUnavailable):
            await setup.limiter.peek(ACTOR)
        setup.continue_server()
        await wait_until(setup.is_back, seconds=2)
        await wait_until(lambda: _has_remaining(setup, LIMIT, 100), seconds=1)
        assert await run_exchange(setup.limiter)


async def test_tokens_are_charged_by_usage(tmp_path: Path) -> None:
    """The real usage counts, in this process during the outage and in Redis after it."""
    limit = evolve(LIMIT, limit=1_000, unit=LimitUnit.TOKENS)
    async with open_setup(tmp_path) as setup:
        setup.stop_server()
        for used in (100, 300):
            admission = await setup.limiter.admit(ACTOR, CHAT, limit, tokens=500)
            await setup.limiter.settle(admission, is_charged=True, tokens=used)
        assert await _has_remaining(setup, limit, 600)
        setup.continue_server()
        await wait_until(setup.is_back, seconds=2)
        await wait_until(lambda: _has_remaining(setup, limit, 600), seconds=1)


async def test_a_settlement_that_failed_is_sent_later(tmp_path: Path) -> None:
    """A request admitted before the outage and ended during it is settled afterwards, once."""
    async with open_setup(tmp_path) as setup:
        kept, given_back = [await setup.limiter.admit(ACTOR, CHAT, LIMIT) for _ in range(2)]
        setup.stop_server()
        await setup.limiter.settle(given_back, is_charged=False)
        await setup.limiter.settle(kept, is_charged=True)
        setup.continue_server()
        await wait_until(setup.is_back, seconds=2)
        await wait_until(lambda: _has_remaining(setup, LIMIT, 99), seconds=1)
        with setup.open_client() as client:
            await wait_until(lambda: _counts(client, 0))
            records = cast(list[bytes], client.keys("*reservation*"))
            assert all(client.get(key) in MARKS for key in records)


async def test_a_server_that_takes_no_writes_is_away(tmp_path: Path) -> None:
    """A full server, which answers a PING, still counts as away."""
    async with open_setup(tmp_path) as setup:
        with setup.open_client() as client:
            assert await run_exchange(setup.limiter)
            client.config_set("maxmemory", "1")
            assert await run_exchange(setup.limiter)
            await trio.sleep(1.2)
            assert setup.limiter.outage.describe() is not None
            client.config_set("maxmemory", "0")
            await wait_until(setup.is_back, seconds=2)
            await wait_until(lambda: _has_remaining(setup, LIMIT, 98), seconds=1)


async def test_an_outage_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An outage is one line when it begins and one when it ends, and a sentence for healthz in between."""
    async with open_setup(tmp_path) as setup:
        setup.stop_server()
        for _ in range(10):
            await run_exchange(setup.limiter)
        assert "limits are held in this process alone" in (setup.limiter.outage.describe() or "")
        setup.continue_server()
        await wait_until(setup.is_back, seconds=2)
        await run_exchange(setup.limiter)
    lines = [record.getMessage() for record in caplog.records if record.name == "cgw.limits"]
    assert len(lines) == 2
    assert lines[0].startswith("Redis is unavailable")
    assert lines[1].startswith("Redis is back")


async def test_a_server_that_restarted_empty_gets_the_slots_again(tmp_path: Path) -> None:
    """After a restart without data, the next heartbeat takes the leases of requests in flight again."""
    async with open_setup(tmp_path) as setup:
        admission = await setup.limiter.admit(ACTOR, CHAT, LIMIT)
        with setup.open_client() as client:
            client.flushall()
            assert client.zcard(f"{PREFIX}in_flight") == 0
            await wait_until(lambda: _counts(client, 1))
            await setup.limiter.settle(admission, is_charged=True)
            await wait_until(lambda: _counts(client, 0))
