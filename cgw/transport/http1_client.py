"""The client's side of one HTTP/1.1 exchange: a socket, and a codec of :mod:`cgw.wire.server_codec`."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from email.utils import formatdate

import trio

from cgw.errors import ClientGone, Headers, Refusal
from cgw.transport.body_budget import FREE_BYTES, BodyBudget
from cgw.transport.client_side import ClientLimits, RawBody
from cgw.transport.hangup_watch import WatchedClient
from cgw.transport.sockets import PlainTransport, Transport
from cgw.wire.messages import RequestHead
from cgw.wire.server_codec import BodyMismatch, ServerCodec

CHUNKED_SLICE_BYTES = 4096
"""How much of a chunked body is read before other tasks get their turn: some 700 chunks of one byte, in about 5 ms."""


CHUNKED_RESERVE_BYTES = 256 * 1024
"""The steps in which memory is reserved for a chunked body: more than one read can add to it."""


class Http1Client:
    """One request of an HTTP/1.1 connection; see :class:`~cgw.transport.client_side.ClientSide`.

    ``buffer`` is scratch, shared by all connections of a process. ``is_draining`` is asked when the response begins: if
    true, the response says ``Connection: close``.
    """

    # The start values, of the class: most exchanges change few of them, and setting all of them for each costs more.
    bytes_sent = 0
    is_response_started = False
    is_response_complete = False
    is_broken_off = False
    completed_at = 0.0  # Unix time
    _reserved_bytes = 0  # of the budget, for this request's body
    _received = b""  # came together with the head; not given to the codec yet
    _unsent = b""  # encoded, but kept to go out in one write with what follows
    _kept_bytes = 0  # of payload, in what is unsent of a raw body
    _is_stalled = False
    _is_last = False
    _is_raw_with_length = False

    def __init__(
        self,
        transport: Transport,
        head: RequestHead,
        codec: ServerCodec,
        limits: ClientLimits,
        *,
        peer: str,
        buffer: bytearray,
        is_draining: Callable[[], bool],
        budget: BodyBudget,
        watched: WatchedClient,
    ) -> None:
        self._transport = transport
        self._codec = codec
        self._limits = limits
        self._buffer = buffer
        self._is_draining = is_draining
        self._budget = budget
        self._watched = watched
        self.head = head
        self.peer = peer

    @property
    def is_reusable(self) -> bool:
        """True if the connection can carry another exchange (RFC 9112 §9.3)."""
        return self.is_response_complete and not self.is_broken_off and self._codec.is_reusable

    @property
    def needs_reset(self) -> bool:
        """True if the connection must be reset, because an orderly end would look like a complete response."""
        is_under_way = self.is_response_started and not self.is_response_complete
        # A stalled client has unread data in the kernel's send buffer: a reset frees it at once.
        return self._is_stalled or (self._codec.is_close_delimited and (is_under_way or self.is_broken_off))

    @property
    def unread(self) -> bytes:
        """Bytes that the client sent beyond its request: the start of a pipelined one (RFC 9112 §9.3.2)."""
        return self._codec.unread + self._received

    def feed(self, received: bytes) -> None:
        """Take data that came together with the head. It is not checked before ``receive_body``."""
        self._received = received

    def discard_received_body(self) -> None:
        """Take the body from what came together with the head, where that is all of it, and discard it."""
        if not self._codec.is_chunked_request and self._codec.body_bytes <= len(self._received):
            received, self._received = self._received, b""
            self._codec.feed(received)
            self._codec.take_body()

    async def receive_body(self) -> bytes:
        """See :meth:`~cgw.transport.client_side.ClientSide.receive_body`."""
        codec = self._codec
        received, self._received = self._received, b""
        if codec.is_chunked_request:
            await self._feed_slices(received)
        else:
            # Before anything is read: a content length over the limit is refused without waiting for the body.
            size, maximum = codec.body_bytes, self._limits.max_body_bytes
            if size > maximum:
                raise _build_too_large(maximum)
            if size > FREE_BYTES:
                await self._reserve(size)
            if received:
                codec.feed(received)
        if not codec.is_request_complete:
            with trio.move_on_after(self._limits.body_timeout_seconds) as body_scope:
                await self._receive_rest()
            if body_scope.cancelled_caught:
                seconds = self._limits.body_timeout_seconds
                raise Refusal(408, f"the request body did not arrive within {seconds:g} seconds", must_close=True)
        if codec.is_chunked_request:
            self._check_size()
        return codec.take_body()

    async def receive_chunk(self) -> bytes | None:
        """See :meth:`~cgw.transport.client_side.ClientSide.receive_chunk`."""
        codec, view = self._codec, memoryview(self._buffer)
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            maximum = self._limits.max_upload_bytes
            if codec.body_bytes > maximum:
                raise _build_too_large(maximum)
            if chunk := codec.take_body():
                return chunk
            if codec.is_request_complete:
                return None
            received, self._received = self._received, b""
            if not received:
                if codec.wants_continue:
                    await self._write(codec.encode_continue())
                received = bytes(view[: await self._receive_in_time()])
            await self._feed(received)

    async def _receive_in_time(self) -> int:
        seconds = self._limits.stall_timeout_seconds
        with trio.move_on_after(seconds):
            try:
                size = await self._transport.receive_some(self._buffer)
            except (OSError, trio.ClosedResourceError):
                raise ClientGone from None
            if not size:
                raise ClientGone
            return size
        raise Refusal(408, f"nothing of the request body arrived for {seconds:g} seconds", must_close=True)

    def _check_size(self) -> None:
        maximum, size = self._limits.max_body_bytes, self._codec.body_bytes
        if size > maximum:
            raise _build_too_large(maximum)
        if self._codec.is_chunked_request and size > max(self._reserved_bytes, FREE_BYTES):
            # Its size is not known in advance. It must not wait for more: bodies that do could wait for each other.
            if not self._budget.acquire_nowait(CHUNKED_RESERVE_BYTES):
                raise _build_busy()
            self._reserved_bytes += CHUNKED_RESERVE_BYTES

    async def _reserve(self, body_bytes: int) -> None:
        """Wait for room in memory before anything of the body is read. Raises :exc:`ClientGone`, too."""
        if self._budget.acquire_nowait(body_bytes):
            self._reserved_bytes = body_bytes
            return
        has_left = False

        async def watch() -> None:
            nonlocal has_left
            await self.wait_gone()
            has_left = True
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            # Nothing is read meanwhile, which would tell; and who has left must not be ahead of those who wait.
            nursery.start_soon(watch)
            with trio.move_on_after(self._limits.body_timeout_seconds):
                await self._budget.acquire(body_bytes)
                self._reserved_bytes = body_bytes
            nursery.cancel_scope.cancel()
        if has_left:
            raise ClientGone
        if not self._reserved_bytes:
            raise _build_busy()

    def release_body(self) -> None:
        """Give the body's memory back. To be called once the request is over."""
        if not self._reserved_bytes:
            return  # a small body, as most are
        reserved, self._reserved_bytes = self._reserved_bytes, 0
        if self._codec.is_chunked_request:
            for _ in range(reserved // CHUNKED_RESERVE_BYTES):
                self._budget.release(CHUNKED_RESERVE_BYTES)
        else:
            self._budget.release(reserved)

    async def _receive_rest(self) -> None:
        codec, view = self._codec, memoryview(self._buffer)
        while True:
            self._check_size()
            if codec.is_request_complete:
                return
            if codec.wants_continue:  # only now that the size is allowed (RFC 9110 §10.1.1)
                await self._write(codec.encode_continue())
            try:
                size = await self._transport.receive_some(self._buffer)
            except (OSError, trio.ClosedResourceError):
                raise ClientGone from None
            if not size:  # a client that closes its sending side has left, as for nginx and Go's server
                raise ClientGone
            await self._feed(bytes(view[:size]))

    async def _feed(self, data: bytes) -> None:
        """Give received data to the codec."""
        if self._codec.is_chunked_request:
            await self._feed_slices(data)
        else:
            self._codec.feed(data)

    async def _feed_slices(self, data: bytes) -> None:
        """Give data of a chunked body to the codec in slices, as tiny chunks cost more than their bytes."""
        for start in range(0, len(data), CHUNKED_SLICE_BYTES):
            if start:
                await trio.lowlevel.checkpoint()
            if self._codec.is_request_complete:
                self._received += data[start:]
                return
            self._codec.feed(data[start : start + CHUNKED_SLICE_BYTES])

    def close_after_response(self) -> None:
        """See :meth:`~cgw.transport.client_side.ClientSide.close_after_response`."""
        self._is_last = True

    async def send_response(self, status: int, headers: Headers, body: bytes) -> None:
        """See :meth:`~cgw.transport.client_side.ClientSide.send_response`."""
        await self.send_head(status, [*headers, *build_own_fields(body)], is_stream=False)
        await self.finish(body)

    async def send_head(self, status: int, headers: Headers, *, is_stream: bool) -> None:
        """See :meth:`~cgw.transport.client_side.ClientSide.send_head`."""
        fields = [*headers, *self.head.trace.build_fields()]
        self._unsent = self._codec.begin(status, fields, is_last=self._is_last or self._is_draining())
        self.is_response_started = True
        # Otherwise head and body go out in one write, and in one segment if they are small.
        if is_stream:
            await self.flush()

    async def flush(self) -> None:
        """See :meth:`~cgw.transport.client_side.ClientSide.flush`."""
        data, kept_bytes = self._unsent, self._kept_bytes
        if data:
            self._unsent, self._kept_bytes = b"", 0
            await self._write(data)
            self.bytes_sent += kept_bytes

    async def send_chunk(self, data: bytes) -> None:
        """See :meth:`~cgw.transport.client_side.ClientSide.send_chunk`."""
        self._unsent += self._codec.encode(data)
        await self.flush()
        self.bytes_sent += len(data)

    def begin_raw_body(self, content_length: int | None) -> RawBody | None:
        """See :meth:`~cgw.transport.client_side.ClientSide.begin_raw_body`."""
        if not isinstance(self._transport, PlainTransport) or not self._codec.begin_raw_body(content_length):
            return None
        self._is_raw_with_length = content_length is not None
        return _Http1RawBody(self, self._transport.sock)

    async def send_raw(self, data: bytes, body_bytes: int) -> None:
        """Send ``data`` without the codec; used by the raw body only."""
        self._unsent += data
        await self.flush()
        self.bytes_sent = body_bytes

    def keep_raw(self, data: bytes, body_bytes: int) -> None:
        """Keep ``data`` for the next write; used by the raw body only."""
        self._unsent += data
        self._kept_bytes += body_bytes

    def note_raw_sent(self, body_bytes: int, *, is_stalled: bool = False) -> None:
        """Note what was written to the socket; used by the raw body only."""
        self.bytes_sent = body_bytes
        self._is_stalled = is_stalled

    async def finish(self, last: bytes = b"") -> None:
        """See :meth:`~cgw.transport.client_side.ClientSide.finish`."""
        codec = self._codec
        try:
            if last:
                # The codec does not count a raw body with a length, so it would find ``last`` too long.
                self._unsent += last if self._is_raw_with_length else codec.encode(last)
            data = self._unsent + codec.end()
        except BodyMismatch:
            # The upstream sent another length than it announced: the response must not look complete.
            self.break_off()
            return
        sent_bytes, self._unsent, self._kept_bytes = self._kept_bytes + len(last), b"", 0
        if data:
            await self._write(data)
        self.is_response_complete = True
        self.completed_at = time.time()
        self.bytes_sent += sent_bytes

    def break_off(self) -> None:
        """See :meth:`~cgw.transport.client_side.ClientSide.break_off`."""
        self.is_broken_off = True

    def call_when_gone(self, on_gone: Callable[[], None] | None) -> None:
        """See :meth:`~cgw.transport.client_side.ClientSide.call_when_gone`."""
        watched = self._watched
        watched.on_gone = on_gone
        if on_gone is not None and watched.is_gone:
            on_gone()

    async def wait_gone(self) -> None:
        """See :meth:`~cgw.transport.client_side.ClientSide.wait_gone`."""
        await self._watched.wait_gone()

    async def _write(self, data: bytes) -> None:
        try:
            # Nearly always the kernel takes all of it at once. Only the rest needs a cancel scope with a deadline.
            await trio.lowlevel.checkpoint_if_cancelled()
            transport = self._transport
            sent = transport.sock.send(data) if isinstance(transport, PlainTransport) else 0
        except BlockingIOError:
            sent = 0
        except (OSError, trio.ClosedResourceError):
            self.break_off()
            raise ClientGone from None
        if sent < len(data):
            await self._write_rest(memoryview(data)[sent:])

    async def _write_rest(self, data: memoryview) -> None:
        with trio.move_on_after(self._limits.stall_timeout_seconds) as stall_scope:
            try:
                await self._transport.send_all(data)
            except (OSError, trio.ClosedResourceError):
                self.break_off()
                raise ClientGone from None
            except trio.Cancelled:
                self.break_off()  # a part of the data may have been written
                raise
        if stall_scope.cancelled_caught:
            # A part of a chunk may have been written, so nothing can follow on this connection.
            self._is_stalled = True
            self.break_off()
            raise ClientGone


class _Http1RawBody:
    """See :class:`~cgw.transport.client_side.RawBody`. Its methods are the client's, so no call passes through two."""

    __slots__ = ("keep", "note_sent", "send", "sock")

    def __init__(self, client: Http1Client, sock: socket.socket) -> None:
        self.send = client.send_raw
        self.keep = client.keep_raw
        self.note_sent = client.note_raw_sent
        self.sock = sock


def _build_too_large(maximum: int) -> Refusal:
    return Refusal(413, f"the request body is larger than the {maximum} bytes that are allowed", must_close=True)


def _build_busy() -> Refusal:
    retry_after = [(b"retry-after", b"1")]
    text = "too many large requests are being served, please retry"
    return Refusal(503, text, code="overloaded", headers=retry_after, must_close=True)


def build_own_fields(body: bytes) -> list[tuple[bytes, bytes]]:
    """Return the header fields that a response of our own has besides its others: date and length."""
    date = formatdate(usegmt=True).encode("ascii")
    return [(b"date", date), (b"content-length", b"%d" % len(body))]
