"""One HTTP/1.1 connection of a client: request heads are read and checked, one exchange after the other is run.

::

                         ┌───────────────────── reusable, not draining ─────────────────────┐
                         v                                                                  │
    accepted ──> reading a head ── belongs to an exchange ──> exchange (Http1Client) ───────┤
                    │    │ │                                                                │ otherwise
                    │    │ └── HTTP/2, or any other route ──> handed over to Hypercorn ─────┤
                    │    └──── malformed, too large, too slow ──> 4xx, then linger ─────────┤
                    └───────── idle for too long, client gone, idle_scope cancelled ────────┴──> closed

No data is read for the next request while an exchange runs, so pipelined requests are answered in order, and a client
that sends many of them is slowed down by TCP.
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
    """Functions that a connection calls, and what all connections of a process share.

    ``is_fast_path`` says whether a request is handled here; ``handle`` runs its exchange; ``hand_over`` serves the rest
    of the connection by Hypercorn; ``render_refusal`` returns header fields and body for a request that was refused
    before it became an exchange; ``is_draining`` says whether connections have to close.
    """

    limits: ClientLimits
    is_fast_path: Callable[[RequestHead], bool]
    handle: Callable[[Http1Client], Awaitable[None]]
    hand_over: Callable[[ReplayedStream], Awaitable[None]]
    render_refusal: Callable[[Refusal], tuple[Headers, bytes]]
    is_draining: Callable[[], bool]
    buffer: bytearray = field(factory=lambda: bytearray(BUFFER_BYTES), repr=False)
    """Scratch for reading; no data stays in it across an ``await``."""


class Http1Connection:
    """Serves one accepted connection. While ``is_idle`` is true, ``idle_scope`` may be cancelled to end it."""

    def __init__(self, stream: trio.SocketStream, service: ConnectionCallbacks) -> None:
        self._peer = _peer_name(stream)
        self._transport = PlainTransport(take_socket(stream))
        self._service = service
        self._buffer = b""  # received, but not part of a request yet
        self._client: Http1Client | None = None
        # A client that connects and sends nothing is not yet an idle keep-alive connection.
        self._first_wait_seconds = service.limits.header_timeout_seconds
        self.idle_scope = trio.CancelScope()
        self.is_idle = True

    async def serve(self) -> None:
        """Serve until either side closes the connection; the stream is closed in any case. Cancel-safe."""
        try:
            with self.idle_scope:
                await self._serve_requests()
        except (ClientGone, OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client has left; an exchange that ran has taken note of that itself
        finally:
            # Decided here, after everything that may cancel or break an exchange.
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
        """Return the next head with its blank line, or ``None`` when there is none and the connection has to close.

        Data behind the head stays in the buffer. Raises :exc:`~cgw.errors.Refusal` 400, 408, 414 or 431.
        """
        limits = self._service.limits
        self._skip_blank_lines()
        self.is_idle = not self._buffer
        scanned_to = 0  # so that a head that comes byte by byte is not searched from its start each time
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
                # A lone CR may be the first half of a blank line, which does not begin a request.
                if self.is_idle and self._buffer not in (b"", b"\r"):
                    # The timeout changes from keep-alive's to the head's, which counts from the first byte.
                    self.is_idle = False
                    head_scope.deadline = trio.current_time() + limits.header_timeout_seconds
            head, self._buffer = self._buffer[:size], self._buffer[size:]
            return head
        if self.is_idle:
            return None
        seconds = limits.header_timeout_seconds
        raise Refusal(408, f"the request head did not arrive within {seconds:g} seconds", must_close=True)

    def _skip_blank_lines(self) -> None:
        """Discard empty lines before a request: some clients send them after a body (RFC 9112 §2.2)."""
        blank = _BLANK_LINES.match(self._buffer)
        if blank is not None:
            self._buffer = self._buffer[blank.end() :]

    def _find_head(self, scanned_to: int) -> int:
        """Return the size of the head, or HTTP/2 preface, at the start of the buffer; 0 while it is incomplete."""
        if self._buffer.startswith(HTTP2_PREFACE):
            return len(HTTP2_PREFACE)
        if self._buffer == b"\r" or HTTP2_PREFACE.startswith(self._buffer):
            return 0
        # Methods begin with a letter. Anything else is refused at once: a TLS client waits for a reply to its hello.
        if not (0x41 <= self._buffer[0] <= 0x5A or 0x61 <= self._buffer[0] <= 0x7A):
            spoken = "TLS" if self._buffer[0] == 0x16 else "something else"
            raise Refusal(400, f"malformed request: this port speaks plain HTTP, not {spoken}", must_close=True)
        start = max(0, scanned_to - 3)  # the end of a head may be cut, and is at most 4 bytes long
        end = find_head_end(self._buffer[start:])
        size = len(self._buffer) if end < 0 else start + end
        maximum = self._service.limits.max_head_bytes
        if size > maximum:
            is_line = b"\n" not in self._buffer[:maximum]  # then it is the target that is too long
            status, what = (414, "line") if is_line else (431, "head")
            raise Refusal(status, f"the request {what} is larger than {maximum} bytes", must_close=True)
        return 0 if end < 0 else size

    async def _serve_fast_path(self, head: RequestHead, codec: ServerCodec) -> bool:
        """Run one exchange; return whether the connection can carry another one."""
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
        self._buffer = client.unread  # pipelined data is the start of the next request
        if client.is_reusable:
            return not self._service.is_draining()
        if client.is_response_complete:
            # The request was not read to its end, or "close" was sent: the client must be able to read the response.
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
        """Respond to a request that was refused on its head, and close so that the client can read the response."""
        headers, body = self._service.render_refusal(refusal)
        lines = [b"HTTP/1.1 %d %s" % (refusal.status, status_phrase(refusal.status))]
        lines += [
            name + b": " + value for name, value in (*headers, *build_own_fields(body), (b"connection", b"close"))
        ]
        # A client that does not read its refusal must not keep the connection.
        with trio.move_on_after(self._service.limits.stall_timeout_seconds):
            await self._transport.send_all(b"\r\n".join([*lines, b"", body]))
            await linger(self._open_stream())

    def _open_stream(self) -> trio.SocketStream:
        """Return the socket as a Trio stream, which Hypercorn and ``linger`` need."""
        return trio.SocketStream(trio.socket.from_stdlib_socket(self._transport.sock))


def _peer_name(stream: trio.SocketStream) -> str:
    try:
        name = stream.socket.getpeername()
    except OSError:
        return "unknown"
    return str(name[0]) if isinstance(name, tuple) else "unix"
