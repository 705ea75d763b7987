"""Error reports to Sentry: errors in the log, exchanges that were answered 5xx, and crashes of cgw itself.

    any thread: log record, exchange ──▶ storm filter ──▶ event ──▶ allowlist of fields ──▶ SDK's queue and thread

The SDK gets no integrations: nothing is patched, and nothing is collected but what is listed in
:mod:`cgw.telemetry.error_events`.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from attrs import frozen

from cgw import __version__
from cgw.errors import CgwError
from cgw.telemetry.current_request import served_trace
from cgw.telemetry.error_events import (
    Event,
    Fingerprint,
    StormFilter,
    build_exchange_report,
    find_cause,
    fingerprint_exception,
    fingerprint_exchange,
    fingerprint_message,
    list_errors,
    scrub,
)
from cgw.telemetry.exchange_record import ExchangeRecord, Outcome
from cgw.wire.trace_context import RequestTrace

if TYPE_CHECKING:
    import sentry_sdk  # imported at run time when reports are opened, because that takes 200 ms
    from sentry_sdk.transport import HttpTransport

FLUSH_SECONDS = 2.0
"""The time that the last reports may take at the end of the process, or at a crash."""

MAX_PENDING = 100
"""Reports that wait for Sentry, of some 10 KB each; further ones are dropped and counted."""

MAX_ANSWER_BYTES = 16 * 1024
"""The part of Sentry's answer that is read: the SDK itself would hold all of it, however long it is."""

SILENCE_SECONDS = 600.0
"""The time between two lines about reports that do not arrive."""

_OWN_LOGGERS = ("sentry_sdk", "urllib3", "cgw.telemetry")
"""Loggers of reporting itself: their errors would come back as reports."""

_QUIET_LOGGERS = ("sentry_sdk.errors", "urllib3.connectionpool")
"""They write some lines for each report that does not arrive."""

logger = logging.getLogger("cgw.telemetry")

Mask = Callable[[str], str]


@frozen
class _Answer:
    """The parts of Sentry's answer that the SDK looks at."""

    status: int
    headers: Mapping[str, str]
    data: bytes

    def close(self) -> None:
        """Do nothing: the connection was given back when the answer was read."""


@frozen
class ReportStatistics:
    """Counts since the start: ``sent`` went to the SDK's queue; ``suppressed`` were too many of one cause;
    ``dropped`` did not arrive, because Sentry is away, slow, or refuses."""

    sent: int
    suppressed: int
    dropped: int


