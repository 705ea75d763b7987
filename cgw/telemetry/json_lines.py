"""Log entries as JSON, in the field names of Cloud Logging and the form of Error Reporting. Pure.

https://cloud.google.com/logging/docs/structured-logging,
https://cloud.google.com/error-reporting/docs/formatting-error-messages
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import msgspec

from cgw.telemetry.exchange_lines import ExchangeLines
from cgw.telemetry.exchange_record import ExchangeRecord
from cgw.telemetry.exchange_text import describe_exchange
from cgw.telemetry.log_lines import (
    MAX_MESSAGE_CHARACTERS,
    MAX_STACK_TRACE_CHARACTERS,
    LogEntry,
    SourceLocation,
    format_time,
    mask_record,
    name_severity,
    render_exchange,
    shorten,
)
from cgw.telemetry.masking import SecretMask
from cgw.wire.trace_context import RequestTrace

REPORTED_ERROR = "type.googleapis.com/google.devtools.clouderrorreporting.v1beta1.ReportedErrorEvent"


class _HttpRequest(msgspec.Struct, rename="camel", omit_defaults=True, gc=False):
    """Cloud Logging's ``httpRequest``."""

    # None is the default of all others, so that only what is unknown is left out.
    request_method: str
    request_url: str
    status: int | None = None
    response_size: str | None = None  # Protocol Buffers' JSON mapping writes int64 as a string.
    user_agent: str | None = None
    remote_ip: str | None = None
    latency: str | None = None  # A Duration in Protocol Buffers' JSON mapping: seconds with the suffix s.
    protocol: str | None = None


class _Exchange(msgspec.Struct, omit_defaults=True, gc=False):
    """cgw's own fields of an exchange."""

    outcome: str
    route: str | None = None
    actor: str | None = None
    source: str | None = None
    feature: str | None = None
    provider: str | None = None
    model: str | None = None
    stream: bool | None = None
    upstream_status: int | None = None
    duration_ms: float | None = None
    first_byte_ms: float | None = None
    upstream_ms: float | None = None
    overhead_ms: float | None = None
    connection_reused: bool | None = None
    request_bytes: int | None = None
    response_bytes: int | None = None
    chunks: int | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cache_read_tokens: int | None = None
    usage_quality: str | None = None
    event_id: str | None = None
    error: str | None = None
    stale: bool | None = None
    warning: str | None = None


class _ErrorHttpRequest(msgspec.Struct, rename="camel", omit_defaults=True, gc=False):
    """Error Reporting's ``HttpRequestContext``, whose names are not those of Cloud Logging."""

    method: str
    url: str
    user_agent: str | None = None
    response_status_code: int | None = None
    remote_ip: str | None = None


class _ErrorContext(msgspec.Struct, rename="camel", omit_defaults=True, gc=False):
    """Error Reporting's ``ErrorContext``. ``report_location`` is needed where there is no stack trace."""

    http_request: _ErrorHttpRequest | None = None
    user: str | None = None
    report_location: SourceLocation | None = None


class _JsonLine(msgspec.Struct, omit_defaults=True, gc=False):
    """A whole line, in the order of its keys."""

    severity: str
    time: str
    message: str
    logger: str
    service_context: msgspec.Raw = msgspec.field(name="serviceContext")
    labels: msgspec.Raw | msgspec.UnsetType = msgspec.field(default=msgspec.UNSET, name="logging.googleapis.com/labels")
    trace: str | None = msgspec.field(default=None, name="logging.googleapis.com/trace")
    span_id: str | None = msgspec.field(default=None, name="logging.googleapis.com/spanId")
    trace_sampled: bool | None = msgspec.field(default=None, name="logging.googleapis.com/trace_sampled")
    request_id: str | None = None
    http_request: _HttpRequest | None = msgspec.field(default=None, name="httpRequest")
    exchange: _Exchange | None = None
    stack_trace: str | None = None
    type: str | None = msgspec.field(default=None, name="@type")
    context: _ErrorContext | None = None


