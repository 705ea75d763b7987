"""One HTTP/2 connection of a client: reads frames, runs an exchange per stream, writes what they send.

One task reads; each stream's exchange is a task in a nursery of the connection's; one task writes what the kernel does
not take at once. States, and what ends each::

    preface, SETTINGS --header_timeout--.
    half a frame or header block -------+--> GOAWAY, lingering close
      (header_timeout, for DATA body_timeout)
    idle --keep_alive_timeout-----------'
    streams open --> the exchange's own deadlines, the stall timeout
    draining: GOAWAY 2^31-1, a round trip or DRAIN_SECONDS, GOAWAY last id; ends with the last stream
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio
from attrs import field, frozen
from h2.errors import ErrorCodes

from cgw.errors import ClientGone, Refusal
from cgw.transport.arrival import read_arrival
from cgw.transport.body_budget import BodyBudget
from cgw.transport.client_address import TrustedProxies
from cgw.transport.client_side import ClientLimits, RefusedHead, RenderRefusal, ignore_refused
from cgw.transport.deadlines import DeadlineKeeper
from cgw.transport.http2_client import Http2Client
from cgw.transport.http2_writer import Http2Writer
from cgw.transport.serving_scope import Cause, ServingScope
from cgw.transport.sockets import BUFFER_BYTES, Transport
from cgw.wire.http2_bounds import Http2Bounds
from cgw.wire.http2_events import (
    BodyReceived,
    ClientLeaving,
    HeadMalformed,
    Http2Event,
    PingAnswered,
    RequestStarted,
    StreamLost,
    WindowOpened,
)
from cgw.wire.http2_frames import MAX_STREAM_ID, Http2ConnectionError
from cgw.wire.http2_protocol import Http2Protocol
from cgw.wire.trace_context import begin_trace

SLICE_SECONDS = 0.002
"""Time for processing frames between two checkpoints. It is checked after each frame: the largest header block alone
takes 12 to 19 ms in HPACK."""

DRAIN_SECONDS = 1.0
"""Longest wait between the two GOAWAY frames of a drain (RFC 9113 §6.8 suggests a round trip)."""

LINGER_SECONDS = 1.0
"""Time for which the client's bytes are still read after the last GOAWAY."""

TASKS_PER_STREAM = 2
"""Bound on tasks, as a multiple of ``max_streams``: exchanges of streams that were reset may still be ending."""

_DRAIN_PING = b"cgwdrain"

logger = logging.getLogger("cgw.server")


@frozen
class Http2Callbacks:
    """The layers above, as a connection calls them.

    ``handle`` runs an exchange in the scope that it is given, as :class:`ServingScope` says. ``render_refusal`` returns
    header fields and body for a request that is refused before it becomes an exchange, by its path and its id;
    ``note_refused`` logs it, and malformed ones. ``budget`` bounds the memory of request bodies. ``trusted`` proxies
    may tell the client's address. ``is_draining`` is asked once, when a connection begins; later ones get
    :meth:`Http2Connection.drain`.
    """

    limits: ClientLimits
    handle: Callable[[Http2Client, ServingScope], Awaitable[None]]
    render_refusal: RenderRefusal
    is_draining: Callable[[], bool]
    deadlines: DeadlineKeeper
    bounds: Http2Bounds = field(factory=Http2Bounds)
    budget: BodyBudget = field(factory=lambda: BodyBudget(512 * 1024 * 1024))
    trusted: TrustedProxies = field(factory=TrustedProxies)
    note_refused: Callable[[RefusedHead], None] = ignore_refused
    buffer: bytearray = field(factory=lambda: bytearray(BUFFER_BYTES), repr=False)
    """Read buffer shared by all connections. Its contents are copied before any other task can run."""


