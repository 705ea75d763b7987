"""The pool of connections to upstreams, which are kept alive per origin, with or without TLS.

The states of a connection::

    new ── connect, TLS ──> busy ── complete response, kept alive by both sides ──> idle
                             │ ^                                                     │ │
                             │ └────────── open() takes the youngest ────────────────┘ │
                             │                                                         │
                             └── anything else, cancellation too ──> closed <──────────┘
                                                                     too old, or data or an end was received

A busy connection belongs to the ``async with`` of its response. Closing it never waits, and is what stops an upstream
that is still generating.
"""

from __future__ import annotations

import logging
import socket
import ssl
import time
from collections import defaultdict, deque
from collections.abc import Sized

import trio
from attrs import define, frozen

from cgw.errors import (
    ConnectTimeout,
    OutOfDescriptors,
    UpstreamTimeout,
    UpstreamUnreachable,
    explain_os_error,
    is_out_of_descriptors,
)
from cgw.transport.arrival import ask_for_arrivals
from cgw.transport.sockets import PlainTransport, Scratch, Transport
from cgw.transport.tls import TlsTransport
from cgw.transport.upstream_connection import StaleConnection, UpstreamConnection
from cgw.wire.content_codings import BodyDecoder, open_decoder
from cgw.wire.heads import FIRST_ERROR_STATUS
from cgw.wire.messages import Origin, ResponseHead, UpstreamRequest
from cgw.wire.secret_filter import BodySecrets

logger = logging.getLogger("cgw.upstream")


@frozen
class UpstreamDeadlines:
    """Timeouts of the phases of a request, in seconds. The deadline for all of it is the exchange's."""

    connect_seconds: float = 5
    head_seconds: float = 60
    silence_seconds: float = 60


@define
class PoolStatistics:
    """Totals of connections opened, of requests on a kept one, and of retries after a stale one; and present counts."""

    opened: int = 0
    reused: int = 0
    retried: int = 0
    idle: int = 0
    busy: int = 0


def build_tls_context(ca_file: str | None) -> ssl.SSLContext:
    """Build the context for all upstreams. Certificates and host names are verified; only HTTP/1.1 is offered.

    ``ca_file`` is a PEM file of certificates that are trusted besides the system's.
    Raises :exc:`OSError` (:exc:`ssl.SSLError` is one) when it cannot be read or contains no certificate.
    """
    context = ssl.create_default_context()
    if ca_file is not None:
        context.load_verify_locations(cafile=ca_file)
    context.set_alpn_protocols(["http/1.1"])
    return context


class UpstreamResponse:
    """The response to one request, valid until it is given back.

    ``secrets`` are masked in the bodies of errors. With a ``decoder``, ``head`` is that of the decoded body.
    ``connected_at`` is when its connection was opened (Trio's clock), ``None`` for one that was kept; then
    ``asked_at`` is when the request was sent, otherwise ``None``. ``arrived_at`` is when the head came, and what of the
    body was read together with it.
    """

    def __init__(
        self,
        head: ResponseHead,
        connection: UpstreamConnection,
        silence_seconds: float,
        secrets: BodySecrets | None = None,
        decoder: BodyDecoder | None = None,
        connected_at: float | None = None,
    ) -> None:
        self.head = head
        self._decoder = decoder
        # Errors only: what a model says is the caller's, and too much to look through.
        self._filter = None if secrets is None or head.status < FIRST_ERROR_STATUS else secrets.open_filter()
        self.connection = connection
        self.connected_at = connected_at
        self.asked_at = connection.asked_at if connected_at is None else None
        self.arrived_at = connection.find_arrival()
        self._silence_seconds = silence_seconds
        self.is_complete = False

    async def receive_chunk(self) -> bytes | None:
        """Return the next bytes of the body, as they came, or ``None`` at its proper end.

        Raises :exc:`UpstreamTimeout` after too long a silence, and :exc:`UpstreamProtocolError` when the upstream
        breaks off. After cancellation the response can't be read any further.
        """
        while not self.is_complete:
            chunk = await self._receive_decoded()
            self.is_complete = chunk is None
            if self._filter is None:
                return chunk
            passed = self._filter.close() if chunk is None else self._filter.feed(chunk)
            if passed or chunk is None:
                return passed or None
        return None

    async def _receive_decoded(self) -> bytes | None:
        decoder = self._decoder
        while True:
            if decoder is not None and (piece := decoder.take()):
                await trio.lowlevel.checkpoint()  # a small chunk may hold thousands of pieces
                return piece
            with trio.move_on_after(self._silence_seconds) as silence_scope:
                chunk = await self.connection.receive_chunk()
            if silence_scope.cancelled_caught:
                raise UpstreamTimeout(f"the upstream was silent for {self._silence_seconds:g} seconds")
            if decoder is None:
                return chunk
            if chunk is None:
                decoder.close()
                return None
            decoder.feed(chunk)

    def end_raw_body(self, surplus_bytes: int) -> None:
        """Note that the body was read from the transport, to its proper end and ``surplus_bytes`` beyond."""
        self.connection.end_raw_body(surplus_bytes)
        self.is_complete = True


