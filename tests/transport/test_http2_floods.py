"""Floods, slow peers and deadlines: one connection neither holds the loop nor stays for ever."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, suppress

import pytest
import trio
import trio.lowlevel
import trio.testing
from h2.errors import ErrorCodes
from hpack import Decoder, Encoder

from cgw.transport.client_side import ClientLimits
from cgw.transport.http2_client import Http2Client
from cgw.wire import http2_frames as frames
from cgw.wire.heads import HTTP2_PREFACE
from cgw.wire.http2_bounds import Http2Bounds
from cgw.wire.http2_frames import END_HEADERS, END_STREAM, pack_frame
from tests.support.http2_engine import PSEUDO, FrameClient, echo, open_frames, open_http2_engine
from tests.support.waiting import wait_until

LONGEST_TURN_SECONDS = 0.02
START = HTTP2_PREFACE + frames.pack_settings({})
PING = pack_frame(frames.PING, 0, 0, bytes(8))
CALM = ErrorCodes.ENHANCE_YOUR_CALM


@pytest.fixture(autouse=True)
def _no_traceback(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert not [record for record in caplog.get_records("call") if record.exc_info]


class Turns:
    """The longest CPU time of the loop's thread between two turns of one task: the wait of any other connection."""

    def __init__(self) -> None:
        self.longest = 0.0

    async def watch(self) -> None:
        while True:
            started = time.thread_time()
            await trio.lowlevel.checkpoint()
            self.longest = max(self.longest, time.thread_time() - started)


@asynccontextmanager
async def watch_turns() -> AsyncIterator[Turns]:
    turns = Turns()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(turns.watch)
        yield turns
        nursery.cancel_scope.cancel()


class Flood:
    """Sends the same bytes again and again from a thread, as fast as they are taken, and reads nothing meanwhile."""

    def __init__(self, port: int, start: bytes, repeated: Callable[[int], bytes], times: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port))
        self._start = start
        self._repeated = repeated
        self._times = times
        self.thread = threading.Thread(target=self._send)
        self.thread.start()

    def _send(self) -> None:
        try:
            self.sock.sendall(self._start)
            for number in range(self._times):
                self.sock.sendall(self._repeated(number))
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the server had enough

    def read_goaway(self) -> ErrorCodes | None:
        """The code of the last GOAWAY that can still be read."""
        self.sock.settimeout(5)
        splitter = frames.FrameSplitter()
        code = None
        try:
            while data := self.sock.recv(65536):
                splitter.feed(data)
                while (frame := splitter.next_frame()) is not None:
                    if frame.type == frames.GOAWAY:
                        code = ErrorCodes(int.from_bytes(frame.payload[4:8], "big"))
        except ConnectionError:
            pass
        return code


