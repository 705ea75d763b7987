"""Flow control and slow readers: answers wait for windows and for the client, hold one chunk each, stall visibly."""

from __future__ import annotations

import tracemalloc

import pytest
import trio
import trio.testing
from h2.errors import ErrorCodes

from cgw.errors import ClientGone
from cgw.transport.client_side import ClientLimits
from cgw.transport.http2_client import Http2Client
from cgw.wire import http2_frames as frames
from tests.support.http2_engine import FrameClient, open_frames, open_http2_engine
from tests.support.waiting import wait_until

INITIAL_WINDOW = 4
WIDE = {INITIAL_WINDOW: 2**31 - 1}
CHUNK = bytes(range(256)) * 256


class Source:
    """Answers with chunks of 64 KiB, and counts those that were taken."""

    def __init__(self, count: int = 320) -> None:
        self.count = count
        self.taken = 0
        self.broken = 0

    async def __call__(self, client: Http2Client) -> None:
        try:
            await client.send_head(200, [], is_stream=True)
            for _ in range(self.count):
                await client.send_chunk(CHUNK)
                self.taken += 1
            await client.finish()
        except ClientGone:
            self.broken += 1


async def test_window_of_1_sends_one_byte() -> None:
    """h2spec 6.9.1: with a window of 1 an answer's first frame has one byte; h2spec 6.9.2: and can go below 0."""
    source = Source(1)
    async with open_http2_engine(source) as engine, open_frames(engine.port, settings={INITIAL_WINDOW: 1}) as client:
        await client.send(client.request(1))
        await client.wait_pong()
        await client.wait_pong()
        assert client.answer(1).body == CHUNK[:1]
        await client.send(frames.pack_settings({INITIAL_WINDOW: 3}))
        await client.receive_until(lambda: client.answer(1).body == CHUNK[:3])
        await client.send(frames.pack_settings({INITIAL_WINDOW: 0}))  # the stream's window is −3 now
        await client.send(client.window_update(1, 3))
        await client.wait_pong()
        assert client.answer(1).body == CHUNK[:3]
        await client.send(client.window_update(1, 2))
        await client.receive_until(lambda: client.answer(1).body == CHUNK[:5])
        await client.send(client.window_update(1, 2**20) + client.window_update(0, 2**20))
        answer = await client.wait_answer(1)
        assert answer.body == CHUNK
        assert answer.is_complete


async def test_closed_windows_hold_one_chunk_per_stream() -> None:
    """Found by attack: a window of 0 and 50 answers of 20 MB grew the process by 497 MB. Now by less than 8 MiB."""
    source = Source()
    async with open_http2_engine(source) as engine, open_frames(engine.port, settings={INITIAL_WINDOW: 0}) as client:
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        await client.send(b"".join(client.request(stream_id) for stream_id in range(1, 101, 2)))
        await wait_until(lambda: engine.handled == 50)
        await client.wait_pong()
        grown = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        assert source.taken == 0
        assert grown < 8 * 1024 * 1024
        assert not any(answer.body for answer in client.answers.values())


async def test_client_that_does_not_read_holds_one_buffer() -> None:
    """Windows wide open, nothing read: what is unsent stays within its bound, however many streams there are."""
    source = Source(16)
    async with open_http2_engine(source) as engine, open_frames(engine.port, settings=WIDE) as client:
        await client.send(client.window_update(0, 2**30))
        await client.send(b"".join(client.request(stream_id) for stream_id in range(1, 41, 2)))
        await wait_until(lambda: engine.handled == 20)
        for _ in range(50):
            await trio.sleep(0.005)
            assert engine.connections[0].unsent_bytes <= 64 * 1024 + 16_393
        assert engine.connections[0].unsent_bytes
        assert source.taken < 20 * 16
        # And once it reads, everything comes.
        await client.receive_until(lambda: source.taken == 20 * 16)


async def test_answers_share_the_connections_window() -> None:
    """A window for some frames at a time: every stream gets its share, none starves, all bytes arrive."""
    source = Source(2)
    settings = {INITIAL_WINDOW: 2**20}
    async with open_http2_engine(source) as engine, open_frames(engine.port, settings=settings) as client:
        streams = range(1, 21, 2)
        await client.send(b"".join(client.request(stream_id) for stream_id in streams))
        received = 0

        def count() -> int:
            return sum(len(client.answer(stream_id).body) for stream_id in streams)

        window = 65_535
        while received < 10 * 2 * len(CHUNK):
            await client.receive_until(lambda: count() == min(window, 10 * 2 * len(CHUNK)))  # noqa: B023
            received = count()
            window += 50_000
            await client.send(client.window_update(0, 50_000))
        for stream_id in streams:
            assert (await client.wait_answer(stream_id)).body == CHUNK * 2


