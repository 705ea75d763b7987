"""The telemetry of the service: opened before everything that reports, and closed after it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from attrs import field, frozen

from cgw.config.describe import list_secrets
from cgw.service.metrics import Exporters, open_push, open_scrapes
from cgw.service.settings import Settings
from cgw.telemetry.call_spans import CallTracer
from cgw.telemetry.exchange_log import log_exchanges
from cgw.telemetry.log_level import LogLevel
from cgw.telemetry.logs import Logs
from cgw.telemetry.loop_lag import LoopLag
from cgw.telemetry.masking import SecretMask
from cgw.telemetry.metrics import MetricReading, Metrics
from cgw.telemetry.metrics_exchanges import ExchangeMetrics
from cgw.telemetry.metrics_push import MetricsPush
from cgw.telemetry.readers import Readers
from cgw.telemetry.sentry import ErrorReports
from cgw.telemetry.traces import Tracing, open_tracing


@frozen
class ProcessReports:
    """The reports of the process. They outlive the service, because they tell of its start and its crash, too.

    ``log_level`` is what ``/-/log-level`` shows and sets, ``log`` the open log, for its metrics; ``errors`` get the
    exchanges that failed.
    """

    log_level: LogLevel = field(factory=LogLevel)
    log: Logs | None = None
    errors: ErrorReports | None = None


@frozen
class Telemetry:
    """The reports of the service. ``tracing`` and ``push`` are ``None`` where they are off.

    ``take_scrape`` reads all metrics; ``metrics`` is where the service's parts are added to them. ``readers`` report
    exchanges: to the log, to ``exchanges``, which are their metrics, and where they are on as traces and error reports.
    """

    process: ProcessReports
    metrics: Metrics
    take_scrape: Callable[[], Awaitable[list[MetricReading]]]
    push: MetricsPush | None
    tracing: Tracing | None
    exchanges: ExchangeMetrics
    readers: Readers
    loop_lag: LoopLag = field(factory=LoopLag)

    @property
    def tracer(self) -> CallTracer | None:
        """The tracer of cgw's own calls; ``None`` where tracing is off."""
        return None if self.tracing is None else self.tracing.calls

    @property
    def exporters(self) -> Exporters:
        """The parts that send telemetry elsewhere, for their own metrics."""
        return Exporters(self.tracing, self.push, self.process.errors)


async def open_telemetry(stack: AsyncExitStack, settings: Settings, process: ProcessReports) -> Telemetry:
    """Open what sends telemetry elsewhere. ``stack`` closes it, which sends the last of it, for a bounded time.

    Raises :exc:`~cgw.errors.ConfigError`.
    """
    metrics = Metrics()
    take_scrape = await open_scrapes(stack, settings, metrics)
    push = await stack.enter_async_context(open_push(settings, metrics))
    environment, mask = settings.dotcom.environment, SecretMask(list_secrets(settings))
    tracing = await stack.enter_async_context(
        open_tracing(settings.traces, settings.otlp, environment=environment, mask=mask)
    )
    exchanges = ExchangeMetrics()
    # The log first: it has the lines even if a later reader has a bug.
    optional = (tracing, process.errors)
    readers = Readers([log_exchanges, exchanges.note, *(reader for reader in optional if reader is not None)])
    stack.enter_context(readers.precede_log())
    return Telemetry(process, metrics, take_scrape, push, tracing, exchanges, readers)
