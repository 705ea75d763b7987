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
that sends many of them is slowed down by TCP. All is done in one :class:`ServingScope`, which is left for a new one
only when it was cancelled: by a deadline, by a client that left its exchange, or by a drain.
"""

from __future__ import annotations

import math
import re
from collections.abc import Awaitable

import trio

from cgw.clock import read_clock
from cgw.errors import ClientGone, Refusal
from cgw.transport.arrival import Ancillary, read_arrival
from cgw.transport.client_side import RefusedHead
from cgw.transport.connection_callbacks import ConnectionCallbacks
from cgw.transport.hangup_watch import WatchedClient
from cgw.transport.http1_client import Http1Client, build_own_fields
from cgw.transport.server import RETRY_AFTER_SECONDS, AcceptedConnection
from cgw.transport.serving_scope import Cause, ServingScope
from cgw.transport.sockets import PlainTransport, Transport
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


class Http1Connection:
    """Serves one accepted connection. ``is_idle`` is true while nothing of a request has come."""

    def __init__(self, accepted: AcceptedConnection, callbacks: ConnectionCallbacks) -> None:
        self._peer = accepted.peer
        self._transport: Transport = PlainTransport(accepted.sock)
        self._callbacks = callbacks
        self._buffer = b""  # received, but not part of a request yet
        self._head = b""  # received, but not served yet
        self._blank_lines = 0
        self._ancillary: Ancillary = []  # of the first read of the request that is being received
        self._scope = ServingScope(callbacks.deadlines)
        self._read_time = read_clock()
        self._client: Http1Client | None = None  # of the present or last request
        self._is_proxied = False  # its requests may tell the client's address
        self._is_serving = False  # a request, or HTTP/2
        self._has_served = False
        # It may be accepted from the backlog of a port that is closed.
        self._is_draining = callbacks.is_draining()
        self._was_looked_at_last = False  # whether a request was there when a drain began
        self._watched: WatchedClient | None = None  # from the first request on
        self._counted_address: str | None = None  # told by a PROXY header
        self.is_idle = True

    async def serve(self) -> None:
        """Serve until either side closes the connection; the socket is closed in any case. Cancel-safe."""
        connections = self._callbacks.connections
        connections.add(self)
        try:
            try:
                if await self._prepare():
                    while await self._serve_requests():
                        pass
            except Refusal as refusal:  # of a head: an exchange answers its own
                await self._refuse(refusal, self._head or self._buffer)
        except (ClientGone, OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client has left; a request that was served has taken note of that itself
        finally:
            connections.discard(self)
            self._scope.close()
            # Decided here, after everything that may cancel or break a request.
            if self._watched is not None:
                self._callbacks.hangups.forget(self._transport.sock)
            if self._client is not None:
                self._client.release_body()
                if self._client.needs_reset:
                    self._transport.reset()
            self._transport.close()
            if self._counted_address is not None:
                self._callbacks.addresses.release(self._counted_address)

    def drain(self) -> None:
        """Have the connection end: at once between two requests, after a moment before a first one or its head.

        A request that is served is the last one.
        """
        self._is_draining = True
        if not self._is_serving:
            self._hurry()

    def _hurry(self) -> None:
        """Shorten the wait for a request, or for what precedes it, because of a drain."""
        scope = self._scope
        if self.is_idle and self._has_served:
            scope.cancel(Cause.DONE)
        else:
            scope.set_deadline(min(scope.deadline, self._read_time() + GRACE_SECONDS))

    def _wait_at_most(self, seconds: float) -> None:
        self._scope.set_deadline(self._read_time() + seconds)
        if self._is_draining:
            self._hurry()

    async def _prepare(self) -> bool:
        """Read a PROXY header and agree on TLS, where configured; return whether HTTP can begin."""
        callbacks = self._callbacks
        self._is_proxied = callbacks.trusted.trusts(self._peer)
        context = callbacks.tls_context()
        if context is None and not self._is_proxied:
            return True
        with self._scope.enter():
            self._wait_at_most(callbacks.limits.header_timeout_seconds)
            if self._is_proxied:
                await self._read_proxy_header()
                self._is_proxied = callbacks.trusted.trusts(self._peer)  # one proxy may have told another's address
            if context is not None:
                transport = TlsTransport(self._transport.sock, context, None, callbacks.scratch, self._buffer)
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
            if not self._take(await self._transport.receive_some(self._callbacks.buffer)):
                raise ClientGone

    def _count_address(self, address: str) -> None:
        """Count a client behind a proxy: the server knows the proxy alone. Raises :exc:`~cgw.errors.Refusal` 503."""
        if self._callbacks.trusted.trusts(address):
            return
        if not self._callbacks.addresses.acquire(address):
            retry_after = (b"retry-after", b"%d" % RETRY_AFTER_SECONDS)
            raise Refusal(503, "too many connections, please retry", headers=[retry_after], must_close=True)
        self._counted_address = address

    async def _serve_requests(self) -> bool:
        """Serve one request after the other in one scope; return whether to go on in another, as it was cancelled.

        Raises :exc:`~cgw.errors.Refusal` for a head.
        """
        scope = self._scope
        try:
            with scope.enter() as cancel_scope:
                # Asked before each step: if a step had ended when the scope was cancelled, the next one is not hurt.
                while scope.cause is None:
                    if not self._head:
                        self._head = await self._receive_head()
                        if not self._head:
                            return False
                    elif self._head == HTTP2_PREFACE:
                        await self._serve_http2()
                        return False
                    elif (serving := self._begin_request()) is not None:
                        await serving
                        if not self._end_request():
                            break
        finally:
            if scope.conclude is not None:
                await scope.conclude()
        if not self._is_serving:
            return not cancel_scope.cancelled_caught or self._end_wait()
        if self._end_request():  # asked once more, as an exchange that was cancelled is answered by now
            return True
        if self._must_linger():
            await self._transport.linger(self._callbacks.buffer)
        return False

    async def _receive_head(self) -> bytes:
        """Return the next head with its blank line, or HTTP/2's preface; ``b""`` if the client has left.

        Data behind it stays in the buffer. When its time is over, the scope is cancelled. Raises
        :exc:`~cgw.errors.Refusal` 400, 414 or 431.
        """
        callbacks, size = self._callbacks, 0
        self.is_idle, self._blank_lines = not self._buffer, 0
        if self._buffer or (self._has_served and callbacks.pace.note_end()):
            # Pipelined requests may be answered without ever having to wait for the client. And by the time that the
            # others have had their turn, the next request is often there: then it costs neither a wait nor a deadline.
            await trio.lowlevel.checkpoint()
            if self._buffer or self._receive_now():
                size = self._find_head(0)
        if not size:
            is_kept = self.is_idle and self._has_served
            limits = callbacks.limits
            self._wait_at_most(limits.keep_alive_timeout_seconds if is_kept else limits.header_timeout_seconds)
        while not size:
            # Searched from here on: a head that comes byte by byte is not searched from its start each time.
            scanned_to, was_idle = len(self._buffer), self.is_idle
            # Between requests there is nothing yet, as a rule: asking the kernel first would be a wasted system call.
            waits_first = was_idle and self._has_served
            if not self._take(await self._transport.receive_some(callbacks.buffer, waits_first=waits_first)):
                if self._buffer:
                    raise Refusal(400, "malformed request: the head is incomplete", must_close=True)
                return b""
            size = self._find_head(scanned_to)
            if was_idle and not size and not self.is_idle:
                # The timeout changes from keep-alive's to the head's, which counts from the first byte.
                self._wait_at_most(callbacks.limits.header_timeout_seconds)
        head, self._buffer = self._buffer[:size], self._buffer[size:]
        return head

    def _end_wait(self) -> bool:
        """Return whether a connection whose wait for a head was ended goes on: if it drains, but has a request already.

        Raises :exc:`~cgw.errors.Refusal` 408 or 503 where a part of a head has come.
        """
        if self.is_idle:
            if not self._is_draining or self._was_looked_at_last:
                return False
            self._was_looked_at_last = True
            return bool(self._receive_now())
        if self._is_draining:
            retry_after = (b"retry-after", b"%d" % RETRY_AFTER_SECONDS)
            text = "the gateway is shutting down, please retry"
            raise Refusal(503, text, code="overloaded", headers=[retry_after], must_close=True)
        seconds = self._callbacks.limits.header_timeout_seconds
        raise Refusal(408, f"the request head did not arrive within {seconds:g} seconds", must_close=True)

    def _take(self, size: int) -> int:
        """Append what was received into the shared buffer; return ``size``."""
        if not self._buffer:
            self._ancillary = self._transport.ancillary
        self._buffer += memoryview(self._callbacks.buffer)[:size]
        return size

    def _receive_now(self) -> int:
        try:
            return self._take(self._transport.receive_nowait(self._callbacks.buffer))
        except BlockingIOError:
            return 0

    def _find_head(self, scanned_to: int) -> int:
        """Return the size of the head, or HTTP/2 preface, at the start of the buffer; 0 while it is incomplete."""
        buffer = self._buffer
        if buffer.startswith(b"\r"):
            buffer = self._skip_blank_lines(buffer)
        # A lone CR may be the first half of a blank line, which does not begin a request.
        self.is_idle = is_idle = buffer in (b"", b"\r")
        if is_idle:
            return 0
        if buffer.startswith(b"PRI"):
            if buffer.startswith(HTTP2_PREFACE):
                return len(HTTP2_PREFACE)
            if HTTP2_PREFACE.startswith(buffer):
                return 0
        # Methods begin with a letter. Anything else is refused at once: a TLS client waits for a reply to its hello.
        if not buffer[:1].isalpha():
            spoken = "TLS" if buffer[0] == 0x16 else "something else"
            raise Refusal(400, f"malformed request: this port speaks plain HTTP, not {spoken}", must_close=True)
        start = max(0, scanned_to - 3)  # the end of a head may be cut, and is at most 4 bytes long
        end = find_head_end(buffer[start:])
        size, maximum = start + end, self._callbacks.limits.max_head_bytes
        if end >= 0 and size <= maximum:
            return size
        if end < 0 and len(buffer) <= maximum:
            return 0
        is_line = b"\n" not in buffer[:maximum]  # then it is the target that is too long
        status, what = (414, "line") if is_line else (431, "head")
        raise Refusal(status, f"the request {what} is larger than {maximum} bytes", must_close=True)

    def _skip_blank_lines(self, buffer: bytes) -> bytes:
        """Discard empty lines before a request, so many of them at most. Raises :exc:`~cgw.errors.Refusal` 400."""
        blank = _BLANK_LINES.match(buffer)
        if blank is not None:
            self._buffer = buffer = buffer[blank.end() :]
            self._blank_lines += blank.end() // 2
            if self._blank_lines > MAX_BLANK_LINES:
                raise Refusal(400, "malformed request: too many empty lines before it", must_close=True)
        return buffer

    def _begin_request(self) -> Awaitable[None] | None:
        """Return what serves the request whose head has come, ``None`` if it was shed and is answered already.

        Raises :exc:`~cgw.errors.Refusal` 400, 414 or 431.
        """
        callbacks = self._callbacks
        head, codec = parse_request(self._head)
        self._head = b""
        # What comes before the last response is complete waits for that, and not for us.
        head.arrived_at = read_arrival(self._ancillary, 0.0 if self._client is None else self._client.completed_at)
        self._ancillary = []  # a request that came together with it has no time of its own
        refusal = callbacks.check_load(head)
        if refusal is not None and self._shed_now(head, codec):
            return None
        self._client = client = Http1Client(
            self._transport,
            head,
            codec,
            callbacks.limits,
            peer=callbacks.trusted.find_client(self._peer, head) if self._is_proxied else self._peer,
            buffer=callbacks.buffer,
            is_draining=callbacks.is_draining,
            budget=callbacks.budget,
            watched=self._watched or self._watch(),
        )
        if self._buffer:
            client.feed(self._buffer)
            self._buffer = b""
        self._is_serving = self._has_served = True
        self._scope.deadline = math.inf  # whoever serves the request sets what it has
        return callbacks.handle(client, self._scope) if refusal is None else self._shed(client, refusal)

    def _end_request(self) -> bool:
        """Take back what a request leaves; return whether the connection can carry another one."""
        client = self._client
        assert client is not None
        client.release_body()
        self._buffer = client.unread  # pipelined data is the start of the next request
        self._is_serving = self._is_draining or not client.is_reusable
        return not self._is_serving

    def _must_linger(self) -> bool:
        # The request was not read to its end, or "close" was sent: the client must be able to read the response.
        client = self._client
        return client is not None and client.is_response_complete and not client.is_reusable

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
        if has_connection_close(head) or self._is_draining:
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

    async def _shed(self, client: Http1Client, refusal: Refusal) -> None:
        """Refuse a request that was not looked at; the connection is kept if its body is here already."""
        client.discard_received_body()
        headers, body = self._callbacks.render_refusal(refusal, client.head.path, client.head.trace.trace_id)
        await client.send_response(refusal.status, [*headers, *refusal.headers], body)

    async def _serve_http2(self) -> None:
        if self._callbacks.serve_http2 is None:
            raise Refusal(400, "malformed request: HTTP/2 is not served on this port", must_close=True)
        self._is_serving = True
        self._scope.deadline = math.inf  # its own are kept by itself
        data, self._head, self._buffer = self._head + self._buffer, b"", b""
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