async def test_end_of_an_answer_needs_no_window() -> None:
    """Frames without bytes are not subject to windows (RFC 9113 §6.9): an empty answer, and the end of another."""

    async def answer(client: Http2Client) -> None:
        await client.send_head(200, [], is_stream=True)
        if client.stream_id == 1:
            await client.send_chunk(b"a" * 65_535)
        await client.finish()

    async with open_http2_engine(answer) as engine, open_frames(engine.port) as client:
        await client.send(client.request(1))
        assert len((await client.wait_answer(1)).body) == 65_535
        await client.send(client.request(3))
        assert (await client.wait_answer(3)).is_complete


@pytest.mark.parametrize("drip", [0, 1], ids=["closed", "byte by byte"])
async def test_window_that_stays_closed_breaks_the_answer_off(
    autojump_clock: trio.testing.MockClock, drip: int
) -> None:
    """A stream whose window does not open within the stall timeout, or only by bytes, is reset; others are served."""
    autojump_clock.autojump_threshold = 0.01
    source = Source(1)
    limits = ClientLimits(stall_timeout_seconds=60, keep_alive_timeout_seconds=300)
    async with (
        open_http2_engine(source, limits=limits) as engine,
        open_frames(engine.port, settings={INITIAL_WINDOW: 0}) as client,
        trio.open_nursery() as nursery,
    ):
        started = trio.current_time()
        await client.send(client.request(1))

        async def open_slowly() -> None:
            for _ in range(12 if drip else 0):
                await trio.sleep(10)
                await client.send(client.window_update(1, drip))

        nursery.start_soon(open_slowly)
        with trio.fail_after(1000):
            assert await wait_reset(client) == ErrorCodes.INTERNAL_ERROR
        assert trio.current_time() - started == pytest.approx(60, abs=1)
        assert source.broken == 1
        nursery.cancel_scope.cancel()
        await client.send(client.request(3) + client.window_update(3, 2**20) + client.window_update(0, 2**20))
        while not client.answer(3).is_complete:
            assert await client.receive()


async def wait_reset(client: FrameClient) -> ErrorCodes | None:
    while client.answer(1).reset is None:
        assert await client.receive()
    return client.answer(1).reset


async def test_client_that_reads_nothing_is_dropped() -> None:
    """Wide windows, a full socket: after the stall timeout the connection ends, and all its answers with it."""
    source = Source()
    limits = ClientLimits(stall_timeout_seconds=0.2)
    settings = {INITIAL_WINDOW: 2**31 - 1}
    async with (
        open_http2_engine(source, limits=limits) as engine,
        open_frames(engine.port, settings=settings) as client,
    ):
        await client.send(client.window_update(0, 2**30) + client.request(1) + client.request(3))
        await wait_until(lambda: engine.server.connection_count == 0)
        assert source.broken == 2


async def test_slow_reader_does_not_stop_the_others() -> None:
    """A stream whose window is closed holds up neither another stream of its connection nor its own reset."""
    source = Source(1)
    async with open_http2_engine(source) as engine, open_frames(engine.port, settings={INITIAL_WINDOW: 0}) as client:
        await client.send(client.request(1) + client.request(3) + client.window_update(3, 2**17))
        await client.send(client.window_update(0, 2**17))
        assert (await client.wait_answer(3)).body == CHUNK
        await client.send(client.reset(1))
        await wait_until(lambda: source.broken == 1)


async def test_reset_stream_gives_its_turn_to_the_next() -> None:
    """Two answers wait for the connection's window; the one whose turn it is leaves; the other one gets the window."""
    source = Source(2)
    async with open_http2_engine(source) as engine:
        for _ in range(20):
            async with open_frames(engine.port, settings={INITIAL_WINDOW: 2**20}) as client:
                await client.send(client.request(1) + client.request(3) + client.request(5))
                await client.receive_until(lambda: total(client) == 65_535)
                await client.send(client.window_update(0, 2**20) + client.reset(1) + client.reset(3))
                assert (await client.wait_answer(5)).body == CHUNK * 2


def total(client: FrameClient) -> int:
    return sum(len(answer.body) for answer in client.answers.values())
