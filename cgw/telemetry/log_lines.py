"""Formats of log entries: JSON with Cloud Logging's field names, and readable text for a terminal. Pure.

https://cloud.google.com/logging/docs/structured-logging,
https://cloud.google.com/error-reporting/docs/formatting-error-messages
"""

from __future__ import annotations

import logging
import time
import traceback
from datetime import UTC, datetime
from functools import lru_cache
from typing import Protocol

import msgspec
from attrs import frozen

from cgw.telemetry.exchange_record import ExchangeRecord
from cgw.telemetry.masking import SecretMask

REPORTED_ERROR = "type.googleapis.com/google.devtools.clouderrorreporting.v1beta1.ReportedErrorEvent"

MAX_MESSAGE_CHARACTERS = 16_384
MAX_STACK_TRACE_CHARACTERS = 100_000
"""Both limits together keep an entry below Cloud Logging's maximum of 256 KiB."""


class LogEntry(msgspec.Struct, frozen=True, gc=False):
    """A log record with its text put together. ``created`` is in seconds since the epoch."""

    level: int
    created: float
    logger: str
    message: str | ExchangeRecord
    stack_trace: str | None = None


def build_entry(record: logging.LogRecord) -> LogEntry:
    """Build the entry for ``record``: format its arguments and traceback."""
    message = record.msg if isinstance(record.msg, ExchangeRecord) else record.getMessage()
    stack_trace = None
    # logging.exception() outside of an except block has three times None here.
    if record.exc_info and record.exc_info[1] is not None:
        stack_trace = "".join(traceback.format_exception(record.exc_info[1])).rstrip("\n")
    return LogEntry(record.levelno, record.created, record.name, message, stack_trace)


class LineFormat(Protocol):
    """A format of log entries."""

    def render(self, entry: LogEntry) -> bytes:
        """Return the entry as UTF-8, with its line ending."""
        ...


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
    actor: str | None = None
    source: str | None = None
    feature: str | None = None
    model: str | None = None
    stream: bool | None = None
    duration_ms: float | None = None
    first_byte_ms: float | None = None
    upstream_ms: float | None = None
    upstream_status: int | None = None
    request_bytes: int | None = None
    response_bytes: int | None = None
    error: str | None = None
    stale: bool | None = None
    warning: str | None = None


class _JsonLine(msgspec.Struct, omit_defaults=True, gc=False):
    """A whole line, in the order of its keys."""

    severity: str
    time: str
    message: str
    logger: str
    service_context: msgspec.Raw = msgspec.field(name="serviceContext")
    http_request: _HttpRequest | None = msgspec.field(default=None, name="httpRequest")
    exchange: _Exchange | None = None
    stack_trace: str | None = None
    type: str | None = msgspec.field(default=None, name="@type")