class ErrorReports:
    """The open reports: a reader of exchange records. Made by :func:`open_error_reports`. Safe from any thread."""

    def __init__(self, client: sentry_sdk.Client) -> None:
        self._client = client
        self._transport: Any = client.transport  # its count outlives the client
        self._lock = threading.Lock()
        self._storms = StormFilter()
        self._sent = 0

    def __call__(self, records: Sequence[ExchangeRecord]) -> None:
        """Report the exchanges that were answered 5xx, or that cgw failed. Takes 0.1 µs for each of the others."""
        for record in records:
            if (record.status or 0) >= 500 or record.outcome is Outcome.INTERNAL_ERROR:
                self._report_exchange(record)

    def _report_exchange(self, record: ExchangeRecord) -> None:
        bug = record.bug
        fingerprint = fingerprint_exchange(record) if bug is None else fingerprint_exception(bug)
        suppressed = self._admit(fingerprint)
        if suppressed is not None:
            self._send(build_exchange_report(record), fingerprint, suppressed, bug, record.trace, "exchange")

    def report_log_record(self, record: logging.LogRecord) -> None:
        """Report a line of the log. Exchanges have a report of their own."""
        if isinstance(record.msg, ExchangeRecord) or record.name.startswith(_OWN_LOGGERS):
            return
        error = record.exc_info[1] if record.exc_info else None
        fingerprint = fingerprint_message(record.name, record.msg) if error is None else fingerprint_exception(error)
        suppressed = self._admit(fingerprint)
        if suppressed is None:
            return
        level = "fatal" if record.levelno >= logging.CRITICAL else "error"
        event: Event = {"level": level, "logger": record.name, "logentry": {"formatted": record.getMessage()}}
        self._send(event, fingerprint, suppressed, error, served_trace.get(), "logging")

    def report_crash(self, error: BaseException, cause: str) -> None:
        """Report an exception that nothing handled; ``cause`` names what it came out of. Raises nothing."""
        try:
            fingerprint = fingerprint_exception(error)
            suppressed = self._admit(fingerprint)
            if suppressed is not None:
                event: Event = {"level": "fatal", "logger": "cgw", "tags": {"cause": cause}}
                self._send(event, fingerprint, suppressed, error, served_trace.get(), cause)
        except Exception as problem:  # noqa: BLE001 - the crash itself is what its caller is about
            _log_failure(problem)

    def statistics(self) -> ReportStatistics:
        """Return the counts since the start."""
        return ReportStatistics(self._sent, self._storms.suppressed, self._transport.dropped)

    def close(self) -> None:
        """Wait up to :data:`FLUSH_SECONDS` until Sentry has what was reported; then leave a stuck thread behind."""
        self._client.close(timeout=FLUSH_SECONDS)

    def _admit(self, fingerprint: Fingerprint) -> int | None:
        with self._lock:
            return self._storms.admit(fingerprint, time.monotonic())

    def _send(
        self,
        event: Event,
        fingerprint: Fingerprint,
        suppressed: int,
        error: BaseException | None,
        trace: RequestTrace | None,
        mechanism: str,
    ) -> None:
        from sentry_sdk.utils import event_from_exception

        tags = event.setdefault("tags", {})
        if suppressed:
            tags["suppressed"] = suppressed
        if trace is not None:
            tags["trace_id"] = trace.trace_id
            event["contexts"] = {"trace": {"trace_id": trace.trace_id, "span_id": trace.span_id}}
        event["fingerprint"] = list(fingerprint)
        hint: dict[str, Any] = {}
        if error is not None:
            options, kind = self._client.options, {"type": mechanism, "handled": mechanism in ("logging", "exchange")}
            described, hint = event_from_exception(find_cause(error), client_options=options, mechanism=kind)
            event["exception"] = described["exception"]
        self._client.capture_event(cast("Any", event), hint=hint)
        self._sent += 1


@contextmanager
def open_error_reports(
    dsn: str | None, *, environment: str, mask: Mask, release: str = __version__
) -> Iterator[ErrorReports | None]:
    """Send error reports to Sentry for the length of the block; yield ``None`` where ``dsn`` is.

    Every line of the log at error level is reported, and what leaves the block as an exception, a thread, or a
    finalizer. At the end the last reports are sent, for up to :data:`FLUSH_SECONDS`.
    """
    if dsn is None:
        yield None
        return
    reports = _build_reports(dsn, environment, mask, release)
    logger.info("errors are reported to Sentry at %s", urlsplit(dsn).hostname)
    handler = _ReportHandler(reports)
    logging.root.addHandler(handler)
    try:
        with _report_unhandled(reports), _quieten(_QUIET_LOGGERS):
            yield reports
    except Exception as error:
        # What cgw says to its operator, as about a wrong setting, is no crash. Neither is Ctrl-C.
        if not isinstance(find_cause(error), CgwError):
            reports.report_crash(error, "crash")
        raise
    finally:
        logging.root.removeHandler(handler)
        reports.close()


