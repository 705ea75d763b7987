"""The client's side of one exchange on a stream of HTTP/2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import trio
from h2.errors import ErrorCodes

from cgw.errors import ClientGone, Headers, Refusal
from cgw.transport.body_budget import BodyBudget
from cgw.transport.client_side import ClientLimits
from cgw.transport.http1_client import build_own_fields
from cgw.wire.http2_events import BodyReceived, RequestStarted, StreamLost, WindowOpened
from cgw.wire.http2_protocol import Http2Protocol
from cgw.wire.trace_context import add_trace

PROGRESS_BYTES = 1024
"""Bytes of an answer that a client must accept within the stall timeout. Less is a stall."""

DISCARD_SECONDS = 1.0
DISCARD_BYTES = 1024 * 1024
"""Bounds within which the rest of a request's body is read and discarded once its answer is complete; after them
RST_STREAM stops the client. RFC 9113 §8.1 allows RST_STREAM at once, but curl 7.88 then reports the answer as broken.
"""


class StreamConnection(Protocol):
    """The part of a connection that its streams use."""

    @property
    def protocol(self) -> Http2Protocol:
        """The connection's frames."""
        ...

    @property
    def is_full(self) -> bool:
        """True while so many bytes are unsent that answers must wait."""
        ...

    def flush(self) -> None:
        """Write what the protocol has to send."""
        ...

    async def wait_turn(self, size: int) -> bool:
        """Wait until the connection may take a frame; return true if there was nothing to wait for."""
        ...

    def pass_turn(self) -> None:
        """Wake the next stream that waits, if the connection can take a frame."""
        ...


