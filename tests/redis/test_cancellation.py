"""The shared link under cancellation: right replies, no call left over, abandoned calls undone."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import trio

from cgw.redis.opening import LuaScript, ScriptCall, Store, open_redis
from tests.support.redis_server import RedisServer, run_redis_server, wait_until

PATIENT = 5.0
"""The deadline in tests that are not about deadlines: long, so that a busy machine does not fail them."""

MARK = LuaScript.from_text("redis.call('SET', KEYS[1], ARGV[1]) return 1")
UNMARK = LuaScript.from_text("return redis.call('DEL', KEYS[1])")
TAKE = LuaScript.from_text(
    "if redis.call('SADD', KEYS[1], ARGV[1]) == 1 then redis.call('INCR', KEYS[2]) end return ARGV[1]"
)
GIVE_BACK = LuaScript.from_text(
    "if redis.call('SREM', KEYS[1], ARGV[1]) == 1 then redis.call('DECR', KEYS[2]) end return ARGV[1]"
)

FUZZ_CALLS = int(os.environ.get("CGW_FUZZ_CALLS", "500"))
"""Calls per task of the cancellation tests: 10,000 for the full size."""
FUZZ_TASKS = 40


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server of the test's own."""
    with run_redis_server(tmp_path) as server:
        yield server


async def _is_quiet(redis: Store) -> bool:
    await trio.lowlevel.checkpoint()
    return redis.statistics().waiting_calls == 0


async def _run_fuzz(call: Callable[[str], Awaitable[object]], redis: Store) -> int:
    """Run ``call`` from all tasks with unique texts, cancelled at random; return the number of replies."""
    answered = 0

    async def repeat(task: int) -> None:
        nonlocal answered
        dice = random.Random(task)
        for number in range(FUZZ_CALLS):
            text = f"{task}-{number}"
            with trio.CancelScope() as client_scope:
                if dice.random() < 0.5:
                    client_scope.deadline = trio.current_time() + dice.random() * 0.002
                assert await call(text) == text.encode()
                answered += 1

    async with trio.open_nursery() as callers_nursery:
        for task in range(FUZZ_TASKS):
            callers_nursery.start_soon(repeat, task)
    await wait_until(lambda: _is_quiet(redis))
    statistics = redis.statistics()
    assert statistics.cancelled > 0
    assert (statistics.reconnects, statistics.timeouts, statistics.failed_fast, statistics.kept_calls) == (0, 0, 0, 0)
    sys.stdout.write(f"\n{FUZZ_TASKS} x {FUZZ_CALLS} calls: {answered} answered, {statistics.cancelled} cancelled\n")
    return answered


async def test_replies_reach_their_own_callers_under_cancellation(server: RedisServer) -> None:
    """40 tasks, cancelled at random moments, never get another task's reply, and the link stays up."""
    async with open_redis(server.url, timeout_seconds=PATIENT) as redis:
        await _run_fuzz(redis.commands.echo, redis)


async def test_cancelled_takes_are_given_back(server: RedisServer) -> None:
    """40 tasks take by script, cancelled at random: exactly the takes that had a reply remain."""
    async with open_redis(server.url, timeout_seconds=PATIENT) as redis:

        async def take(text: str) -> object:
            undo = ScriptCall(GIVE_BACK, ["taken", "count"], [text])
            return await redis.run_script(TAKE, ["taken", "count"], [text], undo=undo)

        answered = await _run_fuzz(take, redis)
        assert int(await redis.commands.get("count") or 0) == await redis.commands.scard("taken") == answered


async def test_cancelled_before_the_call_sends_nothing(server: RedisServer) -> None:
    """A call in a scope that is already cancelled changes nothing on the server."""
    async with open_redis(server.url, timeout_seconds=PATIENT) as redis:
        with trio.CancelScope() as client_scope:
            client_scope.cancel()
            await redis.commands.set("touched", 1)
        assert client_scope.cancelled_caught
        assert await redis.commands.get("touched") is None


async def test_undo_follows_a_cancelled_call(server: RedisServer) -> None:
    """The effect of a cancelled caller's script is undone on the same link, right behind it."""
    async with open_redis(server.url, timeout_seconds=PATIENT) as redis:
        undo = ScriptCall(UNMARK, ["mark"], [])
        for _ in range(20):
            with trio.CancelScope() as client_scope:

                async def leave(scope: trio.CancelScope = client_scope) -> None:
                    await trio.lowlevel.checkpoint()
                    scope.cancel()

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(leave)
                    await redis.run_script(MARK, ["mark"], [1], undo=undo)
                    nursery.cancel_scope.cancel()
        await redis.commands.set("mark", "last")  # a round trip, so that all earlier commands have been executed
        await redis.commands.delete("mark")
        assert redis.statistics().kept_calls == 0
