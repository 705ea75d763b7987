"""The cost of calls of Redis in counts that do not vary: turns of tasks and of Trio's loop, system calls.

Each bound is the count that was measured when it was set.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from cgw.actors.policies import POLICIES
from cgw.limits.limiter import Limiter
from cgw.limits.options import LimiterOptions
from cgw.model import Actor, Feature, RateLimit
from cgw.redis.link import GATHER_SECONDS
from cgw.redis.opening import LuaScript, Store, open_redis
from tests.support.counting import CallCounter, StepCounter
from tests.support.redis_server import run_redis_server

CALLS = 50
FEATURE = Feature.CHAT_COMPLETIONS
ECHO = LuaScript.from_text("return ARGV[1]")


@pytest.fixture
async def redis(tmp_path: Path) -> AsyncIterator[Store]:
    """Return a store with one server of the test's own, which has the script already."""
    with run_redis_server(tmp_path) as server:
        async with open_redis(server.url, timeout_seconds=5) as redis:
            await redis.run_script(ECHO, ["k"], ["x"])
            yield redis


@pytest.fixture
def steps() -> StepCounter:
    """Return a counter of turns."""
    return StepCounter()


async def test_call_on_an_idle_link(redis: Store, steps: StepCounter) -> None:
    """A call wakes the reader and its caller, once each, for one write and one read."""
    calls = CallCounter()
    trio.lowlevel.add_instrument(steps)
    steps.is_on = True
    with calls.count():
        for _ in range(CALLS):
            await redis.run_script(ECHO, ["k"], ["x"])
    trio.lowlevel.remove_instrument(steps)
    # The caller is this test. Its first turn began before counting.
    assert sum(steps.steps.values()) <= 2 * CALLS + 2, steps.steps
    assert steps.steps["_read"] == CALLS
    assert steps.steps["_write"] == 0
    counted = {name: calls.calls[name] for name in ("posix.write", "posix.read", "epoll.register")}
    assert counted == {"posix.write": CALLS, "posix.read": CALLS, "epoll.register": 0}, calls.calls


async def test_burst_shares_writes(redis: Store) -> None:
    """Calls that begin together leave in few writes, and their replies are read in few reads."""
    calls = CallCounter()

    async def call() -> None:
        assert await redis.run_script(ECHO, ["k"], ["x"]) == b"x"

    with calls.count():
        async with trio.open_nursery() as nursery:
            for _ in range(CALLS):
                nursery.start_soon(call)
    # The first at once, then 16 at a time, then the rest.
    assert calls.calls["posix.write"] <= 5
    assert calls.calls["posix.read"] <= 10


async def test_admission_and_posted_charge(redis: Store, steps: StepCounter) -> None:
    """An admission is one write and one read, and wakes the reader and the caller once each; charges go along."""
    limits = RateLimit(10_000, 86_400_000, ("*",), 10_000, 10_000)
    actor = Actor("acme", "Acme Inc.", "static", True, {FEATURE: limits}, policy=POLICIES["static"])
    limiter = Limiter(redis, LimiterOptions(notify_thresholds=(90, 95, 100)))

    async def run_pair() -> None:
        admission = await limiter.admit(actor, FEATURE, limits)
        limiter.settle_later(admission, is_charged=True)

    await run_pair()
    await redis.execute_command("CONFIG", "RESETSTAT")
    calls = CallCounter()
    trio.lowlevel.add_instrument(steps)
    steps.is_on = True
    began_at = trio.current_time()
    with calls.count():
        for _ in range(CALLS):
            await run_pair()
    trio.lowlevel.remove_instrument(steps)
    # The charges leave once for each of these times, and at the end with another call.
    deletions = (trio.current_time() - began_at) / GATHER_SECONDS + 2
    await trio.sleep(GATHER_SECONDS)
    info = await redis.execute_command("INFO", "commandstats")
    commands = {name.decode(): int(count) for name, count in re.findall(rb"cmdstat_([^:]+):calls=(\d+)", info)}
    # On a machine that stalls, the 100 ms of a postponed charge may pass before the next admission.
    stalls = steps.steps["_keep_sending_postponed"]
    assert calls.calls["posix.write"] <= CALLS + stalls
    assert sum(steps.steps.values()) <= 2 * (CALLS + stalls) + 4, steps.steps
    assert steps.steps["_write"] == 0
    # Calls of cgw's functions, a coroutine's turns counted one by one.
    own = sum(count for name, count in calls.calls.items() if name.startswith("cgw."))
    assert own <= 24 * CALLS + 20 * (deletions + stalls), calls.calls
    assert commands["evalsha"] == CALLS
    assert commands["del"] <= deletions
    # In admit.lua: both buckets are read and written, the record is written, the clock is read.
    assert (commands["get"], commands["set"], commands["time"]) == (2 * CALLS, 3 * CALLS, CALLS)
