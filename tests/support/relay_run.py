"""One exchange whose upstream and client are played by the test, step by step, on real sockets."""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import h11
import trio
import trio.testing
from attrs import define, field, frozen

from cgw.errors import ClientGone
from cgw.model import BodyWindow
from cgw.transport.client_side import ClientLimits, ClientSide
from cgw.transport.connection_callbacks import ConnectionCallbacks
from cgw.transport.deadlines import DeadlineKeeper
from cgw.transport.flat_relay import FlatRelay
from cgw.transport.hangup_watch import HangupWatch
from cgw.transport.http1_client import Http1Client
from cgw.transport.http1_connection import Http1Connection
from cgw.transport.relay import RelayEnd, RelayOutcome, relay_body, relay_response
from cgw.transport.server import AcceptedConnection
from cgw.transport.serving_scope import ServingScope
from cgw.transport.upstream import UpstreamPool
from cgw.wire.heads import select_response_headers
from cgw.wire.messages import Origin, UpstreamRequest
from cgw.wire.windows import BodyWindowCollector
from tests.support.raw_server import open_raw_server
from tests.support.tls_peer import TlsPeer
from tests.support.upstream_requests import open_response

REQUEST = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}"


@define
class RelayRun:
    """A running exchange: the sockets of the test, and the result.

    ``end`` is a value of :class:`RelayEnd`, ``client gone`` or ``cancelled``; ``None`` while the exchange runs. Setting
    ``release`` releases the end of a complete answer.
    """

    upstream: socket.socket
    client: socket.socket
    tls: TlsPeer | None
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    release: trio.Event = field(factory=trio.Event)
    end: str | None = None
    held_back: bytes = b""
    window: BodyWindow = field(factory=lambda: BodyWindow(b"", b"", 0, False))
    first_chunks: int = 0
    client_side: Http1Client | None = None
    received: bytes = b""
    is_client_closed: bool = False
    _unsent: bytes = b""

    async def send(self, data: bytes) -> None:
        """Send ``data`` (with TLS: ciphertext) as the upstream, as far as the kernel takes it; wait for all tasks."""
        self._unsent += data
        try:
            while self._unsent:
                self._unsent = self._unsent[self.upstream.send(self._unsent) :]
        except BlockingIOError:
            pass  # the gateway does not read at the moment
        except OSError:
            self._unsent = b""  # the gateway has closed its side
        await trio.testing.wait_all_tasks_blocked()

    def end_upstream(self, *, reset: bool = False) -> None:
        """Close the upstream's side, with an end or a reset."""
        if reset:
            self.upstream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.upstream.close()

    @property
    def is_over(self) -> bool:
        """True if the exchange has ended."""
        return self.end is not None

    def is_upstream_closed(self) -> bool:
        """Return whether the gateway has closed its connection to the upstream."""
        try:
            return not self.upstream.recv(65536)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def read(self, size: int) -> int:
        """Read up to ``size`` bytes as the client; return how many."""
        if self.is_client_closed or not size:
            return 0
        try:
            data = self.client.recv(size)
        except BlockingIOError:
            return 0
        self.is_client_closed = not data
        self.received += data
        return len(data)

    async def read_all(self) -> None:
        """Read everything as the client, and send the rest of the upstream's data, until nothing is left."""
        while True:
            await self.send(b"")
            if self.read(65536):
                continue
            if not self._is_in_flight():
                return
            # The data is in the kernel: TCP reopens a window that was closed after a while.
            await trio.to_thread.run_sync(time.sleep, 0.001)

    def _is_in_flight(self) -> bool:
        """Return whether some of the upstream's data has not reached the gateway's socket yet."""
        if self.end is not None or self.upstream.fileno() < 0:
            return False
        unsent = fcntl.ioctl(self.upstream, termios.TIOCOUTQ, bytes(4))
        return bool(self._unsent) or unsent != bytes(4)

    def answer(self) -> Answered:
        """Parse what the client has received so far."""
        return parse_answer(self.received)


@frozen
class Answered:
    """An answer as a strict client reads it: the payload so far, its raw bytes, and whether it is complete."""

    payload: bytes
    raw: bytes
    is_whole: bool


