"""Counts of requests to upstreams that are wanted while they run: records of exchanges come only at their end."""

from __future__ import annotations

from collections.abc import Iterator

from cgw.model import Feature
from cgw.telemetry.metrics import Count, CountSet, MetricReading
from cgw.telemetry.metrics_exchanges import CONCURRENT, TRACED
from cgw.wire.messages import RequestHead


class UpstreamCounts:
    """Exchanges whose upstream is at work, and requests that Fireworks is asked to trace (the reference's §6.7)."""

    def __init__(self) -> None:
        self._concurrent = CountSet(CONCURRENT)
        self._counts: dict[tuple[str, Feature], Count] = {}  # the same, without asking for a feature's value each time
        self._traced = 0

    def begin(self, provider: str, feature: Feature, head: RequestHead) -> Count:
        """Note that an upstream is at work on the request with this head; return the count to lower in the end.

        A request that asks Fireworks for a trace is counted, too.
        """
        if provider == "fireworks" and head.header(b"x-fireworks-genie") == b"true":
            self._traced += 1
        count = self._counts.get((provider, feature)) or self._add(provider, feature)
        count.value += 1
        return count

    def _add(self, provider: str, feature: Feature) -> Count:
        count = self._counts[provider, feature] = self._concurrent.find(provider, feature.value)
        return count

    def read(self) -> Iterator[MetricReading]:
        """Return the readings."""
        yield from self._concurrent.read()
        yield TRACED.read(self._traced)
