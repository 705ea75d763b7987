"""One HTTP/1.1 connection of a client on the hot engine.

The connection reads one request head after the other. A hot one becomes a :class:`Http1Client` and is handed to the
service's handler; the first one that is not hot takes the whole connection along to the other engine, with the bytes
read so far. Nothing is read ahead of the exchange that is under way, so pipelined requests are answered in order.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

import trio
from attrs import field, frozen

from cgw.errors import ClientGone, Headers, Refusal
from cgw.transport.client_side import ClientLimits
from cgw.transport.http1_client import Http1Client, build_own_fields
from cgw.transport.replay import ReplayedStream, linger
from cgw.transport.sockets import BUFFER_BYTES, PlainTransport, take_socket
from cgw.wire.heads import HTTP2_PREFACE, find_head_end, status_phrase
from cgw.wire.messages import RequestHead
from cgw.wire.server_codec import ServerCodec, parse_request

_BLANK_LINES = re.compile(rb"(?:\r\n)+")


@frozen
class ConnectionCallbacks:
    """What a connection needs of those above it.

    ``is_fast_path`` tells from a head which engine it belongs to; ``handle`` runs an exchange; ``hand_over`` serves the
    connection to its end with the other engine; ``render_refusal`` gives header fields and body for a request that
    never became an exchange; ``is_draining`` tells that connections should not be kept alive.
    """

    limits: ClientLimits
    is_fast_path: Callable[[RequestHead], bool]
    handle: Callable[[Http1Client], Awaitable[None]]
    hand_over: Callable[[ReplayedStream], Awaitable[None]]
    render_refusal: Callable[[Refusal], tuple[Headers, bytes]]
    is_draining: Callable[[], bool]
    buffer: bytearray = field(factory=lambda: bytearray(BUFFER_BYTES), repr=False)
    """Scratch for whoever reads at the moment; never kept over a wait."""


class Http1Connection:
    """Serves one accepted connection until it ends. ``idle_scope`` is cancelled to end it between two requests."""

    def __init__(self, stream: trio.SocketStream, service: ConnectionCallbacks) -> None:
        self._peer = _peer_name(stream)
        self._transport = PlainTransport(take_socket(stream))
        self._service = service
        self._buffer = b""
        self._client: Http1Client | None = None
        self._first_wait_seconds = service.limits.header_timeout_seconds
        self.idle_scope = trio.CancelScope()
        self.is_idle = True

    async def serve(self) -> None:
        """Run until the client leaves, breaks the protocol, or is told to go. Closes the stream in every case."""
        try:
            with self.idle_scope:
                await self._serve_requests()
        except (ClientGone, OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            if self._client is not None and self._client.needs_reset:
                self._transport.reset()
            self._transport.close()

    async def _serve_requests(self) -> None:
        while True:
            try:
                head_bytes = await self._receive_head()
                if head_bytes is None:
                    return
                if head_bytes == HTTP2_PREFACE:
                    await self._hand_over(head_bytes)
                    return
                head, codec = parse_request(head_bytes)
            except Refusal as refusal:
                await self._refuse(refusal)
                return
            if not self._service.is_fast_path(head):
                if self._service.is_draining():
                    await self._refuse(Refusal(503, "shutting down, please retry", must_close=True))
                else:
                    await self._hand_over(head_bytes)
                return
            if not await self._serve_fast_path(head, codec):
                return

    async def _receive_head(self) -> bytes | None:
        """The next head with its blank line, or ``None`` when the client is done. Leaves the rest in the buffer."""
        limits = self._service.limits
        self._skip_blank_lines()
        self.is_idle = not self._buffer
        scanned_to = 0
        seconds, self._first_wait_seconds = self._first_wait_seconds, limits.keep_alive_timeout_seconds
        with trio.move_on_after(seconds if self.is_idle else limits.header_timeout_seconds) as head_scope:
            while not (size := self._find_head(scanned_to)):
                scanned_to = len(self._buffer)
                size = await self._transport.receive_some(self._service.buffer)
                if not size:
                    if self._buffer:
                        raise Refusal(400, "malformed request: the head is incomplete", must_close=True)
                    return None
                self._buffer += memoryview(self._service.buffer)[:size]
                self._skip_blank_lines()
                if self.is_idle and self._buffer not in (b"", b"\r"):
                    self.is_idle = False
                    head_scope.deadline = trio.current_time() + limits.header_timeout_seconds
            head, self._buffer = self._buffer[:size], self._buffer[size:]
            return head
        if self.is_idle:
            return None
        seconds = limits.header_timeout_seconds
        raise Refusal(408, f"the request head did not arrive within {seconds:g} seconds", must_close=True)

    def _skip_blank_lines(self) -> None:
        """Drop empty lines before a request: clients have sent them after a body (RFC 9112 §2.2)."""
        blank = _BLANK_LINES.match(self._buffer)
        if blank is not None:
            self._buffer = self._buffer[blank.end() :]

    def _find_head(self, scanned_to: int) -> int:
        """The size of the head (or HTTP/2 preface) that the buffer begins with; 0 while it is not all there."""
        if self._buffer.startswith(HTTP2_PREFACE):
            return len(HTTP2_PREFACE)
        if self._buffer == b"\r" or HTTP2_PREFACE.startswith(self._buffer):
            return 0
        if not (0x41 <= self._buffer[0] <= 0x5A or 0x61 <= self._buffer[0] <= 0x7A):
            spoken = "TLS" if self._buffer[0] == 0x16 else "something else"
            raise Refusal(400, f"malformed request: this port speaks plain HTTP, not {spoken}", must_close=True)
        start = max(0, scanned_to - 3)
        end = find_head_end(self._buffer[start:])
        size = len(self._buffer) if end < 0 else start + end
        maximum = self._service.limits.max_head_bytes
        if size > maximum:
            is_line = b"\n" not in self._buffer[:maximum]
            status, what = (414, "line") if is_line else (431, "head")
            raise Refusal(status, f"the request {what} is larger than {maximum} bytes", must_close=True)
        return 0 if end < 0 else size

    async def _serve_fast_path(self, head: RequestHead, codec: ServerCodec) -> bool:
        """Run one exchange; whether the connection can carry another one."""
        service = self._service
        self._client = client = Http1Client(
            self._transport,
            head,
            codec,
            service.limits,
            peer=self._peer,
            buffer=service.buffer,
            is_draining=service.is_draining,
        )
        received, self._buffer = self._buffer, b""
        if received:
            client.feed(received)
        self.is_idle = False
        await self._service.handle(client)
        self._buffer = client.unread
        if client.is_reusable:
            return not self._service.is_draining()
        if client.is_response_complete:
            await linger(self._open_stream())
        return False

    async def _hand_over(self, head_bytes: bytes) -> None:
        self.is_idle = False
        replayed = ReplayedStream(
            self._open_stream(), head_bytes + self._buffer, self._service.limits.stall_timeout_seconds
        )
        self._buffer = b""
        await self._service.hand_over(replayed)

    async def _refuse(self, refusal: Refusal) -> None:
        """Answer a request that never became one, and let the client read the answer before the connection ends."""
        headers, body = self._service.render_refusal(refusal)
        lines = [b"HTTP/1.1 %d %s" % (refusal.status, status_phrase(refusal.status))]
        lines += [
            name + b": " + value for name, value in (*headers, *build_own_fields(body), (b"connection", b"close"))
        ]
        with trio.move_on_after(self._service.limits.stall_timeout_seconds):
            await self._transport.send_all(b"\r\n".join([*lines, b"", body]))
            await linger(self._open_stream())

    def _open_stream(self) -> trio.SocketStream:
        """The socket as Trio and Hypercorn know it."""
        return trio.SocketStream(trio.socket.from_stdlib_socket(self._transport.sock))


def _peer_name(stream: trio.SocketStream) -> str:
    try:
        name = stream.socket.getpeername()
    except OSError:
        return "unknown"
    return str(name[0]) if isinstance(name, tuple) else "unix"
