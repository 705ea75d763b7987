"""How a log entry looks: JSON in Cloud Logging's field names, or one readable line. Pure."""

from __future__ import annotations

import json
import logging
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Protocol

import msgspec
from attrs import frozen

from cgw.telemetry.exchange_log import ExchangeRecord

Mask = Callable[[str], str]

REPORTED_ERROR = "type.googleapis.com/google.devtools.clouderrorreporting.v1beta1.ReportedErrorEvent"
TRACE_FIELD = "logging.googleapis.com/trace"

MAX_MESSAGE_CHARACTERS = 16_384
MAX_STACK_TRACE_CHARACTERS = 100_000
"""Cloud Logging takes 256 KiB an entry."""


@frozen
class LogEntry:
    """One log record, detached from whatever it reports on. ``created`` is in seconds since the epoch."""

    level: int
    created: float
    logger: str
    message: str | ExchangeRecord
    stack_trace: str | None = None


def build_entry(record: logging.LogRecord) -> LogEntry:
    """What is needed of ``record``, with its arguments formatted now, as they may change later."""
    message = record.msg if isinstance(record.msg, ExchangeRecord) else record.getMessage()
    stack_trace = None
    if record.exc_info and record.exc_info[1] is not None:
        stack_trace = "".join(traceback.format_exception(record.exc_info[1])).rstrip("\n")
    return LogEntry(record.levelno, record.created, record.name, message, stack_trace)


class Lines(Protocol):
    """A way to write entries."""

    def render(self, entry: LogEntry) -> bytes:
        """The entry as UTF-8, with its line ending."""
        ...


@frozen
class JsonLines:
    """One JSON object a line, as Cloud Logging and Error Reporting read them; every text in it is masked."""

    mask: Mask
    version: str

    def render(self, entry: LogEntry) -> bytes:
        """The entry as one line of JSON."""
        message = str(entry.message)
        fields: dict[str, Any] = {
            "severity": name_severity(entry.level),
            "time": datetime.fromtimestamp(entry.created, UTC).isoformat(timespec="microseconds"),
            "message": shorten(self.mask(message), MAX_MESSAGE_CHARACTERS),
            "logger": entry.logger,
            "serviceContext": {"service": "cgw", "version": self.version},
        }
        if isinstance(entry.message, ExchangeRecord):
            fields |= self._describe_exchange(entry.message, message)
        if entry.stack_trace is not None:
            fields["stack_trace"] = shorten(self.mask(entry.stack_trace), MAX_STACK_TRACE_CHARACTERS)
            if entry.level >= logging.ERROR:
                fields["@type"] = REPORTED_ERROR
        return encode_json(fields) + b"\n"

    def _describe_exchange(self, record: ExchangeRecord, message: str) -> dict[str, Any]:
        size = None if record.response_bytes is None else str(record.response_bytes)  # int64, a string in JSON
        request = _known(
            requestMethod=record.method,
            requestUrl=record.path,
            status=record.status,
            responseSize=size,
            userAgent=record.user_agent,
            remoteIp=record.remote_ip,
            latency=f"{record.duration_ms / 1000:.6f}s",
            protocol=record.protocol,
        )
        exchange = _known(
            outcome=record.outcome.value,
            actor=record.actor,
            source=record.source,
            feature=record.feature,
            model=record.model,
            stream=record.stream,
            duration_ms=round(record.duration_ms, 3),
            first_byte_ms=None if record.first_byte_ms is None else round(record.first_byte_ms, 3),
            upstream_ms=None if record.upstream_ms is None else round(record.upstream_ms, 3),
            upstream_status=record.upstream_status,
            request_bytes=record.request_bytes,
            response_bytes=record.response_bytes,
            error=record.error,
        )
        # One look at all texts together, as nearly always there is nothing to mask: it saves half of the time.
        texts = (
            f"{message}\n{record.user_agent}\n{record.remote_ip}\n{record.protocol}\n{record.source}\n{record.trace}"
        )
        is_clean = self.mask(texts) == texts
        trace = {} if record.trace is None else {TRACE_FIELD: record.trace}
        fields: dict[str, Any] = {"httpRequest": request, "exchange": exchange, **trace}
        if not is_clean:
            fields = self._mask_values(fields)
        return fields

    def _mask_values(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._mask_values(item) for key, item in value.items()}
        return self.mask(value) if isinstance(value, str) else value


def _known(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


_COLOURS = {"DEBUG": "2", "INFO": "32", "WARNING": "33", "ERROR": "31", "CRITICAL": "1;31"}


@frozen
class TerminalLines:
    """One readable line for each entry, in local time; a traceback follows indented, so it can't pose as a line."""

    mask: Mask
    has_colour: bool

    def render(self, entry: LogEntry) -> bytes:
        """The entry as text; whatever a terminal might obey is escaped."""
        clock = time.strftime("%H:%M:%S", time.localtime(entry.created)) + f".{int(entry.created % 1 * 1000):03d}"
        severity = name_severity(entry.level)
        label = f"{severity:<8}"
        if self.has_colour:
            clock, label = f"\x1b[2m{clock}\x1b[0m", f"\x1b[{_COLOURS[severity]}m{label}\x1b[0m"
        message = shorten(self.mask(str(entry.message)), MAX_MESSAGE_CHARACTERS)
        lines = [f"{clock} {label} {escape_controls(message)}"]
        if entry.stack_trace is not None:
            stack_trace = shorten(self.mask(entry.stack_trace), MAX_STACK_TRACE_CHARACTERS)
            lines += [f"  | {escape_controls(line)}" for line in stack_trace.split("\n")]
        return ("\n".join(lines) + "\n").encode("utf-8")


def name_severity(level: int) -> str:
    """Cloud Logging's name for a level of :mod:`logging`."""
    if level >= logging.CRITICAL:
        return "CRITICAL"
    if level >= logging.ERROR:
        return "ERROR"
    if level >= logging.WARNING:
        return "WARNING"
    return "INFO" if level >= logging.INFO else "DEBUG"


def escape_controls(text: str) -> str:
    """``text`` with line ends, control and formatting characters and lone surrogates written as escapes."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def shorten(text: str, limit: int) -> str:
    """``text``, cut to ``limit`` characters. Mask first: half a secret is none that a mask could know."""
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text)} characters)"


def encode_json(fields: dict[str, Any]) -> bytes:
    """``fields`` as JSON in one line; half surrogate pairs become question marks."""
    try:
        return msgspec.json.encode(fields)
    except UnicodeEncodeError:
        return json.dumps(fields, ensure_ascii=False).encode("utf-8", "replace")
