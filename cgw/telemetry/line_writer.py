"""A thread that writes the log's lines to a stream, so that nothing else waits for the stream.

::

    any thread: put() ──▶ gathered lines, bounded ──▶ log thread: write(2)

             ┌── the first line rings ──┐       ┌── every GATHER_SECONDS, or at once by an urgent line ──┐
             │                          ▼       ▼                                                        │
    idle: blocked, no wake-ups        write what has gathered ──── there were lines ────▶ busy: lines gather
             ▲                          │
             └──── there were none ─────┘

A stream that cannot be written (a full disk, a pipe without a reader) is reported in the stream itself, once it takes
lines again. Lines wait for a full disk as they do for a stuck reader; after other errors they are lost, and counted.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import accumulate
from queue import Empty, SimpleQueue
from typing import TextIO

from attrs import frozen

from cgw.errors import DISK_FULL_ERRORS, explain_os_error

GATHER_SECONDS = 0.1
"""The pause between two writes while lines come: one wake-up of the log thread for all lines of the pause."""

# Bounds the lines that one failed write loses, and the memory of a batch.
MAX_BATCH = 500

ROOM_SECONDS = 0.2
"""The pause between two attempts to write to a full disk."""


@frozen
class LogStatistics:
    """Counts since the start, and the lines that are ``pending`` now.

    ``dropped`` lines found too many waiting; ``lost`` ones could not be written. ``write_errors`` counts the times at
    which the stream began to fail.
    """

    written: int
    dropped: int
    pending: int
    write_errors: int
    lost: int


class LineWriter:
    """Writes lines to ``stream`` from a thread of its own.

    At most ``max_pending`` lines of ``max_pending_bytes`` together wait for the stream; further ones are dropped and
    counted. ``render_notice`` returns a line with the writer's own words: what was dropped, or could not be written.
    """

    def __init__(
        self, stream: TextIO, max_pending: int, max_pending_bytes: int, render_notice: Callable[[str], bytes]
    ) -> None:
        self._stream = stream
        self._max_pending = max_pending
        self._max_pending_bytes = max_pending_bytes
        self._render_notice = render_notice
        # Reentrant: a finalizer that logs may run while its own thread is inside put(). Held for a few instructions,
        # never while something waits.
        self._lock = threading.RLock()
        # Under the lock: lines that no write has begun with, and lines that a write has taken but not finished.
        self._gathered: list[bytes] = []
        self._gathered_bytes = self._taken = self._taken_bytes = 0
        self._dropped = self._reported = 0
        self._is_idle = False  # the thread waits for the bell alone
        self._is_rung = False
        self._is_closing = False
        # Wakes the thread. A SimpleQueue, because its put() may interrupt itself, unlike that of a threading.Event.
        self._bell: SimpleQueue[None] = SimpleQueue()
        # By the thread alone.
        self._written = self._write_errors = self._lost = self._lost_reported = 0
        self._failed_at: float | None = None
        self._failure = ""
        self._is_torn = False  # the stream's last line has no end
        self._descriptor = _duplicate_descriptor(stream)
        # A daemon: the interpreter must be able to exit while the thread is stuck in a write.
        self._thread = threading.Thread(target=self._run, name="cgw-log", daemon=True)
        self._thread.start()

    def put(self, line: bytes, *, is_urgent: bool = False) -> None:
        """Have ``line`` written, within :data:`GATHER_SECONDS` or at once if it ``is_urgent``. Never blocks.

        It is dropped and counted when too much waits already.
        """
        with self._lock:
            count = len(self._gathered) + self._taken
            size = self._gathered_bytes + self._taken_bytes + len(line)
            if count >= self._max_pending or size > self._max_pending_bytes:
                self._dropped += 1
                return
            self._gathered.append(line)
            self._gathered_bytes += len(line)
            # From half of a bound on, a burst must not wait for the end of the pause: it would be dropped.
            is_much = 2 * count >= self._max_pending or 2 * size > self._max_pending_bytes
            if self._is_idle or is_urgent or is_much:
                self._ring()

    def put_all(self, lines: Sequence[bytes]) -> None:
        """Have ``lines`` written as :meth:`put` does, in one step."""
        added, added_bytes = len(lines), sum(map(len, lines))
        with self._lock:
            count = len(self._gathered) + self._taken + added
            size = self._gathered_bytes + self._taken_bytes + added_bytes
            # Far from the bounds; put() has the rules for the rest.
            if 2 * count < self._max_pending and 2 * size < self._max_pending_bytes:
                self._gathered += lines
                self._gathered_bytes += added_bytes
                if self._is_idle and lines:
                    self._ring()
                return
        for line in lines:
            self.put(line)

    def statistics(self) -> LogStatistics:
        """Return the counts since the start."""
        pending = len(self._gathered) + self._taken
        return LogStatistics(self._written, self._dropped, pending, self._write_errors, self._lost)

    def close(self, timeout_seconds: float) -> None:
        """Write everything that waits, for up to ``timeout_seconds``; then leave a stuck thread behind."""
        with self._lock:
            self._is_closing = True
            self._ring()
        self._thread.join(timeout_seconds)
        if self._descriptor is not None and not self._thread.is_alive():
            os.close(self._descriptor)  # not under a thread that still writes: the number could be reused

    def _ring(self) -> None:
        if not self._is_rung:
            self._is_rung = True
            self._bell.put(None)

    def _run(self) -> None:
        is_busy = is_closing = False
        while not is_closing:
            if is_busy:
                with suppress(Empty):
                    self._bell.get(timeout=GATHER_SECONDS)
            else:
                self._wait_for_line()
            with self._lock:
                # In one step: a put() or close() after it rings again.
                self._is_idle = self._is_rung = False
                is_closing = self._is_closing
                lines = self._take_gathered()
            is_busy = bool(lines)
            while lines:
                self._write_batch(lines[:MAX_BATCH])
                del lines[:MAX_BATCH]  # frees what is no longer counted as waiting

    def _wait_for_line(self) -> None:
        with self._lock:
            if self._gathered or self._is_closing:
                return  # came since the last round, when put() did not ring
            self._is_idle = True
        self._bell.get()

    def _take_gathered(self) -> list[bytes]:
        lines, self._gathered = self._gathered, []
        self._taken, self._taken_bytes = len(lines), self._gathered_bytes
        self._gathered_bytes = 0
        if self._dropped != self._reported:
            count = self._dropped - self._reported
            lines.append(self._render_notice(f"{count} log lines were dropped: the log cannot be written fast enough"))
            self._reported = self._dropped
        return lines

    def _write_batch(self, lines: list[bytes]) -> None:
        data = b"".join(lines)
        try:
            self._write(data)
        except _WriteFailed as failed:
            count = _count_whole(lines, failed.written_bytes)
            self._written += count
            self._lost += len(lines) - count
        else:
            self._written += len(lines)
            if self._failed_at is not None:
                with suppress(_WriteFailed):  # it fails again: reported later
                    self._report_failure(self._failed_at)
        with self._lock:
            # The line about dropped ones was not counted when it was taken.
            self._taken = max(0, self._taken - len(lines))
            self._taken_bytes = max(0, self._taken_bytes - len(data))

    def _report_failure(self, failed_at: float) -> None:
        """Say, now that the stream takes lines again, how long it took none, and what that cost."""
        seconds, lost = time.monotonic() - failed_at, self._lost - self._lost_reported
        text = f"the log could not be written for {seconds:.0f} s ({self._failure}): {lost} lines are lost"
        self._failed_at = None
        self._write(self._render_notice(text))
        self._lost_reported += lost

    def _write(self, data: bytes) -> None:
        """Write ``data``, and wait for a stuck reader and for a full disk. Raises :exc:`_WriteFailed`."""
        if self._descriptor is None:
            try:
                self._stream.write(data.decode("utf-8"))
                self._stream.flush()
            except (OSError, ValueError) as error:  # it may be closed
                self._note_failure(error)
                raise _WriteFailed(0) from None
            return
        # So that half a line, which another program may have to parse, costs itself only.
        rest = memoryview(b"\n" + data if self._is_torn else data)
        while rest:
            try:
                # A pipe may take a part only.
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:
                # Another process that shares the terminal or pipe has made it non-blocking.
                poll = select.poll()
                poll.register(self._descriptor, select.POLLOUT)
                poll.poll()
            except OSError as error:
                self._note_failure(error)
                if error.errno not in DISK_FULL_ERRORS or self._is_closing:
                    written = len(data) - len(rest)
                    if written >= 0:
                        self._is_torn = data[:written][-1:] not in (b"\n", b"")
                    raise _WriteFailed(written) from None
                time.sleep(ROOM_SECONDS)
        self._is_torn = False

    def _note_failure(self, error: OSError | ValueError) -> None:
        if self._failed_at is None:
            self._write_errors += 1
            self._failed_at = time.monotonic()
        self._failure = explain_os_error(error)


class _WriteFailed(Exception):
    """Of the data, only ``written_bytes`` were written."""

    def __init__(self, written_bytes: int) -> None:
        self.written_bytes = written_bytes


def _count_whole(lines: Iterable[bytes], written_bytes: int) -> int:
    """Return how many of ``lines`` are whole within their first ``written_bytes``."""
    return sum(end <= written_bytes for end in accumulate(map(len, lines)))


def _duplicate_descriptor(stream: TextIO) -> int | None:
    """Return a new descriptor for the file of ``stream``, or ``None`` if it has none.

    Writing to a descriptor avoids Python's buffer: a stuck thread would hold the buffer's lock, and the interpreter
    aborts when it cannot get that lock at exit.
    """
    with suppress(OSError, ValueError, AttributeError):  # no file beneath, or closed
        stream.flush()
        return os.dup(stream.fileno())
    return None
