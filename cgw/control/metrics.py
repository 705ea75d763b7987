"""``/-/metrics``: a scrape, in Prometheus' text format or in OpenMetrics."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio
from attrs import frozen

from cgw.control.responses import ControlResponse
from cgw.telemetry.metrics import MetricReading

FRESH_SECONDS = 1.0
"""The time for which a scrape is answered again: a flood of them, or several scrapers, cost one rendering a second."""


@frozen
class _Scrape:
    expires_at: float
    response: ControlResponse


class MetricsRoute:
    """Answers scrapes. At most one of each format is rendered at a time, in a thread; others wait for it."""

    def __init__(self, take_all: Callable[[], Awaitable[list[MetricReading]]]) -> None:
        """``take_all`` returns the readings of what a scrape shows, and never raises."""
        self._take_all = take_all
        self._lock = trio.Lock()
        self._limiter = trio.CapacityLimiter(1)
        self._scrapes: dict[bool, _Scrape] = {}

    async def answer(self, accept: str) -> ControlResponse:
        """Return a scrape that is at most :data:`FRESH_SECONDS` old, in the format that ``accept`` asks for.

        The Trio thread only copies numbers, which takes about a millisecond. Cancel-safe.
        """
        is_openmetrics = prefers_openmetrics(accept)
        async with self._lock:
            scrape = self._scrapes.get(is_openmetrics)
            if scrape is None or trio.current_time() >= scrape.expires_at:
                scrape = self._scrapes[is_openmetrics] = await self._scrape(is_openmetrics=is_openmetrics)
        return scrape.response

    async def _scrape(self, *, is_openmetrics: bool) -> _Scrape:
        expires_at = trio.current_time() + FRESH_SECONDS
        readings = await self._take_all()
        # Not in the Trio thread: it takes some 20 ms.
        response = await trio.to_thread.run_sync(
            _render, readings, is_openmetrics, abandon_on_cancel=True, limiter=self._limiter
        )
        return _Scrape(expires_at, response)


def prefers_openmetrics(accept: str) -> bool:
    """Return whether an ``Accept`` field asks for OpenMetrics, as Prometheus does: listed, and not refused (q=0)."""
    for item in accept.lower().split(","):
        media_type, *parameters = (part.strip() for part in item.split(";"))
        if media_type == "application/openmetrics-text":
            return not any(parameter in ("q=0", "q=0.0", "q=0.00", "q=0.000") for parameter in parameters)
    return False


def _render(readings: list[MetricReading], is_openmetrics: bool) -> ControlResponse:
    # Imported by the first scrape, here in its thread: prometheus_client takes 60 ms.
    from cgw.telemetry.metrics_text import OPENMETRICS_TYPE, TEXT_TYPE, render_metrics

    body = render_metrics(readings, is_openmetrics=is_openmetrics)
    content_type = OPENMETRICS_TYPE if is_openmetrics else TEXT_TYPE
    return ControlResponse(200, ((b"content-type", content_type.encode("ascii")),), body)
