"""Logging for the life of the process: everything that goes through :mod:`logging` ends in one stream, once.

Records are put into a bounded queue and written by a thread of their own, so that a stuck reader of the stream (a
full pipe, a paused terminal) holds up neither the Trio thread nor anybody else; then lines are dropped and counted.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import TextIO

from attrs import frozen

from cgw import __version__
from cgw.telemetry.exchange_log import ExchangeRecord, Outcome, log_exchange
from cgw.telemetry.log_lines import JsonLines, Lines, LogEntry, TerminalLines, build_entry
from cgw.telemetry.masking import SecretMask

__all__ = ["ExchangeRecord", "LogStatistics", "Logs", "Outcome", "log_exchange", "open_logging"]

MAX_BATCH = 500

GATHER_SECONDS = 0.01
"""How long the writing thread lets lines gather: under load one wake-up for many, instead of a switch of threads for
each."""

QUIET_LOGGERS = {"httpx": logging.WARNING, "httpcore": logging.WARNING, "hpack": logging.WARNING}
"""Libraries that log every request, some with its headers."""


@frozen
class LogStatistics:
    """``written`` and ``dropped`` lines since the start, ``pending`` ones, and failed ``write_errors`` of batches."""

    written: int
    dropped: int
    pending: int
    write_errors: int


class Logs:
    """The open log: its mask and its figures. Made by :func:`open_logging`."""

    def __init__(self, writer: _LineWriter, mask: SecretMask) -> None:
        self._writer = writer
        self._mask = mask

    def add_secret(self, secret: str) -> None:
        """Mask ``secret``, a provider's key say, wherever it would appear from now on."""
        self._mask.add(secret)

    def statistics(self) -> LogStatistics:
        """Counts since opening."""
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
    max_pending: int = 10_000,
    flush_timeout_seconds: float = 2.0,
) -> Iterator[Logs]:
    """Send all logging to ``stream`` while the block runs: readable on a terminal, JSON lines otherwise.

    ``is_terminal`` and ``has_colour`` default to what ``stream`` is; pass ``has_colour=False`` under ``NO_COLOR``.
    ``secrets`` are exact values to mask besides whatever looks like a credential. With ``max_pending`` lines waiting,
    further ones are dropped; a line tells how many as soon as the reader goes on. Leaving waits
    ``flush_timeout_seconds`` at most for the last lines, and gives the root logger back its former handlers.

    Hypercorn adds handlers of its own, unless its ``config.errorlog`` is ``logging.getLogger("hypercorn.error")``.
    """
    is_terminal = stream.isatty() if is_terminal is None else is_terminal
    mask = SecretMask(secrets)
    lines: Lines
    if is_terminal:
        lines = TerminalLines(mask, has_colour=is_terminal if has_colour is None else has_colour)
    else:
        lines = JsonLines(mask, version)
    writer = _LineWriter(stream, lines, max_pending)
    try:
        with _route_everything_to(_QueueHandler(writer), level):
            yield Logs(writer, mask)
    finally:
        writer.close(flush_timeout_seconds)


@contextmanager
def _route_everything_to(handler: logging.Handler, level: str | int) -> Iterator[None]:
    root = logging.getLogger()
    former_handlers, former_level = root.handlers[:], root.level
    former_levels = {name: logging.getLogger(name).level for name in QUIET_LOGGERS}
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name, quiet_level in QUIET_LOGGERS.items():
        logging.getLogger(name).setLevel(quiet_level)
    logging.captureWarnings(capture=True)
    try:
        yield
    finally:
        logging.captureWarnings(capture=False)
        for name, former in former_levels.items():
            logging.getLogger(name).setLevel(former)
        root.setLevel(former_level)
        root.handlers[:] = former_handlers


class _QueueHandler(logging.Handler):
    """Hands records over to the writer, from any thread."""

    def __init__(self, writer: _LineWriter) -> None:
        super().__init__()
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        try:
            entry = build_entry(record)
        except Exception as error:  # noqa: BLE001 - a mistake in a log call must not break what it reports on
            message = f"A log call at {record.pathname}:{record.lineno} cannot be formatted: {error}"
            entry = LogEntry(logging.ERROR, record.created, record.name, message)
        self._writer.put(entry)


class _LineWriter:
    """A thread that renders entries and writes them to a stream."""

    def __init__(self, stream: TextIO, lines: Lines, max_pending: int) -> None:
        self._stream = stream
        self._lines = lines
        self._max_pending = max_pending
        self._queue: SimpleQueue[LogEntry | None] = SimpleQueue()
        self._written = self._dropped = self._reported = self._write_errors = 0
        self._is_closing = False
        self._descriptor = _duplicate_descriptor(stream)
        self._thread = threading.Thread(target=self._run, name="cgw-log", daemon=True)
        self._thread.start()

    def put(self, entry: LogEntry) -> None:
        """Queue ``entry``, or drop and count it when the queue is full. Never blocks."""
        if self._queue.qsize() >= self._max_pending:
            self._dropped += 1
        else:
            self._queue.put(entry)

    def statistics(self) -> LogStatistics:
        return LogStatistics(self._written, self._dropped, self._queue.qsize(), self._write_errors)

    def close(self, timeout_seconds: float) -> None:
        """Write what is queued, for so long at most. A thread that is stuck then is left behind, as a daemon."""
        self._is_closing = True
        self._queue.put(None)
        self._thread.join(timeout_seconds)
        if self._descriptor is not None and not self._thread.is_alive():
            os.close(self._descriptor)

    def _run(self) -> None:
        is_open = True
        while is_open:
            taken = [self._queue.get()]
            if taken[0] is not None and not self._is_closing:
                time.sleep(GATHER_SECONDS)
            taken += [self._queue.get() for _ in range(min(self._queue.qsize(), MAX_BATCH - 1))]
            entries = [entry for entry in taken if entry is not None]
            is_open = len(entries) == len(taken)
            if self._dropped != self._reported:
                entries.append(self._report_dropped())
            self._write_batch(entries)

    def _report_dropped(self) -> LogEntry:
        dropped = self._dropped
        message = f"{dropped - self._reported} log lines were dropped: the log's reader does not keep up"
        self._reported = dropped
        return LogEntry(logging.WARNING, time.time(), "cgw.log", message)

    def _write_batch(self, entries: list[LogEntry]) -> None:
        try:
            self._write(b"".join(map(self._render, entries)))
        except (OSError, ValueError):  # closed, broken or full: there is nowhere left to say so
            self._write_errors += 1
        else:
            self._written += len(entries)

    def _render(self, entry: LogEntry) -> bytes:
        try:
            return self._lines.render(entry)
        except Exception as error:  # noqa: BLE001 - one bad entry (bytes for text, say) must not end all logging
            message = f"A log entry of {entry.logger} cannot be written: {error}"
            return self._lines.render(LogEntry(logging.ERROR, time.time(), "cgw.log", message))

    def _write(self, data: bytes) -> None:
        if self._descriptor is None:
            self._stream.write(data.decode("utf-8"))
            self._stream.flush()
            return
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:  # somebody who shares the terminal or pipe has made it non-blocking
                poll = select.poll()
                poll.register(self._descriptor, select.POLLOUT)
                poll.poll()


def _duplicate_descriptor(stream: TextIO) -> int | None:
    """A descriptor of ``stream``'s file, or ``None`` for a stream without one.

    Writing to it passes by Python's buffer, whose lock a stuck thread would hold until the interpreter, at its end,
    dies of it.
    """
    with suppress(OSError, ValueError, AttributeError):  # no file beneath, or closed
        stream.flush()
        return os.dup(stream.fileno())
    return None