class Http2Client:
    """One stream as a :class:`~cgw.transport.client_side.ClientSide`. The connection passes events to :meth:`take`.

    For a request that is refused before it becomes an exchange, ``head`` has method and path only.
    """

    def __init__(
        self,
        connection: StreamConnection,
        started: RequestStarted,
        limits: ClientLimits,
        budget: BodyBudget,
        peer: str,
    ) -> None:
        self._connection = connection
        self._protocol = connection.protocol
        self._limits = limits
        self._content_length = started.content_length
        self._parts: list[bytes] = []
        self._received_bytes = 0
        self._released_bytes = 0
        self._is_body_complete = started.is_ended
        self._is_body_wanted = False
        self._is_body_late = False
        self._is_upload = False
        self._arrived = trio.Event()  # something of an upload
        self._discarded_bytes: int | None = None
        self._body_settled = trio.Event()  # complete, too large, or never to come
        self._gone = trio.Event()
        self._on_gone: Callable[[], None] | None = None
        self._window_opened = trio.Event()
        self._head: tuple[int, Headers] | None = None  # a response's head that waits for the first bytes of its body
        self._unsent_length: int | None = None
        self.stream_id = started.stream_id
        self.head = started.head
        self.peer = peer
        self._budget = budget
        self._reserved_bytes = 0  # of the budget, for this request's body
        self.bytes_sent = 0
        self.is_response_started = False
        self.is_response_complete = False
        self.is_broken_off = False

    # --- the connection's side ----------------------------------------------------------------------------------------

    def take(self, event: BodyReceived | WindowOpened | StreamLost) -> None:
        """Process what arrived for the stream. Never waits."""
        match event:
            case BodyReceived():
                self._take_body(event.data, is_ended=event.is_ended)
            case WindowOpened():
                self.open_window()
            case StreamLost():
                self.leave()

    def _take_body(self, data: bytes, *, is_ended: bool) -> None:
        self._received_bytes += len(data)
        self._is_body_complete = is_ended
        if self._discarded_bytes is not None:
            self._discarded_bytes += len(data)
            self._release(len(data))  # given back at once, or the client would stop in the middle of its body
            if is_ended or self._discarded_bytes > DISCARD_BYTES:
                self._body_settled.set()
            return
        if not self._is_too_large or not self._is_body_wanted:
            # Until then the stream's first window bounds what is kept.
            self._parts.append(data)
            self._arrived.set()
            if self._is_body_wanted and not self._is_upload:
                # Only now; an upload's window opens as it is taken.
                self._release(len(data))
        if is_ended or self._is_too_large:
            self._body_settled.set()
            self._arrived.set()

    def _release(self, size: int) -> None:
        self._released_bytes += size
        self._protocol.release(self.stream_id, size)

    def open_window(self) -> None:
        """Wake the answer if it waits for the stream's window."""
        self._window_opened.set()

    def leave(self) -> None:
        """Mark the client as gone: it reset the stream, or the connection is lost."""
        if not self._gone.is_set() and self._on_gone is not None:
            self._on_gone()
        self._gone.set()
        self._arrived.set()
        self._body_settled.set()
        self._window_opened.set()

    async def discard_rest(self) -> None:
        """After a complete response, read and discard the rest of the request, for up to :data:`DISCARD_SECONDS`."""
        if not self.is_response_complete or self._is_body_complete or self._is_body_late or self._gone.is_set():
            return
        self._parts.clear()
        self._discarded_bytes = 0
        self._body_settled = trio.Event()  # the old one is set where the body was too large
        self._release(self._received_bytes - self._released_bytes)
        self._connection.flush()
        with trio.move_on_after(DISCARD_SECONDS):
            await self._body_settled.wait()

    def close(self) -> None:
        """Reset the stream unless both sides are done: with INTERNAL_ERROR if the response is not complete.

        The memory of the request's body is given back.
        """
        reserved, self._reserved_bytes = self._reserved_bytes, 0
        self._budget.release(reserved)
        if self.is_response_complete:
            self._protocol.reset(self.stream_id, ErrorCodes.NO_ERROR)
            self._connection.flush()
        else:
            self.break_off()

    # --- the request --------------------------------------------------------------------------------------------------

    @property
    def _max_bytes(self) -> int:
        return self._limits.max_upload_bytes if self._is_upload else self._limits.max_body_bytes

    @property
    def _is_too_large(self) -> bool:
        return max(self._received_bytes, self._content_length or 0) > self._max_bytes

    async def receive_body(self) -> bytes:
        """See :meth:`~cgw.transport.client_side.ClientSide.receive_body`."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self._check_size()  # by content-length, before the client is asked to send anything
        if not self._is_body_complete:
            with trio.move_on_after(self._limits.body_timeout_seconds) as body_scope:
                await self._reserve()
                self._want_body()
                await self._body_settled.wait()
            if body_scope.cancelled_caught:
                self._is_body_late = True
                seconds = self._limits.body_timeout_seconds
                raise Refusal(408, f"the request body did not arrive within {seconds:g} seconds", must_close=True)
            self._check_size()
        if not self._is_body_complete:
            raise ClientGone
        parts, self._parts = self._parts, []
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def receive_chunk(self) -> bytes | None:
        """See :meth:`~cgw.transport.client_side.ClientSide.receive_chunk`."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self._is_upload = True
        while True:
            self._check_size()
            if self._parts:
                data, self._parts = b"".join(self._parts), []
                if not self._is_body_complete:
                    self._release(len(data))
                    self._connection.flush()
                return data
            if self._is_body_complete:
                return None
            if self._gone.is_set():
                raise ClientGone
            self._ask_for_body()
            self._arrived = trio.Event()
            with trio.move_on_after(self._limits.stall_timeout_seconds) as stall_scope:
                await self._arrived.wait()
            if stall_scope.cancelled_caught:
                self._is_body_late = True
                seconds = self._limits.stall_timeout_seconds
                text = f"nothing of the request body arrived for {seconds:g} seconds"
                raise Refusal(408, text, must_close=True)

    async def _reserve(self) -> None:
        """Wait for room in memory before the client is asked for the body; without a length, for the largest one."""
        body_bytes = self._limits.max_body_bytes if self._content_length is None else self._content_length
        await self._budget.acquire(body_bytes)
        self._reserved_bytes = body_bytes

    def _check_size(self) -> None:
        if self._is_too_large:
            self._parts.clear()
            maximum = self._max_bytes
            raise Refusal(413, f"the request body is larger than the {maximum} bytes that are allowed", must_close=True)

    def _want_body(self) -> None:
        if self._is_body_wanted or self._gone.is_set():
            return
        self._ask_for_body()
        self._protocol.widen(self.stream_id)
        self._release(self._received_bytes)
        self._connection.flush()

    def _ask_for_body(self) -> None:
        if self._is_body_wanted:
            return
        self._is_body_wanted = True
        expectation = self.head.header(b"expect") or b""
        # Only now is the body wanted (RFC 9110 §10.1.1). A client that sends already does not wait for the 100.
        if expectation.lower() == b"100-continue" and not self._received_bytes:
            self._protocol.send_head(self.stream_id, 100, ())
            self._connection.flush()

    def call_when_gone(self, on_gone: Callable[[], None] | None) -> None:
        """See :meth:`~cgw.transport.client_side.ClientSide.call_when_gone`."""
        self._on_gone = on_gone
        if on_gone is not None and self._gone.is_set():
            on_gone()

    async def wait_gone(self) -> None:
        """See :meth:`~cgw.transport.client_side.ClientSide.wait_gone`."""
        await self._gone.wait()

    # --- the response -------------------------------------------------------------------------------------------------

    def close_after_response(self) -> None:
        """Do nothing: an unread rest of the request concerns its stream only, and the connection can go on."""

    async def send_response(self, status: int, headers: Headers, body: bytes) -> None:
        """See :meth:`~cgw.transport.client_side.ClientSide.send_response`."""
        await self.send_head(status, [*headers, *build_own_fields(body)], is_stream=False)
        await self.finish(body)

    async def send_head(self, status: int, headers: Headers, *, is_stream: bool) -> None:
        """See :meth:`~cgw.transport.client_side.ClientSide.send_head`."""
        for name, value in headers:
            if name == b"content-length":
                self._unsent_length = int(value)
        # These have no body, whatever length is named (RFC 9110 §8.6).
        if status in (204, 304) or self.head.method == b"HEAD":
            self._unsent_length = 0
        # Encoded when it is sent, not now: HPACK's table must change in the order of the frames on the wire.
        self._head = status, add_trace(headers, self.head.trace)
        self.is_response_started = True
        if is_stream:
            await self._send(b"")

    async def flush(self) -> None:
        """See :meth:`~cgw.transport.client_side.ClientSide.flush`."""
        if self._head is not None:
            await self._send(b"")

    async def send_chunk(self, data: bytes) -> None:
        """See :meth:`~cgw.transport.client_side.ClientSide.send_chunk`."""
        if not data or self._is_body_dropped:
            await trio.lowlevel.checkpoint()
            return
        if self._unsent_length is not None:
            self._unsent_length -= len(data)
            if self._unsent_length < 0:
                # The upstream sent more than it announced: the answer must not look complete.
                self.break_off()
                raise ClientGone
        await self._send(data)
        self.bytes_sent += len(data)

    @property
    def _is_body_dropped(self) -> bool:
        return self.head.method == b"HEAD"

    def begin_raw_body(self, content_length: int | None) -> None:
        """Return ``None``: frames of all streams share the socket, so only the connection can write."""

    async def finish(self, last: bytes = b"") -> None:
        """See :meth:`~cgw.transport.client_side.ClientSide.finish`."""
        if self._is_body_dropped:
            last = b""
        if self._unsent_length is not None and self._unsent_length != len(last):
            # The upstream sent less than it announced: the answer must not look complete.
            self.break_off()
            return
        await self._send(last, is_end=True)
        self.is_response_complete = True
        self.bytes_sent += len(last)

    def break_off(self) -> None:
        """See :meth:`~cgw.transport.client_side.ClientSide.break_off`. Takes effect at once."""
        self.is_broken_off = True
        self._protocol.reset(self.stream_id, ErrorCodes.INTERNAL_ERROR)
        self._connection.flush()

    async def _send(self, data: bytes, *, is_end: bool = False) -> None:
        """Send the head if it was held back, then ``data`` in frames, as windows and the client's reading allow."""
        # The usual case, without the cost of a cancel scope, which only a wait needs, and without a checkpoint: what
        # completes an answer goes out even if its time is over in this moment.
        if self._can_send_at_once(len(data)):
            self._put(memoryview(data), is_end=is_end)
        else:
            await self._send_in_turns(memoryview(data), is_end=is_end)

    def _can_send_at_once(self, size: int) -> bool:
        if self._gone.is_set() or self._connection.is_full or not self._protocol.has_stream(self.stream_id):
            return False
        return not size or size <= self._protocol.frame_room(self.stream_id)

    async def _send_in_turns(self, view: memoryview, *, is_end: bool) -> None:
        deadline = trio.current_time() + self._limits.stall_timeout_seconds
        progress = 0
        try:
            while True:
                with trio.move_on_at(deadline) as stall_scope:
                    await self._wait_sendable(len(view))
                if stall_scope.cancelled_caught:
                    self.break_off()  # this stream only: the connection's other streams may be moving
                    raise ClientGone
                sent = self._put(view, is_end=is_end)
                view = view[sent:]
                if not view:
                    return
                progress += sent
                # A window that opens by single bytes does not prolong the deadline.
                if progress >= PROGRESS_BYTES:
                    deadline = trio.current_time() + self._limits.stall_timeout_seconds
                    progress = 0
                # Other tasks run between frames, even while the kernel accepts a large body without blocking.
                self._connection.pass_turn()
                await trio.lowlevel.checkpoint()
        except trio.Cancelled:
            self.break_off()  # a part of the data may have been sent: what follows would have a gap before it
            raise
        finally:
            # Also when cancelled: the turn that this stream may hold must not be lost.
            self._connection.pass_turn()

    def _put(self, view: memoryview, *, is_end: bool) -> int:
        """Send the head if it was held back, and at most one DATA frame; return the number of bytes sent."""
        if self._head is not None:
            (status, headers), self._head = self._head, None
            self._protocol.send_head(self.stream_id, status, headers)
        sent = self._protocol.send_data(self.stream_id, view, is_end=is_end)
        if is_end and sent == len(view):
            self._protocol.end(self.stream_id)
        self._connection.flush()
        return sent

    async def _wait_sendable(self, size: int) -> None:
        """Wait until a frame with ``size`` bytes of body can be sent. Raises :exc:`~cgw.errors.ClientGone`."""
        while True:
            if self._gone.is_set() or not self._protocol.has_stream(self.stream_id):
                self.is_broken_off = True
                raise ClientGone
            if size and self._protocol.stream_window(self.stream_id) <= 0:
                self._connection.pass_turn()  # this stream cannot use the turn that it may hold
                # No await between the check and the new event: no opening of the window is missed.
                self._window_opened = trio.Event()
                await self._window_opened.wait()
            elif await self._connection.wait_turn(size):
                return