def parse_answer(received: bytes) -> Answered:
    """Read ``received`` with h11."""
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="POST", target="/", headers=[("host", "x")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(received)
    payload, is_whole = b"", False
    try:
        while (event := connection.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
            if isinstance(event, h11.Data):
                payload += bytes(event.data)
            is_whole = is_whole or isinstance(event, h11.EndOfMessage)
    except h11.RemoteProtocolError:
        is_whole = False
    return Answered(payload, received.partition(b"\r\n\r\n")[2], is_whole)


@asynccontextmanager
async def open_relay_run(
    pool: UpstreamPool,
    flat: FlatRelay | None,
    *,
    tls: TlsPeer | None = None,
    client_buffer_bytes: int | None = None,
    limits: ClientLimits | None = None,
    is_stream: bool = True,
) -> AsyncIterator[RelayRun]:
    """Open an exchange whose request has reached the upstream; ``flat`` must be running. All is closed at the end.

    The client is at one end of a socket pair. With ``client_buffer_bytes`` the gateway's end takes about that much
    (the kernel has a minimum) before it would block.
    """
    streams: list[trio.SocketStream] = []
    is_over = trio.Event()
    has_asked = trio.Event()

    async def accept(stream: trio.SocketStream) -> None:
        if tls is not None:
            await tls.do_handshake(stream)
        streams.append(stream)
        data = b"" if tls is None else tls.feed(b"")
        while not data.endswith(b"{}"):
            more = bytes(await stream.receive_some(65536))
            data += more if tls is None else tls.feed(more)
        has_asked.set()
        await is_over.wait()

    hangups, deadlines = HangupWatch(), DeadlineKeeper()
    theirs, ours = socket.socketpair()
    theirs.setblocking(False)
    if client_buffer_bytes is not None:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, client_buffer_bytes)
    async with open_raw_server(accept) as port, trio.open_nursery() as nursery:
        origin = Origin("http" if tls is None else "https", "127.0.0.1", port)
        run = RelayRun(theirs, theirs, tls)  # the upstream's socket follows once it is connected

        async def handle(client: ClientSide, scope: ServingScope) -> None:
            assert isinstance(client, Http1Client)
            if run.client_side is not None:
                run.scope, run.end = trio.CancelScope(), None  # the next exchange of this connection
            run.client_side = client
            await _Exchange(run, client, pool, flat, origin, is_stream).run()

        service = ConnectionCallbacks(
            limits=limits or ClientLimits(),
            handle=handle,
            render_refusal=lambda refusal, path, request_id: ((), refusal.message.encode()),
            is_draining=lambda: False,
            deadlines=deadlines,
            hangups=hangups,
        )
        nursery.start_soon(hangups.run)
        nursery.start_soon(deadlines.run)
        nursery.start_soon(Http1Connection(AcceptedConnection(ours, "127.0.0.1"), service).serve)
        try:
            theirs.send(REQUEST)
            await has_asked.wait()
            with streams[0].socket.dup() as duplicate:
                run.upstream = socket.socket(fileno=duplicate.detach())
            streams[0].socket.close()
            run.upstream.setblocking(False)
            yield run
        finally:
            nursery.cancel_scope.cancel()
            is_over.set()
            run.upstream.close()
            theirs.close()
    hangups.close()


class _Exchange:
    """The steps of an exchange around the relay, without limits and events."""

    def __init__(
        self,
        run: RelayRun,
        client: Http1Client,
        pool: UpstreamPool,
        flat: FlatRelay | None,
        origin: Origin,
        is_stream: bool,
    ) -> None:
        self._run, self._client, self._pool, self._flat = run, client, pool, flat
        self._origin, self._is_stream = origin, is_stream
        self._client_scope = trio.CancelScope()
        self._window = BodyWindowCollector()

    async def run(self) -> None:
        async with trio.open_nursery() as exchange_nursery:
            with self._run.scope, self._client_scope:
                body = await self._client.receive_body()
                exchange_nursery.start_soon(self._watch)
                await self._forward(UpstreamRequest(self._origin, b"/", (), body))
            if self._run.end is None or self._client_scope.cancelled_caught:
                self._finish("client gone" if self._client_scope.cancelled_caught else "cancelled")
            exchange_nursery.cancel_scope.cancel()

    async def _watch(self) -> None:
        await self._client.wait_gone()
        self._client_scope.cancel()

    def _finish(self, end: str) -> None:
        if end != RelayEnd.COMPLETE.value:
            self._client.break_off()
        self._run.end = end
        self._run.window = self._window.close(is_complete=end == RelayEnd.COMPLETE.value)

    async def _forward(self, request: UpstreamRequest) -> None:
        try:
            outcome = await self._relay(request)
        except ClientGone:
            self._finish("client gone")
            return
        self._run.held_back = outcome.held_back
        self._finish(outcome.end.value)
        if outcome.end is RelayEnd.COMPLETE:
            await self._run.release.wait()
            with suppress(ClientGone):
                await self._client.finish(outcome.held_back)

    async def _relay(self, request: UpstreamRequest) -> RelayOutcome:
        client = self._client
        async with open_response(self._pool, request) as response:
            head = response.head
            is_chunked = head.header(b"transfer-encoding") is not None
            length = None if is_chunked else head.header(b"content-length")
            content_length = None if length is None else int(length)
            fields = select_response_headers(head.headers, [b"content-length"] if is_chunked else [])
            await client.send_head(head.status, fields, is_stream=self._is_stream and self._flat is None)
            if self._flat is None:
                return await relay_body(
                    response, client, self._window, content_length=content_length, on_first_chunk=self._note_first
                )
            return await relay_response(
                self._flat,
                response,
                client,
                self._window,
                content_length=content_length,
                is_stream=self._is_stream,
                on_first_chunk=self._note_first,
            )

    def _note_first(self, at: float) -> None:
        self._run.first_chunks += 1
