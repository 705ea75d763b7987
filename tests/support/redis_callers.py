"""Callers that use a store without pause while a drill makes it fail: how long they wait, and when they recover."""

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
"""The most that a busy machine may add before a drill fails; the promise is 20 ms, see the printed figures."""
BACK_SECONDS = 1.0

_WRITE = LuaScript.from_text("redis.call('SET', KEYS[1], ARGV[1]) return ARGV[1]")
_CALLERS = 8
_PAUSE_SECONDS = 0.002


class CallerDrill:
    """Callers of ``redis``, their replies and errors."""

    def __init__(self, name: str, redis: Store, key: str, timeout_seconds: float) -> None:
        self.redis = redis
        self.timeout_seconds = timeout_seconds
        self.answers = 0
        self.errors = 0
        self.longest_seconds = 0.0
        self.back_seconds = 0.0
        self._name = name
        self._key = key
        self._answered_at = [0.0] * _CALLERS
        self._wrong: list[object] = []

    async def call_repeatedly(self, caller: int) -> None:
        """Run one caller: each call writes a unique text and must have the same text as reply."""
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
                # When the call began, not when it ended: wait_back asks for calls that began after the recovery.
                self._answered_at[caller] = started
                if reply != text.encode():
                    self._wrong.append((text, reply))
            self.longest_seconds = max(self.longest_seconds, trio.current_time() - started)
            await trio.sleep(_PAUSE_SECONDS)

    async def wait_outage(self) -> None:
        """Wait until calls fail."""
        errors = self.errors

        async def has_errors() -> bool:
            await trio.lowlevel.checkpoint()
            return self.errors > errors

        await wait_until(has_errors)

    async def wait_answers(self, count: int) -> None:
        """Wait for ``count`` more replies."""
        target = self.answers + count

        async def has_answers() -> bool:
            await trio.lowlevel.checkpoint()
            return self.answers >= target

        await wait_until(has_answers, seconds=20)

    async def wait_back(self, recovered_at: float | None = None) -> None:
        """Wait until all links are up and each caller had a reply to a call begun after ``recovered_at`` (now)."""
        since = trio.current_time() if recovered_at is None else recovered_at

        async def is_back() -> bool:
            await trio.lowlevel.checkpoint()
            statistics = self.redis.statistics()
            return min(self._answered_at) > since and statistics.links_up == statistics.links

        await wait_until(is_back, seconds=20)
        self.back_seconds = max(self.back_seconds, trio.current_time() - since)

    def finish(self, stalled_seconds: float) -> None:
        """Print the figures and check them; ``stalled_seconds`` of the waits were stalls of this process."""
        statistics = self.redis.statistics()
        sys.stdout.write(
            f"\n{self._name}: longest wait {self.longest_seconds * 1000:.1f} ms "
            f"of {self.timeout_seconds * 1000:.0f} ms, back after {self.back_seconds * 1000:.0f} ms; "
            f"{self.answers} answers, {self.errors} errors, "
            f"{statistics.reconnects} reconnects, {statistics.timeouts} timeouts\n"
        )
        assert self._wrong == []
        assert self.longest_seconds < self.timeout_seconds + GRACE + stalled_seconds
        assert self.back_seconds < BACK_SECONDS + GRACE + stalled_seconds


@asynccontextmanager
async def run_caller_drill(
    name: str, url: str, *, key: str = "drill", timeout_seconds: float = TIMEOUT
) -> AsyncIterator[CallerDrill]:
    """Open the store at ``url`` with a short deadline and call it while the block makes it fail and recover."""
    async with watch_stalls() as stalls, open_redis(url, timeout_seconds=timeout_seconds) as redis:
        drill = CallerDrill(name, redis, key, timeout_seconds)
        async with trio.open_nursery() as callers_nursery:
            for caller in range(_CALLERS):
                callers_nursery.start_soon(drill.call_repeatedly, caller)
            await drill.wait_answers(2 * _CALLERS)
            yield drill
            callers_nursery.cancel_scope.cancel()
        drill.finish(stalls.total_seconds)
