"""The metrics of the running service: one line for each part, read from its ``statistics()`` at scrape time."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from functools import partial
from pathlib import Path

from attrs import frozen

from cgw import __version__
from cgw.actors.fetched.cached_source import CachedSource
from cgw.actors.sync import SyncWorker
from cgw.control.status import Phase, ServiceStatus
from cgw.events.event_log import EventLog
from cgw.events.segments import list_segments
from cgw.events.shipping.shipping import Shipping
from cgw.gateway.http_engine import HttpEngine
from cgw.gateway.parts import Gateway
from cgw.limits.alerts import AlertQueue
from cgw.redis.opening import Store
from cgw.resolver import Resolver
from cgw.service.settings import Settings
from cgw.telemetry import metrics_catalogue as catalogue
from cgw.telemetry.logs import Logs
from cgw.telemetry.loop_lag import LoopLag
from cgw.telemetry.metrics import Metric, MetricReading, Metrics, read_fields
from cgw.telemetry.metrics_exchanges import EXCHANGE_METRICS, ExchangeMetrics
from cgw.telemetry.metrics_push import MetricsPush, open_metrics_push
from cgw.telemetry.metrics_workers import WORKERS, open_workers
from cgw.telemetry.process_metrics import PROCESS_METRICS, read_process
from cgw.telemetry.sentry import ErrorReports
from cgw.telemetry.traces import Tracing
from cgw.transport.overload import OverloadControl
from cgw.transport.server import Server

SOCKETS_NAME = "metrics"
"""The folder of the data directory in which processes that share a port find each other."""

MAX_MODELS = 100
"""Unavailable models that are named; actors with patterns may ask for any names."""


def list_all_metrics() -> list[Metric]:
    """Return every metric that a scrape may have."""
    return [WORKERS, *EXCHANGE_METRICS, *catalogue.list_part_metrics(), *PROCESS_METRICS]


async def open_scrapes(
    stack: AsyncExitStack, settings: Settings, metrics: Metrics
) -> Callable[[], Awaitable[list[MetricReading]]]:
    """Return what reads the metrics of a scrape: of all processes that share the port, where it may be shared."""
    workers = None
    if settings.server.reuse_port:
        folder = settings.data.directory / SOCKETS_NAME
        workers = await stack.enter_async_context(open_workers(metrics, folder, list_all_metrics()))
    return metrics.take_all if workers is None else workers.take_all


def open_push(settings: Settings, metrics: Metrics) -> AbstractAsyncContextManager[MetricsPush | None]:
    """Push metrics for the length of the block, where a receiver is set."""
    environment = settings.dotcom.environment
    return open_metrics_push(metrics, settings.metrics, settings.traces, settings.otlp, environment=environment)


@frozen
class Exporters:
    """The parts that send telemetry elsewhere; ``None`` where they are off."""

    traces: Tracing | None
    metrics: MetricsPush | None
    errors: ErrorReports | None


@frozen
class ServiceParts:
    """The parts that metrics are read from. ``logs`` is ``None`` where the caller of the service owns the log."""

    gateway: Gateway
    http_engine: HttpEngine
    server: Server
    redis: Store
    alerts: AlertQueue
    overload: OverloadControl
    resolver: Resolver
    status: ServiceStatus
    sync_worker: SyncWorker | None
    exchanges: ExchangeMetrics
    loop_lag: LoopLag
    logs: Logs | None
    events_max_bytes: int
    exporters: Exporters
    shipping: Shipping


def add_collectors(metrics: Metrics, parts: ServiceParts) -> None:
    """Have ``metrics`` read every part of the service."""
    gateway = parts.gateway
    metrics.add(
        partial(_read_service, parts),
        partial(_read_exchanges, parts),
        gateway.upstream_counts.read,
        parts.loop_lag.read,
        lambda: read_fields(catalogue.SERVER, parts.server.statistics()),
        lambda: read_fields(catalogue.ENGINE, parts.http_engine.statistics()),
        lambda: [catalogue.SHEDDING.read(parts.overload.is_shedding)],
        lambda: read_fields(catalogue.RELAY, gateway.relay.statistics()),
        lambda: read_fields(catalogue.POOL, gateway.pool.statistics()),
        partial(_read_models, gateway),
        partial(_read_limiter, gateway),
        lambda: read_fields(catalogue.ALERTS, parts.alerts.statistics()),
        lambda: read_fields(catalogue.REDIS, parts.redis.statistics()),
        parts.redis.read_latency,
        partial(_read_event_log, gateway.event_log),
        partial(_read_sinks, parts.shipping),
        lambda: read_fields(catalogue.RESOLVER, parts.resolver.statistics()),
        lambda: read_fields(catalogue.REFRESHER, gateway.refresher.statistics()),
        partial(_read_sources, gateway),
        partial(_read_sync, parts.sync_worker),
        partial(_read_logs, parts.logs),
        lambda: read_fields(catalogue.FLAGGING, gateway.flagger.statistics()),
        partial(_read_collapsed, parts),
        partial(_read_exporters, parts.exporters),
    )
    metrics.add_blocking(read_process, partial(_read_disk, gateway.event_log.folder, parts.events_max_bytes))


def _read_service(parts: ServiceParts) -> Iterator[MetricReading]:
    limiter = parts.gateway.limiter
    yield catalogue.BUILD_INFO.read(1, __version__)
    for phase in Phase:
        yield catalogue.PHASE.read(phase is parts.status.phase, phase.value)
    serves = parts.gateway.event_log.is_accepting and (not limiter.outage.is_on or limiter.serves_without_redis)
    yield catalogue.HEALTH.read(serves)


def _read_exchanges(parts: ServiceParts) -> Iterator[MetricReading]:
    parts.gateway.readers.flush()  # those that have ended, but are not counted yet
    return parts.exchanges.read()


def _read_models(gateway: Gateway) -> Iterator[MetricReading]:
    for model in gateway.load.list_unavailable()[:MAX_MODELS]:
        yield catalogue.MODEL_UNAVAILABLE.read(1, model)


def _read_limiter(gateway: Gateway) -> Iterator[MetricReading]:
    statistics = gateway.limiter.statistics()
    yield from read_fields(catalogue.LIMITER, statistics)
    for cause, count in statistics.refused.items():
        yield catalogue.LIMITS_REFUSED.read(count, cause)


def _read_event_log(event_log: EventLog) -> Iterator[MetricReading]:
    statistics = event_log.statistics()
    yield from read_fields(catalogue.EVENT_LOG, statistics)
    yield catalogue.BUFFER_SIZE.read(statistics.waiting)
    yield catalogue.EVENTS_ACCEPTING.read(event_log.is_accepting)
    yield catalogue.EVENTS_FAILING.read(event_log.describe() is not None)


def _read_sinks(shipping: Shipping) -> Iterator[MetricReading]:
    for sink in shipping.statistics():
        yield from read_fields(catalogue.SINK, sink, sink.name)
        yield catalogue.SINK_UP.read(sink.trouble is None, sink.name)


def _read_sources(gateway: Gateway) -> Iterator[MetricReading]:
    # Others are files and constants, of which there is nothing to count.
    for source in gateway.sources.all:
        if isinstance(source, CachedSource):
            yield from read_fields(catalogue.SOURCE, source.statistics(), source.name)
            yield catalogue.SOURCE_UP.read(source.describe() is None, source.name)


def _read_sync(worker: SyncWorker | None) -> Iterable[MetricReading]:
    return () if worker is None else read_fields(catalogue.SYNC, worker.statistics())


def _read_logs(logs: Logs | None) -> Iterable[MetricReading]:
    return () if logs is None else read_fields(catalogue.LOG, logs.statistics())


def _read_collapsed(parts: ServiceParts) -> Iterator[MetricReading]:
    for metric, count in parts.exchanges.count_collapsed():
        yield catalogue.COLLAPSED.read(count, metric.name)


def _read_exporters(exporters: Exporters) -> Iterator[MetricReading]:
    if exporters.traces is not None:
        yield from read_fields(catalogue.EXPORT, exporters.traces.statistics(), "traces")
    if exporters.metrics is not None:
        yield from read_fields(catalogue.EXPORT, exporters.metrics.statistics(), "metrics")
    if exporters.errors is not None:
        yield from read_fields(catalogue.ERROR_REPORTS, exporters.errors.statistics())


def _read_disk(folder: Path, max_bytes: int) -> Iterator[MetricReading]:
    """Return what the event segments take, of all processes that share the folder. Blocks."""
    segments, total_bytes = list_segments(folder), 0
    for segment in segments:
        with suppress(FileNotFoundError):  # sealed, or deleted, meanwhile
            total_bytes += os.stat(segment.path).st_size
    yield catalogue.EVENTS_SEGMENTS.read(len(segments))
    yield catalogue.EVENTS_DISK.read(total_bytes)
    yield catalogue.EVENTS_DISK_LIMIT.read(max_bytes)
