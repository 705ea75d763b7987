"""The flat relay itself: backpressure, timeouts, coalescing, and streams that are cancelled in the middle of a pass."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import trio
import trio.testing

from cgw.transport.client_side import ClientLimits
from cgw.transport.flat_relay import COALESCE_ABOVE, COALESCE_BELOW, MAX_EVENTS, FlatRelay
from cgw.transport.flat_stream import StreamEnd, StreamOutcome
from cgw.transport.relay import RelayEnd
from cgw.transport.sockets import RECEIVE_BYTES, PlainTransport
from cgw.transport.upstream import UpstreamDeadlines, UpstreamPool, build_tls_context
from cgw.wire.framers import ChunkedFramer, ChunkSizes
from cgw.wire.windows import BodyWindowCollector
from tests.support.flat_legs import Leg, open_legs, open_pairs
from tests.support.relay_run import REQUEST, RelayRun, open_relay_run

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = b"8\r\ndata: x\n\r\n"
END = b"0\r\n\r\n"
LARGE_EVENT = b"1000\r\n" + b"x" * 4096 + b"\r\n"


@pytest.fixture
def pool() -> UpstreamPool:
    return UpstreamPool(build_tls_context(None), UpstreamDeadlines())


@asynccontextmanager
async def open_flat_run(
    pool: UpstreamPool, flat: FlatRelay, *, client_buffer_bytes: int | None = None, stall_seconds: float = 60
) -> AsyncIterator[RelayRun]:
    """Open an exchange on the fast path, whose head and first event have arrived at the client."""
    limits = ClientLimits(stall_timeout_seconds=stall_seconds)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(flat.run_without_thread)
        async with open_relay_run(pool, flat, client_buffer_bytes=client_buffer_bytes, limits=limits) as run:
            await run.send(HEAD + EVENT)
            while run.read(65536):
                await trio.testing.wait_all_tasks_blocked()
            assert run.answer().payload == b"data: x\n"
            assert flat.statistics().streams == 1
            yield run
        assert flat.statistics().streams == 0
        pool.close_idle()
        nursery.cancel_scope.cancel()
    flat.close()


async def flood(run: RelayRun, size: int) -> bytes:
    """Send ``size`` bytes of large events, and return them, whether the relay has read them or not."""
    data = LARGE_EVENT * (size // len(LARGE_EVENT))
    await run.send(data)
    return data


async def test_unread_client_stops_the_upstream(pool: UpstreamPool) -> None:
    """While a client does not read, its upstream is not read beyond one buffer; once it reads, nothing is missing."""
    flat = FlatRelay(tick_seconds=0)
    async with open_flat_run(pool, flat, client_buffer_bytes=8192) as run:
        data = await flood(run, 8_000_000)
        events = flat.statistics().events
        assert events <= 2  # each of at most RECEIVE_BYTES, of which the second at most waits to be sent
        passes = flat.statistics().passes
        for _ in range(20):
            await trio.testing.wait_all_tasks_blocked()
        assert (flat.statistics().events, flat.statistics().passes) == (events, passes)  # and it does not spin
        await run.read_all()
        await run.send(END)
        await run.read_all()
        run.release.set()
        await run.read_all()
        assert run.end == "complete"
        answered = run.answer()
        assert answered.raw == EVENT + data + END
        assert answered.is_whole
        assert run.window.total_bytes == 8 + data.count(LARGE_EVENT) * 4096


async def test_one_read_is_all_that_is_kept(pool: UpstreamPool) -> None:
    """The relay keeps at most one read of a stream whose client does not read."""
    flat = FlatRelay(tick_seconds=0)
    async with open_flat_run(pool, flat, client_buffer_bytes=4096) as run:
        await flood(run, 8_000_000)
        run.scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert run.end == "cancelled"
        taken = run.window.total_bytes
        run.read(1_000_000)
        assert 0 < taken - len(run.answer().payload) <= RECEIVE_BYTES


async def test_client_that_takes_nothing_is_dropped(pool: UpstreamPool, mock_clock: trio.testing.MockClock) -> None:
    """After the stall timeout a client that read nothing is reset, and its upstream is closed."""
    flat = FlatRelay(tick_seconds=0, stall_seconds=5)
    async with open_flat_run(pool, flat, client_buffer_bytes=4096) as run:
        await flood(run, 1_000_000)
        mock_clock.jump(4)
        await trio.testing.wait_all_tasks_blocked()
        assert not run.is_over
        mock_clock.jump(1.3)
        await trio.testing.wait_all_tasks_blocked()
        assert run.end == "client gone"
        assert run.client_side is not None
        assert run.client_side.needs_reset
        assert run.is_upstream_closed()


async def test_slow_client_is_not_dropped(pool: UpstreamPool, mock_clock: trio.testing.MockClock) -> None:
    """A client that reads something within each stall timeout is served, however slow it is."""
    flat = FlatRelay(tick_seconds=0, stall_seconds=5, silence_seconds=7)
    async with open_flat_run(pool, flat, client_buffer_bytes=4096) as run:
        await flood(run, 100_000)  # little enough for the kernel to have delivered it all
        for _ in range(8):
            mock_clock.jump(4)
            await trio.testing.wait_all_tasks_blocked()
            assert not run.is_over
            assert run.read(1_000_000)
            await trio.testing.wait_all_tasks_blocked()
        assert flat.statistics().streams == 1


async def test_silent_upstream_times_out(pool: UpstreamPool, mock_clock: trio.testing.MockClock) -> None:
    """Silence counts from the last data; when it lasts too long, the answer is cut."""
    flat = FlatRelay(tick_seconds=0, silence_seconds=5)
    async with open_flat_run(pool, flat) as run:
        for _ in range(5):
            mock_clock.jump(4)
            await run.send(EVENT)
            assert not run.is_over
        mock_clock.jump(4.7)
        await trio.testing.wait_all_tasks_blocked()
        assert not run.is_over
        mock_clock.jump(0.6)
        await trio.testing.wait_all_tasks_blocked()
        assert run.end == RelayEnd.TIMED_OUT.value
        await run.read_all()
        assert run.answer().payload == b"data: x\n" * 6
        assert not run.answer().is_whole
        assert run.is_client_closed
        assert run.is_upstream_closed()


async def test_waiting_for_a_client_is_no_silence(pool: UpstreamPool, mock_clock: trio.testing.MockClock) -> None:
    """While an upstream is not read its silence does not count; it counts from when reading continues."""
    flat = FlatRelay(tick_seconds=0, silence_seconds=5, stall_seconds=60)
    async with open_flat_run(pool, flat, client_buffer_bytes=4096) as run:
        await flood(run, 100_000)
        mock_clock.jump(30)
        await trio.testing.wait_all_tasks_blocked()
        assert not run.is_over
        await run.read_all()
        mock_clock.jump(4)
        await trio.testing.wait_all_tasks_blocked()
        assert not run.is_over
        mock_clock.jump(2)
        await trio.testing.wait_all_tasks_blocked()
        assert run.end == RelayEnd.TIMED_OUT.value


async def test_pipelined_request_is_no_hang_up(pool: UpstreamPool) -> None:
    """A request that comes during a stream does not end it, and is answered after it on the same connection."""
    flat = FlatRelay(tick_seconds=0)
    async with open_flat_run(pool, flat) as run:
        run.client.send(REQUEST)
        run.release.set()
        for _ in range(3):
            await run.send(EVENT)
            assert not run.is_over
        await run.send(END)
        await run.read_all()
        assert run.answer().is_whole
        assert run.upstream.recv(65536).endswith(b"\r\n\r\n{}")  # the second request, on the kept connection
        first, run.received = run.received, b""
        await run.send(HEAD + EVENT + END)
        await run.read_all()
        assert first.count(EVENT) == 4
        assert run.answer().payload == b"data: x\n"
        assert run.answer().is_whole


@pytest.mark.parametrize("is_pipelined", [False, True], ids=["nothing sent", "behind a pipelined request"])
async def test_hang_up_under_pressure_closes_the_upstream(pool: UpstreamPool, is_pipelined: bool) -> None:
    """A client that leaves without reading ends the exchange at once."""
    flat = FlatRelay(tick_seconds=0)
    async with open_flat_run(pool, flat, client_buffer_bytes=4096) as run:
        if is_pipelined:
            run.client.send(REQUEST)
        await flood(run, 1_000_000)
        run.client.close()
        run.is_client_closed = True
        await trio.testing.wait_all_tasks_blocked()
        assert run.end == "client gone"
        assert flat.statistics().streams == 0
        assert run.is_upstream_closed()


@pytest.mark.parametrize(
    ("unusual", "payload"),
    [
        (b"8;name=value\r\ndata: y\n\r\n" + EVENT + END, b"data: y\ndata: x\n"),
        (b"0\r\nfield: value\r\n\r\n", b""),
    ],
    ids=["extension", "trailers"],
)
async def test_unusual_framing_continues_on_the_fallback_path(
    pool: UpstreamPool, unusual: bytes, payload: bytes
) -> None:
    """A stream whose framing becomes unusual on the way continues on the fallback path, and arrives whole."""
    flat = FlatRelay(tick_seconds=0)
    async with open_flat_run(pool, flat) as run:
        await run.send(EVENT)
        for byte in unusual[:-1]:
            await run.send(bytes([byte]))
        assert flat.statistics().streams == 0
        assert not run.is_over
        await run.send(unusual[-1:])
        assert run.end == "complete"
        run.release.set()
        await run.read_all()
        assert run.answer().payload == b"data: x\n" * 2 + payload
        assert run.answer().is_whole
        assert pool.statistics().idle == 1


async def test_deadline_of_the_exchange_ends_a_flat_stream(
    pool: UpstreamPool, mock_clock: trio.testing.MockClock
) -> None:
    """A deadline of the exchange ends the stream, and closes both sides visibly."""
    flat = FlatRelay(tick_seconds=0)
    async with open_flat_run(pool, flat) as run:
        run.scope.deadline = trio.current_time() + 10
        for _ in range(3):
            mock_clock.jump(3)
            await run.send(EVENT)
        assert not run.is_over
        mock_clock.jump(2)
        await trio.testing.wait_all_tasks_blocked()
        assert run.end == "cancelled"
        await run.read_all()
        assert run.is_client_closed
        assert not run.answer().is_whole
        assert run.is_upstream_closed()


async def play_rate(legs: list[Leg], mock_clock: trio.testing.MockClock, events_per_second: float) -> None:
    """Send events on one stream after the other, evenly, for three windows of the rate."""
    for turn in range(round(0.06 * events_per_second)):
        legs[turn % len(legs)].upstream.send(EVENT)
        mock_clock.jump(1 / events_per_second)
        await trio.testing.wait_all_tasks_blocked()


@pytest.mark.parametrize("tick_seconds", [0.001, 0.0])
async def test_coalescing_follows_the_rate(mock_clock: trio.testing.MockClock, tick_seconds: float) -> None:
    """Above a rate the relay drains once per tick, below a lower one at each wake-up; with a tick of 0 always."""
    flat = FlatRelay(tick_seconds=tick_seconds)
    states: list[bool] = []
    between = (COALESCE_ABOVE + COALESCE_BELOW) / 2
    rates = [between, COALESCE_ABOVE * 1.5, between, COALESCE_BELOW * 0.5]
    async with open_legs(flat, 40) as legs:
        for rate in rates:
            await play_rate(legs, mock_clock, rate)
            states.append(flat.statistics().is_coalescing)
        received = [leg.received() for leg in legs]
    assert states == ([False, True, True, False] if tick_seconds else [False] * 4)
    assert (flat.statistics().ticks > 0) == bool(tick_seconds)
    assert b"".join(received) == EVENT * sum(round(0.06 * rate) for rate in rates)


async def test_a_tick_serves_all_that_is_ready(mock_clock: trio.testing.MockClock) -> None:
    """More sockets than a pass takes are served in one tick: sleeping after each pass would leave them waiting."""
    flat = FlatRelay(tick_seconds=0.001)
    async with open_legs(flat, 3 * MAX_EVENTS + 5) as legs:
        await play_rate(legs, mock_clock, 2 * COALESCE_ABOVE)
        mock_clock.jump(0.001)
        await trio.testing.wait_all_tasks_blocked()
        for leg in legs:
            leg.received()
        before = flat.statistics()
        assert before.is_coalescing
        for leg in legs:
            leg.upstream.send(EVENT)
        mock_clock.jump(0.001)
        await trio.testing.wait_all_tasks_blocked()
        assert [leg.received() for leg in legs] == [EVENT] * len(legs)
        assert flat.statistics().ticks - before.ticks == 1
        assert flat.statistics().passes - before.passes == 4


async def test_coalescing_ends_when_nothing_comes(mock_clock: trio.testing.MockClock) -> None:
    """After a burst the relay stops ticking, and waits for a wake-up."""
    flat = FlatRelay(tick_seconds=0.001)
    async with open_legs(flat, 40) as legs:
        await play_rate(legs, mock_clock, 2 * COALESCE_ABOVE)
        assert flat.statistics().is_coalescing
        for _ in range(60):
            mock_clock.jump(0.001)
            await trio.testing.wait_all_tasks_blocked()
        assert not flat.statistics().is_coalescing
        ticks, passes = flat.statistics().ticks, flat.statistics().passes
        mock_clock.jump(1)
        await trio.testing.wait_all_tasks_blocked()
        assert (flat.statistics().ticks, flat.statistics().passes) == (ticks, passes)


async def test_endless_flood_leaves_turns_for_others() -> None:
    """While more sockets are ready than a pass takes, every other task has a turn after each pass."""
    flat = FlatRelay(tick_seconds=0)
    async with open_legs(flat, 3 * MAX_EVENTS) as legs:
        passes, turns = flat.statistics().passes, 0
        while turns < 30:
            for leg in legs:
                leg.upstream.send(EVENT)  # there is always more than a pass takes
            await trio.lowlevel.checkpoint()
            turns += 1
        assert 10 <= flat.statistics().passes - passes <= turns + 1
        events = flat.statistics().events
        assert events <= (flat.statistics().passes) * MAX_EVENTS


async def test_no_stream_starves_beside_floods() -> None:
    """With more ready sockets than a pass takes, all of them are served in turn."""
    flat = FlatRelay(tick_seconds=0)
    async with open_legs(flat, 3 * MAX_EVENTS) as legs:
        for leg in legs[1:]:
            with suppress(BlockingIOError):
                while True:
                    leg.upstream.send(LARGE_EVENT)
        legs[0].upstream.send(EVENT)
        for _ in range(12):
            await trio.lowlevel.checkpoint()
            for leg in legs[1:]:
                leg.received()
        assert legs[0].received() == EVENT


async def test_many_streams_end_in_one_pass() -> None:
    """Streams that end at the same moment each return to their own task, with their end held."""
    flat = FlatRelay(tick_seconds=0)
    async with open_legs(flat, MAX_EVENTS) as legs:
        assert flat.statistics().streams == MAX_EVENTS
        passes = flat.statistics().passes
        for leg in legs:
            leg.upstream.send(EVENT + END)
        await trio.testing.wait_all_tasks_blocked()
        assert flat.statistics().passes - passes <= 2
        assert flat.statistics().streams == 0
        assert {leg.outcome for leg in legs} == {StreamOutcome(StreamEnd.COMPLETE, END)}
        assert {leg.received() for leg in legs} == {EVENT}


async def test_stream_cancelled_by_another_one_of_the_same_pass() -> None:
    """A stream that is cancelled by the event of another one is not read, although it was ready, too."""
    flat = FlatRelay(tick_seconds=0)
    firsts: list[int] = []

    def cancel_the_other(index: int) -> None:
        firsts.append(index)
        legs[1 - index].scope.cancel()

    async with open_legs(flat, 2, on_first=cancel_the_other) as legs:
        passes = flat.statistics().passes
        for leg in legs:
            leg.upstream.send(EVENT + END)
        await trio.testing.wait_all_tasks_blocked()
        assert flat.statistics().passes - passes == 1
        assert flat.statistics().streams == 0
        assert len(firsts) == 1
        winner, loser = legs[firsts[0]], legs[1 - firsts[0]]
        assert winner.outcome == StreamOutcome(StreamEnd.COMPLETE, END)
        assert loser.outcome is None
        assert loser.scope.cancelled_caught
        assert (winner.received(), loser.received()) == (EVENT, b"")
        assert loser.collector.total_bytes == 0


async def test_cancelled_stream_leaves_its_sockets_alone(mock_clock: trio.testing.MockClock) -> None:
    """After a cancellation the relay does not read from the sockets any more."""
    flat = FlatRelay(tick_seconds=0)
    async with open_legs(flat, 1) as legs:
        (leg,) = legs
        leg.upstream.send(EVENT)
        await trio.testing.wait_all_tasks_blocked()
        assert leg.received() == EVENT
        leg.scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        passes = flat.statistics().passes
        leg.upstream.send(EVENT)
        mock_clock.jump(1)
        await trio.testing.wait_all_tasks_blocked()
        assert flat.statistics().passes == passes
        assert leg.received() == b""


async def test_forwarding_in_a_cancelled_scope_registers_nothing() -> None:
    """A stream of an exchange that is cancelled already is not registered."""
    flat = FlatRelay(tick_seconds=0)
    with open_pairs(1) as [(_, ours, writer, _)], trio.CancelScope() as scope:
        scope.cancel()
        await flat.forward(PlainTransport(ours), writer, ChunkedFramer(BodyWindowCollector(), ChunkSizes()))
    assert scope.cancelled_caught
    assert flat.statistics().registrations == 0
    flat.close()
