"""Pushing metrics by OTLP, to a collector or to Google Cloud Monitoring: the numbers of a scrape, every minute.

    Trio thread: Metrics.take_all() ──▶ one on its way, one waits ──▶ export thread: encode, POST

Google Cloud takes OTLP (its Telemetry API); its own exporter for Python is deprecated in favour of that.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import trio
from attrs import frozen

from cgw.lifetime import open_background_task
from cgw.telemetry.export_thread import ExportStatistics, ExportThread
from cgw.telemetry.metrics import MetricReading, Metrics
from cgw.telemetry.metrics_otlp import encode_metrics
from cgw.telemetry.metrics_settings import MetricsPushSettings
from cgw.telemetry.otlp_http import OtlpCollector
from cgw.telemetry.otlp_receivers import SCOPE, Signal, build_resource, open_collector
from cgw.telemetry.settings import OtlpSettings, TraceSettings

FLUSH_SECONDS = 3.0
"""The time that the last push may take at the end of the process."""

MAX_PENDING = 1
"""Snapshots that wait, besides the one on its way. No more are of use: counts add up, so a later one has what an
earlier one has."""

GOOGLE_URL = "https://telemetry.googleapis.com/v1/metrics"
GOOGLE_SCOPE = "https://www.googleapis.com/auth/monitoring.write"


@frozen
class _Snapshot:
    readings: Sequence[MetricReading]
    taken_at: float


class MetricsPush:
    """Takes the metrics every ``interval_seconds``, while :meth:`run` runs. Made by :func:`open_metrics_push`."""

    def __init__(self, metrics: Metrics, thread: ExportThread[_Snapshot], interval_seconds: float) -> None:
        self._metrics = metrics
        self._thread = thread
        self._interval_seconds = interval_seconds

    async def run(self) -> None:
        """Push until cancelled."""
        while True:
            await trio.sleep(self._interval_seconds)
            await self.push()

    async def push(self) -> None:
        """Have the present numbers sent; they are dropped, and that is counted, if others wait already."""
        self._thread.put(_Snapshot(await self._metrics.take_all(), time.time()))

    def statistics(self) -> ExportStatistics:
        """Return the counts since the start; the items are snapshots."""
        return self._thread.statistics()


@asynccontextmanager
async def open_metrics_push(
    metrics: Metrics,
    settings: MetricsPushSettings,
    traces: TraceSettings,
    otlp: OtlpSettings,
    *,
    environment: str,
    google_url: str = GOOGLE_URL,
) -> AsyncIterator[MetricsPush | None]:
    """Push ``metrics`` for the length of the block; yield ``None`` where no receiver is set.

    ``environment`` is an attribute of the process. At the end the last numbers are sent, for up to
    :data:`FLUSH_SECONDS`, whatever cancels the block. Raises :exc:`~cgw.errors.ConfigError`.
    """
    signal = Signal(
        "metrics", settings.endpoint, settings.headers, google_url, GOOGLE_SCOPE, off="OTEL_METRICS_EXPORTER=none"
    )
    collector = None if settings.exporter == "none" else open_collector(signal, traces, otlp)
    if collector is None:
        yield None
        return
    with collector:
        thread: ExportThread[_Snapshot] = ExportThread(
            f"metrics to {collector.name}",
            _build_export(collector, build_resource(traces, otlp, environment)),
            max_batch=1,
            max_pending=MAX_PENDING,
            gather_seconds=0,
        )
        push = MetricsPush(metrics, thread, settings.interval_seconds)
        try:
            async with open_background_task(push.run):
                yield push
        finally:
            # Shielded, or what the drain counted would be lost: nothing else carries it. Bounded by the thread's close.
            with trio.CancelScope(shield=True):
                await push.push()
                await trio.to_thread.run_sync(thread.close, FLUSH_SECONDS)


def _build_export(collector: OtlpCollector, resource: bytes) -> Callable[[Sequence[_Snapshot], float], None]:
    # Opened before anything counts, so that no count is older than the start that receivers are told.
    started_at = time.time()

    def export(batch: Sequence[_Snapshot], deadline: float) -> None:
        for snapshot in batch:
            body = encode_metrics(
                snapshot.readings, resource=resource, scope=SCOPE, started_at=started_at, taken_at=snapshot.taken_at
            )
            collector.post(body, deadline)

    return export
