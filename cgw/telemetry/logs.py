"""Logging for the life of the process: every record of :mod:`logging` is written to one stream, once.

    any thread: handler → bounded queue → log thread: render → write(2)

A stuck reader of the stream (a full pipe, a paused terminal) blocks the log thread only. Then the queue fills, and
further lines are dropped and counted: a stuck reader costs lines, never time.
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
from cgw.telemetry.log_lines import JsonLines, LineFormat, LogEntry, TerminalLines, build_entry
from cgw.telemetry.masking import SecretMask

__all__ = ["ExchangeRecord", "LogStatistics", "Logs", "Outcome", "log_exchange", "open_logging"]

MAX_BATCH = 500

GATHER_SECONDS = 0.01
"""The pause in which lines gather: under load, one wake-up of the log thread serves many lines instead of one."""

QUIET_LOGGERS = {"httpx": logging.WARNING, "httpcore": logging.WARNING, "hpack": logging.WARNING}
"""Libraries that log every request, some of them with its headers."""


@frozen
class LogStatistics:
    """Lines ``written`` and ``dropped`` since the start, lines ``pending`` now, and batches with ``write_errors``."""

    written: int
    dropped: int
    pending: int
    write_errors: int


class Logs:
    """The open log. Made by :func:`open_logging`."""

    def __init__(self, writer: _LineWriter) -> None:
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
    max_pending: int = 10_000,
    flush_timeout_seconds: float = 2.0,
) -> Iterator[Logs]:
    """Send all logging to ``stream`` for the length of the block: readable text on a terminal, JSON lines otherwise.

    ``is_terminal`` and ``has_colour`` default to whether ``stream`` is a terminal; pass ``has_colour=False`` under
    ``NO_COLOR``. ``secrets`` are exact values to mask, besides everything that looks like a credential. When
    ``max_pending`` lines wait, further ones are dropped; a line with their number follows as soon as the reader goes
    on. Leaving the block waits up to ``flush_timeout_seconds`` for the last lines, and restores the root logger.

    Hypercorn adds handlers of its own, unless its ``config.errorlog`` is ``logging.getLogger("hypercorn.error")``.
    """
    is_terminal = stream.isatty() if is_terminal is None else is_terminal
    mask = SecretMask(secrets)
    lines: LineFormat
    if is_terminal:
        lines = TerminalLines(mask, has_colour=is_terminal if has_colour is None else has_colour)
    else:
        lines = JsonLines(mask, version)
    writer = _LineWriter(stream, lines, max_pending)
    try:
        with _route_everything_to(_QueueHandler(writer), level):
            yield Logs(writer)
    finally:
        writer.close(flush_timeout_seconds)


@contextmanager
def _route_everything_to(handler: logging.Handler, level: str | int) -> Iterator[None]:
    root = logging.getLogger()
    former_handlers, former_level = root.handlers[:], root.level
    former_levels = {name: logging.getLogger(name).level for name in QUIET_LOGGERS}
    # Replaced, not added to: an earlier handler would write each line a second time, unmasked.
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
    """Passes records to the writer, from any thread."""

    def __init__(self, writer: _LineWriter) -> None:
        super().__init__()
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        # logging calls this with the handler's lock held. The lock is never held for long, because nothing here waits.
        try:
            entry = build_entry(record)
        except Exception as error:  # noqa: BLE001 - a wrong log call must not break the code that it reports on
            message = f"A log call at {record.pathname}:{record.lineno} cannot be formatted: {error}"
            entry = LogEntry(logging.ERROR, record.created, record.name, message)
        self._writer.put(entry)


class _LineWriter:
    """A thread that renders queued entries and writes them to a stream."""

    def __init__(self, stream: TextIO, lines: LineFormat, max_pending: int) -> None:
        self._stream = stream
        self._lines = lines
        self._max_pending = max_pending
        # Unbounded and written in C: a put never waits for the log thread. put() itself keeps to the bound.
        self._queue: SimpleQueue[LogEntry | None] = SimpleQueue()
        self._dropped = 0  # written under the handler's lock; all other counts by the log thread alone
        self._written = self._reported = self._write_errors = 0
        self._is_closing = False
        self._descriptor = _duplicate_descriptor(stream)
        # A daemon: the interpreter must be able to exit while the thread is stuck in a write.
        self._thread = threading.Thread(target=self._run, name="cgw-log", daemon=True)
        self._thread.start()

    def put(self, entry: LogEntry) -> None:
        """Queue ``entry``, or drop and count it when the queue is full. Never blocks. Not reentrant."""
        if self._queue.qsize() >= self._max_pending:
            self._dropped += 1
        else:
            self._queue.put(entry)

    def statistics(self) -> LogStatistics:
        return LogStatistics(self._written, self._dropped, self._queue.qsize(), self._write_errors)

    def close(self, timeout_seconds: float) -> None:
        """Write everything that is queued, for up to ``timeout_seconds``; then leave a stuck thread behind."""
        self._is_closing = True
        self._queue.put(None)
        self._thread.join(timeout_seconds)
        if self._descriptor is not None and not self._thread.is_alive():
            os.close(self._descriptor)  # not under a thread that still writes: the number could be reused

    def _run(self) -> None:
        is_open = True
        while is_open:
            taken = [self._queue.get()]
            if not self._is_closing:
                time.sleep(GATHER_SECONDS)
            taken += [self._queue.get() for _ in range(min(self._queue.qsize(), MAX_BATCH - 1))]
            entries = [entry for entry in taken if entry is not None]
            is_open = len(entries) == len(taken)  # close() puts None behind the last entry
            if self._dropped != self._reported:
                entries.append(self._report_dropped())
            self._write_batch(entries)

    def _report_dropped(self) -> LogEntry:
        dropped = self._dropped  # read once, as further lines may be dropped meanwhile
        message = f"{dropped - self._reported} log lines were dropped: the log's reader does not keep up"
        self._reported = dropped
        return LogEntry(logging.WARNING, time.time(), "cgw.log", message)

    def _write_batch(self, entries: list[LogEntry]) -> None:
        try:
            self._write(b"".join(map(self._render, entries)))
        except (OSError, ValueError):  # closed, broken or full: the log itself is the only place to report it
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
            except BlockingIOError:
                # Another process that shares the terminal or pipe has made it non-blocking.
                poll = select.poll()
                poll.register(self._descriptor, select.POLLOUT)
                poll.poll()


def _duplicate_descriptor(stream: TextIO) -> int | None:
    """Return a new descriptor for the file of ``stream``, or ``None`` if it has none.

    Writing to a descriptor avoids Python's buffer: a stuck thread would hold the buffer's lock, and the interpreter
    aborts when it cannot get that lock at exit.
    """
    with suppress(OSError, ValueError, AttributeError):  # no file beneath, or closed
        stream.flush()
        return os.dup(stream.fileno())
    return None
