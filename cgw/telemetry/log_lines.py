"""Log entries, and their form as readable text for a terminal. Pure.

:mod:`cgw.telemetry.json_lines` has the form for machines.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Protocol

import msgspec
from attrs import frozen

from cgw.telemetry.exchange_record import ExchangeRecord, RequestKind
from cgw.telemetry.masking import SecretMask
from cgw.telemetry.stack_traces import format_stack_trace
from cgw.wire.trace_context import RequestTrace

MAX_MESSAGE_CHARACTERS = 16_384
MAX_STACK_TRACE_CHARACTERS = 100_000
"""Both limits together keep an entry below Cloud Logging's maximum of 256 KiB."""


class SourceLocation(msgspec.Struct, rename="camel", frozen=True, gc=False):
    """The place that a line was logged at, as in Error Reporting's ``reportLocation``."""

    file_path: str
    line_number: int
    function_name: str


class LogEntry(msgspec.Struct, frozen=True, gc=False):
    """A log record with its text put together. ``created`` is in seconds since the epoch.

    ``trace`` has the ids of the request during which it was logged; an exchange has its own. ``location`` is known of
    errors only.
    """

    level: int
    created: float
    logger: str
    message: str | ExchangeRecord
    stack_trace: str | None = None
    trace: RequestTrace | None = None
    location: SourceLocation | None = None


def build_entry(record: logging.LogRecord, trace: RequestTrace | None = None) -> LogEntry:
    """Build the entry for ``record``: format its arguments and traceback."""
    message = record.msg if isinstance(record.msg, ExchangeRecord) else record.getMessage()
    stack_trace = location = None
    # logging.exception() outside of an except block has three times None here.
    if record.exc_info and record.exc_info[1] is not None:
        stack_trace = format_stack_trace(record.exc_info[1])
    elif record.levelno >= logging.ERROR and record.pathname:
        location = SourceLocation(_shorten_path(record.pathname), record.lineno, record.funcName or "")
    return LogEntry(record.levelno, record.created, record.name, message, stack_trace, trace, location)


def mask_record(record: ExchangeRecord, mask: SecretMask) -> ExchangeRecord:
    """Return ``record`` with its texts masked: before its line quotes them, as quoting hides what they look like."""
    texts = {name: mask(value) for name in _TEXTS if isinstance(value := getattr(record, name), str)}
    return msgspec.structs.replace(record, **texts)


_TEXTS = ("method", "path", "actor", "source", "model", "protocol", "remote_ip", "user_agent", "error", "warning")
"""The fields of a record whose values come from outside."""


def _shorten_path(path: str) -> str:
    # The same wherever cgw is installed: Error Reporting groups by it.
    _, separator, rest = path.rpartition("/cgw/")
    return f"cgw/{rest}" if separator else path


class LineFormat(Protocol):
    """A format of log entries."""

    def render(self, entry: LogEntry) -> bytes:
        """Return the entry as UTF-8, with its line ending."""
        ...

    def render_exchanges(self, records: Sequence[ExchangeRecord]) -> list[bytes | None]:
        """Return the lines of ``records``; ``None`` for one that has to be rendered as an entry."""
        ...


def render_exchange(record: ExchangeRecord, render: Callable[[LogEntry], bytes]) -> bytes | None:
    """Return the line of an exchange; ``None`` for other requests, and for errors."""
    level = record.level
    if record.kind is not RequestKind.EXCHANGE or record.bug is not None or level >= logging.ERROR:
        return None
    return render(LogEntry(level, record.ended_at, "cgw.exchange", record))


def render_each(
    records: Sequence[ExchangeRecord], render: Callable[[ExchangeRecord], bytes | None]
) -> list[bytes | None]:
    """Return what ``render`` makes of each of ``records``; ``None`` where it raises, as for bytes in place of text."""
    lines: list[bytes | None] = []
    for record in records:
        try:
            lines.append(render(record))
        except Exception:  # noqa: BLE001 - one bad record must not cost the others; as an entry, its line says why
            lines.append(None)
    return lines


_COLOURS = {"DEBUG": "2", "INFO": "32", "WARNING": "33", "ERROR": "31", "CRITICAL": "1;31"}


@frozen
class TerminalLines:
    """One readable line for each entry, in local time. The lines of a traceback are indented, so that no line of it
    can be taken for an entry."""

    mask: SecretMask
    has_colour: bool

    def render_exchanges(self, records: Sequence[ExchangeRecord]) -> list[bytes | None]:
        """Return the lines of ``records``, see :class:`LineFormat`."""
        return render_each(records, lambda record: render_exchange(record, self.render))

    def render(self, entry: LogEntry) -> bytes:
        """Return the entry as text, with control characters escaped."""
        clock = f"{_format_local_second(int(entry.created))}.{int(entry.created % 1 * 1000):03d}"
        severity = name_severity(entry.level)
        label = f"{severity:<8}"
        if self.has_colour:
            clock, label = f"\x1b[2m{clock}\x1b[0m", f"\x1b[{_COLOURS[severity]}m{label}\x1b[0m"
        # Masked first, see shorten(); escaped last, because masking looks for secrets as they are.
        message = entry.message
        if isinstance(message, ExchangeRecord):
            message = str(mask_record(message, self.mask))
        message = escape_controls(shorten(self.mask(message), MAX_MESSAGE_CHARACTERS))
        is_exchange = isinstance(entry.message, ExchangeRecord)
        request = "" if entry.trace is None or is_exchange else f" request_id={entry.trace.trace_id}"
        lines = [f"{clock} {label} {message}{request}"]
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


@lru_cache(maxsize=4)
def _format_local_second(seconds: int) -> str:
    return time.strftime("%H:%M:%S", time.localtime(seconds))


def format_time(seconds: float) -> str:
    """Return a time in seconds since the epoch as UTC, to the microsecond: ``2026-01-31T23:59:59.123456+00:00``."""
    whole = int(seconds)
    # Exact, and rounded half to even, as datetime does it.
    microseconds = round((seconds - whole) * 1_000_000)
    if not 0 <= microseconds < 1_000_000:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")
    return f"{format_second(whole)}.{microseconds:06d}+00:00"


# Many lines have the same second.
@lru_cache(maxsize=4)
def format_second(seconds: int) -> str:
    """Return the same without microseconds and zone."""
    return datetime.fromtimestamp(seconds, UTC).isoformat()[:19]
