"""The flat relay: bodies pass from upstreams to clients in one loop, without a task switch per event.

One relay per process owns an epoll instance and one thread that waits on it: a wake-up of a thread in epoll_wait(2)
costs a fifth of one through Trio's scheduler (``docs/design.md`` has the figures), and that is most of what an event
costs. Each exchange's own task registers its two sockets here and parks; when there is something to read, the loop
reads it, looks where the framing stands, and sends it, for all streams that are ready. At the end of a body, or of the
patience with one of its sides, the exchange's task is rescheduled with a :class:`Carried`. Cancelling that task takes
its stream out.

What the thread does for some events, and what a task does to a stream, exclude each other by a lock; under it there are
only system calls that do not wait. The thread belongs to a Trio task, :meth:`FlatRelay.run`, which ends only after it.

Everything unusual is left to the plain path (:mod:`cgw.transport.relay`), which is what this one is held against.
"""

from __future__ import annotations

import enum
import os
import select
import threading
import time
from collections.abc import Callable
from typing import Protocol

import outcome
import trio
from attrs import frozen

from cgw.transport.sockets import RECEIVE_BYTES, Scratch
from cgw.wire.framers import ChunkedFramer, Framer, LengthFramer, Standing
from cgw.wire.messages import ResponseHead
from cgw.wire.windows import BodyWindowCollector

MAX_EVENTS = 128
"""Sockets per pass; after it the relay yields, so that no flood of streams starves the other tasks."""

EVENTS_PER_LOCK = 16
"""Sockets that are carried before a task may take a stream out: what it may have to wait for, some 300 µs."""

COALESCE_ABOVE = 5_000.0
"""Events per second above which the relay drains on a tick instead of at each wake-up."""

COALESCE_BELOW = 3_500.0
"""Events per second below which it goes back to wake-ups."""

RATE_WINDOW_SECONDS = 0.02
SWEEP_SECONDS = 0.25
"""How often deadlines are looked at: a stream may be silent for this much longer than it is allowed to."""

_READ = select.EPOLLIN | select.EPOLLRDHUP
_WRITE = select.EPOLLOUT


class Reader(Protocol):
    """The upstream's side: a transport of :mod:`cgw.transport.sockets`."""

    def fileno(self) -> int:
        """The socket's descriptor."""
        ...

    def open_reading(self, scratch: Scratch) -> Callable[[int], bytes]:
        """A function that reads what is there, up to so many bytes; nothing at the end."""
        ...


class Writer(Protocol):
    """The client's side."""

    def fileno(self) -> int:
        """The socket's descriptor."""
        ...

    def send(self, data: bytes, /) -> int:
        """Write what the kernel takes."""
        ...


class Ending(enum.Enum):
    """Why a stream came back to its exchange."""

    COMPLETE = "complete"
    """The upstream ended the body properly; ``held`` waits to be released."""
    UNUSUAL = "unusual"
    """The plain path has to go on, with ``held`` as the next bytes."""
    BROKEN = "broken"
    """The upstream broke off."""
    SILENT = "silent"
    """The upstream sent nothing for too long."""
    STALLED = "stalled"
    """The client took nothing for too long."""
    CLIENT_GONE = "client_gone"
    """The client's socket takes nothing any more."""


@frozen
class Carried:
    """How a stream ended, and what of the upstream's bytes has not been passed on."""

    ending: Ending
    held: bytes
    reason: str = ""

    @classmethod
    def of_standing(cls, standing: Standing, framer: Framer) -> Carried:
        """The end that a framer has come to."""
        if standing is Standing.MALFORMED:
            return cls(Ending.BROKEN, b"", "the upstream broke the framing of its body")
        return cls(Ending.COMPLETE if standing is Standing.COMPLETE else Ending.UNUSUAL, framer.held)


@frozen
class RelayStatistics:
    """What the relay did: streams now, and since the start passes of its loop, events, waits on a tick."""

    streams: int
    passes: int
    events: int
    ticks: int
    registrations: int
    is_coalescing: bool


