"""The process that records, and ships, usage events: ``python recorder.py ORDER``, with any checkout's cgw on the path.

It imports nothing of the suite, so that an earlier cgw can be measured with it. ``ORDER`` is JSON; the report is one
line of JSON. Each event is built as a gateway builds it, with as many of the exchange's figures as that cgw takes.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import trio

import cgw
from cgw.events.event_log import EventLog, open_event_log
from cgw.events.records import completions_finished
from cgw.model import Actor, Feature, Usage, UsageEvent, UsageQuality

EVENTS_PER_TURN = 10
"""Events that are recorded before other tasks get their turn."""
SHIP_SECONDS = 60.0
"""How long shipping the rest may take."""

EXCHANGE: dict[str, Any] = {
    "trace_id": "0af7651916cd43dd8448eb211c80319c",
    "outcome": "completed",
    "started_at": 1795600799.251,
    "ended_at": 1795600801.874,
    "request_bytes": 1834,
    "response_bytes": 20_716,
    "response_chunks": 112,
    "time_to_first_byte_ms": 411.386,
    "overhead_ms": 0.412,
}


def build_builder() -> Callable[[], UsageEvent]:
    """Return a function that builds an event."""
    actor = Actor(id="benchmarks", name="Benchmarks", source="static", access_enabled=True)
    usage = Usage(1210, 342, 4711, 1288, UsageQuality.EXACT)
    metadata = {"stream": True, "max_tokens": 4000}
    exchange: dict[str, Any] = {}
    with suppress(ImportError):  # in earlier checkouts, an event says nothing of its exchange
        from cgw.events.records import build_exchanged

        exchange["exchange"] = build_exchanged(**EXCHANGE)

    def build() -> UsageEvent:
        return completions_finished(
            actor,
            feature=Feature.CHAT_COMPLETIONS,
            model="anthropic/claude-3-5-sonnet-20240620",
            provider="anthropic",
            usage=usage,
            resolved_status=200,
            upstream_status=200,
            upstream_request_duration_ms=2620,
            metadata=metadata,
            **exchange,
        )

    return build


class Recording:
    """Records at a rate, or without a pause, and keeps the time that each event takes while the window is open."""

    def __init__(self, event_log: EventLog, rate: int) -> None:
        self._event_log = event_log
        self._rate = rate
        self._build = build_builder()
        self.is_open = False
        self.recorded = 0
        self.in_window = 0
        self.nanoseconds: Counter[int] = Counter()

    async def run(self) -> None:
        """Record until cancelled."""
        started, turns = trio.current_time(), 0
        while True:
            self._record_some()
            turns += 1
            if self._rate:
                # On schedule, whatever the last turn took.
                await trio.sleep_until(started + turns * EVENTS_PER_TURN / self._rate)
            else:
                await trio.lowlevel.checkpoint()
            if self._event_log.must_wait:
                await self._event_log.wait_durable()

    def _record_some(self) -> None:
        for _ in range(EVENTS_PER_TURN):
            began = time.perf_counter_ns()
            self._event_log.record(self._build())
            took = time.perf_counter_ns() - began
            if self.is_open:
                self.nanoseconds[took] += 1
        self.recorded += EVENTS_PER_TURN
        self.in_window += EVENTS_PER_TURN * self.is_open


@asynccontextmanager
async def open_shipped(event_log: EventLog, url: str) -> AsyncIterator[Callable[[], int]]:
    """Ship to ``url`` with a gateway's own options, or nowhere; yield a function that tells how many are shipped."""
    if not url:
        yield lambda: 0
        return
    # An earlier cgw has none of these.
    import ssl

    from cgw.config.kinds import Secret
    from cgw.events.settings import HttpSinkSettings, ShippingSettings
    from cgw.events.shipping.shipping import open_shipping
    from cgw.events.sinks.http import open_http_sink
    from cgw.events.sinks.registry import SINKS, build_options

    (kind,) = (kind for kind in SINKS if kind.name == "http")
    options = build_options(kind, ShippingSettings())
    async with (
        open_http_sink(HttpSinkSettings(url=Secret(url)), ssl.create_default_context()) as sink,
        open_shipping(event_log, [(sink, options)], drain_timeout_seconds=5.0) as shipping,
    ):
        yield lambda: shipping.statistics()[0].shipped


async def record_events(order: dict[str, Any]) -> dict[str, Any]:
    """Follow an order, and return the report."""
    if not Path(cgw.__file__).is_relative_to(order["checkout"]):
        raise SystemExit(f"there is no cgw in {order['checkout']}: {cgw.__file__} would be measured")
    async with (
        open_event_log(Path(order["folder"])) as event_log,
        open_shipped(event_log, order["url"]) as count_shipped,
    ):
        recording = Recording(event_log, order["rate"])
        began = time.perf_counter()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(recording.run)
            await trio.sleep(order["warm_ms"] / 1000)
            recording.is_open = True
            opened, cpu = time.perf_counter_ns(), time.process_time_ns()
            await trio.sleep(order["window_ms"] / 1000)
            closed, cpu = time.perf_counter_ns(), time.process_time_ns() - cpu
            recording.is_open = False
            nursery.cancel_scope.cancel()
        shipped_seconds = 0.0
        if order["url"]:
            with trio.fail_after(SHIP_SECONDS):
                while count_shipped() < recording.recorded:  # noqa: ASYNC110 - nothing is set when it is
                    await trio.sleep(0.005)
            shipped_seconds = time.perf_counter() - began
        return {
            "window_ns": closed - opened,
            "cpu_ns": cpu,
            "recorded": recording.recorded,
            "in_window": recording.in_window,
            "shipped_seconds": shipped_seconds,
            "nanoseconds": sorted(recording.nanoseconds.items()),
        }


if __name__ == "__main__":
    print(json.dumps(trio.run(record_events, json.loads(sys.argv[1]))), flush=True)
