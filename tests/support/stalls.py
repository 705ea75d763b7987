"""Measures how long this process was held up, for tests with time limits on a busy machine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from attrs import define

PERIOD_SECONDS = 0.005
NOTICED_SECONDS = 0.02


@define
class Stalls:
    """The sum of all delays of at least 20 ms, in which the machine was busy with something else."""

    total_seconds: float = 0.0

    async def watch(self) -> None:
        """Add up delays until cancelled."""
        while True:
            due_at = trio.current_time() + PERIOD_SECONDS
            await trio.sleep_until(due_at)
            late_seconds = trio.current_time() - due_at
            if late_seconds >= NOTICED_SECONDS:
                self.total_seconds += late_seconds


@asynccontextmanager
async def watch_stalls() -> AsyncIterator[Stalls]:
    """Measure while the block runs."""
    stalls = Stalls()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stalls.watch)
        yield stalls
        nursery.cancel_scope.cancel()
