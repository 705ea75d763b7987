"""The sink ``stdout``: each event is a line of JSON on standard output, as in the event log.

What reads it (a container's log agent, ``kubectl logs``, a pipe) is the platform's: an event counts as shipped when
the kernel has taken its line.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import sys
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio

from cgw.errors import explain_os_error
from cgw.events.sinks.sink import RejectedEvent, SinkUnavailable

SEND_SECONDS = 10.0
"""The time for which a reader that does not read is waited for, before the batch counts as failed."""

PIPE_BYTES = select.PIPE_BUF
"""To a pipe that poll(2) calls writable, so many bytes can be written without waiting (pipe(7))."""


class StdoutSink:
    """Writes to a descriptor, in a thread: a reader that is stuck holds up this sink and nothing else.

    Made by :func:`open_stdout_sink`. One batch at a time. ``descriptor`` is ``None`` where there is no standard output.
    """

    name = "stdout"
    max_batch_events = 1000
    max_batch_bytes = 2**20

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor
        self._lock = trio.Lock()
        self._begun_id = ""  # of the batch of which a part was written
        self._begun_bytes = 0

    async def send(self, lines: Sequence[bytes], batch_id: str) -> Sequence[RejectedEvent]:
        """Write events. A batch of which a part was written is continued there when it is sent again."""
        if self._descriptor is None:
            raise SinkUnavailable("standard output is closed; start cgw with one, or take stdout out of the sinks")
        async with self._lock:
            data = b"".join(lines)
            if batch_id != self._begun_id:
                # Another batch's torn line, if there is one, is ended: it costs itself only.
                data = b"\n" * (self._begun_bytes > 0) + data
                self._begun_id, self._begun_bytes = batch_id, 0
            is_cancelled = threading.Event()
            try:
                await trio.to_thread.run_sync(self._write, data, is_cancelled, abandon_on_cancel=True)
            except OSError as error:
                raise SinkUnavailable(f"standard output takes nothing: {explain_os_error(error)}") from None
            finally:
                is_cancelled.set()
            self._begun_id, self._begun_bytes = "", 0
        return ()

    def _write(self, data: bytes, is_cancelled: threading.Event) -> None:
        descriptor = self._descriptor
        assert descriptor is not None
        # A pipe, socket or terminal can make a large write wait for its reader; a file cannot.
        is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
        deadline = time.monotonic() + SEND_SECONDS
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        while self._begun_bytes < len(data) and not is_cancelled.is_set():
            if not is_file and not poll.poll(1000):
                if time.monotonic() >= deadline:
                    raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
                continue
            end = len(data) if is_file else self._begun_bytes + PIPE_BYTES
            try:
                self._begun_bytes += os.write(descriptor, data[self._begun_bytes : end])
            except BlockingIOError:
                continue  # whoever shares it has made it non-blocking
            deadline = time.monotonic() + SEND_SECONDS


@asynccontextmanager
async def open_stdout_sink() -> AsyncIterator[StdoutSink]:
    """Open the process's standard output for the length of the block."""
    descriptor: int | None = None
    try:
        # Without a standard output, descriptor 1 may by now be a socket, say.
        if sys.__stdout__ is not None:
            descriptor = os.dup(sys.__stdout__.fileno())
    except (OSError, ValueError):
        descriptor = None
    # Never closed: a thread that hangs may still use it, and there is one per process.
    yield StdoutSink(descriptor)
