"""The pool of connections to upstreams: plain or TLS, kept alive per origin.

Whoever opened a response owns its connection until the ``async with`` ends. It goes back to the pool only after a
response that was read to its proper end; in every other case, cancellation included, it is closed at once, without
waiting for anything, which is what stops the upstream.
"""

from __future__ import annotations

import os
import socket
import ssl
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from attrs import define, frozen

from cgw.errors import UpstreamTimeout, UpstreamUnreachable
from cgw.transport.sockets import PlainTransport, Scratch, TlsTransport, take_socket
from cgw.transport.upstream_connection import StaleConnection, UpstreamConnection
from cgw.wire.messages import Origin, ResponseHead, UpstreamRequest


@frozen
class UpstreamDeadlines:
    """How long an upstream may take, in seconds; what all of it together may take is the exchange's to say."""

    connect_seconds: float = 5
    head_seconds: float = 60
    silence_seconds: float = 60


@define
class PoolStatistics:
    """What the pool did so far: connections opened, requests on a kept one, retries after a stale one."""

    opened: int = 0
    reused: int = 0
    retried: int = 0
    idle: int = 0
    busy: int = 0


def build_tls_context(ca_file: str | None) -> ssl.SSLContext:
    """The context for all upstreams: certificates and host names are verified, HTTP/1.1 is all that is offered.

    ``ca_file`` names a PEM file of certificates that are trusted besides the system's.
    Raises :exc:`OSError` (:exc:`ssl.SSLError` is one) when it cannot be read or holds none.
    """
    context = ssl.create_default_context()
    if ca_file is not None:
        context.load_verify_locations(cafile=ca_file)
    context.set_alpn_protocols(["http/1.1"])
    return context


class UpstreamResponse:
    """The answer to one request, while its connection is ours."""

    def __init__(self, head: ResponseHead, connection: UpstreamConnection, silence_seconds: float) -> None:
        self.head = head
        self.connection = connection
        self._silence_seconds = silence_seconds
        self.is_complete = False

    async def receive_chunk(self) -> bytes | None:
        """The next bytes of the body as they came, or ``None`` at its proper end.

        Raises :exc:`UpstreamTimeout` after too long a silence, and :exc:`UpstreamProtocolError` when the upstream
        breaks off. Cancel-safe, but the response cannot be read on after that.
        """
        with trio.move_on_after(self._silence_seconds) as silence_scope:
            chunk = await self.connection.receive_chunk()
        if silence_scope.cancelled_caught:
            raise UpstreamTimeout(f"the upstream was silent for {self._silence_seconds:g} seconds")
        self.is_complete = chunk is None
        return chunk

    def end_of_raw_body(self, surplus_bytes: int) -> None:
        """The body was read from the connection's transport, to its proper end and ``surplus_bytes`` more."""
        self.connection.end_of_raw_body(surplus_bytes)
        self.is_complete = True


