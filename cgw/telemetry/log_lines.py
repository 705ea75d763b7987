"""Formats of log entries: JSON with Cloud Logging's field names, and readable text for a terminal. Pure.

https://cloud.google.com/logging/docs/structured-logging,
https://cloud.google.com/error-reporting/docs/formatting-error-messages
"""

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

MAX_MESSAGE_CHARACTERS = 16_384
MAX_STACK_TRACE_CHARACTERS = 100_000
"""Both limits together keep an entry below Cloud Logging's maximum of 256 KiB."""


@frozen
class LogEntry:
    """A log record without references to mutable objects. ``created`` is in seconds since the epoch."""

    level: int
    created: float
    logger: str
    message: str | ExchangeRecord
    stack_trace: str | None = None


def build_entry(record: logging.LogRecord) -> LogEntry:
    """Build the entry for ``record``. Formats its arguments and traceback, unless it is an exchange's."""
    # The arguments of an ordinary record may change before the log's thread writes it; an ExchangeRecord is frozen.
    message = record.msg if isinstance(record.msg, ExchangeRecord) else record.getMessage()
    stack_trace = None
    if record.exc_info and record.exc_info[1] is not None:
        stack_trace = "".join(traceback.format_exception(record.exc_info[1])).rstrip("\n")
    return LogEntry(record.levelno, record.created, record.name, message, stack_trace)


class LineFormat(Protocol):
    """A format of log entries."""

    def render(self, entry: LogEntry) -> bytes:
        """Return the entry as UTF-8, with its line ending."""
        ...


@frozen
class JsonLines:
    """One JSON object per line, as Cloud Logging and Error Reporting read them. Every string that may come from
    outside is masked."""

    mask: Mask
    version: str

    def render(self, entry: LogEntry) -> bytes:
        """Return the entry as one line of JSON."""
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
        # Protocol Buffers' JSON mapping writes int64 as a string.
        size = None if record.response_bytes is None else str(record.response_bytes)
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
        fields: dict[str, Any] = {"httpRequest": request, "exchange": exchange}
        # Nearly always there is nothing to mask. Masking all texts at once to find that out takes half of the time of
        # masking each value. The message holds all texts but these four.
        texts = f"{message}\n{record.user_agent}\n{record.remote_ip}\n{record.protocol}\n{record.source}"
        return fields if self.mask(texts) == texts else self._mask_values(fields)

    def _mask_values(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._mask_values(item) for key, item in value.items()}
        return self.mask(value) if isinstance(value, str) else value


def _known(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


_COLOURS = {"DEBUG": "2", "INFO": "32", "WARNING": "33", "ERROR": "31", "CRITICAL": "1;31"}


@frozen
class TerminalLines:
    """One readable line for each entry, in local time. The lines of a traceback are indented, so that no line of it
    can be taken for an entry."""

    mask: Mask
    has_colour: bool

    def render(self, entry: LogEntry) -> bytes:
        """Return the entry as text, with control characters escaped."""
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
    """Return Cloud Logging's name for a level of :mod:`logging`."""
    if level >= logging.CRITICAL:
        return "CRITICAL"
    if level >= logging.ERROR:
        return "ERROR"
    if level >= logging.WARNING:
        return "WARNING"
    return "INFO" if level >= logging.INFO else "DEBUG"


def escape_controls(text: str) -> str:
    """Return ``text`` with line ends, control and formatting characters and lone surrogates as escapes."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def shorten(text: str, limit: int) -> str:
    """Return ``text``, cut to ``limit`` characters, with its full length if it was cut.

    Mask the text before: a secret that is cut in two would not be recognised.
    """
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text)} characters)"


def encode_json(fields: dict[str, Any]) -> bytes:
    """Return ``fields`` as JSON on one line, with a question mark for each lone surrogate."""
    try:
        return msgspec.json.encode(fields)
    except UnicodeEncodeError:  # a lone surrogate; json is slower, but can be told to replace it
        return json.dumps(fields, ensure_ascii=False).encode("utf-8", "replace")
