"""Callers that use a store all the time while a drill breaks it: how long they waited, and when all was back."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from cgw.errors import StoreUnavailable
from cgw.redis.opening import LuaScript, Store, open_redis
from tests.support.redis_server import wait_until
from tests.support.stalls import watch_stalls

TIMEOUT = 0.1
GRACE = 0.15
"""What a busy machine may add before a drill fails; the promise is 20 ms, see the figures."""
BACK_SECONDS = 1.0

_WRITE = LuaScript.from_text("redis.call('SET', KEYS[1], ARGV[1]) return ARGV[1]")
_CALLERS = 8
_PAUSE_SECONDS = 0.002


class Drill:
    """Callers at work on ``redis``, and what they met."""

    def __init__(self, name: str, redis: Store, key: str) -> None:
        self.redis = redis
        self.answers = 0
        self.errors = 0
        self.longest_seconds = 0.0
        self.back_seconds = 0.0
        self._name = name
        self._key = key
        self._answered_at = [0.0] * _CALLERS
        self._wrong: list[object] = []

    async def call_all_the_time(self, caller: int) -> None:
        """One caller: each call writes a text of its own and must have that very text for an answer."""
        number = 0
        while True:
            number += 1
            text = f"{caller}-{number}"
            started = trio.current_time()
            try:
                reply = await self.redis.run_script(_WRITE, [self._key], [text])
            except StoreUnavailable:
                self.errors += 1
            else:
                self.answers += 1
                # Of a call that began before all was well nothing can be said.
                self._answered_at[caller] = started
                if reply != text.encode():
                    self._wrong.append((text, reply))
            self.longest_seconds = max(self.longest_seconds, trio.current_time() - started)
            await trio.sleep(_PAUSE_SECONDS)

    async def wait_outage(self) -> None:
        """Wait until callers are turned away."""
        errors = self.errors

        async def has_errors() -> bool:
            await trio.lowlevel.checkpoint()
            return self.errors > errors

        await wait_until(has_errors)

    async def wait_answers(self, count: int) -> None:
        """Wait until callers had so many more answers."""
        target = self.answers + count

        async def has_answers() -> bool:
            await trio.lowlevel.checkpoint()
            return self.answers >= target

        await wait_until(has_answers, seconds=20)

    async def wait_back(self, recovered_at: float | None = None) -> None:
        """Wait until all links are up and each caller had an answer to a call begun after ``recovered_at`` (now)."""
        since = trio.current_time() if recovered_at is None else recovered_at

        async def is_back() -> bool:
            await trio.lowlevel.checkpoint()
            statistics = self.redis.statistics()
            return min(self._answered_at) > since and statistics.links_up == statistics.links

        await wait_until(is_back, seconds=20)
        self.back_seconds = max(self.back_seconds, trio.current_time() - since)

    def finish(self, stalled_seconds: float) -> None:
        """Report the figures, and hold them to what is promised; ``stalled_seconds`` were the machine's."""
        statistics = self.redis.statistics()
        sys.stdout.write(
            f"\n{self._name}: longest wait {self.longest_seconds * 1000:.1f} ms of {TIMEOUT * 1000:.0f} ms, "
            f"back after {self.back_seconds * 1000:.0f} ms; {self.answers} answers, {self.errors} errors, "
            f"{statistics.reconnects} reconnects, {statistics.timeouts} timeouts\n"
        )
        assert self._wrong == []
        assert self.longest_seconds < TIMEOUT + GRACE + stalled_seconds
        assert self.back_seconds < BACK_SECONDS + GRACE + stalled_seconds


@asynccontextmanager
async def run_drill(name: str, url: str, *, key: str = "drill") -> AsyncIterator[Drill]:
    """Open the store at ``url`` with the default deadline and have it used while the block breaks and mends it."""
    async with watch_stalls() as stalls, open_redis(url, timeout_seconds=TIMEOUT) as redis:
        drill = Drill(name, redis, key)
        async with trio.open_nursery() as callers_nursery:
            for caller in range(_CALLERS):
                callers_nursery.start_soon(drill.call_all_the_time, caller)
            await drill.wait_answers(2 * _CALLERS)
            yield drill
            callers_nursery.cancel_scope.cancel()
        drill.finish(stalls.total_seconds)
