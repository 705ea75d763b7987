"""The client's side of one exchange on the hot engine: a socket, and a codec of :mod:`cgw.wire.server_codec`."""

from __future__ import annotations

import socket
from collections.abc import Callable
from email.utils import formatdate

import trio

from cgw.errors import ClientGone, Headers, Refusal
from cgw.transport.client_side import ClientLimits
from cgw.transport.hangup import wait_hangup
from cgw.transport.sockets import PlainTransport
from cgw.wire.messages import RequestHead
from cgw.wire.server_codec import BodyMismatch, ServerCodec


class Http1Client:
    """See :class:`~cgw.transport.client_side.ClientSide`. ``buffer`` is scratch that may be shared.

    ``is_draining`` tells whether the connection should end with this exchange.
    """

    def __init__(
        self,
        transport: PlainTransport,
        head: RequestHead,
        codec: ServerCodec,
        limits: ClientLimits,
        *,
        peer: str,
        buffer: bytearray,
        is_draining: Callable[[], bool],
    ) -> None:
        self._transport = transport
        self._codec = codec
        self._limits = limits
        self._buffer = buffer
        self._is_draining = is_draining
        self._received = b""
        self._unsent = b""
        self._is_stalled = False
        self._is_last = False
        self._is_counted_raw = False
        self.head = head
        self.peer = peer
        self.bytes_sent = 0
        self.is_response_started = False
        self.is_response_complete = False
        self.is_broken_off = False

    @property
    def is_reusable(self) -> bool:
        """Whether both sides are done with this exchange, so that the connection can carry another."""
        return self.is_response_complete and not self.is_broken_off and self._codec.is_reusable

    @property
    def needs_reset(self) -> bool:
        """Whether closing the connection now must look like an error, since a mere end would look like success."""
        is_under_way = self.is_response_started and not self.is_response_complete
        return self._is_stalled or (self._codec.is_close_delimited and (is_under_way or self.is_broken_off))

    @property
    def unread(self) -> bytes:
        """Bytes that the client sent beyond its request: the beginning of a pipelined one."""
        return self._codec.unread + self._received

    def feed(self, received: bytes) -> None:
        """Take what came together with the head; what is wrong with it shows when the body is asked for."""
        self._received = received

    async def receive_body(self) -> bytes:
        """See :meth:`~cgw.transport.client_side.ClientSide.receive_body`."""
        self._check_size()
        received, self._received = self._received, b""
        if received:
            self._codec.feed(received)
        if not self._codec.is_request_complete:
            with trio.move_on_after(self._limits.body_timeout_seconds) as body_scope:
                await self._receive_rest()
            if body_scope.cancelled_caught:
                seconds = self._limits.body_timeout_seconds
                raise Refusal(408, f"the request body did not arrive within {seconds:g} seconds", must_close=True)
        self._check_size()
        return self._codec.take_body()

    def _check_size(self) -> None:
        maximum = self._limits.max_body_bytes
        if self._codec.body_bytes > maximum:
            text = f"the request body is larger than the {maximum} bytes that are allowed"
            raise Refusal(413, text, must_close=True)

    async def _receive_rest(self) -> None:
        codec, view = self._codec, memoryview(self._buffer)
        while True:
            self._check_size()
            if codec.is_request_complete:
                return
            if codec.wants_continue:
                await self._write(codec.encode_continue())
            try:
                size = await self._transport.receive_some(self._buffer)
            except (OSError, trio.ClosedResourceError):
                raise ClientGone from None
            if not size:
                raise ClientGone
            codec.feed(bytes(view[:size]))

    def close_after_response(self) -> None:
        """See :meth:`~cgw.transport.client_side.ClientSide.close_after_response`."""
        self._is_last = True

    async def send_response(self, status: int, headers: Headers, body: bytes) -> None:
        """See :meth:`~cgw.transport.client_side.ClientSide.send_response`."""
        await self.send_head(status, [*headers, *build_own_fields(body)], is_stream=False)
        await self.finish(body)

    async def send_head(self, status: int, headers: Headers, *, is_stream: bool) -> None:
        """See :meth:`~cgw.transport.client_side.ClientSide.send_head`."""
        self._unsent += self._codec.begin(status, headers, is_last=self._is_last or self._is_draining())
        self.is_response_started = True
        if is_stream:
            await self._flush()

    async def send_chunk(self, data: bytes) -> None:
        """See :meth:`~cgw.transport.client_side.ClientSide.send_chunk`."""
        self._unsent += self._codec.encode(data)
        await self._flush()
        self.bytes_sent += len(data)

    def pass_raw(self, content_length: int | None) -> socket.socket | None:
        """See :meth:`~cgw.transport.client_side.ClientSide.pass_raw`."""
        if not self._codec.pass_raw(content_length):
            return None
        self._is_counted_raw = content_length is not None
        return self._transport.sock

    async def send_raw(self, data: bytes, body_bytes: int) -> None:
        """See :meth:`~cgw.transport.client_side.ClientSide.send_raw`."""
        self._unsent += data
        await self._flush()
        self.bytes_sent = body_bytes

    def raw_passed(self, body_bytes: int, *, is_stalled: bool = False) -> None:
        """See :meth:`~cgw.transport.client_side.ClientSide.raw_passed`."""
        self.bytes_sent = body_bytes
        self._is_stalled = is_stalled

    async def finish(self, last: bytes = b"") -> None:
        """See :meth:`~cgw.transport.client_side.ClientSide.finish`."""
        try:
            self._unsent += last if self._is_counted_raw else self._codec.encode(last)
            self._unsent += self._codec.end()
        except BodyMismatch:
            # The upstream announced another length than it sent; what the client got must not look whole.
            self.break_off()
            return
        await self._flush()
        self.is_response_complete = True
        self.bytes_sent += len(last)

    def break_off(self) -> None:
        """See :meth:`~cgw.transport.client_side.ClientSide.break_off`."""
        self.is_broken_off = True

    async def wait_gone(self) -> None:
        """See :meth:`~cgw.transport.client_side.ClientSide.wait_gone`."""
        await wait_hangup(self._transport.sock)

    async def _flush(self) -> None:
        data, self._unsent = self._unsent, b""
        if data:
            await self._write(data)

    async def _write(self, data: bytes) -> None:
        try:
            # Nearly always the kernel takes all of it at once; only the rest needs a deadline.
            await trio.lowlevel.checkpoint_if_cancelled()
            sent = self._transport.send_nowait(data)
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
        if stall_scope.cancelled_caught:
            self._is_stalled = True
            self.break_off()
            raise ClientGone


def build_own_fields(body: bytes) -> list[tuple[bytes, bytes]]:
    """The fields of an answer that is cgw's own: its date and its length."""
    date = formatdate(usegmt=True).encode("ascii")
    return [(b"date", date), (b"content-length", b"%d" % len(body))]
