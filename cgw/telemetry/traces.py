"""Traces: spans of exchanges and of cgw's own calls, sent to an OTLP collector or to Google Cloud.

    Trio thread: records of a batch of exchanges ──▶ encoded, masked ──▶ bounded queue ──▶ export thread: POST

Nothing of it runs before an answer is out. A thread that encodes, too, takes turns with the Trio thread: the switches
and cold caches cost an exchange 25 µs, three times as much as encoding it among others of its batch. Google Cloud takes
OTLP, too (Telemetry API), so there is one form of spans; Google's own exporter for Python is deprecated for it.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import msgspec
import trio

from cgw.telemetry.call_spans import CallTracer
from cgw.telemetry.exchange_record import ExchangeRecord, Outcome, RequestKind
from cgw.telemetry.export_thread import ExportStatistics, ExportThread
from cgw.telemetry.google_credentials import has_google_auth
from cgw.telemetry.otlp_http import OtlpCollector
from cgw.telemetry.otlp_receivers import SCOPE, Signal, build_resource, open_collector
from cgw.telemetry.otlp_wire import MAX_TEXT_CHARACTERS, build_request
from cgw.telemetry.settings import OtlpSettings, TraceSettings
from cgw.telemetry.trace_encoding import CallSpan, Mask, TraceEncoder
from cgw.wire.trace_context import RequestTrace

FLUSH_SECONDS = 3.0
"""The time that the last spans may take at the end of the process."""

GOOGLE_URL = "https://telemetry.googleapis.com/v1/traces"
GOOGLE_SCOPE = "https://www.googleapis.com/auth/trace.append"

logger = logging.getLogger("cgw.telemetry")


class Tracing:
    """The open traces: a reader of exchange records, and a tracer of calls. Made by :func:`open_tracing`."""

    def __init__(self, policy: str, thread: ExportThread[bytes], encoder: TraceEncoder) -> None:
        self._is_selective = policy == "selective"
        self._thread = thread
        self._encoder = encoder
        self.calls = CallTracer(self._send_call, self.wants)

    def __call__(self, records: Sequence[ExchangeRecord]) -> None:
        """Have the spans of some exchanges sent. Takes about 8 µs for each, and never blocks."""
        chosen: list[bytes] = []
        for record in records:
            if self._is_selective and not record.trace.is_wanted:
                continue
            # Probes and scrapes, of which there are some each second, would hide what is worth looking at.
            if (
                record.kind is not RequestKind.EXCHANGE
                and record.outcome is Outcome.OK
                and record.path.startswith("/-/")
            ):
                continue
            # A path may be as long as a head, which would take its time to mask.
            text_characters = len(record.method) + len(record.path) + len(record.user_agent or "")
            is_small = text_characters <= MAX_TEXT_CHARACTERS
            chosen.append(self._encoder.encode_exchange(record if is_small else _shorten(record)))
        self._thread.put_all(chosen)

    def _send_call(self, call: CallSpan) -> None:
        self._thread.put(self._encoder.encode_call(call))

    def wants(self, trace: RequestTrace | None) -> bool:
        """Return whether the policy has this trace sent; ``None`` is one that belongs to no request."""
        if not self._is_selective:
            return True
        return trace is not None and trace.is_wanted

    def statistics(self) -> ExportStatistics:
        """Return the counts since the start; the items are exchanges and calls."""
        return self._thread.statistics()


def _shorten(record: ExchangeRecord) -> ExchangeRecord:
    agent = None if record.user_agent is None else record.user_agent[:MAX_TEXT_CHARACTERS]
    method, path = record.method[:MAX_TEXT_CHARACTERS], record.path[:MAX_TEXT_CHARACTERS]
    return msgspec.structs.replace(record, method=method, path=path, user_agent=agent)


@asynccontextmanager
async def open_tracing(
    settings: TraceSettings, otlp: OtlpSettings, *, environment: str, mask: Mask, google_url: str = GOOGLE_URL
) -> AsyncIterator[Tracing | None]:
    """Send traces for the length of the block; yield ``None`` where no receiver is set, or the policy is ``none``.

    ``environment`` is an attribute of the process. At the end the last spans are sent, for up to
    :data:`FLUSH_SECONDS`, whatever cancels the block. Raises :exc:`~cgw.errors.ConfigError`.
    """
    signal = Signal(
        "traces",
        otlp.traces_endpoint,
        otlp.traces_headers,
        google_url,
        GOOGLE_SCOPE,
        off="CODY_GATEWAY_TRACE_POLICY=none",
    )
    collector = None if settings.policy == "none" else open_collector(signal, settings, otlp)
    if collector is None:
        yield None
        return
    resource = build_resource(settings, otlp, environment)
    with collector:
        thread: ExportThread[bytes] = ExportThread(f"traces to {collector.name}", _build_export(collector, resource))
        logger.info("traces go to %s (CODY_GATEWAY_TRACE_POLICY=%s)", collector.name, settings.policy)
        try:
            yield Tracing(settings.policy, thread, TraceEncoder(mask))
        finally:
            # The thread's own deadline is a little earlier. A collector that hangs must not keep the process.
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(thread.close, FLUSH_SECONDS)


def _build_export(collector: OtlpCollector, resource: bytes) -> Callable[[Sequence[bytes], float], None]:
    return lambda batch, deadline: collector.post(build_request(resource, SCOPE, batch), deadline)


def build_is_traced(settings: TraceSettings, otlp: OtlpSettings) -> Callable[[RequestTrace], bool]:
    """Return what tells whether the spans of a request are sent anywhere, for its log lines."""
    has_google = settings.gcp_project_id is not None or (settings.google_cloud_project and has_google_auth())
    if settings.policy == "none" or not (has_google or otlp.traces_endpoint or otlp.endpoint):
        return lambda trace: False
    return (lambda trace: trace.is_wanted) if settings.policy == "selective" else lambda trace: True
