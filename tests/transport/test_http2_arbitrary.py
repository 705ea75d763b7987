"""Arbitrary frames against the HTTP/2 engine, checked by a model of windows and stream states."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import trio
import trio.testing
from attrs import define, field
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from cgw.errors import ClientGone, Refusal
from cgw.transport.client_side import ClientLimits
from cgw.transport.deadlines import DeadlineKeeper
from cgw.transport.http2_client import Http2Client
from cgw.transport.http2_connection import Http2Callbacks, Http2Connection
from cgw.transport.serving_scope import ServingScope
from cgw.transport.sockets import PlainTransport
from cgw.wire import http2_frames as frames
from cgw.wire.http2_bounds import Http2Bounds
from cgw.wire.http2_frames import END_HEADERS, END_STREAM, pack_frame
from tests.support.http2_engine import ERRORS, PSEUDO, FrameClient

STREAMS = st.sampled_from([1, 1, 1, 3, 3, 5, 7, 9, 2, 0])
BOUNDS = Http2Bounds(max_streams=3, control_frames_burst=60, control_frames_per_second=0)
LIMITS = ClientLimits(max_head_bytes=2000, max_body_bytes=100_000, stall_timeout_seconds=5)


@define
class Headers:
    """A header block; encoded when it is sent, so that it fits the table."""

    stream_id: int
    fields: tuple[tuple[bytes, bytes], ...]
    flags: int
    continuations: int


@define
class Raw:
    """Any other frame."""

    data: bytes


@define
class Pause:
    """Lets the engine run."""


def build_update(stream_id: int, increment: int) -> Raw:
    return Raw(FrameClient.window_update(stream_id, increment))


def build_data(stream_id: int, size: int, flags: int) -> Raw:
    return Raw(pack_frame(frames.DATA, flags, stream_id, bytes(size)))


REGULAR = st.sampled_from(
    [
        (b"a", b"b"),
        (b"content-length", b"5"),
        (b"content-length", b"x"),
        (b"expect", b"100-continue"),
        (b"connection", b"close"),
        (b"A", b"b"),
        (b"x", b"a\nb"),
        (b":status", b"100"),
        (b"large", b"a" * 1900),
    ]
)
VALID_HEADERS = st.builds(
    Headers,
    STREAMS,
    st.lists(REGULAR, max_size=2).map(lambda fields: (*PSEUDO, *fields)),
    st.sampled_from([END_HEADERS, END_HEADERS | END_STREAM, END_HEADERS | END_STREAM]),
    st.sampled_from([0, 0, 0, 1, 3]),
)
ODD_HEADERS = st.builds(
    Headers, STREAMS, st.lists(REGULAR, max_size=3).map(tuple), st.integers(0, 255), st.sampled_from([0, 1])
)
INCREMENTS = st.sampled_from([0, 1, 100, 65_535, 2**20, 2**31 - 1])
STEPS: SearchStrategy[Headers | Raw | Pause] = st.one_of(
    VALID_HEADERS,
    VALID_HEADERS,
    ODD_HEADERS,
    st.builds(build_data, STREAMS, st.sampled_from([0, 1, 5, 5, 16_384]), st.sampled_from([0, 0, END_STREAM, 0x08])),
    st.builds(build_update, STREAMS, INCREMENTS),
    st.builds(lambda stream_id, code: Raw(FrameClient.reset(stream_id, code)), STREAMS, st.integers(0, 20)),
    st.dictionaries(*map(st.sampled_from, ([1, 2, 3, 4, 5, 6, 0x99], [0, 1, 10, 16_384, 65_535]))).map(
        lambda values: Raw(frames.pack_settings(values))
    ),
    st.builds(
        lambda *frame: Raw(pack_frame(*frame)), st.integers(0, 12), st.integers(0, 255), STREAMS, st.binary(max_size=12)
    ),
    st.builds(Pause),
    st.builds(Pause),
)


@define
class Model:
    """Upper bounds on the windows that the client opened, and the state of each stream."""

    client: FrameClient
    seen: int = 0
    initial_window: int = 65_535
    windows: dict[int, int] = field(factory=dict)
    opened: set[int] = field(factory=set)
    ended: set[int] = field(factory=set)
    received: dict[int, int] = field(factory=dict)

    def note_sent(self, data: bytes) -> None:
        """Note the windows that a sent frame opens. An upper bound: lowering SETTINGS is ignored."""
        splitter = frames.FrameSplitter()
        splitter.feed(data)
        while (frame := next_frame(splitter)) is not None:
            if frame.type == frames.WINDOW_UPDATE and len(frame.payload) == 4:
                increment = int.from_bytes(frame.payload, "big") & (2**31 - 1)
                self.windows[frame.stream_id] = self.windows.get(frame.stream_id, 0) + increment
            elif frame.type == frames.SETTINGS and not len(frame.payload) % 6:
                for code, value in frames.read_settings(frame.payload):
                    if code == 4:
                        self.initial_window = max(self.initial_window, value)
            elif frame.type == frames.HEADERS:
                self.opened.add(frame.stream_id)

    def check_received(self) -> None:
        """Check the frames that came since the last time."""
        for frame in self.client.frames[self.seen :]:
            if frame.type in (frames.DATA, frames.HEADERS):
                assert frame.stream_id in self.opened, "a frame on a stream that was never opened"
                assert frame.stream_id not in self.ended, "a frame after the end of its stream"
            if frame.type == frames.DATA:
                size = self.received[frame.stream_id] = self.received.get(frame.stream_id, 0) + len(frame.payload)
                assert size <= self.initial_window + self.windows.get(frame.stream_id, 0)
                assert sum(self.received.values()) <= 65_535 + self.windows.get(0, 0)
            if frame.type == frames.RST_STREAM or (
                frame.type in (frames.DATA, frames.HEADERS) and frame.flags & END_STREAM
            ):
                assert frame.stream_id in self.opened, "the end of a stream that was never opened"
                self.ended.add(frame.stream_id)
        self.seen = len(self.client.frames)


def next_frame(splitter: frames.FrameSplitter) -> frames.Frame | None:
    try:
        return splitter.next_frame()
    except frames.Http2ConnectionError:
        return None  # arbitrary bytes


class Exchanges:
    """Answers in a way of its own on each stream, and counts what is under way."""

    def __init__(self) -> None:
        self.running = 0

    async def handle(self, client: Http2Client, scope: ServingScope) -> None:
        self.running += 1
        try:
            await self.answer(client)
        except (ClientGone, Refusal):
            pass
        finally:
            self.running -= 1

    async def answer(self, client: Http2Client) -> None:
        kind = client.stream_id % 10
        if kind == 3:  # early, whatever comes
            await client.send_response(401, [], b"no")
            return
        body = await client.receive_body()
        if kind == 5:
            await client.send_head(200, [(b"content-length", b"100000")], is_stream=True)
            await client.send_chunk(b"a" * 70_000)
            client.break_off()
        elif kind == 7:
            await client.wait_gone()
        else:
            await client.send_head(200, [], is_stream=kind == 1)
            for _ in range(3):
                await client.send_chunk(b"b" * 30_000)
            await client.finish(body)


@contextmanager
def watch_log() -> Iterator[list[logging.LogRecord]]:
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign,assignment]
    logging.getLogger().addHandler(handler)
    try:
        yield records
    finally:
        logging.getLogger().removeHandler(handler)


async def run_steps(steps: list[Headers | Raw | Pause], *, closes: bool) -> None:
    exchanges, deadlines = Exchanges(), DeadlineKeeper()
    ours, theirs = socket.socketpair()
    callbacks = Http2Callbacks(
        LIMITS,
        exchanges.handle,
        lambda refusal, *place: ERRORS.render(refusal),
        lambda: False,
        deadlines,
        BOUNDS,
    )
    connection = Http2Connection(PlainTransport(theirs), b"", "127.0.0.1", callbacks)
    async with trio.open_nursery() as nursery:
        served = trio.Event()

        async def serve() -> None:
            await connection.serve()
            served.set()

        nursery.start_soon(serve)
        nursery.start_soon(deadlines.run)
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        nursery.start_soon(close_at_end, stream)
        client = FrameClient(stream)
        client.acknowledges_settings = client.answers_pings = False
        model = Model(client)
        nursery.start_soon(read_all, client)
        try:
            await client.begin()
            for step in steps:
                if isinstance(step, Pause):
                    await trio.testing.wait_all_tasks_blocked()
                    model.check_received()
                    assert connection.unsent_bytes <= BOUNDS.max_unsent_bytes
                    continue
                data = encode(client, step) if isinstance(step, Headers) else step.data
                model.note_sent(data)
                await client.send(data)
        except trio.BrokenResourceError:
            assert client.goaways or client.is_closed
        await trio.testing.wait_all_tasks_blocked()
        model.check_received()
        if closes:
            await client.stream.aclose()
        else:
            await client.stream.send_eof()
        with trio.fail_after(5):
            await served.wait()
        model.check_received()
        assert exchanges.running == 0
        nursery.cancel_scope.cancel()


async def close_at_end(stream: trio.SocketStream) -> None:
    async with stream:
        await trio.sleep_forever()


async def read_all(client: FrameClient) -> None:
    try:
        while await client.receive():
            pass
    except trio.ClosedResourceError:
        pass


def encode(client: FrameClient, step: Headers) -> bytes:
    block = client.encoder.encode(list(step.fields), huffman=False)
    if not step.continuations:
        return pack_frame(frames.HEADERS, step.flags, step.stream_id, block)
    size = len(block) // (step.continuations + 1) + 1
    first, *rest = [block[start : start + size] for start in range(0, len(block), size)] or [b""]
    packed = pack_frame(frames.HEADERS, step.flags & ~END_HEADERS, step.stream_id, first)
    for index, piece in enumerate(rest):
        packed += pack_frame(frames.CONTINUATION, END_HEADERS if index == len(rest) - 1 else 0, step.stream_id, piece)
    return packed


@given(steps=st.lists(STEPS, max_size=25), closes=st.booleans())
@settings(max_examples=300)
def test_no_frames_break_the_engine(steps: list[Headers | Raw | Pause], closes: bool) -> None:
    """For any frames: windows and stream states are obeyed, no exchange is left, no error is logged."""
    with watch_log() as records:
        trio.run(partial(run_steps, steps, closes=closes))
    assert not [record.getMessage() for record in records if record.levelno >= logging.ERROR]


@example(data=frames.pack_settings({}), sizes=[1])
@given(data=st.binary(max_size=200), sizes=st.lists(st.integers(1, 20), min_size=1, max_size=5))
@settings(max_examples=50)
def test_no_bytes_break_the_engine(data: bytes, sizes: list[int]) -> None:
    """Arbitrary bytes in pieces of any size leave no exchange and no error in the log."""
    steps: list[Headers | Raw | Pause] = []
    start = 0
    while start < len(data):
        size = sizes[len(steps) % len(sizes)]
        steps.append(Raw(data[start : start + size]))
        start += size
    with watch_log() as records:
        trio.run(partial(run_steps, steps, closes=False))
    assert not [record.getMessage() for record in records if record.levelno >= logging.ERROR]