class Http2Connection:
    """One client's connection, which begins with ``first_bytes``. Owns ``transport`` and closes it in every case.

    ``peer`` is the address at the other end.
    """

    def __init__(self, transport: Transport, first_bytes: bytes, peer: str, callbacks: Http2Callbacks) -> None:
        limits, bounds = callbacks.limits, callbacks.bounds
        self._transport = transport
        self._first_bytes = first_bytes
        self._callbacks = callbacks
        self._limits = limits
        self._bounds = bounds
        self._peer = peer
        self._clients: dict[int, Http2Client] = {}
        self._task_count = 0
        self._room_turns = trio.lowlevel.ParkingLot()
        self._window_turns = trio.lowlevel.ParkingLot()
        self._opened_at = self._idle_since = self._partial_since = trio.current_time()
        self._exchange_nursery: trio.Nursery | None = None
        self._connection_nursery: trio.Nursery | None = None
        self._reading = ServingScope(callbacks.deadlines)
        self._is_draining = False
        self._is_drain_announced = False
        self._is_client_leaving = False
        self._ping_answered = trio.Event()
        self.protocol = Http2Protocol(bounds, limits.max_head_bytes, trio.current_time)
        self._writer = Http2Writer(
            transport,
            full_bytes=bounds.unsent_bytes,
            stall_timeout_seconds=limits.stall_timeout_seconds,
            on_room=self.pass_turn,
            on_broken=self._lose,
        )

    @property
    def is_idle(self) -> bool:
        """True while no exchange is under way."""
        return self._task_count == 0

    @property
    def unsent_bytes(self) -> int:
        """The number of bytes that wait for the client to read."""
        return self._writer.unsent_bytes

    async def serve(self) -> None:
        """Serve until the client leaves, the protocol is violated, a timeout passes, or a drain is complete.

        When the client leaves, ``wait_gone`` of each exchange returns, and this method waits for the exchanges to end.
        When cancelled, the exchanges are cancelled and the connection is closed.
        """
        try:
            async with trio.open_nursery() as self._connection_nursery:
                # Two nurseries: the exchanges end first, and the writer must still run for their last frames.
                self._connection_nursery.start_soon(self._writer.run)
                self.flush()  # our SETTINGS; they need not wait for the client's preface (RFC 9113 §3.4)
                if self._is_draining or self._callbacks.is_draining():
                    self._is_draining = True
                    self._connection_nursery.start_soon(self._drain)
                async with trio.open_nursery() as self._exchange_nursery:
                    await self._read()
                    self._leave_all()  # no more frames will come: for the exchanges the client has left
                self._connection_nursery.cancel_scope.cancel()
        finally:
            self._connection_nursery = None
            self._reading.close()  # not before: each exchange that ends moves this deadline
            self._transport.close()

    def drain(self) -> None:
        """Refuse new streams after two GOAWAY frames, and end once the open ones are done. Never waits; idempotent."""
        if not self._is_draining:
            self._is_draining = True
            if self._connection_nursery is not None:
                self._connection_nursery.start_soon(self._drain)

    # --- reading ------------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        try:
            with self._reading.enter() as reading_scope:
                if self._writer.is_broken:  # since the first write
                    return
                self._set_deadline()
                await self._process(self._first_bytes)
                await self._receive()
        except Http2ConnectionError as error:
            self._note_malformed(str(error))
            await self._say_goodbye(error.code, str(error))
            return
        except (OSError, trio.ClosedResourceError):
            return  # a connection that is broken gets no GOAWAY
        if reading_scope.cancelled_caught and not self._writer.is_broken:
            # An idle connection ends with NO_ERROR: its client did nothing wrong and may open another one.
            is_late = self.protocol.is_partial or not self.protocol.has_settings
            if is_late and self._reading.cause is Cause.LATE:
                await self._say_goodbye(ErrorCodes.PROTOCOL_ERROR, "timeout")
            else:
                await self._say_goodbye(ErrorCodes.NO_ERROR, "")

    async def _receive(self) -> None:
        buffer = self._callbacks.buffer
        view = memoryview(buffer)
        while size := await self._transport.receive_some(buffer):
            await self._process(bytes(view[:size]))
            # receive_some is no checkpoint when bytes are there already; a fast client would hold the loop.
            await trio.lowlevel.checkpoint()

    async def _process(self, data: bytes) -> None:
        """Process all complete frames, with a checkpoint every :data:`SLICE_SECONDS`."""
        was_partial = self.protocol.is_partial
        frame_count = 0
        self.protocol.feed(data)
        slice_ends_at = time.perf_counter() + SLICE_SECONDS
        while (events := self.protocol.process_frame()) is not None:
            frame_count += 1
            for event in events:
                self._handle(event)
            # By time, not by count: a PING takes 2 µs, a header block up to some milliseconds.
            if time.perf_counter() >= slice_ends_at:
                self._flush_replies()  # others may write meanwhile, and replies must not be held back by them
                await trio.lowlevel.checkpoint()
                slice_ends_at = time.perf_counter() + SLICE_SECONDS
        self._flush_replies()
        # header_timeout counts from the first byte of a header block, not from each of its CONTINUATION frames.
        if not was_partial or (frame_count and not self.protocol.is_block_open):
            self._partial_since = trio.current_time()
        self._set_deadline()

    def _flush_replies(self) -> None:
        self.flush()
        # Answers stop at unsent_bytes by themselves; beyond max_unsent_bytes these are replies to control frames.
        if self._writer.unsent_bytes > self._bounds.max_unsent_bytes:
            raise Http2ConnectionError(ErrorCodes.ENHANCE_YOUR_CALM, "the client does not read what it asks for")

    def _set_deadline(self) -> None:
        limits, protocol, deadline = self._limits, self.protocol, math.inf
        if protocol.is_partial:
            seconds = limits.body_timeout_seconds if protocol.is_partial_body else limits.header_timeout_seconds
            deadline = self._partial_since + seconds
        elif self.is_idle:
            # Not moved by PING and other frames: only requests keep a connection.
            deadline = self._idle_since + limits.keep_alive_timeout_seconds
        if not protocol.has_settings:
            # Counted from the beginning, however slowly the preface drips in.
            deadline = min(deadline, self._opened_at + limits.header_timeout_seconds)
        self._reading.set_deadline(deadline)

    def _handle(self, event: Http2Event) -> None:
        match event:
            case RequestStarted():
                self._start(event)
            case HeadMalformed(_, reason):
                self._note_malformed(reason)
            case WindowOpened(0):
                for any_client in self._clients.values():
                    any_client.open_window()  # SETTINGS may have changed every stream's window
                self.pass_turn()
            case PingAnswered(data):
                if data == _DRAIN_PING:
                    self._ping_answered.set()
            case ClientLeaving():
                self._is_client_leaving = True
                self._end_if_done()
            case BodyReceived(stream_id) | WindowOpened(stream_id) | StreamLost(stream_id):
                # No client: the stream was refused because of TASKS_PER_STREAM.
                if client := self._clients.get(stream_id):
                    client.take(event)

    def _start(self, started: RequestStarted) -> None:
        assert self._exchange_nursery is not None
        if self._task_count >= self._bounds.max_streams * TASKS_PER_STREAM:
            # Rapid reset (CVE-2023-44487): the streams are closed, but their exchanges had no time to end.
            self.protocol.reset(started.stream_id, ErrorCodes.REFUSED_STREAM)
            return
        peer = self._callbacks.trusted.find_client(self._peer, started.head)
        started.head.arrived_at = read_arrival(self._transport.ancillary)
        client = Http2Client(self, started, self._limits, self._callbacks.budget, peer)
        self._clients[started.stream_id] = client
        self._task_count += 1
        self._exchange_nursery.start_soon(self._run_exchange, client, started.refusal)

    async def _run_exchange(self, client: Http2Client, refusal: Refusal | None) -> None:
        try:
            await self._answer(client, refusal)
            await client.discard_rest()
        finally:
            # In every case, also when cancelled: a response that is not complete must not look complete.
            client.close()
            del self._clients[client.stream_id]
            self._task_count -= 1
            self._idle_since = trio.current_time()
            self._set_deadline()
            self._end_if_done()

    async def _answer(self, client: Http2Client, refusal: Refusal | None) -> None:
        try:
            if refusal is None:
                await self._serve_in_scope(client)
            else:
                head = client.head
                self._callbacks.note_refused(
                    RefusedHead(refusal.status, refusal.message, head.method, head.path, client.peer, head.trace)
                )
                headers, body = self._callbacks.render_refusal(refusal, head.path, head.trace.trace_id)
                await client.send_response(refusal.status, [*headers, *refusal.headers], body)
        except ClientGone:
            pass
        except Exception:
            # Boundary: one exchange's bug must not end the connection's other streams, which may belong to other users.
            logger.exception("an exchange failed")

    async def _serve_in_scope(self, client: Http2Client) -> None:
        scope = ServingScope(self._callbacks.deadlines)
        try:
            with scope.enter():
                await self._callbacks.handle(client, scope)
        finally:
            if scope.conclude is not None:
                await scope.conclude()
            scope.close()

    def _note_malformed(self, reason: str) -> None:
        text = f"malformed HTTP/2 request: {reason}"
        self._callbacks.note_refused(RefusedHead(None, text, b"", b"", self._peer, begin_trace()))

    def _end_if_done(self) -> None:
        """Stop reading if no stream is left and none can follow."""
        if self.is_idle and (self._is_client_leaving or self._is_drain_announced):
            self._reading.cancel(Cause.DONE)

    # --- writing ------------------------------------------------------------------------------------------------------

    @property
    def is_full(self) -> bool:
        """True if so much is unsent that answers should wait."""
        return self._writer.is_full

    def flush(self) -> None:
        """Write what the protocol has to send."""
        self._writer.write(self.protocol.take_output())

    async def wait_turn(self, size: int) -> bool:
        """Return true if the connection can take a frame with ``size`` bytes of body; otherwise wait and return false.

        After false, the caller must check its stream's window again. Frames without body bytes are not subject to flow
        control (RFC 9113 §6.9).
        """
        if self._writer.is_full:
            await self._room_turns.park()
            return False
        if size and self.protocol.connection_window <= 0:
            self.pass_turn()
            await self._window_turns.park()
            return False
        return True

    def pass_turn(self) -> None:
        """Wake one waiting stream, if the connection can take a frame.

        A woken stream calls this again in every case, after its frame or instead of it (also when it is cancelled).
        So no wake-up is lost, and a window for one frame does not wake a hundred streams.
        """
        if self._writer.is_full:
            return  # on_room will pass the turn
        if self._room_turns:
            self._room_turns.unpark()
        elif self._window_turns and self.protocol.connection_window > 0:
            self._window_turns.unpark()

    # --- the end ------------------------------------------------------------------------------------------------------

    async def _drain(self) -> None:
        # Two steps, so that requests that cross the first GOAWAY are served (RFC 9113 §6.8).
        self.protocol.send_goaway(MAX_STREAM_ID, ErrorCodes.NO_ERROR)
        self.protocol.send_ping(_DRAIN_PING)
        self.flush()
        with trio.move_on_after(DRAIN_SECONDS):
            await self._ping_answered.wait()
        # Streams that arrive from now on were opened after the client saw the first GOAWAY, or would have had time to.
        self.protocol.refuses_after = self.protocol.last_stream_id
        self.protocol.send_goaway(self.protocol.last_stream_id, ErrorCodes.NO_ERROR)
        self.flush()
        self._is_drain_announced = True
        self._end_if_done()

    async def _say_goodbye(self, code: ErrorCodes, text: str) -> None:
        """Send the last GOAWAY, give up the open streams, and linger."""
        self.protocol.abandon()  # before anything is sent: h2 raises on every send after a connection error
        self.protocol.send_goaway(self.protocol.last_stream_id, code, text)
        self.flush()
        self._leave_all()
        with trio.move_on_after(LINGER_SECONDS), suppress(OSError, trio.ClosedResourceError):
            await self._writer.flush()
            self._transport.end_sending()
            buffer = self._callbacks.buffer
            # Unread bytes would make the kernel send a TCP reset, on which the client discards the GOAWAY unread.
            while await self._transport.receive_some(buffer):
                await trio.lowlevel.checkpoint()

    def _lose(self) -> None:
        """End the connection after a failed write or a stall."""
        self._leave_all()
        self._reading.cancel(Cause.DONE)

    def _leave_all(self) -> None:
        for client in self._clients.values():
            client.leave()
        # All at once here: each of them raises ClientGone instead of sending.
        self._room_turns.unpark_all()
        self._window_turns.unpark_all()
