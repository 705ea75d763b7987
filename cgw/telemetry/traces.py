"""Traces: spans of exchanges and of cgw's own calls, sent to an OTLP collector or to Google Cloud.

    Trio thread: record of an exchange ──▶ bounded queue ──▶ export thread: encode, mask, POST

Nothing of it runs before an answer is out. Google Cloud takes OTLP, too (Telemetry API), so there is one form of spans;
Google's own exporter for Python is deprecated in favour of that.
"""

from __future__ import annotations

import logging
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import msgspec
import trio

from cgw import __version__
from cgw.errors import ConfigError
from cgw.telemetry.call_spans import CallTracer
from cgw.telemetry.exchange_record import ExchangeRecord, Outcome, RequestKind
from cgw.telemetry.export_thread import ExportStatistics, ExportThread
from cgw.telemetry.google_credentials import build_google_authorization, has_google_auth
from cgw.telemetry.otlp_http import OtlpCollector
from cgw.telemetry.otlp_wire import MAX_TEXT_CHARACTERS, build_request, encode_attributes, encode_text
from cgw.telemetry.settings import OtlpSettings, TraceSettings, parse_pairs
from cgw.telemetry.trace_encoding import CallSpan, Mask, TraceEncoder
from cgw.wire.trace_context import RequestTrace

FLUSH_SECONDS = 3.0
"""The time that the last spans may take at the end of the process."""

ENCODED_AT_ONCE = 16
"""Records that are encoded before the Trio thread gets its turn: 0.2 ms, less than the switch interval."""

GOOGLE_URL = "https://telemetry.googleapis.com/v1/traces"
GOOGLE_SCOPE = "https://www.googleapis.com/auth/trace.append"

logger = logging.getLogger("cgw.telemetry")

_Item = ExchangeRecord | CallSpan


class Tracing:
    """The open traces: a reader of exchange records, and a tracer of calls. Made by :func:`open_tracing`."""

    def __init__(self, policy: str, thread: ExportThread[_Item]) -> None:
        self._is_selective = policy == "selective"
        self._thread = thread
        self.calls = CallTracer(thread.put, self.wants)

    def __call__(self, record: ExchangeRecord) -> None:
        """Have the spans of one exchange sent. Takes about 1 µs, and never blocks."""
        if self._is_selective and not self.wants(record.trace):
            return
        # Probes and scrapes, of which there are some each second, would hide what is worth looking at.
        if record.kind is RequestKind.CONTROL and record.outcome is Outcome.OK and record.path.startswith("/-/"):
            return
        # What waits must be small: a path may be as long as a head, and a traceback keeps request bodies alive.
        if record.bug is not None or len(record.path) + len(record.user_agent or "") > MAX_TEXT_CHARACTERS:
            agent = None if record.user_agent is None else record.user_agent[:MAX_TEXT_CHARACTERS]
            path = record.path[:MAX_TEXT_CHARACTERS]
            record = msgspec.structs.replace(record, bug=None, path=path, user_agent=agent)
        self._thread.put(record)

    def wants(self, trace: RequestTrace | None) -> bool:
        """Return whether the policy has this trace sent; ``None`` is one that belongs to no request."""
        if not self._is_selective:
            return True
        return trace is not None and trace.caller is not None and trace.caller.is_sampled

    def statistics(self) -> ExportStatistics:
        """Return the counts since the start; the items are exchanges and calls."""
        return self._thread.statistics()


@asynccontextmanager
async def open_tracing(
    settings: TraceSettings, otlp: OtlpSettings, *, environment: str, mask: Mask, google_url: str = GOOGLE_URL
) -> AsyncIterator[Tracing | None]:
    """Send traces for the length of the block; yield ``None`` where no receiver is set, or the policy is ``none``.

    ``environment`` is an attribute of the process. At the end the last spans are sent, for up to
    :data:`FLUSH_SECONDS`, whatever cancels the block. Raises :exc:`~cgw.errors.ConfigError`.
    """
    collector = None if settings.policy == "none" else _open_collector(settings, otlp, google_url)
    if collector is None:
        yield None
        return
    resource = _build_resource(settings, otlp, environment)
    with collector:
        thread: ExportThread[_Item] = ExportThread(
            f"traces to {collector.name}", _build_export(collector, TraceEncoder(mask), resource)
        )
        try:
            yield Tracing(settings.policy, thread)
        finally:
            # The thread's own deadline is a little earlier. A collector that hangs must not keep the process.
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(thread.close, FLUSH_SECONDS)


def _build_export(
    collector: OtlpCollector, encoder: TraceEncoder, resource: bytes
) -> Callable[[Sequence[_Item], float], None]:
    scope = encode_text(1, "cgw") + encode_text(2, __version__)

    def export(batch: Sequence[_Item], deadline: float) -> None:
        spans = []
        for index, item in enumerate(batch, start=1):
            if isinstance(item, CallSpan):
                spans.append(encoder.encode_call(item))
            else:
                spans.append(encoder.encode_exchange(item))
            if index % ENCODED_AT_ONCE == 0:
                time.sleep(0)  # gives up the interpreter's lock
        collector.post(build_request(resource, scope, spans), deadline)

    return export


def _open_collector(settings: TraceSettings, otlp: OtlpSettings, google_url: str) -> OtlpCollector | None:
    """Return the receiver that the settings name; what is set for cgw alone comes first."""
    if settings.gcp_project_id is not None:
        if not has_google_auth():
            raise ConfigError(
                [
                    "CODY_GATEWAY_OTEL_GCP_PROJECT_ID: traces to Google Cloud need the extra `gcp`: "
                    "install cgw[gcp], or set OTEL_EXPORTER_OTLP_ENDPOINT instead"
                ]
            )
        return _open_google(settings.gcp_project_id, otlp, google_url)
    url = otlp.traces_endpoint or (otlp.endpoint and f"{otlp.endpoint}/v1/traces")
    if url:
        headers = otlp.headers if otlp.traces_headers is None else otlp.traces_headers
        return OtlpCollector(
            url,
            headers={} if headers is None else parse_pairs(headers.reveal()),
            timeout_seconds=otlp.timeout_seconds,
            tls_context=_build_tls(otlp),
            compresses=otlp.compression == "gzip",
        )
    if settings.google_cloud_project is None:
        return None
    if has_google_auth():
        return _open_google(settings.google_cloud_project, otlp, google_url)
    # No error: the variable may be there for other programs.
    logger.warning("GOOGLE_CLOUD_PROJECT: no traces are sent there, because cgw[gcp] is not installed")
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


def _build_resource(settings: TraceSettings, otlp: OtlpSettings, environment: str) -> bytes:
    attributes: dict[str, str | bool | int | float | tuple[str, ...] | None] = {
        "service.name": otlp.service_name,
        "service.version": __version__,
        "service.instance.id": f"{socket.gethostname()}:{os.getpid()}",
        "deployment.environment.name": environment,
        "host.name": socket.gethostname(),
        "process.pid": os.getpid(),
        "telemetry.sdk.language": "python",
        "telemetry.sdk.name": "cgw",
        "telemetry.sdk.version": __version__,
        # What Google's Telemetry API finds the project by.
        "gcp.project_id": settings.gcp_project_id or settings.google_cloud_project,
    }
    attributes.update(otlp.resource_attributes)
    return encode_attributes(1, attributes)