class JsonLines:
    """One JSON object per line, as Cloud Logging and Error Reporting read them. Every string that may come from
    outside is masked. Safe to call from any thread."""

    def __init__(self, mask: SecretMask, version: str) -> None:
        self._mask = mask
        self._service_context = msgspec.Raw(msgspec.json.encode({"service": "cgw", "version": version}))
        self._encode = msgspec.json.Encoder().encode

    def render(self, entry: LogEntry) -> bytes:
        """Return the entry as one line of JSON."""
        record = entry.message
        if isinstance(record, ExchangeRecord) and entry.stack_trace is None:
            message = str(record)
            line = self._build_line(entry, message, record)
            # Nearly always there is nothing to mask, to shorten or to replace.
            if len(message) <= MAX_MESSAGE_CHARACTERS and not self._mask.may_change(_list_texts(message, record)):
                try:
                    return self._encode(line) + b"\n"
                except UnicodeEncodeError:
                    pass
        return self.render_carefully(entry)

    def render_carefully(self, entry: LogEntry) -> bytes:
        """Return the same line as :meth:`render`, with each text masked, shortened and cleaned by itself."""
        record = entry.message if isinstance(entry.message, ExchangeRecord) else None
        line = self._build_line(entry, str(entry.message), record)
        line.message = shorten(self._mask(line.message), MAX_MESSAGE_CHARACTERS)
        if entry.stack_trace is not None:
            line.stack_trace = shorten(self._mask(entry.stack_trace), MAX_STACK_TRACE_CHARACTERS)
            if entry.level >= logging.ERROR:
                # Has Error Reporting treat the entry as an error event.
                line.type = REPORTED_ERROR
        for part in (line, line.http_request, line.exchange):
            if part is not None:
                self._clean(part, has_mask=part is not line)
        return self._encode(line) + b"\n"

    def _build_line(self, entry: LogEntry, message: str, record: ExchangeRecord | None) -> _JsonLine:
        line = _JsonLine(
            name_severity(entry.level), _format_time(entry.created), message, entry.logger, self._service_context
        )
        if record is not None:
            size, seconds = record.response_bytes, record.duration_seconds
            first, upstream = record.first_byte_seconds, record.upstream_seconds
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
                record.actor,
                record.source,
                record.feature,
                record.model,
                record.stream,
                round(seconds * 1000, 3),
                None if first is None else round(first * 1000, 3),
                None if upstream is None else round(upstream * 1000, 3),
                record.upstream_status,
                record.request_bytes,
                size,
                record.error,
                record.stale,
                record.warning,
            )
        return line

    def _clean(self, part: msgspec.Struct, *, has_mask: bool) -> None:
        """Mask the texts of ``part``, and put a question mark in the place of each lone surrogate."""
        # Names of fields are not masked: they are cgw's own.
        for name in part.__struct_fields__:
            value = getattr(part, name)
            if isinstance(value, str):
                text = self._mask(value) if has_mask else value
                setattr(part, name, text.encode("utf-8", "replace").decode("utf-8"))


_COLOURS = {"DEBUG": "2", "INFO": "32", "WARNING": "33", "ERROR": "31", "CRITICAL": "1;31"}


@frozen
class TerminalLines:
    """One readable line for each entry, in local time. The lines of a traceback are indented, so that no line of it
    can be taken for an entry."""

    mask: SecretMask
    has_colour: bool

    def render(self, entry: LogEntry) -> bytes:
        """Return the entry as text, with control characters escaped."""
        clock = f"{_format_local_second(int(entry.created))}.{int(entry.created % 1 * 1000):03d}"
        severity = name_severity(entry.level)
        label = f"{severity:<8}"
        if self.has_colour:
            clock, label = f"\x1b[2m{clock}\x1b[0m", f"\x1b[{_COLOURS[severity]}m{label}\x1b[0m"
        # Masked first, see shorten(); escaped last, because masking looks for secrets as they are.
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
    # A level between two standard ones counts as the lower one.
    return "INFO" if level >= logging.INFO else "DEBUG"


def escape_controls(text: str) -> str:
    """Return ``text`` with line ends, control and formatting characters and lone surrogates as escapes."""
    # A client's text must not begin a line of its own, or send control sequences to the terminal.
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


def _list_texts(message: str, record: ExchangeRecord) -> str:
    # The message holds all texts but these four. One look at all of them takes half of the time of a look at each.
    return f"{message}\n{record.user_agent}\n{record.remote_ip}\n{record.protocol}\n{record.source}"


def _format_time(seconds: float) -> str:
    """Return the time in UTC, to the microsecond: ``2026-01-31T23:59:59.123456+00:00``."""
    whole = int(seconds)
    # Exact, and rounded half to even, as datetime does it.
    microseconds = round((seconds - whole) * 1_000_000)
    if not 0 <= microseconds < 1_000_000:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")
    return f"{_format_second(whole)}.{microseconds:06d}+00:00"


# Many lines have the same second.
@lru_cache(maxsize=4)
def _format_second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()[:19]


@lru_cache(maxsize=4)
def _format_local_second(seconds: int) -> str:
    return time.strftime("%H:%M:%S", time.localtime(seconds))
