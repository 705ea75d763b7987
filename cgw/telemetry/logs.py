"""Logging for the life of the process: every record of :mod:`logging` is written to one stream, once.

    any thread: handler: render → bounded lines → log thread: write(2)

A stuck reader of the stream (a full pipe, a paused terminal) blocks the log thread only. Then further lines are dropped
and counted: a stuck reader costs lines, never time. See :mod:`cgw.telemetry.line_writer`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TextIO

from cgw import __version__
from cgw.telemetry.current_request import served_trace
from cgw.telemetry.exchange_log import ExchangeHandler
from cgw.telemetry.exchange_record import ExchangeRecord
from cgw.telemetry.json_lines import JsonLines
from cgw.telemetry.line_writer import LineWriter, LogStatistics
from cgw.telemetry.log_lines import LineFormat, LogEntry, TerminalLines, build_entry
from cgw.telemetry.masking import SecretMask
from cgw.wire.trace_context import RequestTrace

QUIET_LOGGERS = {"httpx": logging.WARNING, "httpcore": logging.WARNING, "hpack": logging.WARNING}
"""Libraries that log every request, some of them with its headers."""


class Logs:
    """The open log. Made by :func:`open_logging`."""

    def __init__(self, writer: LineWriter) -> None:
        self._writer = writer

    def statistics(self) -> LogStatistics:
        """Return the counts since opening."""
        return self._writer.statistics()


@contextmanager
def open_logging(
    stream: TextIO,
    *,
    is_terminal: bool | None = None,
    has_colour: bool | None = None,
    level: str | int = "INFO",
    version: str = __version__,
    secrets: Iterable[str] = (),
    project_id: str | None = None,
    labels: Mapping[str, str] | None = None,
    is_traced: Callable[[RequestTrace], bool] | None = None,
    max_pending: int = 10_000,
    max_pending_bytes: int = 16 * 2**20,
    flush_timeout_seconds: float = 2.0,
) -> Iterator[Logs]:
    """Send all logging to ``stream`` for the length of the block: readable text on a terminal, JSON lines otherwise.

    ``is_terminal`` and ``has_colour`` default to whether ``stream`` is a terminal; pass ``has_colour=False`` under
    ``NO_COLOR``. ``secrets`` are exact values to mask, besides everything that looks like a credential. ``project_id``
    is the Google Cloud project of the traces, ``labels`` are fields of all JSON lines; ``is_traced`` tells whether the
    spans of a request are sent anywhere.

    Lines below INFO are cgw's own only: those of libraries may hold what they send.

    Lines at error level are written at once, others within a tenth of a second. When ``max_pending`` lines or
    ``max_pending_bytes`` wait for the stream, further lines are dropped; a line with their number follows as soon as
    the reader goes on, and so does one about lines that could not be written. Leaving the block waits up to
    ``flush_timeout_seconds`` for the last lines, and restores the root logger.

    Hypercorn adds handlers of its own, unless its ``config.errorlog`` is ``logging.getLogger("hypercorn.error")``.
    """
    is_terminal = stream.isatty() if is_terminal is None else is_terminal
    mask = SecretMask(secrets)
    lines: LineFormat
    if is_terminal:
        lines = TerminalLines(mask, has_colour=is_terminal if has_colour is None else has_colour)
    else:
        lines = JsonLines(mask, version, project_id=project_id, labels=labels, is_traced=is_traced)

    def render_notice(message: str) -> bytes:
        return lines.render(LogEntry(logging.WARNING, time.time(), "cgw.log", message))

    writer = LineWriter(stream, max_pending, max_pending_bytes, render_notice)
    try:
        with _route_everything_to(_LineHandler(writer, lines), level):
            yield Logs(writer)
    finally:
        writer.close(flush_timeout_seconds)


@contextmanager
def _route_everything_to(handler: logging.Handler, level: str | int) -> Iterator[None]:
    root = logging.getLogger()
    former_handlers, former_level = root.handlers[:], root.level
    former_levels = {name: logging.getLogger(name).level for name in QUIET_LOGGERS}
    _flush(former_handlers)  # what has gathered is of before this block
    # Replaced, not added to: an earlier handler would write each line a second time, unmasked.
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name, quiet_level in QUIET_LOGGERS.items():
        logging.getLogger(name).setLevel(quiet_level)
    # Warnings of libraries go to the log, too, instead of to standard error directly.
    logging.captureWarnings(capture=True)
    try:
        yield
    finally:
        _flush(former_handlers)  # and what has gathered since is of this block
        logging.captureWarnings(capture=False)
        for name, former in former_levels.items():
            logging.getLogger(name).setLevel(former)
        root.setLevel(former_level)
        root.handlers[:] = former_handlers


def _flush(handlers: Iterable[logging.Handler]) -> None:
    for handler in handlers:
        handler.flush()


class _LineHandler(ExchangeHandler):
    """Renders records and passes the lines to the writer, in the thread that logs.

    A thread that renders later would cost as much, because threads take turns, and wake-ups besides.
    """

    def __init__(self, writer: LineWriter, lines: LineFormat) -> None:
        super().__init__()
        self._writer = writer
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.INFO and not record.name.startswith("cgw"):
            return
        try:
            entry = build_entry(record, served_trace.get())
        except Exception as error:  # noqa: BLE001 - a wrong log call must not break the code that it reports on
            message = f"A log call at {record.pathname}:{record.lineno} cannot be formatted: {error}"
            entry = LogEntry(logging.ERROR, record.created, record.name, message)
        self._write(entry)

    def render_exchanges(self, records: Sequence[ExchangeRecord]) -> list[bytes | None]:
        return self._lines.render_exchanges(records)

    def write_lines(self, lines: Sequence[bytes]) -> None:
        self._writer.put_all(lines)

    def _write(self, entry: LogEntry) -> None:
        try:
            line = self._lines.render(entry)
        except Exception as error:  # noqa: BLE001 - one bad entry (bytes for text, say) must not break its caller
            message = f"A log entry of {entry.logger} cannot be written: {error}"
            line = self._lines.render(LogEntry(logging.ERROR, time.time(), "cgw.log", message))
        self._writer.put(line, is_urgent=entry.level >= logging.ERROR)
