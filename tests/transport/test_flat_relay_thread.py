"""The flat relay in its own thread, beside a Trio thread that opens, cancels and closes streams all the time."""

from __future__ import annotations

import random
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
import trio
import trio.testing

from cgw.transport.flat_relay import FlatRelay
from cgw.transport.flat_stream import StreamEnd, StreamOutcome
from cgw.transport.sockets import PlainTransport
from cgw.wire.framers import ChunkedFramer, ChunkSizes
from cgw.wire.windows import BodyWindowCollector
from tests.support.descriptors import count_descriptors
from tests.support.flat_legs import open_legs, open_pairs
from tests.support.waiting import wait_until

END = b"0\r\n\r\n"


@pytest.fixture(autouse=True)
def restless_threads() -> Iterator[None]:
    """Have the interpreter switch between the threads at nearly every step, so that races show."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


def build_event(number: int) -> bytes:
    """Build an event with its number, so that one that is lost or doubled shows."""
    return b"10\r\ndata: %08d\n\n\r\n" % number


async def test_every_stream_gets_its_bytes_in_order() -> None:
    """100 streams that the thread forwards while Trio sends at random arrive whole, in order, with the end held."""
    flat, choose = FlatRelay(tick_seconds=0.001), random.Random(1)
    sent = [0] * 100
    async with open_legs(flat, len(sent), in_thread=True) as legs:
        received = [b""] * len(legs)
        for _ in range(5_000):
            index = choose.randrange(len(legs))
            legs[index].upstream.send(build_event(sent[index]))
            sent[index] += 1
            if not choose.randrange(50):
                await trio.lowlevel.checkpoint()
        for leg in legs:
            leg.upstream.send(END)
        await wait_until(lambda: all(leg.outcome is not None for leg in legs))
        for index, leg in enumerate(legs):
            received[index] += leg.received()
        assert flat.statistics().streams == 0
    assert {leg.outcome for leg in legs} == {StreamOutcome(StreamEnd.COMPLETE, END)}
    assert received == [b"".join(map(build_event, range(count))) for count in sent]
    assert [leg.collector.total_bytes for leg in legs] == [16 * count for count in sent]


async def test_nothing_is_sent_after_a_cancellation() -> None:
    """A stream that is cancelled while the thread forwards it has sent a prefix of its bytes, each of them once."""
    choose = random.Random(2)
    for _ in range(4):
        before = count_descriptors()
        await cancel_streams(choose)
        await trio.testing.wait_all_tasks_blocked()
        assert count_descriptors().open == before.open


async def cancel_streams(choose: random.Random) -> None:
    flat = FlatRelay(tick_seconds=0)
    whole = b"".join(map(build_event, range(5)))
    async with open_legs(flat, 200, in_thread=True) as legs:
        for leg in legs:
            for number in range(5):
                leg.upstream.send(build_event(number))
                for _ in range(choose.randrange(2_000)):
                    pass  # the thread gets this far
            leg.scope.cancel()
            got = leg.received()
            await trio.lowlevel.checkpoint()
            assert leg.received() == b""
            assert whole.startswith(got)
            assert leg.outcome is None
            # What was read may not have been sent, but nothing was sent that was not counted.
            leg.collector.fold()
            assert leg.collector.total_bytes >= got.count(b"data") * 16
        assert flat.statistics().streams == 0
        events = flat.statistics().events
        for leg in legs:
            leg.upstream.send(b"x")
            assert leg.received() == b""
        assert flat.statistics().events == events


async def test_descriptors_that_are_used_again_at_once() -> None:
    """A stream whose descriptor was used by another one just before gets all of its own bytes, and no others."""
    flat, choose = FlatRelay(tick_seconds=0), random.Random(3)

    async def forward_one(number: int) -> None:
        with open_pairs(1) as [(upstream, ours, writer, client)]:
            collector = BodyWindowCollector()
            outcomes: list[StreamOutcome] = []
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:

                    async def forward() -> None:
                        framer = ChunkedFramer(collector, ChunkSizes())
                        outcomes.append(await flat.forward(PlainTransport(ours), writer, framer))

                    nursery.start_soon(forward)
                    for _ in range(5):
                        upstream.send(build_event(number))
                        if choose.randrange(3) == 0:
                            await trio.lowlevel.checkpoint()
                    if number % 3 == 0:
                        scope.cancel()
                    upstream.send(END)
            got = b""
            with suppress(BlockingIOError):
                got = client.recv(65536)
            whole = build_event(number) * 5
            assert whole.startswith(got)
            assert scope.cancelled_caught or (got, outcomes) == (whole, [StreamOutcome(StreamEnd.COMPLETE, END)])

    async def forward_many(first: int) -> None:
        for number in range(first, first + 100):
            await forward_one(number)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(flat.run)
        async with trio.open_nursery() as load_nursery:
            for first in range(0, 1_000, 100):
                load_nursery.start_soon(forward_many, first)
        assert flat.statistics().streams == 0
        nursery.cancel_scope.cancel()
    flat.close()


async def test_statistics_while_streams_come_and_go() -> None:
    """Statistics can be read at any time beside the thread that counts."""
    flat = FlatRelay(tick_seconds=0)
    async with open_legs(flat, 200, in_thread=True) as legs:
        for leg in legs:
            leg.upstream.send(build_event(0) + END)
            for _ in range(20):
                assert 0 <= flat.statistics().streams <= 200
        await wait_until(lambda: all(leg.outcome is not None for leg in legs))
        assert flat.statistics().streams == 0


@pytest.mark.parametrize("is_busy", [False, True], ids=["at rest", "on a tick"])
async def test_thread_ends_with_its_task(is_busy: bool) -> None:
    """Cancelling the relay ends its thread at once, and leaves no descriptor open."""
    before = count_descriptors()
    flat = FlatRelay(tick_seconds=0.001)
    with trio.fail_after(5):
        async with open_legs(flat, 20, in_thread=True) as legs:
            while is_busy and not flat.statistics().is_coalescing:
                for leg in legs:
                    leg.upstream.send(build_event(0))
                await trio.lowlevel.checkpoint()
    await trio.testing.wait_all_tasks_blocked()
    assert count_descriptors().open == before.open
    passes = flat.statistics().passes
    await trio.testing.wait_all_tasks_blocked()
    assert flat.statistics().passes == passes


async def test_a_bug_costs_one_stream(caplog: pytest.LogCaptureFixture) -> None:
    """An exception while the relay's thread serves a stream breaks that one off, with a log line; the others go on."""

    def fail(at: float) -> None:
        raise ZeroDivisionError

    flat = FlatRelay(tick_seconds=0)

    outcomes: list[StreamOutcome] = []

    async def forward(ours: socket.socket, writer: socket.socket, on_first: Callable[[float], None] | None) -> None:
        framer = ChunkedFramer(BodyWindowCollector(), ChunkSizes())
        outcomes.append(await flat.forward(PlainTransport(ours), writer, framer, on_first))

    with open_pairs(2) as [(upstream, ours, writer, _), (other, others, others_writer, client)]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flat.run)
            nursery.start_soon(forward, others, others_writer, None)
            nursery.start_soon(forward, ours, writer, fail)
            await wait_until(lambda: flat.statistics().streams == 2)
            upstream.send(build_event(0))
            await wait_until(lambda: len(outcomes) == 1)
            other.send(build_event(1) + END)
            await wait_until(lambda: len(outcomes) == 2)
            nursery.cancel_scope.cancel()
        assert client.recv(65536) == build_event(1)
    assert outcomes[0] == StreamOutcome(StreamEnd.BROKEN, b"", "a bug in cgw: ZeroDivisionError")
    assert outcomes[1].end is StreamEnd.COMPLETE
    assert [record.getMessage() for record in caplog.records] == ["the relay failed at one stream, which is broken off"]
    assert flat.statistics().streams == 0
    flat.close()


async def test_two_runs_after_one_another() -> None:
    """A relay whose run has ended can be run again."""
    flat = FlatRelay(tick_seconds=0)
    for number in range(2):
        with open_pairs(1) as [(upstream, ours, writer, client)]:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(flat.run)
                upstream.send(build_event(number) + END)
                outcome = await flat.forward(
                    PlainTransport(ours), writer, ChunkedFramer(BodyWindowCollector(), ChunkSizes())
                )
                assert outcome == StreamOutcome(StreamEnd.COMPLETE, END)
                assert client.recv(65536) == build_event(number)
                nursery.cancel_scope.cancel()
    flat.close()
