"""Connections to upstreams: HTTP/1.1 with h11 over Trio sockets and TLS, kept alive in a pool per origin.

Whoever opened a response owns its connection until the ``async with`` ends. It goes back to the pool only after a
response that was read to its proper end; in every other case, cancellation included, it is closed at once, without
waiting for anything, which is what stops the upstream.
"""

from __future__ import annotations

import ssl
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from select import POLLIN, poll
from typing import cast

import h11
import trio
from attrs import define, frozen

from cgw.errors import UpstreamError, UpstreamProtocolError, UpstreamTimeout, UpstreamUnreachable
from cgw.wire.messages import Origin, ResponseHead, UpstreamRequest

RECEIVE_BYTES = 64 * 1024
MAX_HEAD_BYTES = 64 * 1024
"""The largest response head that is read."""

MAX_INFORMATIONAL = 16
"""The most 1xx responses that may precede a final one."""


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


class StaleConnection(Exception):
    """A kept connection broke before the first byte of a response: the upstream had closed it meanwhile."""


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


class UpstreamConnection:
    """One connection to one origin, used by one exchange at a time."""

    def __init__(self, stream: trio.SocketStream | trio.SSLStream[trio.SocketStream], origin: Origin) -> None:
        self._stream = stream
        self._transport = stream if isinstance(stream, trio.SocketStream) else stream.transport_stream
        self._h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)
        self._has_received = False
        self.origin = origin
        self.idle_since = 0.0
        self.was_used = False

    def is_readable(self) -> bool:
        """Whether anything came in while idle: its end, or bytes that nobody asked for. Either way it is of no use."""
        watch = poll()
        watch.register(self._transport.socket.fileno(), POLLIN)
        return bool(watch.poll(0))

    def close(self) -> None:
        """Close the socket at once. A TLS upstream gets no close_notify: there is nobody left to lie to."""
        self._transport.socket.close()

    async def send_request(self, request: UpstreamRequest) -> None:
        """Send ``request``. An upstream that closes early may have answered already: that is for reading to say."""
        self._has_received = False
        fields = [(b"host", request.origin.authority), *request.headers, (b"content-length", b"%d" % len(request.body))]
        head = self._h11.send(h11.Request(method=request.method, target=request.target, headers=fields))
        body = self._h11.send(h11.Data(data=request.body)) if request.body else b""
        end = self._h11.send(h11.EndOfMessage())
        try:
            await self._stream.send_all(b"".join(part for part in (head, body, end) if part))
        except (trio.BrokenResourceError, ssl.SSLError):
            if self.was_used:
                raise StaleConnection from None

    async def receive_head(self) -> ResponseHead:
        """The final response's head; 1xx ones are skipped.

        Raises :exc:`StaleConnection` when a kept connection ends without a byte, :exc:`UpstreamProtocolError` else.
        """
        for _ in range(MAX_INFORMATIONAL):
            event = await self._next_event()
            if isinstance(event, h11.Response):
                return ResponseHead(event.status_code, tuple(event.headers), event.http_version, event.reason)
            if not isinstance(event, h11.InformationalResponse) or event.status_code == 101:
                raise UpstreamProtocolError("the upstream sent no response")
        raise UpstreamProtocolError("the upstream sent too many 1xx responses")

    async def receive_chunk(self) -> bytes | None:
        """The next bytes of the body as they came, or ``None`` at its proper end."""
        event = await self._next_event()
        if isinstance(event, h11.Data):
            return bytes(event.data)
        if isinstance(event, h11.EndOfMessage):
            return None
        raise UpstreamProtocolError("the upstream broke off its response")

    async def _next_event(self) -> h11.Event | type[h11.PAUSED]:
        while True:
            try:
                event = self._h11.next_event()
            except h11.RemoteProtocolError as error:
                if not self._has_received and self.was_used:
                    raise StaleConnection from None
                raise UpstreamProtocolError(f"the upstream broke HTTP/1.1: {error}") from None
            if event is h11.NEED_DATA:
                self._h11.receive_data(await self._receive())
            else:
                return cast("h11.Event | type[h11.PAUSED]", event)

    async def _receive(self) -> bytes:
        try:
            data = bytes(await self._stream.receive_some(RECEIVE_BYTES))
        except (trio.BrokenResourceError, ssl.SSLError):
            if not self._has_received and self.was_used:
                raise StaleConnection from None
            raise UpstreamProtocolError("the upstream reset the connection") from None
        self._has_received = self._has_received or bool(data)
        return data

    def recycle(self) -> bool:
        """Make ready for another request; whether that is possible after what came and went."""
        has_ended = self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE
        if not has_ended or self._h11.trailing_data[0]:
            return False
        self._h11.start_next_cycle()
        self.was_used = True
        return True


class UpstreamResponse:
    """The answer to one request, while its connection is ours."""

    def __init__(self, head: ResponseHead, connection: UpstreamConnection, silence_seconds: float) -> None:
        self.head = head
        self._connection = connection
        self._silence_seconds = silence_seconds
        self.is_complete = False

    async def receive_chunk(self) -> bytes | None:
        """The next bytes of the body as they came, or ``None`` at its proper end.

        Raises :exc:`UpstreamTimeout` after too long a silence, and :exc:`UpstreamProtocolError` when the upstream
        breaks off. Cancel-safe, but the response cannot be read on after that.
        """
        with trio.move_on_after(self._silence_seconds) as silence_scope:
            chunk = await self._connection.receive_chunk()
        if silence_scope.cancelled_caught:
            raise UpstreamTimeout(f"the upstream was silent for {self._silence_seconds:g} seconds")
        self.is_complete = chunk is None
        return chunk


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
            stream = await self._open_stream(origin)
        if connect_scope.cancelled_caught:
            raise UpstreamTimeout(f"no connection within {self._deadlines.connect_seconds:g} seconds")
        self._statistics.opened += 1
        return UpstreamConnection(stream, origin)

    async def _open_stream(self, origin: Origin) -> trio.SocketStream | trio.SSLStream[trio.SocketStream]:
        try:
            stream = await trio.open_tcp_stream(origin.host, origin.port)
        except OSError as error:
            raise UpstreamUnreachable(f"cannot connect to {origin.host}:{origin.port}: {_reason(error)}") from None
        if origin.scheme == "http":
            return stream
        # https_compatible=False makes an end without close_notify an error: RFC 9112 §9.8, truncation must show.
        tls = trio.SSLStream(stream, self._tls_context, server_hostname=origin.host, https_compatible=False)
        try:
            await tls.do_handshake()
        except (trio.BrokenResourceError, ssl.SSLError) as error:
            stream.socket.close()
            raise UpstreamUnreachable(f"TLS with {origin.host}:{origin.port} failed: {_reason(error)}") from None
        except trio.Cancelled:
            stream.socket.close()
            raise
        return tls

    def _take_idle(self, origin: Origin) -> UpstreamConnection | None:
        """The youngest kept connection that still looks alive; those that do not are closed on the way."""
        connections = self._idle.get(origin)
        while connections:
            connection = connections.pop()
            if not connection.is_readable():
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

    async def run_reaper(self) -> None:
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
    text = getattr(cause, "strerror", None) or str(cause)
    return text or type(cause).__name__


__all__ = [
    "PoolStatistics",
    "UpstreamDeadlines",
    "UpstreamError",
    "UpstreamPool",
    "UpstreamResponse",
    "build_tls_context",
]