class JsonLines:
    """One JSON object per line, as Cloud Logging and Error Reporting read them. Every string that may come from
    outside is masked. Safe to call from any thread.

    ``project_id`` is the Google Cloud project that has the traces; ``labels`` are the same for all lines.
    ``is_traced`` tells whether the spans of a request are sent anywhere.
    """

    def __init__(
        self,
        mask: SecretMask,
        version: str,
        *,
        project_id: str | None = None,
        labels: Mapping[str, str] | None = None,
        is_traced: Callable[[RequestTrace], bool] | None = None,
    ) -> None:
        self._mask = mask
        self._is_traced = is_traced
        self._service_context = msgspec.Raw(msgspec.json.encode({"service": "cgw", "version": version}))
        self._labels = msgspec.Raw(msgspec.json.encode(labels)) if labels else msgspec.UNSET
        # Without a project Cloud Logging takes the id alone for a trace of the project that the line is written to.
        self._trace_prefix = "" if project_id is None else f"projects/{project_id}/traces/"
        self._encode = msgspec.json.Encoder().encode
        self.render_exchanges = ExchangeLines(
            mask,
            service_context=bytes(self._service_context).decode(),
            labels=msgspec.json.encode(labels).decode() if labels else None,
            trace_prefix=self._trace_prefix,
            is_traced=is_traced,
            render_any=lambda record: render_exchange(record, self.render),
        ).render

    def render(self, entry: LogEntry) -> bytes:
        """Return the entry as one line of JSON."""
        record = entry.message
        if isinstance(record, ExchangeRecord) and entry.stack_trace is None and entry.level < logging.ERROR:
            # Without what has fields of its own: less to encode, to look through and to store.
            message = describe_exchange(record, has_figures=False)
            line = self._build_line(entry, message, record)
            # Nearly always there is nothing to mask, to shorten or to replace.
            if len(message) <= MAX_MESSAGE_CHARACTERS and not self._mask.may_change(_list_texts(record)):
                try:
                    return self._encode(line) + b"\n"
                except UnicodeEncodeError:
                    pass
        return self.render_carefully(entry)

    def render_carefully(self, entry: LogEntry) -> bytes:
        """Return the same line as :meth:`render`, with each text masked, shortened and cleaned by itself."""
        record = mask_record(entry.message, self._mask) if isinstance(entry.message, ExchangeRecord) else None
        message = str(entry.message) if record is None else describe_exchange(record, has_figures=False)
        line = self._build_line(entry, message, record)
        line.message = shorten(self._mask(line.message), MAX_MESSAGE_CHARACTERS)
        if entry.stack_trace is not None:
            line.stack_trace = shorten(self._mask(entry.stack_trace), MAX_STACK_TRACE_CHARACTERS)
        parts: list[msgspec.Struct | None] = [line.http_request, line.exchange]
        if entry.level >= logging.ERROR:
            # Has Error Reporting treat the entry as an error event, which it groups by stack trace or location.
            line.type = REPORTED_ERROR
            line.context = _build_context(entry, record)
            parts += [line.context, line.context and line.context.http_request]
        for part in (line, *parts):
            if part is not None:
                _replace_surrogates(part)
        return self._encode(line) + b"\n"

    def _build_line(self, entry: LogEntry, message: str, record: ExchangeRecord | None) -> _JsonLine:
        line = _JsonLine(
            name_severity(entry.level),
            format_time(entry.created),
            message,
            entry.logger,
            self._service_context,
            self._labels,
        )
        trace = entry.trace if record is None else record.trace
        if trace is not None:
            line.request_id, line.trace, line.span_id = (
                trace.trace_id,
                self._trace_prefix + trace.trace_id,
                trace.span_id,
            )
            if self._is_traced is not None:
                line.trace_sampled = self._is_traced(trace)
        if record is not None:
            _add_record(line, record)
        return line


def _replace_surrogates(part: msgspec.Struct) -> None:
    """Put a question mark in the place of each lone surrogate in the texts of ``part``: UTF-8 has no form for them."""
    for name in part.__struct_fields__:
        value = getattr(part, name)
        if isinstance(value, str):
            setattr(part, name, value.encode("utf-8", "replace").decode("utf-8"))


def _add_record(line: _JsonLine, record: ExchangeRecord) -> None:
    size, (seconds, first, upstream, overhead) = record.response_bytes, record.measure()
    # By position: half the time of passing them by name.
    line.http_request = _HttpRequest(
        record.method,
        record.path,
        record.status,
        None if size is None else str(size),
        record.user_agent,
        record.remote_ip,
        f"{seconds:.6f}s",
        record.protocol,
    )
    line.exchange = _Exchange(
        record.outcome,
        record.route,
        record.actor,
        record.source,
        record.feature,
        record.provider,
        record.model,
        record.stream,
        record.upstream_status,
        round(seconds * 1000, 3),
        None if first is None else round(first * 1000, 3),
        None if upstream is None else round(upstream * 1000, 3),
        None if overhead is None else round(overhead * 1000, 3),
        record.is_reused,
        record.request_bytes,
        size,
        record.chunks,
        record.prompt_tokens,
        record.completion_tokens,
        record.cache_read_tokens,
        record.usage_quality,
        record.event_id,
        record.error,
        record.stale,
        record.warning,
    )


def _build_context(entry: LogEntry, record: ExchangeRecord | None) -> _ErrorContext | None:
    if record is None:
        return None if entry.location is None else _ErrorContext(report_location=entry.location)
    request = _ErrorHttpRequest(record.method, record.path, record.user_agent, record.status, record.remote_ip)
    return _ErrorContext(request, record.actor)


def _list_texts(record: ExchangeRecord) -> str:
    # All that may come from outside, in the message, too. One look at all takes half the time of a look at each.
    return (
        f"{record.method}\n{record.path}\n{record.actor}\n{record.model}\n{record.error}\n{record.warning}\n"
        f"{record.user_agent}\n{record.remote_ip}\n{record.protocol}\n{record.source}"
    )