def _build_transport_class() -> type[HttpTransport]:
    """Return the SDK's transport with bounds of ours; the SDK is imported only where reports are sent."""
    from sentry_sdk.transport import HttpTransport as BaseTransport

    class CountingTransport(BaseTransport):
        """Counts what did not arrive, and says so now and then. It has a bounded queue, a thread, and a timeout."""

        dropped = 0
        _said_at = -SILENCE_SECONDS

        def _request(self, method: str, endpoint_type: Any, body: Any, headers: Mapping[str, str]) -> Any:
            # No redirects: the key would go along. The answer is read to its end, so that the connection can be kept.
            ends_at = time.monotonic() + self.TIMEOUT
            url, data = self._auth.get_api_url(endpoint_type), b""
            response = self._pool.request(
                method, url, body=body, headers=headers, redirect=False, preload_content=False, decode_content=False
            )
            try:
                while len(data) < MAX_ANSWER_BYTES and time.monotonic() < ends_at:
                    piece = response.read1(MAX_ANSWER_BYTES, decode_content=False)
                    if not piece:
                        response.release_conn()
                        break
                    data += piece
            finally:
                response.close()
            return _Answer(response.status, response.headers, data[:MAX_ANSWER_BYTES])

        def on_dropped_event(self, reason: str) -> None:
            self._drop(reason)

        def record_lost_event(self, reason: str, *arguments: Any, **options: Any) -> None:
            super().record_lost_event(reason, *arguments, **options)
            if reason == "ratelimit_backoff":  # the one loss that the other method is not told
                self._drop(reason)

        def _drop(self, reason: str) -> None:
            self.dropped += 1
            now = time.monotonic()
            if now - self._said_at >= SILENCE_SECONDS:
                self._said_at = now
                logger.warning("error reports do not reach Sentry (%s); %d are lost so far", reason, self.dropped)

    return CountingTransport


def _build_reports(dsn: str, environment: str, mask: Mask, release: str) -> ErrorReports:
    import sentry_sdk

    def before_send(event: Any, hint: dict[str, Any]) -> Any:
        exc_info = hint.get("exc_info")
        errors = list_errors(exc_info[1]) if exc_info and exc_info[1] is not None else ()
        return scrub(event, mask, {f"{type(error).__name__}:{error}": error for error in errors})

    client = sentry_sdk.Client(
        dsn=dsn,
        release=f"cgw@{release}",
        environment=environment,
        transport=_build_transport_class(),
        transport_queue_size=MAX_PENDING,
        before_send=before_send,
        default_integrations=False,
        auto_enabling_integrations=False,
        include_local_variables=False,
        max_request_body_size="never",
        max_breadcrumbs=0,
        auto_session_tracking=False,
        in_app_include=["cgw"],
        debug=False,
        keep_alive=True,
        # Empty, so that proxies of the environment are ignored, as everywhere in cgw.
        http_proxy="",
        https_proxy="",
    )
    return ErrorReports(client)


class _ReportHandler(logging.Handler):
    """Reports lines at error level. The log's fast path goes past it, as its level says."""

    def __init__(self, reports: ErrorReports) -> None:
        super().__init__(logging.ERROR)
        self._reports = reports

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._reports.report_log_record(record)
        except Exception as problem:  # noqa: BLE001 - a report must not break the code that it is about
            _log_failure(problem)


def _log_failure(problem: Exception) -> None:
    logger.warning("an error could not be reported to Sentry", exc_info=problem)


@contextmanager
def _report_unhandled(reports: ErrorReports) -> Iterator[None]:
    """Report exceptions that threads, finalizers and callbacks do not handle, besides what is done with them anyway."""
    former_thread_hook, former_unraisable_hook = threading.excepthook, sys.unraisablehook

    def report_thread(arguments: threading.ExceptHookArgs) -> None:
        if arguments.exc_value is not None:
            reports.report_crash(arguments.exc_value, "thread")
        former_thread_hook(arguments)

    def report_unraisable(arguments: sys.UnraisableHookArgs) -> None:
        if arguments.exc_value is not None:
            reports.report_crash(arguments.exc_value, "unraisable")
        former_unraisable_hook(arguments)

    threading.excepthook, sys.unraisablehook = report_thread, report_unraisable
    try:
        yield
    finally:
        threading.excepthook, sys.unraisablehook = former_thread_hook, former_unraisable_hook


@contextmanager
def _quieten(names: Sequence[str]) -> Iterator[None]:
    former = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name, level in former.items():
            logging.getLogger(name).setLevel(level)
