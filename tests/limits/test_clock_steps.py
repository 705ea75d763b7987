"""Slots in flight while the wall clock of the Redis server is set."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import redis
import trio
import trio.testing
from attrs import evolve

from cgw.limits import limiter as limiting
from cgw.limits.clock_steps import ClockSteps
from cgw.limits.limiter import Limiter
from cgw.limits.scripts import LimitScripts, load_scripts
from cgw.limits.states import LimitExceeded
from cgw.model import Actor, Feature, RateLimit
from cgw.redis.opening import LuaScript, Store, open_redis
from tests.support.redis_server import RedisServer, wait_until

CHAT = Feature.CHAT_COMPLETIONS
LIMIT = RateLimit(100, 86_400_000, ("*",), 50, 10_000, max_in_flight=3)
ACTOR = Actor("acme", "Acme Inc.", "static", True, {CHAT: LIMIT})
KEY = "cgw:{static:acme}:chat_completions:in_flight"
STEP = "test:step"
HOUR = 3_600


def set_clock_by_key() -> LimitScripts:
    """Return the shipped scripts, whose clock is the server's and what was set in :data:`STEP`, in seconds."""

    def replace(script: LuaScript) -> LuaScript:
        old, new = "return time[1] * 1000", f"return (time[1] + (call('GET', '{STEP}') or 0)) * 1000"
        assert script.text.count(old) == 1
        return LuaScript.from_text(script.text.replace(old, new))

    return LimitScripts(*map(replace, load_scripts().list_all()))


@pytest.fixture
async def links(server: RedisServer) -> AsyncIterator[Store]:
    """Return links to the emptied server."""
    async with open_redis(server.url, timeout_seconds=2) as connected:
        yield connected


async def is_refused(limiter: Limiter) -> bool:
    try:
        admission = await limiter.admit(ACTOR, CHAT, LIMIT)
    except LimitExceeded:
        return True
    await limiter.settle(admission, is_charged=False)
    return False


async def has_renewed(client: redis.Redis, step_seconds: int, count: int) -> bool:
    """Return whether ``count`` leases end within one lease from now, by the clock after the step."""
    await trio.lowlevel.checkpoint()
    now_ms = (client.time()[0] + step_seconds) * 1000
    return client.zcard(KEY) == client.zcount(KEY, now_ms, now_ms + 31_000) == count


@pytest.mark.parametrize("is_expired", [False, True])
@pytest.mark.parametrize("seconds", [HOUR, -HOUR])
async def test_slots_survive_a_step_of_the_wall_clock(
    links: Store, client: redis.Redis, monkeypatch: pytest.MonkeyPatch, seconds: int, is_expired: bool
) -> None:
    """After a step, in both directions, requests in flight have their slots again long before the next heartbeat."""
    monkeypatch.setattr(limiting, "load_scripts", set_clock_by_key)
    async with trio.open_nursery() as nursery:
        limiter = Limiter(links)  # with a heartbeat every 10 s
        nursery.start_soon(limiter.run)
        held = [await limiter.admit(ACTOR, CHAT, LIMIT) for _ in range(3)]
        assert await is_refused(limiter)
        await limiter.settle(held.pop(), is_charged=True)
        client.set(STEP, seconds)
        if is_expired:
            client.delete(KEY)  # the server's own expiry is by the wall clock, too
        # The first admission tells of the step; it may be one too many.
        held.append(await limiter.admit(ACTOR, CHAT, evolve(LIMIT, max_in_flight=4)))
        await wait_until(lambda: has_renewed(client, seconds, 3))
        assert await is_refused(limiter)
        for admission in held:
            await limiter.settle(admission, is_charged=True)
        assert client.zcard(KEY) == 0
        nursery.cancel_scope.cancel()


async def test_only_a_jump_is_a_step(autojump_clock: trio.testing.MockClock) -> None:
    """Late answers, and a clock that runs a little fast, are no steps; each jump is one, in both directions."""
    steps = ClockSteps(10)

    async def count_step() -> bool:
        with trio.move_on_after(0.001):
            await steps.wait_step()
            return True
        return False

    start = 1_800_000_000_000
    steps.note(start)
    assert not await count_step()
    await trio.sleep(5)
    steps.note(start + 5_000 - 200)
    assert not await count_step()
    steps.note(start + 5_000 + 11_000)
    assert await count_step()
    assert not await count_step()
    steps.note(start)
    assert await count_step()
