"""One HTTP/1.1 connection of a client on the hot engine: h11 over a Trio socket stream.

The connection reads one request head after the other. A hot one becomes a :class:`HotClient` and is handed to the
service's handler; the first one that is not hot takes the whole connection along to the other engine, with the bytes
read so far. Nothing is read ahead of the exchange that is under way, so pipelined requests are answered in order.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from typing import cast

import h11
import trio
from attrs import frozen

from cgw.errors import ClientGone, Headers, Refusal
from cgw.transport.client import ClientLimits
from cgw.transport.hangup import wait_hangup
from cgw.transport.replay import ReplayedStream, abort_socket, linger
from cgw.transport.sockets import take_socket
from cgw.wire.chunked import ChunkedFramingError, ChunkScanner
from cgw.wire.heads import HTTP2_PREFACE, describe_violation, find_head_end, parse_request_head, status_phrase
from cgw.wire.messages import RequestHead

RECEIVE_BYTES = 64 * 1024

_BLANK_LINES = re.compile(rb"(?:\r\n)+")


@frozen
class ConnectionService:
    """What a connection needs of those above it.

    ``is_hot`` tells from a head which engine it belongs to; ``handle`` runs an exchange; ``hand_over`` serves the
    connection to its end with the other engine; ``render_refusal`` gives header fields and body for a request that
    never became an exchange; ``is_draining`` tells that connections should not be kept alive.
    """

    limits: ClientLimits
    is_hot: Callable[[RequestHead], bool]
    handle: Callable[[HotClient], Awaitable[None]]
    hand_over: Callable[[ReplayedStream], Awaitable[None]]
    render_refusal: Callable[[Refusal], tuple[Headers, bytes]]
    is_draining: Callable[[], bool]


class Connection:
    """Serves one accepted connection until it ends. ``idle_scope`` is cancelled to end it between two requests."""

    def __init__(self, stream: trio.SocketStream, service: ConnectionService) -> None:
        # The same socket twice: for Trio, and for the flat relay, which writes to it without waiting.
        self._sock = take_socket(stream)
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(self._sock))
        self._service = service
        self._buffer = b""
        self._client: HotClient | None = None
        self._first_wait_seconds = service.limits.header_timeout_seconds
        self.idle_scope = trio.CancelScope()
        self.is_idle = True

    async def serve(self) -> None:
        """Run until the client leaves, breaks the protocol, or is told to go. Closes the stream in every case."""
        try:
            with self.idle_scope:
                await self._serve_requests()
        except (ClientGone, trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            abort_socket(self._stream.socket, reset=self._client is not None and self._client.needs_reset)

    async def _serve_requests(self) -> None:
        while True:
            h11_connection = h11.Connection(h11.SERVER)
            try:
                head_bytes = await self._receive_head()
                if head_bytes is None:
                    return
                if head_bytes == HTTP2_PREFACE:
                    await self._hand_over(head_bytes)
                    return
                head = parse_request_head(head_bytes, h11_connection)
            except Refusal as refusal:
                await self._refuse(refusal)
                return
            if not self._service.is_hot(head):
                await self._hand_over(head_bytes)
                return
            if not await self._serve_hot(head, h11_connection):
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
                data = await self._stream.receive_some(RECEIVE_BYTES)
                if not data:
                    if self._buffer:
                        raise Refusal(400, "malformed request: the head is incomplete", must_close=True)
                    return None
                self._buffer += data
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

    async def _serve_hot(self, head: RequestHead, h11_connection: h11.Connection) -> bool:
        """Run one exchange; whether the connection can carry another one."""
        self._client = client = HotClient(self._stream, self._sock, head, h11_connection, self._buffer, self._service)
        self._buffer = b""
        self.is_idle = False
        await self._service.handle(client)
        self._buffer = client.unread
        if client.is_reusable:
            return not self._service.is_draining()
        if client.is_response_complete:
            await linger(self._stream)
        return False

    async def _hand_over(self, head_bytes: bytes) -> None:
        self.is_idle = False
        replayed = ReplayedStream(self._stream, head_bytes + self._buffer, self._service.limits.stall_timeout_seconds)
        self._buffer = b""
        await self._service.hand_over(replayed)

    async def _refuse(self, refusal: Refusal) -> None:
        """Answer a request that never became one, and let the client read the answer before the connection ends."""
        headers, body = self._service.render_refusal(refusal)
        lines = [b"HTTP/1.1 %d %s" % (refusal.status, status_phrase(refusal.status))]
        lines += [name + b": " + value for name, value in (*headers, *_own_fields(body), (b"connection", b"close"))]
        with trio.move_on_after(self._service.limits.stall_timeout_seconds):
            await self._stream.send_all(b"\r\n".join([*lines, b"", body]))
            await linger(self._stream)


def _own_fields(body: bytes) -> list[tuple[bytes, bytes]]:
    date = formatdate(usegmt=True).encode("ascii")
    return [(b"date", date), (b"content-length", b"%d" % len(body))]


class _Bytes:
    """So many bytes, of which h11 needs to know no more."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size


