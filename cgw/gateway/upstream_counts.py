"""Counts of requests to upstreams that are wanted while they run: records of exchanges come only at their end."""

from __future__ import annotations

from collections.abc import Iterator

from cgw.model import Feature
from cgw.telemetry.metrics import CountSet, MetricReading
from cgw.telemetry.metrics_exchanges import CONCURRENT, TRACED
from cgw.wire.messages import RequestHead


class UpstreamCounts:
    """Exchanges whose upstream is at work, and requests that Fireworks is asked to trace (the reference's §6.7)."""

    def __init__(self) -> None:
        self.concurrent = CountSet(CONCURRENT)
        self._traced = 0

    def change(self, provider: str, feature: Feature, by: int) -> None:
        """Note that an upstream is at work (1), or no longer (−1)."""
        self.concurrent.find(provider, feature.value).value += by

    def note_traced(self, provider: str, head: RequestHead) -> None:
        """Count the request with this head if it asks Fireworks for a trace."""
        if provider == "fireworks" and head.header(b"x-fireworks-genie") == b"true":
            self._traced += 1

    def read(self) -> Iterator[MetricReading]:
        """Return the readings."""
        yield from self.concurrent.read()
        yield TRACED.read(self._traced)
