"""One connection of a client: its request heads are read and checked, and one request after the other is served.

::

    accepted ──> PROXY header, TLS handshake (where configured)
                         │
                         v             ┌────────────── reusable, not draining ──────────────┐
                  reading a head <─────┘                                                    │
                    │    │ │                                                                │
                    │    │ ├── a request ──> handle (Http1Client) ──────────────────────────┤ otherwise
                    │    │ └── HTTP/2's preface ──> serve_http2, to the connection's end ───┤
                    │    └──── malformed, too large, too slow ──> 4xx, then linger ─────────┤
                    └───────── idle for too long, client gone, draining ────────────────────┴──> closed

No data is read for the next request while one is served, so pipelined requests are answered in order, and a client
that sends many of them is slowed down by TCP.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Awaitable, Callable

import trio
from attrs import field, frozen

from cgw.errors import ClientGone, Refusal
from cgw.transport.arrival import read_arrival
from cgw.transport.body_budget import BodyBudget
from cgw.transport.client_address import AddressBound, TrustedProxies
from cgw.transport.client_side import ClientLimits, ClientSide, RefusedHead, RenderRefusal, ignore_refused
from cgw.transport.hangup_watch import HangupWatch, WatchedClient
from cgw.transport.http1_client import Http1Client, build_own_fields
from cgw.transport.pace import Pace
from cgw.transport.server import RETRY_AFTER_SECONDS, AcceptedConnection
from cgw.transport.sockets import BUFFER_BYTES, PlainTransport, Scratch, Transport
from cgw.transport.tls import TlsTransport
from cgw.wire.fast_heads import has_connection_close
from cgw.wire.heads import HTTP2_PREFACE, find_head_end, find_request_line, status_phrase
from cgw.wire.messages import RequestHead
from cgw.wire.proxy_protocol import may_be_proxy_header, parse_proxy_header
from cgw.wire.server_codec import FastCodec, ServerCodec, parse_request
from cgw.wire.trace_context import add_trace, begin_trace

MAX_BLANK_LINES = 8
"""Empty lines before a request that are skipped; some clients send one after a body (RFC 9112 §2.2)."""

GRACE_SECONDS = 0.5
"""How long a drain waits for a first request, or for the rest of a head: its client cannot know that it was not read,
and may not retry."""

_BLANK_LINES = re.compile(rb"(?:\r\n)+")

ServeHttp2 = Callable[[Transport, bytes, str], Awaitable[None]]


def _let_in(head: RequestHead) -> Refusal | None:
    return None


@frozen
class ConnectionCallbacks:
    """Functions that a connection calls, and what all connections of a process share.

    ``handle`` serves one request; ``check_load`` returns a refusal for a request that is not to be served now, and
    ``encode_shed`` the same as a whole response (``None``: each is rendered for itself);
    ``render_refusal`` returns header fields and body for a request that was refused before it was served, by its path
    where that is known (``b""`` otherwise) and its id, and ``note_refused`` logs it if its head was refused;
    ``is_draining`` says whether connections have to close; ``serve_http2`` serves the rest of a connection that begins
    with HTTP/2's preface (``None``: it is refused), given the transport, the data that was read, and the client's
    address.
    ``budget`` bounds the memory of request bodies. ``trusted`` proxies may tell the client's address, and ``addresses``
    bounds the connections of each that a PROXY header tells. ``tls_context`` returns the context to terminate TLS
    with, or ``None`` where the port is plain.
    """

    limits: ClientLimits
    handle: Callable[[ClientSide], Awaitable[None]]
    render_refusal: RenderRefusal
    is_draining: Callable[[], bool]
    hangups: HangupWatch
    check_load: Callable[[RequestHead], Refusal | None] = _let_in
    encode_shed: Callable[[RequestHead], bytes] | None = None
    serve_http2: ServeHttp2 | None = None
    budget: BodyBudget = field(factory=lambda: BodyBudget(512 * 1024 * 1024))
    trusted: TrustedProxies = field(factory=TrustedProxies)
    addresses: AddressBound = field(factory=lambda: AddressBound(None))
    tls_context: Callable[[], ssl.SSLContext | None] = lambda: None
    note_refused: Callable[[RefusedHead], None] = ignore_refused
    pace: Pace = field(factory=Pace)
    buffer: bytearray = field(factory=lambda: bytearray(BUFFER_BYTES), repr=False)
    """Scratch for reading; no data stays in it across an ``await``."""
    scratch: Scratch = field(factory=Scratch, repr=False)


class Http1Connection:
    """Serves one accepted connection. ``is_idle`` is true while nothing of a request has come."""

    def __init__(self, accepted: AcceptedConnection, callbacks: ConnectionCallbacks) -> None:
        self._peer = accepted.peer
        self._transport: Transport = PlainTransport(accepted.sock)
        self._callbacks = callbacks
        self._buffer = b""  # received, but not part of a request yet
        self._blank_lines = 0
        self._arrived_at = 0.0  # Unix time: of the request that is being received; 0.0 where that is unknown
        self._free_at = 0.0  # Unix time: when the response before was complete
        self._client: Http1Client | None = None
        # A client that connects and sends nothing is not yet an idle keep-alive connection.
        self._first_wait_seconds = callbacks.limits.header_timeout_seconds
        self._wait_scope = trio.CancelScope()  # of the present or last wait for a head, or for what precedes it
        self._has_served = False
        self._watched: WatchedClient | None = None  # from the first request on
        self._counted_address: str | None = None  # told by a PROXY header
        self.is_idle = True

    async def serve(self) -> None:
        """Serve until either side closes the connection; the socket is closed in any case. Cancel-safe."""
        try:
            if await self._prepare():
                await self._serve_requests()
        except (ClientGone, OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client has left; a request that was served has taken note of that itself
        finally:
            # Decided here, after everything that may cancel or break a request.
            if self._watched is not None:
                self._callbacks.hangups.forget(self._transport.sock)
            if self._client is not None and self._client.needs_reset:
                self._transport.reset()
            self._transport.close()
            if self._counted_address is not None:
                self._callbacks.addresses.release(self._counted_address)

    def drain(self) -> None:
        """End the wait for a request: at once after an earlier one, otherwise after a moment. The callbacks say so."""
        is_between_requests = self.is_idle and self._has_served
        deadline = trio.current_time() + (0.0 if is_between_requests else GRACE_SECONDS)
        self._wait_scope.deadline = min(self._wait_scope.deadline, deadline)

    async def _prepare(self) -> bool:
        """Read a PROXY header and agree on TLS, where configured; return whether HTTP can begin."""
        with trio.move_on_after(self._callbacks.limits.header_timeout_seconds) as self._wait_scope:
            if self._callbacks.is_draining():  # it was accepted from the backlog of a port that is closed
                self.drain()
            if self._callbacks.trusted.trusts(self._peer):
                try:
                    await self._read_proxy_header()
                except Refusal as refusal:
                    await self._refuse(refusal, b"")
                    return False
            context = self._callbacks.tls_context()
            if context is not None:
                transport = TlsTransport(self._transport.sock, context, None, self._callbacks.scratch, self._buffer)
                self._transport, self._buffer = transport, b""
                await transport.do_handshake()
            return True
        return False  # too slow: there is no HTTP yet in which to say so

    async def _read_proxy_header(self) -> None:
        """Take the client's address from a PROXY header, if there is one."""
        while may_be_proxy_header(self._buffer):
            header = parse_proxy_header(self._buffer) if self._buffer else None
            if header is not None:
                self._buffer = self._buffer[header.size :]
                if header.source is not None:
                    self._peer = header.source
                    self._count_address(header.source)
                return
            if not await self._receive():
                raise ClientGone

    def _count_address(self, address: str) -> None:
        """Count a client behind a proxy: the server knows the proxy alone. Raises :exc:`~cgw.errors.Refusal` 503."""
        if self._callbacks.trusted.trusts(address):
            return
        if not self._callbacks.addresses.acquire(address):
            retry_after = (b"retry-after", b"%d" % RETRY_AFTER_SECONDS)
            raise Refusal(503, "too many connections, please retry", headers=[retry_after], must_close=True)
        self._counted_address = address

    async def _receive(self) -> int:
        # Between requests there is nothing yet, as a rule: asking the kernel first would be a wasted system call.
        must_wait = self.is_idle and self._has_served
        size = await self._transport.receive_some(self._callbacks.buffer, waits_first=must_wait)
        if self.is_idle:
            self._arrived_at = read_arrival(self._transport.ancillary)
        self._buffer += memoryview(self._callbacks.buffer)[:size]
        return size

    async def _serve_requests(self) -> None:
        while True:
            if self._buffer:
                # Pipelined requests may be answered without ever having to wait for the client.
                await trio.lowlevel.checkpoint()
            head_bytes: bytes | None = None
            try:
                head_bytes = await self._receive_head()
                if head_bytes is None:
                    return
                if head_bytes == HTTP2_PREFACE:
                    await self._serve_http2(head_bytes)
                    return
                head, codec = parse_request(head_bytes)
            except Refusal as refusal:
                await self._refuse(refusal, head_bytes or self._buffer)
                return
            shed = self._callbacks.check_load(head)
            if shed is not None and self._shed_now(head, codec):
                if self._buffer:
                    # Nothing above waits for pipelined requests: other connections must get their turn in between.
                    await trio.lowlevel.checkpoint()
            elif not await self._serve_request(head, codec, shed):
                return

    async def _receive_head(self) -> bytes | None:
        """Return the next head with its blank line, or ``None`` when there is none and the connection has to close.

        Data behind the head stays in the buffer. Raises :exc:`~cgw.errors.Refusal` 400, 408, 414 or 431.
        """
        self._blank_lines = 0
        self._arrived_at = 0.0  # what came together with the request before counts from now on
        self._skip_blank_lines()
        self.is_idle = not self._buffer
        if self.is_idle and self._has_served and self._callbacks.pace.note_end():
            # By the time that the others have had their turn, the next request is often there: then it costs neither a
            # wait nor a deadline.
            await trio.lowlevel.checkpoint()
            self._receive_now()
            self._skip_blank_lines()
            self.is_idle = not self._buffer
        if self._buffer and (size := self._find_head(0)):
            return self._take_head(size)
        head = await self._receive_head_in_time()
        if head is None and self.is_idle and self._callbacks.is_draining() and self._receive_now():
            # Its request was there already when the drain ended the wait: it is still served.
            self.is_idle = False
            head = await self._receive_head_in_time()
        return head

    async def _receive_head_in_time(self) -> bytes | None:
        limits = self._callbacks.limits
        scanned_to = 0  # so that a head that comes byte by byte is not searched from its start each time
        seconds, self._first_wait_seconds = self._first_wait_seconds, limits.keep_alive_timeout_seconds
        with trio.move_on_after(seconds if self.is_idle else limits.header_timeout_seconds) as self._wait_scope:
            if self._callbacks.is_draining():
                self.drain()
            while not (size := self._find_head(scanned_to)):
                scanned_to = len(self._buffer)
                if not await self._receive():
                    if self._buffer:
                        raise Refusal(400, "malformed request: the head is incomplete", must_close=True)
                    return None
                self._skip_blank_lines()
                # A lone CR may be the first half of a blank line, which does not begin a request.
                if self.is_idle and self._buffer not in (b"", b"\r"):
                    self.is_idle = False
                    if size := self._find_head(0):
                        break  # as a rule: no further deadline is needed then
                    # The timeout changes from keep-alive's to the head's, which counts from the first byte.
                    self._wait_scope.deadline = trio.current_time() + limits.header_timeout_seconds
                    if self._callbacks.is_draining():
                        self.drain()
            return self._take_head(size)
        if self.is_idle:
            return None
        if self._callbacks.is_draining():
            retry_after = (b"retry-after", b"%d" % RETRY_AFTER_SECONDS)
            text = "the gateway is shutting down, please retry"
            raise Refusal(503, text, code="overloaded", headers=[retry_after], must_close=True)
        seconds = limits.header_timeout_seconds
        raise Refusal(408, f"the request head did not arrive within {seconds:g} seconds", must_close=True)

    def _take_head(self, size: int) -> bytes:
        head, self._buffer = self._buffer[:size], self._buffer[size:]
        return head

    def _receive_now(self) -> int:
        try:
            size = self._transport.receive_nowait(self._callbacks.buffer)
        except BlockingIOError:
            return 0
        if self.is_idle:
            self._arrived_at = read_arrival(self._transport.ancillary)
        self._buffer += memoryview(self._callbacks.buffer)[:size]
        return size

    def _skip_blank_lines(self) -> None:
        """Discard empty lines before a request, so many of them at most. Raises :exc:`~cgw.errors.Refusal` 400."""
        blank = _BLANK_LINES.match(self._buffer)
        if blank is not None:
            self._buffer = self._buffer[blank.end() :]
            self._blank_lines += blank.end() // 2
            if self._blank_lines > MAX_BLANK_LINES:
                raise Refusal(400, "malformed request: too many empty lines before it", must_close=True)

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
        maximum = self._callbacks.limits.max_head_bytes
        if size > maximum:
            is_line = b"\n" not in self._buffer[:maximum]  # then it is the target that is too long
            status, what = (414, "line") if is_line else (431, "head")
            raise Refusal(status, f"the request {what} is larger than {maximum} bytes", must_close=True)
        return 0 if end < 0 else size

    def _shed_now(self, head: RequestHead, codec: ServerCodec) -> bool:
        """Refuse a request that is whole with a prepared response, and keep the connection; return false otherwise.

        This is the fast path of shedding, at a fifteenth of the cost of serving a request: a process that is overloaded
        can afford little for each request that it refuses.
        """
        encode = self._callbacks.encode_shed
        # Only where the response needs nothing of the request but its path: the head was read by the fast parser.
        if encode is None or not isinstance(codec, FastCodec) or not isinstance(self._transport, PlainTransport):
            return False
        # A body that is still to come would have to be read, for as long as the client likes.
        size = codec.body_bytes
        if size > len(self._buffer) or head.method == b"HEAD":
            return False
        if has_connection_close(head) or self._callbacks.is_draining():
            return False
        response = encode(head)
        try:
            if self._transport.send_nowait(response) < len(response):
                raise ClientGone  # it does not read its responses
        except BlockingIOError:
            return False
        self._buffer = self._buffer[size:]
        self._has_served = True
        return True

    def _watch(self) -> WatchedClient:
        self._watched = self._callbacks.hangups.register(self._transport.sock)
        return self._watched

    async def _serve_request(self, head: RequestHead, codec: ServerCodec, refusal: Refusal | None) -> bool:
        """Serve one request, or answer it with ``refusal``; return whether the connection can carry another one."""
        callbacks = self._callbacks
        # What comes before the response to the request before waits for that, and not for us.
        head.arrived_at = max(self._arrived_at, self._free_at) if self._arrived_at else 0.0
        self._client = client = Http1Client(
            self._transport,
            head,
            codec,
            callbacks.limits,
            peer=callbacks.trusted.find_client(self._peer, head),
            buffer=callbacks.buffer,
            is_draining=callbacks.is_draining,
            budget=callbacks.budget,
            watched=self._watched or self._watch(),
        )
        received, self._buffer = self._buffer, b""
        if received:
            client.feed(received)
        self.is_idle = False
        self._has_served = True
        try:
            if refusal is None:
                await callbacks.handle(client)
            else:
                await self._shed(client, refusal)
        finally:
            client.release_body()
        self._free_at = client.completed_at
        self._buffer = client.unread  # pipelined data is the start of the next request
        if client.is_reusable:
            return not callbacks.is_draining()
        if client.is_response_complete:
            # The request was not read to its end, or "close" was sent: the client must be able to read the response.
            await self._transport.linger(callbacks.buffer)
        return False

    async def _shed(self, client: Http1Client, refusal: Refusal) -> None:
        """Refuse a request that was not looked at; the connection is kept if its body is here already."""
        client.discard_received_body()
        headers, body = self._callbacks.render_refusal(refusal, client.head.path, client.head.trace.trace_id)
        await client.send_response(refusal.status, [*headers, *refusal.headers], body)

    async def _serve_http2(self, preface: bytes) -> None:
        if self._callbacks.serve_http2 is None:
            raise Refusal(400, "malformed request: HTTP/2 is not served on this port", must_close=True)
        self.is_idle = False
        data, self._buffer = preface + self._buffer, b""
        await self._callbacks.serve_http2(self._transport, data, self._peer)

    async def _refuse(self, refusal: Refusal, received: bytes) -> None:
        """Respond to a request that was refused on its head, and close so that the client can read the response.

        ``received`` is what came of the head.
        """
        method, path = find_request_line(received)
        trace = begin_trace()
        self._callbacks.note_refused(RefusedHead(refusal.status, refusal.message, method, path, self._peer, trace))
        headers, body = self._callbacks.render_refusal(refusal, path, trace.trace_id)
        lines = [b"HTTP/1.1 %d %s" % (refusal.status, status_phrase(refusal.status))]
        fields = (*add_trace(headers, trace), *refusal.headers, *build_own_fields(body), (b"connection", b"close"))
        lines += [name + b": " + value for name, value in fields]
        # A client that does not read its refusal must not keep the connection.
        with trio.move_on_after(self._callbacks.limits.stall_timeout_seconds):
            await self._transport.send_all(b"\r\n".join([*lines, b"", body]))
            await self._transport.linger(self._callbacks.buffer)