class UpstreamPool:
    """Keeps connections alive, at most ``max_idle`` per origin and each idle for at most ``idle_seconds``."""

    def __init__(
        self,
        tls_context: ssl.SSLContext,
        deadlines: UpstreamDeadlines,
        *,
        max_idle: int = 256,
        idle_seconds: float = 60,
    ) -> None:
        self._tls_context = tls_context
        self._deadlines = deadlines
        self._max_idle = max_idle
        self._idle_seconds = idle_seconds
        self._idle: dict[Origin, deque[UpstreamConnection]] = {}
        self._statistics = PoolStatistics()
        self._scratch = Scratch()

    def statistics(self) -> PoolStatistics:
        """A snapshot of the counters."""
        counts = self._statistics
        counts.idle = sum(len(connections) for connections in self._idle.values())
        return PoolStatistics(counts.opened, counts.reused, counts.retried, counts.idle, counts.busy)

    @asynccontextmanager
    async def open_response(self, request: UpstreamRequest) -> AsyncIterator[UpstreamResponse]:
        """Send ``request`` and yield the response once its head is there.

        Raises :exc:`UpstreamUnreachable`, :exc:`UpstreamTimeout`, :exc:`UpstreamProtocolError`. A kept connection
        that turns out stale before its first response byte is replaced once by a fresh one; nothing else is retried.
        Cancel-safe: the connection is closed at once.
        """
        connection, head = await self._send(request)
        response = UpstreamResponse(head, connection, self._deadlines.silence_seconds)
        self._statistics.busy += 1
        try:
            yield response
        finally:
            self._statistics.busy -= 1
            self._give_back(connection, is_complete=response.is_complete)

    async def _send(self, request: UpstreamRequest) -> tuple[UpstreamConnection, ResponseHead]:
        kept = self._take_idle(request.origin)
        if kept is not None:
            self._statistics.reused += 1
            try:
                return kept, await self._exchange_heads(kept, request)
            except StaleConnection:
                self._statistics.retried += 1
        fresh = await self._connect(request.origin)
        return fresh, await self._exchange_heads(fresh, request)

    async def _exchange_heads(self, connection: UpstreamConnection, request: UpstreamRequest) -> ResponseHead:
        is_open = False
        try:
            with trio.move_on_after(self._deadlines.head_seconds) as head_scope:
                await connection.send_request(request)
                head = await connection.receive_head()
            if head_scope.cancelled_caught:
                raise UpstreamTimeout(f"no response head within {self._deadlines.head_seconds:g} seconds")
            is_open = True
            return head
        finally:
            if not is_open:
                connection.close()

    async def _connect(self, origin: Origin) -> UpstreamConnection:
        with trio.move_on_after(self._deadlines.connect_seconds) as connect_scope:
            transport = await self._open_transport(origin)
        if connect_scope.cancelled_caught:
            raise UpstreamTimeout(f"no connection within {self._deadlines.connect_seconds:g} seconds")
        self._statistics.opened += 1
        return UpstreamConnection(transport, origin, self._scratch.plain)

    async def _open_transport(self, origin: Origin) -> PlainTransport:
        try:
            stream = await trio.open_tcp_stream(origin.host, origin.port)
        except OSError as error:
            raise UpstreamUnreachable(f"cannot connect to {origin.host}:{origin.port}: {_reason(error)}") from None
        sock = take_socket(stream)
        if origin.scheme == "http":
            return PlainTransport(sock)
        transport = TlsTransport(sock, self._tls_context, origin.host, self._scratch)
        is_agreed = False
        try:
            await transport.do_handshake()
            is_agreed = True
        except OSError as error:
            raise UpstreamUnreachable(f"TLS with {origin.host}:{origin.port} failed: {_reason(error)}") from None
        finally:
            if not is_agreed:
                transport.close()
        return transport

    def _take_idle(self, origin: Origin) -> UpstreamConnection | None:
        """The youngest kept connection that still looks alive; those that do not are closed on the way."""
        connections = self._idle.get(origin)
        while connections:
            connection = connections.pop()
            if connection.is_usable():
                return connection
            connection.close()
        return None

    def _give_back(self, connection: UpstreamConnection, *, is_complete: bool) -> None:
        kept = self._idle.setdefault(connection.origin, deque())
        if not is_complete or len(kept) >= self._max_idle or not connection.recycle():
            connection.close()
            return
        connection.idle_since = time.monotonic()
        kept.append(connection)

    def close_idle(self, older_than_seconds: float = 0) -> None:
        """Close the kept connections that have been idle for longer than ``older_than_seconds``."""
        latest = time.monotonic() - older_than_seconds
        for connections in self._idle.values():
            while connections and connections[0].idle_since <= latest:
                connections.popleft().close()

    async def run(self) -> None:
        """Close connections that have been idle for too long, until cancelled; then close all that are idle."""
        try:
            while True:
                await trio.sleep(self._idle_seconds / 4)
                self.close_idle(self._idle_seconds)
        finally:
            self.close_idle()


def _reason(error: BaseException) -> str:
    """Why it failed, in words; of a group of attempts (one per address) or a wrapped error, the first cause."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"the certificate is not valid: {cause.verify_message}"
    if isinstance(cause, OSError) and not isinstance(cause, (ssl.SSLError, socket.gaierror)) and cause.errno:
        return os.strerror(cause.errno)  # Trio's own text names the address once more
    text = getattr(cause, "strerror", None) or str(cause)
    return text or type(cause).__name__