class HotClient:
    """The client's side of one exchange on the hot engine; see :class:`~cgw.transport.client.ClientSide`."""

    def __init__(
        self,
        stream: trio.SocketStream,
        sock: socket.socket,
        head: RequestHead,
        h11_connection: h11.Connection,
        received: bytes,
        service: ConnectionService,
    ) -> None:
        self._stream = stream
        self._sock = sock
        self._h11 = h11_connection
        self._service = service
        self._limits = service.limits
        self._unsent = b""
        self._scanner = ChunkScanner() if head.header(b"transfer-encoding") is not None else None
        self._after_body = b""
        self.head = head
        self.peer = _peer_name(stream)
        self.bytes_sent = 0
        self.is_response_started = False
        self.is_response_complete = False
        self.is_broken_off = False
        self._is_close_delimited = False
        self._is_stalled = False
        self._is_last = False
        self._is_counted_raw = False
        self._received = received

    @property
    def is_reusable(self) -> bool:
        """Whether both sides are done with this exchange, so that the connection can carry another."""
        is_done = self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE
        return is_done and self.is_response_complete and not self.is_broken_off

    @property
    def needs_reset(self) -> bool:
        """Whether closing the connection now must look like an error, since a mere end would look like success."""
        is_under_way = self.is_response_started and not self.is_response_complete
        return self._is_stalled or (self._is_close_delimited and (is_under_way or self.is_broken_off))

    @property
    def unread(self) -> bytes:
        """Bytes that the client sent beyond its request: the beginning of a pipelined one."""
        return self._h11.trailing_data[0] + self._after_body

    async def receive_body(self) -> bytes:
        """See :meth:`~cgw.transport.client.ClientSide.receive_body`."""
        self._check_announced_length()
        with trio.move_on_after(self._limits.body_timeout_seconds):
            return await self._receive_body()
        seconds = self._limits.body_timeout_seconds
        raise Refusal(408, f"the request body did not arrive within {seconds:g} seconds", must_close=True)

    def _check_announced_length(self) -> None:
        announced = self.head.header(b"content-length")
        if announced is not None and int(announced) > self._limits.max_body_bytes:
            raise self._too_large()

    def _too_large(self) -> Refusal:
        maximum = self._limits.max_body_bytes
        return Refusal(413, f"the request body is larger than the {maximum} bytes that are allowed", must_close=True)

    async def _receive_body(self) -> bytes:
        parts: list[bytes] = []
        self._feed(self._received)
        self._received = b""
        while True:
            try:
                event = self._h11.next_event()
            except h11.RemoteProtocolError as error:
                text = f"malformed request: {describe_violation(error)}"
                raise Refusal(400, text, must_close=True) from None
            if event is h11.NEED_DATA:
                await self._receive_more()
            elif isinstance(event, h11.Data):
                parts.append(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                return b"".join(parts)
            else:
                raise ClientGone

    async def _receive_more(self) -> None:
        if self._h11.they_are_waiting_for_100_continue:
            await self._write(self._h11.send(h11.InformationalResponse(status_code=100, headers=[])))
        try:
            data = await self._stream.receive_some(RECEIVE_BYTES)
        except trio.BrokenResourceError:
            raise ClientGone from None
        if not data:
            raise ClientGone
        self._feed(bytes(data))

    def _feed(self, data: bytes) -> None:
        """Give ``data`` to h11, but of a chunked body only what a strict reading of its framing allows."""
        if not data:
            return
        if self._scanner is not None:
            try:
                used = self._scanner.feed(data)
            except ChunkedFramingError as error:
                raise Refusal(400, f"malformed request: {error}", must_close=True) from None
            if self._scanner.body_bytes > self._limits.max_body_bytes:
                raise self._too_large()
            data, self._after_body = data[:used], data[used:]
        self._h11.receive_data(data)

    def close_after_response(self) -> None:
        """See :meth:`~cgw.transport.client.ClientSide.close_after_response`."""
        self._is_last = True

    async def send_response(self, status: int, headers: Headers, body: bytes) -> None:
        """See :meth:`~cgw.transport.client.ClientSide.send_response`."""
        await self.send_head(status, [*headers, *_own_fields(body)], is_stream=False)
        await self.finish(body)

    async def send_head(self, status: int, headers: Headers, *, is_stream: bool) -> None:
        """See :meth:`~cgw.transport.client.ClientSide.send_head`."""
        fields = list(headers)
        # Not `is not h11.DONE`: a client that asks for an upgrade is in a state of its own. It is declined by
        # answering in HTTP/1.1 (RFC 9110 §7.8), and the connection goes on.
        is_body_pending = self._h11.their_state in (h11.SEND_BODY, h11.ERROR)
        if self._is_last or is_body_pending or self._service.is_draining():
            fields.append((b"connection", b"close"))
        self.is_response_started = True
        self._unsent += self._h11.send(h11.Response(status_code=status, headers=fields, reason=status_phrase(status)))
        names = {name for name, _ in fields}
        self._is_close_delimited = self.head.http_version == b"1.0" and b"content-length" not in names
        if is_stream:
            await self._flush()

    async def send_chunk(self, data: bytes) -> None:
        """See :meth:`~cgw.transport.client.ClientSide.send_chunk`."""
        self._unsent += self._h11.send(h11.Data(data=data))
        await self._flush()
        self.bytes_sent += len(data)

    def pass_raw(self, content_length: int | None) -> socket.socket | None:
        """See :meth:`~cgw.transport.client.ClientSide.pass_raw`."""
        if content_length is not None:
            # h11 keeps count of the body without seeing it, as it offers for sendfile(2).
            self._h11.send_with_data_passthrough(h11.Data(data=cast("bytes", _Bytes(content_length))))
            self._is_counted_raw = True
        elif self.head.http_version != b"1.1":
            return None
        return self._sock

    async def send_raw(self, data: bytes, body_bytes: int) -> None:
        """See :meth:`~cgw.transport.client.ClientSide.send_raw`."""
        self._unsent += data
        await self._flush()
        self.bytes_sent = body_bytes

    def raw_passed(self, body_bytes: int, *, is_stalled: bool = False) -> None:
        """See :meth:`~cgw.transport.client.ClientSide.raw_passed`."""
        self.bytes_sent = body_bytes
        self._is_stalled = is_stalled

    async def finish(self, last: bytes = b"") -> None:
        """See :meth:`~cgw.transport.client.ClientSide.finish`."""
        if last and self._is_counted_raw:
            self._unsent += last
        elif last:
            self._unsent += self._h11.send(h11.Data(data=last))
        try:
            self._unsent += self._h11.send(h11.EndOfMessage())
        except h11.LocalProtocolError:
            # The upstream announced another length than it sent; what the client got must not look whole.
            self.break_off()
            return
        await self._flush()
        self.is_response_complete = True
        self.bytes_sent += len(last)

    def break_off(self) -> None:
        """See :meth:`~cgw.transport.client.ClientSide.break_off`."""
        self.is_broken_off = True

    async def wait_gone(self) -> None:
        """See :meth:`~cgw.transport.client.ClientSide.wait_gone`."""
        await wait_hangup(self._stream.socket)

    async def _flush(self) -> None:
        data, self._unsent = self._unsent, b""
        await self._write(data)

    async def _write(self, data: bytes | None) -> None:
        if not data:
            return
        with trio.move_on_after(self._limits.stall_timeout_seconds) as stall_scope:
            try:
                await self._stream.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                self.break_off()
                raise ClientGone from None
        if stall_scope.cancelled_caught:
            self._is_stalled = True
            self.break_off()
            raise ClientGone


def _peer_name(stream: trio.SocketStream) -> str:
    try:
        name = stream.socket.getpeername()
    except OSError:
        return "unknown"
    return str(name[0]) if isinstance(name, tuple) else "unix"
