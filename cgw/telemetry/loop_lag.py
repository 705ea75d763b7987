"""A sampler of the event loop's lag: how late a task runs that is due."""

from __future__ import annotations

from collections.abc import Iterator

import trio

from cgw.telemetry.metrics import Histogram, MetricReading
from cgw.telemetry.metrics_catalogue import LOOP_LAG

SAMPLE_SECONDS = 0.25
"""Four wake-ups a second, at some 40 µs, are 0.02 % of a core; a stall of 250 ms and more is always seen."""


class LoopLag:
    """Samples while :meth:`run` runs."""

    def __init__(self) -> None:
        self._histogram = Histogram(LOOP_LAG)
        self._observe = self._histogram.find().observe

    async def run(self) -> None:
        """Sample until cancelled."""
        while True:
            due = trio.current_time() + SAMPLE_SECONDS
            await trio.sleep_until(due)
            self._observe(trio.current_time() - due)

    def read(self) -> Iterator[MetricReading]:
        """Return the readings."""
        return self._histogram.read()
