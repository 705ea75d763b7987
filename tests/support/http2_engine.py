"""The HTTP/2 engine with a handler of the test's own in the place of exchanges; a client that writes frames by hand."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress

import trio
from attrs import define, field
from h2.errors import ErrorCodes
from hpack import Decoder, Encoder

from cgw.errors import Refusal
from cgw.providers.error_styles import ReferenceErrors
from cgw.transport.client_side import ClientLimits
from cgw.transport.deadlines import DeadlineKeeper
from cgw.transport.http2_client import Http2Client
from cgw.transport.http2_connection import Http2Callbacks, Http2Connection
from cgw.transport.listeners import open_listeners
from cgw.transport.server import AcceptedConnection, Server
from cgw.transport.serving_scope import ServingScope
from cgw.transport.sockets import PlainTransport
from cgw.wire import http2_frames as frames
from cgw.wire.heads import HTTP2_PREFACE
from cgw.wire.http2_bounds import Http2Bounds
from cgw.wire.http2_frames import ACK, END_HEADERS, END_STREAM, Frame, FrameSplitter, pack_frame
from tests.support.waiting import wait_until

ERRORS = ReferenceErrors()

Fields = Sequence[tuple[bytes, bytes]]

PSEUDO: Fields = ((b":method", b"POST"), (b":scheme", b"http"), (b":authority", b"x"), (b":path", b"/a"))

Handler = Callable[[Http2Client], Awaitable[None]]


async def echo(client: Http2Client) -> None:
    """Answer with the method, the target and the body, or with the refusal that reading it came to."""
    try:
        body = await client.receive_body()
    except Refusal as refusal:
        headers, body = ERRORS.render(refusal)
        await client.send_response(refusal.status, headers, body)
    else:
        text = client.head.method + b" " + client.head.target + b" " + body
        await client.send_response(200, [(b"content-type", b"text/plain")], text)


@define
class Http2Engine:
    """HTTP/2 connections with nothing above them."""

    handler: Handler
    limits: ClientLimits
    bounds: Http2Bounds
    server: Server = field(init=False)
    connections: list[Http2Connection] = field(factory=list)
    running: int = 0
    handled: int = 0
    scope: ServingScope | None = None  # of the last request
    is_draining: bool = False
    deadlines: DeadlineKeeper = field(factory=DeadlineKeeper)
    callbacks: Http2Callbacks = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.callbacks = Http2Callbacks(
            limits=self.limits,
            handle=self.handle,
            render_refusal=lambda refusal, path, request_id: ERRORS.render(refusal, request_id),
            is_draining=lambda: self.is_draining,
            deadlines=self.deadlines,
            bounds=self.bounds,
        )

    @property
    def port(self) -> int:
        return self.server.port

    async def serve_connection(self, accepted: AcceptedConnection) -> None:
        connection = Http2Connection(PlainTransport(accepted.sock), b"", accepted.peer, self.callbacks)
        self.connections.append(connection)
        await connection.serve()

    async def handle(self, client: Http2Client, scope: ServingScope) -> None:
        self.handled += 1
        self.running += 1
        self.scope = scope
        try:
            await self.handler(client)
        finally:
            self.running -= 1

    def drain(self) -> None:
        self.is_draining = True
        for connection in self.connections:
            connection.drain()


@asynccontextmanager
async def open_http2_engine(
    handler: Handler = echo, limits: ClientLimits | None = None, bounds: Http2Bounds | None = None
) -> AsyncIterator[Http2Engine]:
    """Serve connections on a free port. At the end no connection and no exchange may be left."""
    engine = Http2Engine(handler, limits or ClientLimits(), bounds or Http2Bounds())
    engine.server = Server(await open_listeners("127.0.0.1", 0))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.server.run, engine.serve_connection)
        nursery.start_soon(engine.deadlines.run)
        try:
            yield engine
            await wait_until(lambda: engine.server.connection_count == 0)
            assert engine.running == 0
        finally:
            nursery.cancel_scope.cancel()


@define
class Answer:
    """The answer on one stream. ``reset`` is the code of a RST_STREAM frame."""

    fields: dict[str, str] = field(factory=dict)
    informational: list[str] = field(factory=list)
    body: bytes = b""
    is_complete: bool = False
    reset: ErrorCodes | None = None

    @property
    def status(self) -> int:
        return int(self.fields.get(":status", 0))


class FrameClient:
    """An HTTP/2 client that sends exactly the frames that it is told to, and keeps what it gets."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.encoder = Encoder()
        self.decoder = Decoder()
        self.splitter = FrameSplitter()
        self.frames: list[Frame] = []
        self.answers: dict[int, Answer] = {}
        self.goaways: list[tuple[int, ErrorCodes]] = []
        self.pongs: list[bytes] = []
        self.window_updates: dict[int, int] = {}
        self.is_closed = False
        self.answers_pings = True
        self.acknowledges_settings = True
        self._sending = trio.Lock()

    # --- sending

    async def send(self, data: bytes) -> None:
        async with self._sending:
            await self.stream.send_all(data)

    async def begin(self, settings: dict[int, int] | None = None) -> None:
        """Send the preface and SETTINGS."""
        await self.send(HTTP2_PREFACE + frames.pack_settings(settings or {}))

    def head(self, stream_id: int, fields: Fields = (), *, pseudo: Fields = PSEUDO, flags: int = END_HEADERS) -> bytes:
        """A HEADERS frame; without the pseudo-header fields of a POST where ``pseudo`` is empty."""
        return pack_frame(frames.HEADERS, flags, stream_id, self.encoder.encode([*pseudo, *fields], huffman=False))

    def request(self, stream_id: int, fields: Fields = (), *, pseudo: Fields = PSEUDO) -> bytes:
        """A whole request without body."""
        return self.head(stream_id, fields, pseudo=pseudo, flags=END_HEADERS | END_STREAM)

    @staticmethod
    def data(stream_id: int, data: bytes = b"", *, is_ended: bool = False) -> bytes:
        return pack_frame(frames.DATA, END_STREAM if is_ended else 0, stream_id, data)

    @staticmethod
    def window_update(stream_id: int, increment: int) -> bytes:
        return pack_frame(frames.WINDOW_UPDATE, 0, stream_id, increment.to_bytes(4, "big"))

    @staticmethod
    def reset(stream_id: int, code: int = ErrorCodes.CANCEL) -> bytes:
        return pack_frame(frames.RST_STREAM, 0, stream_id, code.to_bytes(4, "big"))

    # --- receiving

    def answer(self, stream_id: int) -> Answer:
        return self.answers.setdefault(stream_id, Answer())

    async def receive(self) -> bool:
        """Take what comes next; false at the end of the connection."""
        try:
            data = await self.stream.receive_some(65536)
        except trio.BrokenResourceError:
            data = b""
        if not data:
            self.is_closed = True
            return False
        self.splitter.feed(data)
        while (frame := self.splitter.next_frame()) is not None:
            self.frames.append(frame)
            await self._take(frame)
        return True

    async def _take(self, frame: Frame) -> None:
        if frame.type == frames.SETTINGS and not frame.flags & ACK and self.acknowledges_settings:
            await self._reply(pack_frame(frames.SETTINGS, ACK, 0))
        elif frame.type == frames.PING and frame.flags & ACK:
            self.pongs.append(frame.payload)
        elif frame.type == frames.PING and self.answers_pings:
            await self._reply(pack_frame(frames.PING, ACK, 0, frame.payload))
        elif frame.type == frames.GOAWAY:
            last = int.from_bytes(frame.payload[:4], "big")
            self.goaways.append((last, ErrorCodes(int.from_bytes(frame.payload[4:8], "big"))))
        elif frame.type == frames.WINDOW_UPDATE:
            increment = int.from_bytes(frame.payload, "big")
            self.window_updates[frame.stream_id] = self.window_updates.get(frame.stream_id, 0) + increment
        elif frame.stream_id:
            self._take_answer(self.answer(frame.stream_id), frame)

    def _take_answer(self, answer: Answer, frame: Frame) -> None:
        if frame.type == frames.RST_STREAM:
            answer.reset = ErrorCodes(int.from_bytes(frame.payload, "big"))
            return
        if frame.type == frames.DATA:
            answer.body += frame.payload
        else:
            assert frame.type == frames.HEADERS
            assert frame.flags & END_HEADERS
            fields = dict(_decode(name, value) for name, value in self.decoder.decode(frame.payload, raw=True))
            if fields[":status"].startswith("1"):
                answer.informational.append(fields[":status"])
            else:
                answer.fields = fields
        if frame.flags & END_STREAM:
            answer.is_complete = True

    async def _reply(self, data: bytes) -> None:
        with suppress(trio.BrokenResourceError):
            await self.send(data)

    async def receive_until(self, is_true: Callable[[], bool], *, seconds: float = 5) -> None:
        """Receive until ``is_true()``; fails when the connection ends before."""
        with trio.fail_after(seconds):
            while not is_true():
                assert await self.receive(), f"the connection ended: {self.goaways}"

    async def wait_answer(self, stream_id: int, *, seconds: float = 5) -> Answer:
        """The answer on a stream, once it is complete or was reset."""
        answer = self.answer(stream_id)
        await self.receive_until(lambda: answer.is_complete or answer.reset is not None, seconds=seconds)
        return answer

    async def wait_reset(self, stream_id: int) -> ErrorCodes:
        """The code with which a stream is reset."""
        answer = self.answer(stream_id)
        await self.receive_until(lambda: answer.reset is not None)
        assert answer.reset is not None
        return answer.reset

    async def wait_end(self, *, seconds: float = 5) -> ErrorCodes:
        """Read to the connection's end; the code of its last GOAWAY."""
        with trio.fail_after(seconds):
            while await self.receive():
                pass
        assert self.goaways, "the connection ended without GOAWAY"
        return self.goaways[-1][1]

    async def wait_pong(self) -> None:
        """Send a PING and wait for its answer: everything sent before was processed, and the connection lives."""
        data = len(self.pongs).to_bytes(8, "big")
        await self.send(pack_frame(frames.PING, 0, 0, data))
        await self.receive_until(lambda: data in self.pongs)


@asynccontextmanager
async def open_frames(port: int, *, settings: dict[int, int] | None = None) -> AsyncIterator[FrameClient]:
    """A connection that has sent preface and SETTINGS."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        client = FrameClient(stream)
        await client.begin(settings)
        yield client


def _decode(name: bytes, value: bytes) -> tuple[str, str]:
    return name.decode(), value.decode()
