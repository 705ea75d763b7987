"""The flat relay: forwards bodies from upstreams to clients in one loop, without a task switch per event.

This is the fast path; anything unusual is left to the fallback path (:mod:`cgw.transport.relay`), and property tests
hold the two to the same results.

There is one relay per process. It owns an epoll instance and a thread that waits on it: waking up that thread costs a
fifth of waking up a task by Trio's scheduler (``docs/design.md`` has the measurements), and waking up is most of what
an event costs. The task of an exchange calls :meth:`FlatRelay.forward`, which registers its sockets and suspends the
task until the body ends.

Which thread runs what::

    relay thread    drain(): epoll, recv, framer, send          holds the lock for up to 16 events
    Trio thread     forward(), its cancellation, the sweep      holds the lock for one stream
    Trio thread     _deliver(), called by run_sync_soon         reschedules the task of a stream that has ended

The lock guards the streams and their registrations; under it only system calls that do not wait are made.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import outcome
import trio
from attrs import frozen

from cgw.transport.flat_stream import FlatStream, Reader, StreamEnd, StreamOutcome, Writer
from cgw.transport.sockets import RECEIVE_BYTES, Scratch
from cgw.wire.framers import ChunkedFramer, ChunkSizes, Framer, FramerState, LengthFramer
from cgw.wire.heads import FIRST_ERROR_STATUS
from cgw.wire.messages import ResponseHead
from cgw.wire.windows import BodyWindowCollector

MAX_EVENTS = 128
"""The most sockets per pass. After a pass the interpreter is free for tasks, even in a flood of streams."""

MAX_PASSES_PER_TICK = 32
"""Full passes after which a tick ends in any case, so that the rate is measured, and a stop is noticed."""

EVENTS_PER_LOCK = 16
"""Sockets that are served before the lock is released: a task that wants it waits for some 300 µs at most."""

COALESCE_ABOVE = 5_000.0
"""Events per second above which the relay drains once per tick instead of at each wake-up."""

COALESCE_BELOW = 3_500.0
"""Events per second below which it drains at each wake-up again; measured: there both cost the same."""

RATE_WINDOW_SECONDS = 0.02
"""The time over which the rate of events is measured."""

SWEEP_SECONDS = 0.25
"""The time between two checks of all timeouts: a stream ends up to this much later than its timeout says."""

_logger = logging.getLogger(__name__)

_READ = select.EPOLLIN | select.EPOLLRDHUP
_WRITE = select.EPOLLOUT


@frozen
class RelayStatistics:
    """``streams`` is their number now; the other counts are totals. ``ticks`` are passes that waited for a tick.

    ``busy_seconds`` is the time of all passes after their wait for sockets.
    """

    streams: int
    passes: int
    events: int
    ticks: int
    registrations: int
    is_coalescing: bool
    busy_seconds: float


class FlatRelay:
    """Forwards bodies for the exchanges of one process. ``run`` must be running while ``forward`` is used.

    ``tick_seconds`` is the longest that an event may wait for others under load (0: never). An upstream that sends
    nothing for ``silence_seconds``, or a client that reads nothing for ``stall_seconds``, ends its stream.
    """

    def __init__(self, *, tick_seconds: float = 0.001, silence_seconds: float = 60, stall_seconds: float = 60) -> None:
        self.tick_seconds = tick_seconds
        self.silence_seconds = silence_seconds
        self.stall_seconds = stall_seconds
        self._epoll = select.epoll()
        # By the descriptor that is registered: the upstream's of a stream that is read, or its client's.
        self._readers: dict[int, FlatStream] = {}
        self._writers: dict[int, FlatStream] = {}
        self._chunk_sizes = ChunkSizes()  # the cache of all chunked framers
        self._passes = self._events = self._ticks = 0
        self._registrations = 0
        self._busy_seconds = 0.0
        self._is_coalescing = False
        self._now = 0.0  # of the current pass: one reading of the clock for all of its events
        # Reentrant: what the thread does under the lock may, without a thread, cancel another stream's task.
        self._lock = threading.RLock()
        self._scratch = Scratch()  # the relay thread's own
        self._is_stopping = False
        # Trio's clock can only be read in Trio's thread: another one reads perf_counter, as both advance alike.
        self._read_clock: Callable[[], float] = trio.current_time
        self._clock_offset = 0.0
        self._call_trio: Callable[..., object] = _call

    def choose_framer(
        self, head: ResponseHead, content_length: int | None, collector: BodyWindowCollector
    ) -> Framer | None:
        """Return a framer for a body with this head, or ``None`` if the fallback path has to relay it."""
        if head.status in (204, 304) or head.status >= FIRST_ERROR_STATUS:
            return None  # no body, or one in which secrets are masked
        if content_length is not None:
            return LengthFramer(collector, content_length) if content_length else None
        if head.http_version == b"1.1" and (head.header(b"transfer-encoding") or b"").lower() == b"chunked":
            return ChunkedFramer(collector, self._chunk_sizes)
        return None

    def statistics(self) -> RelayStatistics:
        """Return a snapshot of the counters."""
        with self._lock:
            streams = len(self._readers) + len(self._writers)  # each has one descriptor registered at a time
        return RelayStatistics(
            streams,
            self._passes,
            self._events,
            self._ticks,
            self._registrations,
            self._is_coalescing,
            self._busy_seconds,
        )

    async def forward(
        self,
        reader: Reader,
        writer: Writer,
        framer: Framer,
        on_first_chunk: Callable[[float], None] | None = None,
        on_abort: Callable[[int], None] | None = None,
    ) -> StreamOutcome:
        """Forward the rest of one body, and return how it ended. The sockets are not closed.

        ``on_first_chunk`` is called once, with Trio's time, when payload arrives. It runs in the relay's thread, under
        the lock: it may only store the time. Cancel-safe: the stream is removed at once, and ``on_abort`` gets the
        number of raw bytes that were fed to the framer and could not be sent yet.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        stream = FlatStream(reader, reader.open_reading(self._scratch), writer, framer, on_first_chunk)
        stream.active_at = self._read_clock() + self._clock_offset
        stream.task = trio.lowlevel.current_task()
        # No checkpoint between here and wait_task_rescheduled: _deliver can't run before the task is suspended.
        with self._lock:
            self._begin_reading(stream)

        def abort(_: object) -> trio.lowlevel.Abort:
            with self._lock:
                # The outcome may be on its way to _deliver, which must not reschedule the task a second time.
                stream.task = None
                if on_abort is not None:
                    on_abort(len(stream.unsent))
                self._remove(stream)
            return trio.lowlevel.Abort.SUCCEEDED

        stream_outcome = await trio.lowlevel.wait_task_rescheduled(abort)
        assert isinstance(stream_outcome, StreamOutcome)
        return stream_outcome

    async def run(self) -> None:
        """Relay until cancelled, in a thread, which has ended when this returns."""
        self._read_clock, self._clock_offset = time.perf_counter, trio.current_time() - time.perf_counter()
        self._call_trio = trio.lowlevel.current_trio_token().run_sync_soon
        self._is_stopping = False
        # The thread may be in epoll_wait without a timeout; this descriptor wakes it up to stop.
        stop_descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(stop_descriptor, select.EPOLLIN)
        try:
            async with trio.open_nursery() as relay_nursery:
                relay_nursery.start_soon(self._sweep_forever)
                relay_nursery.start_soon(self._stop_when_cancelled, stop_descriptor)
                # Not abandoned on cancellation (Trio's default), so that the thread has ended before its sockets close.
                # A limiter of its own: the thread runs for the whole life of the process.
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
        self._begin_rate_window()
        while not self._is_stopping:
            if self._is_coalescing:
                self._ticks += 1
                time.sleep(self.tick_seconds)
                self._drain_all()
            else:
                self.drain(-1)
            self._adapt_to_rate()

    def _drain_all(self) -> None:
        """Make passes until one is not full: sleeping after each would let the rest of a flood wait for nothing."""
        for _ in range(MAX_PASSES_PER_TICK):
            if self.drain(0) < MAX_EVENTS:
                return

    async def run_without_thread(self) -> None:
        """Relay until cancelled, in this task: slower, but in step with Trio's clock and scheduler, for tests."""
        self._read_clock, self._clock_offset, self._call_trio = trio.current_time, 0.0, _call
        self._begin_rate_window()
        async with trio.open_nursery() as relay_nursery:
            relay_nursery.start_soon(self._sweep_forever)
            while True:
                if self._is_coalescing:
                    self._ticks += 1
                    await trio.sleep(self.tick_seconds)
                else:
                    # An epoll instance is itself a descriptor that is readable when it has events.
                    await trio.lowlevel.wait_readable(self._epoll.fileno())
                for _ in range(MAX_PASSES_PER_TICK):
                    if self.drain(0) < MAX_EVENTS:
                        break
                    await trio.lowlevel.checkpoint()
                self._adapt_to_rate()

    def _begin_rate_window(self) -> None:
        self._window_began, self._window_events = self._read_clock() + self._clock_offset, self._events

    def _adapt_to_rate(self) -> None:
        """Switch coalescing on or off by the rate of events. Two limits, so that it does not switch all the time."""
        elapsed = self._now - self._window_began
        if elapsed >= RATE_WINDOW_SECONDS:
            rate = (self._events - self._window_events) / elapsed
            limit = COALESCE_BELOW if self._is_coalescing else COALESCE_ABOVE
            self._is_coalescing = self.tick_seconds > 0 and rate > limit
            self._window_began, self._window_events = self._now, self._events

    def drain(self, timeout_seconds: float) -> int:
        """Make one pass: wait at most this long (−1: without limit), serve what is ready, return how many sockets."""
        ready = self._epoll.poll(timeout_seconds, MAX_EVENTS)
        self._passes += 1
        began_at = self._read_clock()
        self._now = began_at + self._clock_offset
        for start in range(0, len(ready), EVENTS_PER_LOCK):
            with self._lock:
                self._serve_events(ready[start : start + EVENTS_PER_LOCK])
        self._busy_seconds += self._read_clock() - began_at
        return len(ready)

    def _serve_events(self, ready: list[tuple[int, int]]) -> None:
        """Read and forward for each ready socket. This loop is what every event costs.

        The usual event (small, all of it may be forwarded, the client takes all) is handled here without a call of a
        method of ours besides the framer's; ``tests/guards/test_relay_costs.py`` counts. The rest is in methods.
        """
        readers, now, others = self._readers, self._now, 0
        for descriptor, _ in ready:
            stream = readers.get(descriptor)
            if stream is None:
                others += 1
                self._serve_writer(descriptor)
                continue
            try:
                try:
                    # Once per pass, even if there is more: epoll is level-triggered, and will report it again.
                    data = stream.receive(RECEIVE_BYTES)
                except BlockingIOError:
                    others += 1
                    continue
                except OSError as error:
                    others += 1
                    reason = f"the upstream reset the connection: {error.strerror or error}"
                    self._fail(stream, StreamEnd.BROKEN, reason)
                    continue
                stream.active_at = now
                size = len(data)
                if not stream.take(data, size):
                    self._feed(stream, data)
                    continue
                try:
                    sent = stream.send(data)
                except BlockingIOError:
                    sent = 0
                except OSError:
                    self._fail(stream, StreamEnd.CLIENT_GONE)
                    continue
                if sent != size:
                    self._wait_for_client(stream, data[sent:])
            except Exception as bug:  # noqa: BLE001 - a bug costs one stream, not the relay with all the others
                self._end_by_bug(stream, bug)
        self._events += len(ready) - others

    def _serve_writer(self, descriptor: int) -> None:
        stream = self._writers.get(descriptor)
        if stream is None:
            # Removed since epoll reported it, or the descriptor that stops the loop. If another stream has the
            # number by now, nothing is lost: its socket is tried without blocking.
            return
        try:
            self._write(stream)
        except Exception as bug:  # noqa: BLE001 - as above
            self._end_by_bug(stream, bug)

    def _end_by_bug(self, stream: FlatStream, bug: Exception) -> None:
        _logger.error("the relay failed at one stream, which is broken off", exc_info=bug)
        with suppress(OSError):
            self._remove(stream)
        self._call_trio(_deliver, stream, StreamOutcome(StreamEnd.BROKEN, b"", f"a bug in cgw: {type(bug).__name__}"))

    def _feed(self, stream: FlatStream, data: bytes) -> None:
        """Forward what may be forwarded of a piece that is not as usual, and end the stream if that was its last."""
        if not data:
            self._fail(stream, StreamEnd.BROKEN, "the upstream closed the connection before the end of the body")
            return
        framer = stream.framer
        data = framer.held + data
        passable, state = framer.feed(data, len(data))
        if stream.on_first_chunk is not None and framer.has_begun:
            stream.on_first_chunk(self._now)
            stream.on_first_chunk = None
        stream.framer_state = state
        if passable:
            data = data[:passable]
            try:
                sent = stream.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self._fail(stream, StreamEnd.CLIENT_GONE)
                return
            if sent < passable:
                self._wait_for_client(stream, data[sent:])
                return
        if state is not FramerState.OPEN:
            self._end(stream, StreamOutcome.from_framer(state, framer, self._now))

    def _wait_for_client(self, stream: FlatStream, unsent: bytes) -> None:
        """Keep ``unsent``, at most one read, until the client reads on; do not read the upstream meanwhile."""
        stream.unsent = unsent
        self._remove(stream)
        self._epoll.register(stream.writer_fd, _WRITE)
        self._registrations += 1
        self._writers[stream.writer_fd] = stream

    def _begin_reading(self, stream: FlatStream) -> None:
        self._epoll.register(stream.reader_fd, _READ)
        self._registrations += 1
        self._readers[stream.reader_fd] = stream

    def _write(self, stream: FlatStream) -> None:
        """Send what was kept for a client whose socket takes data again."""
        try:
            sent = stream.send(stream.unsent)
        except BlockingIOError:
            return
        except OSError:
            self._fail(stream, StreamEnd.CLIENT_GONE)
            return
        # The upstream's silence is counted from here on, too: it was not read while the client was slow.
        stream.active_at = self._now
        stream.unsent = stream.unsent[sent:]
        if stream.unsent:
            return
        if stream.framer_state is FramerState.OPEN:
            self._remove(stream)
            self._begin_reading(stream)
        else:
            self._end(stream, StreamOutcome.from_framer(stream.framer_state, stream.framer, self._now))

    async def _sweep_forever(self) -> None:
        shortest = min(self.silence_seconds, self.stall_seconds)
        while True:
            await trio.sleep(min(SWEEP_SECONDS, shortest / 4))
            self._sweep()

    def _sweep(self) -> None:
        """End the streams whose upstream or client has been idle for too long.

        One sweep over all streams instead of a timer each, which every event would have to reset.
        """
        now = trio.current_time()
        silent_since, stalled_since = now - self.silence_seconds, now - self.stall_seconds
        with self._lock:
            streams = [*self._readers.values(), *self._writers.values()]
        # The lock is taken again for each stream, so that the relay's thread never waits for the whole sweep.
        for stream in streams:
            with self._lock:
                self._end_if_idle(stream, silent_since, stalled_since)

    def _end_if_idle(self, stream: FlatStream, silent_since: float, stalled_since: float) -> None:
        if stream.task is None:  # ended since the list was made
            return
        # If it has ended and its outcome is still on the way to _deliver, a second outcome is ignored there.
        if stream.unsent:
            if stream.active_at <= stalled_since:
                self._fail(stream, StreamEnd.STALLED, f"the client took nothing for {self.stall_seconds:g} seconds")
        elif stream.active_at <= silent_since:
            self._fail(stream, StreamEnd.SILENT, f"the upstream was silent for {self.silence_seconds:g} seconds")

    def _fail(self, stream: FlatStream, end: StreamEnd, reason: str = "") -> None:
        self._end(stream, StreamOutcome(end, b"", reason))

    def _end(self, stream: FlatStream, stream_outcome: StreamOutcome) -> None:
        """Remove ``stream`` and have its task go on with ``stream_outcome``."""
        # Removed first: the task may close the sockets as soon as it runs.
        self._remove(stream)
        self._call_trio(_deliver, stream, stream_outcome)

    def _remove(self, stream: FlatStream) -> None:
        # Compared because the stream may have ended, and the number may have been given to another one since.
        if self._readers.get(stream.reader_fd) is stream:
            del self._readers[stream.reader_fd]
            self._epoll.unregister(stream.reader_fd)
        elif self._writers.get(stream.writer_fd) is stream:
            del self._writers[stream.writer_fd]
            self._epoll.unregister(stream.writer_fd)

    def close(self) -> None:
        """Close the epoll instance. No stream may be forwarded after that."""
        self._epoll.close()


def _deliver(stream: FlatStream, stream_outcome: StreamOutcome) -> None:
    """Reschedule the task of a stream that has ended. Runs in Trio's thread."""
    task, stream.task = stream.task, None
    if task is not None:  # None: cancelled between the end of the stream and now
        trio.lowlevel.reschedule(task, outcome.Value(stream_outcome))


def _call(function: Callable[..., object], *arguments: object) -> None:
    function(*arguments)
