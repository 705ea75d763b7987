"""Pushing metrics by OTLP, to a collector or to Google Cloud Monitoring: the numbers of a scrape, every minute.

    Trio thread: Metrics.take_all() ──▶ one on its way, one waits ──▶ export thread: encode, POST

Google Cloud takes OTLP (its Telemetry API); its own exporter for Python is deprecated in favour of that.
"""

from __future__ import annotations

import logging
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import trio
from attrs import frozen

from cgw import __version__
from cgw.errors import ConfigError
from cgw.lifetime import open_background_task
from cgw.telemetry.export_thread import ExportStatistics, ExportThread
from cgw.telemetry.google_credentials import build_google_authorization, has_google_auth
from cgw.telemetry.metrics import Metrics, Reading
from cgw.telemetry.metrics_otlp import encode_metrics
from cgw.telemetry.metrics_settings import MetricsPushSettings
from cgw.telemetry.otlp_http import OtlpCollector
from cgw.telemetry.otlp_wire import encode_attributes, encode_text
from cgw.telemetry.settings import OtlpSettings, TraceSettings, parse_pairs

FLUSH_SECONDS = 3.0
"""The time that the last push may take at the end of the process."""

MAX_PENDING = 1
"""Snapshots that wait, besides the one on its way. No more are of use: counts add up, so a later one has what an
earlier one has."""

GOOGLE_URL = "https://telemetry.googleapis.com/v1/metrics"
GOOGLE_SCOPE = "https://www.googleapis.com/auth/monitoring.write"

logger = logging.getLogger("cgw.metrics")


@frozen
class _Snapshot:
    readings: Sequence[Reading]
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
    collector = None if settings.exporter == "none" else _open_collector(settings, traces, otlp, google_url)
    if collector is None:
        yield None
        return
    with collector:
        thread: ExportThread[_Snapshot] = ExportThread(
            f"metrics to {collector.name}",
            _build_export(collector, _build_resource(traces, otlp, environment)),
            max_batch=1,
            max_pending=MAX_PENDING,
            gather_seconds=0,
        )
        push = MetricsPush(metrics, thread, settings.interval_seconds)
        try:
            async with open_background_task(push.run):
                yield push
        finally:
            with trio.CancelScope(shield=True):
                await push.push()
                await trio.to_thread.run_sync(thread.close, FLUSH_SECONDS)


def _build_export(collector: OtlpCollector, resource: bytes) -> Callable[[Sequence[_Snapshot], float], None]:
    scope, started_at = encode_text(1, "cgw") + encode_text(2, __version__), time.time()

    def export(batch: Sequence[_Snapshot], deadline: float) -> None:
        for snapshot in batch:
            body = encode_metrics(
                snapshot.readings, resource=resource, scope=scope, started_at=started_at, taken_at=snapshot.taken_at
            )
            collector.post(body, deadline)

    return export


def _open_collector(
    settings: MetricsPushSettings, traces: TraceSettings, otlp: OtlpSettings, google_url: str
) -> OtlpCollector | None:
    """Return the receiver that the settings name, in the order in which traces look for theirs."""
    if settings.endpoint is None and traces.gcp_project_id is not None:
        if not has_google_auth():
            raise ConfigError(
                [
                    "CODY_GATEWAY_OTEL_GCP_PROJECT_ID: metrics for Google Cloud need the extra `gcp`: "
                    "install cgw[gcp], or set OTEL_METRICS_EXPORTER=none"
                ]
            )
        return _open_google(traces.gcp_project_id, otlp, google_url)
    url = settings.endpoint or (otlp.endpoint and f"{otlp.endpoint}/v1/metrics")
    if url:
        headers = otlp.headers if settings.headers is None else settings.headers
        return OtlpCollector(
            url,
            headers={} if headers is None else parse_pairs(headers.reveal()),
            timeout_seconds=otlp.timeout_seconds,
            tls_context=_build_tls(otlp),
            compresses=otlp.compression == "gzip",
        )
    if traces.google_cloud_project is not None and has_google_auth():
        return _open_google(traces.google_cloud_project, otlp, google_url)
    return None


def _open_google(project_id: str, otlp: OtlpSettings, url: str) -> OtlpCollector:
    return OtlpCollector(
        url,
        headers={"x-goog-user-project": project_id},
        timeout_seconds=otlp.timeout_seconds,
        tls_context=_build_tls(otlp),
        compresses=True,
        authorize=build_google_authorization(GOOGLE_SCOPE),
    )


def _build_tls(otlp: OtlpSettings) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=None if otlp.ca_file is None else str(otlp.ca_file))


def _build_resource(traces: TraceSettings, otlp: OtlpSettings, environment: str) -> bytes:
    attributes: dict[str, str | bool | int | float | tuple[str, ...] | None] = {
        "service.name": otlp.service_name,
        "service.version": __version__,
        "service.instance.id": f"{socket.gethostname()}:{os.getpid()}",
        "deployment.environment.name": environment,
        "host.name": socket.gethostname(),
        "gcp.project_id": traces.gcp_project_id or traces.google_cloud_project,
    }
    attributes.update(otlp.resource_attributes)
    return encode_attributes(1, attributes)