class _Stream:
    """One body under way. While ``unsent`` holds something, the upstream is not read."""

    __slots__ = (
        "active_at",
        "framer",
        "on_first",
        "reader_fd",
        "receive",
        "send",
        "standing",
        "task",
        "unsent",
        "writer_fd",
    )

    def __init__(
        self,
        reader: Reader,
        receive: Callable[[int], bytes],
        writer: Writer,
        framer: Framer,
        on_first: Callable[[float], None] | None,
    ) -> None:
        self.reader_fd = reader.fileno()
        self.writer_fd = writer.fileno()
        self.receive = receive
        self.send = writer.send
        self.framer = framer
        self.on_first = on_first
        self.task: trio.lowlevel.Task | None = None
        self.unsent = b""
        self.standing = Standing.OPEN
        self.active_at = 0.0


class FlatRelay:
    """Carries bodies for the exchanges of one process. ``run`` must be running while any are carried.

    ``tick_seconds`` is the longest that an event may wait under load (0: never); ``silence_seconds`` and
    ``stall_seconds`` are how long an upstream may send nothing, and a client take nothing.
    """

    def __init__(self, *, tick_seconds: float = 0.001, silence_seconds: float = 60, stall_seconds: float = 60) -> None:
        self.tick_seconds = tick_seconds
        self.silence_seconds = silence_seconds
        self.stall_seconds = stall_seconds
        self._epoll = select.epoll()
        self._streams: dict[int, _Stream] = {}
        self._sizes: dict[bytes, int] = {}
        self._passes = self._events = self._ticks = 0
        self._registrations = 0
        self._is_coalescing = False
        self._now = 0.0
        self._lock = threading.RLock()
        self._scratch = Scratch()
        self._is_stopping = False
        self._clock: Callable[[], float] = trio.current_time
        self._call_trio: Callable[..., object] = _call

    def choose_framer(
        self, head: ResponseHead, content_length: int | None, collector: BodyWindowCollector
    ) -> Framer | None:
        """What follows a body with this head, or ``None`` for one that the flat relay does not carry."""
        if head.status in (204, 304):
            return None
        if content_length is not None:
            return LengthFramer(collector, content_length) if content_length else None
        if head.http_version == b"1.1" and (head.header(b"transfer-encoding") or b"").lower() == b"chunked":
            return ChunkedFramer(collector, self._sizes)
        return None

    def statistics(self) -> RelayStatistics:
        """A snapshot of the counters."""
        with self._lock:
            streams = len(self._streams)  # each is registered with one of its sockets at a time
        return RelayStatistics(
            streams, self._passes, self._events, self._ticks, self._registrations, self._is_coalescing
        )

    async def carry(
        self, reader: Reader, writer: Writer, framer: Framer, on_first: Callable[[float], None] | None = None
    ) -> Carried:
        """Carry what is still to come of one body.

        ``on_first`` is called once, with Trio's time, when the first of it is there: from the relay's thread, so it
        must do no more than take a note. The sockets are not closed in any case. Cancel-safe: the stream is taken out
        at once; what was sent by then is unknown to the caller.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        stream = _Stream(reader, reader.open_reading(self._scratch), writer, framer, on_first)
        stream.active_at = trio.current_time()
        stream.task = trio.lowlevel.current_task()
        with self._lock:
            self._register(stream, stream.reader_fd, _READ)

        def abort(_: object) -> trio.lowlevel.Abort:
            with self._lock:
                stream.task = None
                self._take_out(stream)
            return trio.lowlevel.Abort.SUCCEEDED

        carried = await trio.lowlevel.wait_task_rescheduled(abort)
        assert isinstance(carried, Carried)
        return carried

    async def run(self) -> None:
        """Relay until cancelled, in a thread of its own, which has ended when this returns."""
        offset = trio.current_time() - time.perf_counter()
        self._clock = lambda: time.perf_counter() + offset
        self._call_trio = trio.lowlevel.current_trio_token().run_sync_soon
        self._is_stopping = False
        stop_descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(stop_descriptor, select.EPOLLIN)
        try:
            async with trio.open_nursery() as relay_nursery:
                relay_nursery.start_soon(self._sweep_for_ever)
                relay_nursery.start_soon(self._stop_when_cancelled, stop_descriptor)
                await trio.to_thread.run_sync(
                    self._drain_in_thread, limiter=trio.CapacityLimiter(1), thread_name="cgw-relay"
                )
        finally:
            os.close(stop_descriptor)

    async def _stop_when_cancelled(self, stop_descriptor: int) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self._is_stopping = True
            os.eventfd_write(stop_descriptor, 1)

    def _drain_in_thread(self) -> None:
        self._begin_window()
        while not self._is_stopping:
            if self._is_coalescing:
                self._ticks += 1
                time.sleep(self.tick_seconds)
                self.drain(0)
            else:
                self.drain(-1)
            self._adapt()

    async def run_without_thread(self) -> None:
        """Relay until cancelled, in this task: slower, but in step with Trio's clock and scheduler, as tests need."""
        self._clock, self._call_trio = trio.current_time, _call
        self._begin_window()
        async with trio.open_nursery() as relay_nursery:
            relay_nursery.start_soon(self._sweep_for_ever)
            while True:
                if self._is_coalescing:
                    self._ticks += 1
                    await trio.sleep(self.tick_seconds)
                else:
                    await trio.lowlevel.wait_readable(self._epoll.fileno())
                if self.drain(0) == MAX_EVENTS:
                    await trio.lowlevel.checkpoint()
                self._adapt()

    def _begin_window(self) -> None:
        self._window_began, self._window_events = self._clock(), self._events

    def _adapt(self) -> None:
        """Coalesce or not, by the rate of events in the last while."""
        elapsed = self._now - self._window_began
        if elapsed >= RATE_WINDOW_SECONDS:
            rate = (self._events - self._window_events) / elapsed
            limit = COALESCE_BELOW if self._is_coalescing else COALESCE_ABOVE
            self._is_coalescing = self.tick_seconds > 0 and rate > limit
            self._window_began, self._window_events = self._now, self._events

    def drain(self, timeout_seconds: float) -> int:
        """One pass: wait for so long at most (−1: for ever) and carry what is ready; how many sockets were."""
        ready = self._epoll.poll(timeout_seconds, MAX_EVENTS)
        self._passes += 1
        self._now = self._clock()
        for start in range(0, len(ready), EVENTS_PER_LOCK):
            with self._lock:
                self._carry_events(ready[start : start + EVENTS_PER_LOCK])
        return len(ready)

    def _carry_events(self, ready: list[tuple[int, int]]) -> None:
        """What happens for an event as it usually is stands in this one loop; all else is left to functions."""
        streams, now, still_open = self._streams, self._now, Standing.OPEN
        for descriptor, _ in ready:
            stream = streams.get(descriptor)
            if stream is None:
                continue  # taken out meanwhile
            if descriptor != stream.reader_fd:
                self._write(stream)
                continue
            try:
                data = stream.receive(RECEIVE_BYTES)
            except BlockingIOError:
                continue
            except OSError as error:
                self._finish(stream, Ending.BROKEN, f"the upstream reset the connection: {error.strerror or error}")
                continue
            if not data:
                self._finish(stream, Ending.BROKEN, "the upstream closed the connection before the end of the body")
                continue
            self._events += 1
            stream.active_at = now
            framer = stream.framer
            if framer.held:
                data = framer.held + data
            size = len(data)
            passable, standing = framer.follow(data, size)
            if passable != size or standing is not still_open or stream.on_first is not None:
                self._pass_on(stream, data[:passable], standing)
                continue
            try:
                sent = stream.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self._finish(stream, Ending.CLIENT_GONE)
                continue
            if sent != size:
                self._keep(stream, data[sent:])

    def _pass_on(self, stream: _Stream, data: bytes, standing: Standing) -> None:
        """Send ``data``, which may be only part of what came, and see to the end if this is it."""
        if stream.on_first is not None and stream.framer.has_begun:
            stream.on_first(self._now)
            stream.on_first = None
        stream.standing = standing
        if data:
            try:
                sent = stream.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self._finish(stream, Ending.CLIENT_GONE)
                return
            if sent < len(data):
                self._keep(stream, data[sent:])
                return
        if standing is not Standing.OPEN:
            self._wake(stream, Carried.of_standing(standing, stream.framer))

    def _keep(self, stream: _Stream, unsent: bytes) -> None:
        """The client does not take more: wait for it, and do not read on. At most one read's worth is kept."""
        stream.unsent = unsent
        self._unregister(stream.reader_fd)
        self._register(stream, stream.writer_fd, _WRITE)

    def _write(self, stream: _Stream) -> None:
        try:
            sent = stream.send(stream.unsent)
        except BlockingIOError:
            return
        except OSError:
            self._finish(stream, Ending.CLIENT_GONE)
            return
        stream.active_at = self._now
        stream.unsent = stream.unsent[sent:]
        if stream.unsent:
            return
        self._unregister(stream.writer_fd)
        if stream.standing is Standing.OPEN:
            self._register(stream, stream.reader_fd, _READ)
        else:
            self._wake(stream, Carried.of_standing(stream.standing, stream.framer))

    async def _sweep_for_ever(self) -> None:
        shortest = min(self.silence_seconds, self.stall_seconds)
        while True:
            await trio.sleep(min(SWEEP_SECONDS, shortest / 4))
            self._sweep()

    def _sweep(self) -> None:
        """End the streams whose upstream, or client, has been idle for too long."""
        now = trio.current_time()
        silent_since, stalled_since = now - self.silence_seconds, now - self.stall_seconds
        with self._lock:
            streams = list(self._streams.values())
        for stream in streams:
            with self._lock:
                self._end_if_idle(stream, silent_since, stalled_since)

    def _end_if_idle(self, stream: _Stream, silent_since: float, stalled_since: float) -> None:
        if stream.task is None:
            return
        if stream.unsent:
            if stream.active_at <= stalled_since:
                self._finish(stream, Ending.STALLED, f"the client took nothing for {self.stall_seconds:g} seconds")
        elif stream.active_at <= silent_since:
            self._finish(stream, Ending.SILENT, f"the upstream was silent for {self.silence_seconds:g} seconds")

    def _finish(self, stream: _Stream, ending: Ending, reason: str = "") -> None:
        self._wake(stream, Carried(ending, b"", reason))

    def _wake(self, stream: _Stream, carried: Carried) -> None:
        self._take_out(stream)
        self._call_trio(_deliver, stream, carried)

    def _register(self, stream: _Stream, descriptor: int, events: int) -> None:
        self._epoll.register(descriptor, events)
        self._registrations += 1
        self._streams[descriptor] = stream

    def _unregister(self, descriptor: int) -> None:
        del self._streams[descriptor]
        self._epoll.unregister(descriptor)

    def _take_out(self, stream: _Stream) -> None:
        for descriptor in (stream.reader_fd, stream.writer_fd):
            if self._streams.get(descriptor) is stream:
                self._unregister(descriptor)

    def close(self) -> None:
        """Close the epoll instance; nothing may be carried any more."""
        self._epoll.close()


def _deliver(stream: _Stream, carried: Carried) -> None:
    """Let the exchange's task go on, unless it was cancelled meanwhile. Runs in Trio's thread."""
    task, stream.task = stream.task, None
    if task is not None:
        trio.lowlevel.reschedule(task, outcome.Value(carried))


def _call(function: Callable[..., object], *arguments: object) -> None:
    function(*arguments)