def repeat(frame: bytes, count: int = 0) -> Callable[[int], bytes]:
    packed = frame * (count or max(1, 65536 // len(frame)))
    return lambda _: packed


def build_head(stream_id: int, flags: int, *extra: tuple[bytes, bytes]) -> bytes:
    return pack_frame(frames.HEADERS, flags, stream_id, Encoder().encode([*PSEUDO, *extra], huffman=False))


def reset_rapidly(number: int) -> bytes:
    """400 streams, each reset at once. Fields are not indexed twice: the static table has nearly all of them."""
    block = b"\x83\x86\x84\x01\x01x"  # POST, http, /, :authority x
    first = 1 + 800 * number
    return b"".join(
        pack_frame(frames.HEADERS, END_HEADERS | END_STREAM, stream_id, block)
        + pack_frame(frames.RST_STREAM, 0, stream_id, b"\0\0\0\x08")
        for stream_id in range(first, first + 800, 2)
    )


def open_streams(number: int) -> bytes:
    block = b"\x83\x86\x84\x01\x01x"
    first = 1 + 6000 * number
    return b"".join(
        pack_frame(frames.HEADERS, END_HEADERS | END_STREAM, stream_id, block)
        for stream_id in range(first, first + 6000, 2)
    )


# What costs HPACK the most for its size: many small literals, and Huffman's code.
DEAREST_BLOCK = b"\x83\x86\x84\x01\x01x" + b"\x00\x01a\x00" * 500 + Encoder().encode([(b"z", b"x" * 40_000)])


def large_heads(number: int) -> bytes:
    streams = range(1 + 8 * number, 9 + 8 * number, 2)
    return b"".join(frames.pack_header_block(stream_id, END_STREAM, DEAREST_BLOCK) for stream_id in streams)


BODY = build_head(1, END_HEADERS)
FLOODS: dict[str, tuple[bytes, Callable[[int], bytes]]] = {
    "PING": (b"", repeat(pack_frame(frames.PING, 0, 0, bytes(8)))),
    "PING ACK": (b"", repeat(pack_frame(frames.PING, frames.ACK, 0, bytes(8)))),
    "SETTINGS": (b"", repeat(frames.pack_settings({1: 0, 4: 70000}) + frames.pack_settings({1: 4096, 4: 65535}))),
    "empty SETTINGS": (b"", repeat(frames.pack_settings({}))),
    "SETTINGS ACK": (b"", repeat(pack_frame(frames.SETTINGS, frames.ACK, 0))),
    "PRIORITY": (b"", repeat(pack_frame(frames.PRIORITY, 0, 1, bytes(5)))),
    "unknown frames": (b"", repeat(pack_frame(0x42, 0, 0))),
    "GOAWAY": (BODY, repeat(frames.pack_goaway(0, 0))),
    "WINDOW_UPDATE": (b"", repeat(FrameClient.window_update(0, 1))),
    "WINDOW_UPDATE of a stream": (BODY, repeat(FrameClient.window_update(1, 1))),
    "empty DATA": (BODY, repeat(FrameClient.data(1))),
    "DATA of one byte": (BODY, repeat(FrameClient.data(1, b"x"))),
    "DATA of padding": (BODY, repeat(pack_frame(frames.DATA, frames.PADDED, 1, b"\x20x" + bytes(32)))),
    "late DATA of one byte": (build_head(1, END_HEADERS | END_STREAM), repeat(FrameClient.data(1, b"x"))),
    "rapid reset": (b"", reset_rapidly),
    "streams": (b"", open_streams),
    "resets by the server": (b"", lambda number: reset_rapidly(number).replace(b"\0\0\0\x08", b"\0\0\0\0")),
    "CONTINUATION": (
        pack_frame(frames.HEADERS, 0, 1, b"\x83"),
        repeat(pack_frame(frames.CONTINUATION, 0, 1)),
    ),
    "CONTINUATION with bytes": (
        pack_frame(frames.HEADERS, 0, 1, b"\x83"),
        repeat(pack_frame(frames.CONTINUATION, 0, 1, b"\x84" * 10_000)),
    ),
}


async def wait_forever(client: Http2Client) -> None:
    await client.wait_gone()


@pytest.mark.parametrize(("start", "repeated"), FLOODS.values(), ids=FLOODS.keys())
async def test_flood_ends_the_connection(start: bytes, repeated: Callable[[int], bytes]) -> None:
    """ENHANCE_YOUR_CALM ends it, and until then no turn of the loop is longer than 20 ms."""
    async with open_http2_engine(wait_forever) as engine, watch_turns() as turns:
        flood = Flood(engine.port, START + start, repeated, 200)
        with closing(flood.sock):
            code = await trio.to_thread.run_sync(flood.read_goaway)
            await trio.to_thread.run_sync(flood.thread.join)
            await wait_until(lambda: engine.server.connection_count == 0)
    assert code == CALM
    assert turns.longest < LONGEST_TURN_SECONDS


@pytest.mark.parametrize(
    ("block", "code"),
    [
        pytest.param(b"\x20" * 16_000, ErrorCodes.COMPRESSION_ERROR, id="updates of the table's size"),
        pytest.param(b"\x40\x7f" + b"\xff" * 16_000, ErrorCodes.COMPRESSION_ERROR, id="an endless number"),
        pytest.param(b"\x40\x01a\x7f\xa1\x1e" + b"b" * 4_000 + b"\xbe" * 12_000, CALM, id="HPACK bomb"),
    ],
)
async def test_header_block_that_is_an_attack(block: bytes, code: ErrorCodes) -> None:
    """Blocks that would cost memory or time far beyond their size end the connection, quickly."""
    async with open_http2_engine() as engine, open_frames(engine.port) as client, watch_turns() as turns:
        await client.send(pack_frame(frames.HEADERS, END_HEADERS | END_STREAM, 1, block))
        await client.receive_until(lambda: bool(client.goaways))
        await client.stream.send_eof()
        assert await client.wait_end() == code
    assert turns.longest < LONGEST_TURN_SECONDS


async def test_dearest_heads_keep_turns_short() -> None:
    """Header blocks as large as they may be, one after the other: the loop has its turn after each of them.

    One block is the bound: HPACK needs some 15 ms of an idle machine for it.
    """
    started = time.thread_time()
    Decoder(2**17).decode(DEAREST_BLOCK, raw=True)
    one_block = time.thread_time() - started
    async with open_http2_engine() as engine, watch_turns() as turns:
        flood = Flood(engine.port, START, large_heads, 5)
        with closing(flood.sock):
            await trio.to_thread.run_sync(flood.thread.join)
            await trio.to_thread.run_sync(flood.read_goaway)
            await wait_until(lambda: engine.server.connection_count == 0)
    assert turns.longest < 2 * one_block + LONGEST_TURN_SECONDS


async def test_ordinary_use_is_no_flood() -> None:
    """2,000 requests, 50 resets, and two WINDOW_UPDATE frames for each DATA frame of a long answer are no flood."""

    async def stream(client: Http2Client) -> None:
        await client.receive_body()
        await client.send_head(200, [], is_stream=True)
        for _ in range(client.head.target == b"/long" and 4000):
            await client.send_chunk(b"data: x\n\n")
        await client.finish()

    async with open_http2_engine(stream) as engine, open_frames(engine.port) as client:
        for first in range(1, 4001, 200):
            streams = range(first, first + 200, 2)
            await client.send(b"".join(client.request(stream_id) for stream_id in streams))
            for stream_id in streams:
                await client.wait_answer(stream_id)
        for stream_id in range(4001, 4101, 2):
            await client.send(client.head(stream_id) + client.reset(stream_id))
        long = ((b":method", b"GET"), *PSEUDO[1:3], (b":path", b"/long"))
        await client.send(client.request(5001, pseudo=long))
        answered = 0
        answer = client.answer(5001)
        while not answer.is_complete:
            assert await client.receive(), client.goaways
            arrived = len(answer.body) // 9
            await client.send((client.window_update(0, 9) + client.window_update(5001, 9)) * (arrived - answered))
            answered = arrived
        await client.wait_pong()


async def test_unread_replies_are_bounded() -> None:
    """Pings whose answers are not read: the connection ends before they add up, without waiting for the bucket."""
    bounds = Http2Bounds(control_frames_burst=10**9)
    async with open_http2_engine(bounds=bounds) as engine:
        with closing(socket.create_connection(("127.0.0.1", engine.port))) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            thread = threading.Thread(
                target=send_all, args=(sock, START + pack_frame(frames.PING, 0, 0, bytes(8)) * 10**6)
            )
            thread.start()
            await wait_until(lambda: bool(engine.connections))
            most = 0
            with trio.fail_after(10):
                while engine.server.connection_count:
                    most = max(most, engine.connections[0].unsent_bytes)
                    await trio.lowlevel.checkpoint()
            await trio.to_thread.run_sync(thread.join)
            assert most < bounds.max_unsent_bytes + 128 * 1024


def send_all(sock: socket.socket, data: bytes) -> None:
    with suppress(OSError):
        sock.sendall(data)


LIMITS = ClientLimits(header_timeout_seconds=7, body_timeout_seconds=11, keep_alive_timeout_seconds=13)
HALF_DATA = build_head(1, END_HEADERS) + FrameClient.data(1, b"a" * 100)[:50]
IN_BLOCK = pack_frame(frames.HEADERS, 0, 1, b"\x83")

STATES: dict[str, tuple[bytes, float, ErrorCodes]] = {
    "nothing": (b"", 7, ErrorCodes.PROTOCOL_ERROR),
    "half the preface": (HTTP2_PREFACE[:10], 7, ErrorCodes.PROTOCOL_ERROR),
    "the preface only": (HTTP2_PREFACE, 7, ErrorCodes.PROTOCOL_ERROR),
    "SETTINGS only": (START, 13, ErrorCodes.NO_ERROR),
    "half a frame": (START + b"\0\0\x08\x06\0", 7, ErrorCodes.PROTOCOL_ERROR),
    "a frame's header": (START + b"\0\0\x08\x06\0\0\0\0\0", 7, ErrorCodes.PROTOCOL_ERROR),
    "HEADERS without END_HEADERS": (START + IN_BLOCK, 7, ErrorCodes.PROTOCOL_ERROR),
    "half a DATA frame": (START + HALF_DATA, 11, ErrorCodes.PROTOCOL_ERROR),
    "an answered request": (START + build_head(1, END_HEADERS | END_STREAM), 13, ErrorCodes.NO_ERROR),
}


@pytest.mark.parametrize(("data", "seconds", "code"), STATES.values(), ids=STATES.keys())
async def test_every_state_has_a_timeout(
    autojump_clock: trio.testing.MockClock, data: bytes, seconds: float, code: ErrorCodes
) -> None:
    """Found by attack: states without a timeout. Now each ends with GOAWAY; half a DATA frame ends with its body."""
    autojump_clock.autojump_threshold = 0.01
    handler = wait_forever if data.endswith(HALF_DATA) else echo
    async with (
        open_http2_engine(handler, limits=LIMITS) as engine,
        await trio.open_tcp_stream("127.0.0.1", engine.port) as stream,
    ):
        client = FrameClient(stream)
        client.acknowledges_settings = False
        started = trio.current_time()
        await client.send(data)
        while not client.goaways:
            assert await client.receive()
        assert trio.current_time() - started == pytest.approx(seconds, abs=0.2)
        await stream.send_eof()
        while await client.receive():
            pass
        assert client.goaways[-1][1] == code


@pytest.mark.parametrize("step", [b"\0", pack_frame(frames.CONTINUATION, 0, 1)], ids=["bytes", "CONTINUATION"])
async def test_slow_head_has_its_time_in_total(autojump_clock: trio.testing.MockClock, step: bytes) -> None:
    """A byte, or a CONTINUATION frame, a second does not stretch the time for a head (slowloris)."""
    autojump_clock.autojump_threshold = 0.01
    async with open_http2_engine(limits=LIMITS) as engine, open_frames(engine.port) as client:
        client.acknowledges_settings = False
        await client.send(IN_BLOCK if len(step) > 1 else b"\0\0\xff\x01\x04\0\0\0\x01")
        started = trio.current_time()
        async with trio.open_nursery() as nursery:

            async def drip() -> None:
                for _ in range(7):
                    await client.send(step)
                    await trio.sleep(1)

            nursery.start_soon(drip)
            while not client.goaways:
                assert await client.receive()
            nursery.cancel_scope.cancel()
        assert trio.current_time() - started == pytest.approx(7, abs=0.2)
        await client.stream.send_eof()


async def test_pings_do_not_keep_a_connection(autojump_clock: trio.testing.MockClock) -> None:
    """A connection without streams ends after the keep-alive time, whatever it sends besides."""
    autojump_clock.autojump_threshold = 0.01
    async with open_http2_engine(limits=LIMITS) as engine, open_frames(engine.port) as client:
        started = trio.current_time()
        async with trio.open_nursery() as nursery:

            async def ping() -> None:
                while True:
                    await client.send(pack_frame(frames.PING, 0, 0, bytes(8)))
                    await trio.sleep(1)

            nursery.start_soon(ping)
            while not client.goaways:
                assert await client.receive()
            nursery.cancel_scope.cancel()
        assert trio.current_time() - started == pytest.approx(13, abs=0.2)
        assert client.goaways == [(0, ErrorCodes.NO_ERROR)]
        await client.stream.send_eof()


async def test_idle_time_begins_with_the_last_answer(autojump_clock: trio.testing.MockClock) -> None:
    """A long answer is no idle time, and after it the whole keep-alive time is there."""
    autojump_clock.autojump_threshold = 0.01

    async def answer_late(client: Http2Client) -> None:
        await trio.sleep(100)
        await echo(client)

    async with open_http2_engine(answer_late, limits=LIMITS) as engine, open_frames(engine.port) as client:
        started = trio.current_time()
        await client.send(client.request(1))
        while not client.goaways:
            assert await client.receive()
        assert client.answer(1).is_complete
        assert trio.current_time() - started == pytest.approx(113, abs=0.5)
        await client.stream.send_eof()