class UpstreamPool:
    """Keeps at most ``max_idle`` connections per origin, each idle for at most ``idle_seconds``.

    ``run`` must be running for idle connections to be closed in time. ``secrets`` are masked in error bodies.
    """

    def __init__(
        self,
        tls_context: ssl.SSLContext,
        deadlines: UpstreamDeadlines,
        *,
        max_idle: int = 256,
        idle_seconds: float = 60,
        secrets: BodySecrets | None = None,
    ) -> None:
        self._tls_context = tls_context
        self.deadlines = deadlines
        self._max_idle = max_idle
        self._idle_seconds = idle_seconds
        self._secrets = secrets
        # Of each origin, the one that was idle for longest is first.
        self._idle: defaultdict[Origin, deque[UpstreamConnection]] = defaultdict(deque)
        self._statistics = PoolStatistics()
        self._scratch = Scratch()

    def statistics(self) -> PoolStatistics:
        """Return a snapshot of the counters."""
        counts = self._statistics
        counts.idle = sum(len(connections) for connections in self._idle.values())
        return PoolStatistics(counts.opened, counts.reused, counts.retried, counts.idle, counts.busy)

    async def open(self, request: UpstreamRequest) -> UpstreamResponse:
        """Send ``request`` and return the response, for :meth:`give_back`, once its head is there.

        Only connecting has a timeout of its own: how long the head may take is for the caller to bound.

        Raises :exc:`UpstreamUnreachable`, :exc:`OutOfDescriptors`, :exc:`UpstreamTimeout` (no connection in time) and
        :exc:`UpstreamProtocolError`. Retried once, on a new connection, is only a request whose kept connection ended
        before the first byte of a response. Cancel-safe: the connection is closed at once.
        """
        origin = request.origin
        connected_at: float | None = None
        connection = self._take_idle(origin)
        if connection is not None:
            self._statistics.reused += 1
            if logger.isEnabledFor(logging.DEBUG):
                idle_seconds = time.monotonic() - connection.idle_since
                logger.debug("%s: reusing a connection, idle for %.3f s", origin, idle_seconds)
        while True:
            if connection is None:
                connection = await self._connect(origin)
                connected_at = trio.current_time()
            try:
                await connection.send_request(request)
                return self._begin_response(connection, await connection.receive_head(), connected_at)
            except StaleConnection:
                connection.close()
            except BaseException:
                # Also when cancelled: the pool has no record of a connection that is being used.
                connection.close()
                raise
            # When not a byte of a response came, the usual cause is that the upstream closed the idle connection while
            # the request was on its way (RFC 9112 §9.3.1). That can't happen to a new connection: this is no loop.
            self._statistics.retried += 1
            logger.debug("%s: retrying on a new connection: the kept one had ended", origin)
            connection = None

    async def open_upload(self, request: UpstreamRequest, body_bytes: int | None) -> UpstreamConnection:
        """Send the head of a request whose body follows, as :meth:`UpstreamConnection.begin_upload` does.

        On a new connection: a kept one may turn out to be closed when a part of the body is gone already. The caller
        closes it, or has :meth:`receive_response` take it over. Raises as :meth:`open` does. Cancel-safe.
        """
        connection = await self._connect(request.origin)
        try:
            await connection.begin_upload(request, body_bytes)
        except BaseException:
            connection.close()
            raise
        return connection

    async def receive_response(
        self, connection: UpstreamConnection, connected_at: float | None = None
    ) -> UpstreamResponse:
        """Return the response on ``connection``, for :meth:`give_back`, once its head is there.

        ``connected_at`` is when it was opened, ``None`` for a kept one. If that fails, or is cancelled, the connection
        is closed. Raises as :meth:`open` does.
        """
        try:
            return self._begin_response(connection, await connection.receive_head(), connected_at)
        except BaseException:
            connection.close()
            raise

    def _begin_response(
        self, connection: UpstreamConnection, head: ResponseHead, connected_at: float | None
    ) -> UpstreamResponse:
        decoder = None
        if head.header(b"content-encoding") is not None:
            head, decoder = open_decoder(head)
        self._statistics.busy += 1
        return UpstreamResponse(head, connection, self.deadlines.silence_seconds, self._secrets, decoder, connected_at)

    def give_back(self, response: UpstreamResponse) -> None:
        """End a response of :meth:`open`: its connection is kept if it was read to its end, otherwise closed.

        That never waits for the rest of a body: how much of it is to come is unknown, and it costs tokens.
        """
        self._statistics.busy -= 1
        connection = response.connection
        kept = self._idle[connection.origin]
        if response.is_complete and len(kept) < self._max_idle and connection.recycle():
            connection.idle_since = time.monotonic()
            kept.append(connection)
            return
        if logger.isEnabledFor(logging.DEBUG):
            reason = self._explain_close(kept, is_complete=response.is_complete)
            logger.debug("%s: closing a connection: %s", connection.origin, reason)
        connection.close()

    async def _connect(self, origin: Origin) -> UpstreamConnection:
        began_at = trio.current_time()
        with trio.move_on_after(self.deadlines.connect_seconds) as connect_scope:
            transport = await self._open_transport(origin)
        if connect_scope.cancelled_caught:
            raise ConnectTimeout(f"no connection within {self.deadlines.connect_seconds:g} seconds")
        self._statistics.opened += 1
        logger.debug("%s: connected in %.1f ms", origin, (trio.current_time() - began_at) * 1000)
        return UpstreamConnection(transport, origin, self._scratch.plain)

    async def _open_transport(self, origin: Origin) -> Transport:
        try:
            stream = await trio.open_tcp_stream(origin.host, origin.port)
        except BaseExceptionGroup:
            # Trio races the addresses: cancelled from outside, that is a group. Callers expect a single Cancelled.
            await trio.lowlevel.checkpoint_if_cancelled()
            raise
        except OSError as error:
            text = f"cannot connect to {origin.host}:{origin.port}: {explain_os_error(error)}"
            raise (OutOfDescriptors if is_out_of_descriptors(error) else UpstreamUnreachable)(text) from None
        sock = _take_socket(stream)
        if origin.scheme == "http":
            return PlainTransport(sock)
        transport = TlsTransport(sock, self._tls_context, origin.host, self._scratch)
        is_agreed = False
        try:
            await transport.do_handshake()  # under the connect timeout, like everything here
            is_agreed = True
        except OSError as error:
            reason = explain_os_error(error)
            raise UpstreamUnreachable(f"TLS with {origin.host}:{origin.port} failed: {reason}") from None
        finally:
            if not is_agreed:
                transport.close()
        return transport

    def _take_idle(self, origin: Origin) -> UpstreamConnection | None:
        """Return the youngest idle connection that is still usable, and close those found that are not."""
        # The youngest is the least likely to be closed by its upstream; and the others expire when load falls.
        connections = self._idle[origin]
        while connections:
            connection = connections.pop()
            # It cannot be used if an end was received, or data that was not asked for.
            if connection.transport.is_quiet(self._scratch.plain):
                return connection
            logger.debug("%s: closing an idle connection that the upstream has ended", origin)
            connection.close()
        return None

    def _explain_close(self, kept: Sized, *, is_complete: bool) -> str:
        if not is_complete:
            return "its response was not read to the end"
        if len(kept) >= self._max_idle:
            return f"{len(kept)} others are kept already"
        return "the upstream does not keep it open, or has sent more than one response"

    def close_idle(self, older_than_seconds: float = 0) -> None:
        """Close the connections that have been idle for longer than ``older_than_seconds``."""
        latest = time.monotonic() - older_than_seconds
        for connections in self._idle.values():
            # Connections are appended when they become idle, so the oldest are first.
            while connections and connections[0].idle_since <= latest:
                logger.debug("%s: closing a connection that is idle", connections[0].origin)
                connections.popleft().close()

    async def run(self) -> None:
        """Close connections that have been idle for too long, until cancelled; then close all that are idle."""
        try:
            while True:
                await trio.sleep(self._idle_seconds / 4)  # so they live for at most 1.25 times the limit
                self.close_idle(self._idle_seconds)
        finally:
            self.close_idle()


def _take_socket(stream: trio.SocketStream) -> socket.socket:
    """Return the standard library's socket of ``stream``, which must not be used after that."""
    trio_socket = stream.socket
    # Given explicitly: otherwise Python asks the kernel, with three system calls per connection.
    family, kind, protocol = trio_socket.family, trio_socket.type, trio_socket.proto
    sock = socket.socket(family, kind, protocol, fileno=trio_socket.detach())
    ask_for_arrivals(sock)
    return sock
