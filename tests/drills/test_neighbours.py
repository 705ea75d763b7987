"""Drills: the cost of one misbehaving client or upstream for 200 other streams. ``-s`` prints the figures.

The bounds are wide, because the load generator shares the machine and the interpreter with the gateway. They catch
streams that are blocked; only the printed figures show streams that are slowed down a little.
"""

from __future__ import annotations

import functools
import socket
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import trio

from tests.support.descriptors import allow_descriptors, read_resident_bytes
from tests.support.raw_client import RawClient
from tests.support.smooth_load import Delays, Stage, closing_all, measure_delays, open_smooth_streams, open_stage

STREAMS = 200
EVENTS_PER_SECOND = 10
SECONDS = 1.2

FACTOR = 4
SLACK_MS = 25.0
"""The allowed 99th percentile of delays beside the neighbour: this factor times that without it, plus this much."""

TURNS = 3
"""How often Trio is kept busy at most: what blocks streams does so every time, other work on the machine does not."""

FLOOD = (b"1000\r\n" + b"z" * 4096 + b"\r\n") * 16
Streams = list[tuple[socket.socket, socket.socket]]


@pytest.fixture(autouse=True)
def enough_descriptors() -> None:
    if allow_descriptors(8_192) < 4 * STREAMS + 200:
        pytest.skip("needs more file descriptors than the hard limit allows")


def report(text: str) -> None:
    """Print a line of figures, for ``-s``."""
    sys.stdout.write(f"{text}\n")


async def measure(streams: Streams) -> Delays:
    play = functools.partial(measure_delays, streams, seconds=SECONDS, events_per_second=EVENTS_PER_SECOND)
    return await trio.to_thread.run_sync(play)


def is_smooth(name: str, without: list[Delays], beside: Delays) -> bool:
    """Print the figures, and compare those beside the neighbour with those before and after it."""
    report(f"\n{STREAMS} smooth streams without {name}:\n  " + "\n  ".join(map(str, without)))
    report(f"beside {name}:\n  {beside}")
    return beside.p99_ms <= FACTOR * max(delays.p99_ms for delays in without) + SLACK_MS


@asynccontextmanager
async def flood(stage: Stage, name: bytes) -> AsyncIterator[tuple[socket.socket, list[int]]]:
    """Open a stream whose upstream sends as fast as it can; yield the client's end and a count of the bytes sent."""
    client = await trio.to_thread.run_sync(stage.ask, name)
    taken = [0]
    with closing_all([client]):
        await stage.wait_open(stage.flat.statistics().streams + (name not in stage.upstreams))
        is_over = threading.Event()
        upstream = stage.upstreams[name]
        upstream.setblocking(True)
        upstream.settimeout(0.05)

        def send() -> None:
            while not is_over.is_set():
                try:
                    taken[0] += upstream.send(FLOOD[taken[0] % len(FLOOD) :])
                except TimeoutError:
                    continue
                except OSError:
                    return  # the gateway has closed the connection

        thread = threading.Thread(target=send)
        thread.start()
        try:
            yield client, taken
        finally:
            is_over.set()
            await trio.to_thread.run_sync(thread.join)


async def test_client_that_reads_one_byte_a_second() -> None:
    """A client that hardly reads neither delays 200 smooth streams nor grows the gateway's memory."""
    async with open_stage() as stage, open_smooth_streams(stage, STREAMS) as streams:
        before = await measure(streams)
        resident = read_resident_bytes()
        async with flood(stage, b"slow") as (client, taken):
            with trio.move_on_after(0.3):
                await trio.sleep_forever()
            events, taken_before = stage.flat.statistics().events, taken[0]

            async def read_slowly() -> None:
                while True:
                    assert client.recv(1)
                    await trio.sleep(1)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(read_slowly)
                beside = await measure(streams)
                nursery.cancel_scope.cancel()
            relayed = stage.flat.statistics().events - events - beside.count
            grown = read_resident_bytes() - resident
            report(f"\nslow client: {taken[0]:,} bytes taken by the kernels, {taken[0] - taken_before:,} of them later")
        after = await measure(streams)
        assert is_smooth("a client that reads 1 byte/s", [before, after], beside)
        assert relayed <= 2, "its upstream is read on though the client takes nothing"
        assert grown < 4 * 2**20
        report(f"resident memory grew by {grown / 1024:.0f} KiB")


async def test_upstream_that_floods() -> None:
    """200 smooth streams go on beside one whose upstream and client move bytes as fast as they can."""
    async with open_stage() as stage, open_smooth_streams(stage, STREAMS) as streams:
        before = await measure(streams)
        async with flood(stage, b"flood") as (client, _):
            received = [0]

            def drain() -> None:
                buffer = bytearray(65536)
                with suppress(OSError):
                    while size := client.recv_into(buffer):
                        received[0] += size

            thread = threading.Thread(target=drain)
            thread.start()
            beside = await measure(streams)
            moved = received[0]
            client.shutdown(socket.SHUT_RDWR)
            await trio.to_thread.run_sync(thread.join)
        after = await measure(streams)
        assert is_smooth("an upstream that floods", [before, after], beside)
        report(f"the flood moved {moved / 2**20:.0f} MiB")
        assert moved > 2**20


async def test_requests_that_keep_trio_busy() -> None:
    """200 smooth streams go on while the Trio thread is busy opening and closing other exchanges."""
    async with open_stage() as stage, open_smooth_streams(stage, STREAMS) as streams:
        exchanges = 0

        async def ask_for_ever() -> None:
            nonlocal exchanges
            while True:
                exchanges += 1
                name = b"other-%d" % exchanges
                stream = await trio.open_tcp_stream("127.0.0.1", stage.gateway.port)
                async with stream:
                    client = RawClient(stream)
                    await client.send(b"POST /%b HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}" % name)
                    await stream.receive_some(65536)

        for _ in range(TURNS):
            before = await measure(streams)
            exchanges_before = exchanges
            async with trio.open_nursery() as nursery:
                for _ in range(8):
                    nursery.start_soon(ask_for_ever)
                beside = await measure(streams)
                nursery.cancel_scope.cancel()
            await stage.wait_open(STREAMS)
            after = await measure(streams)
            assert exchanges - exchanges_before > 50
            if is_smooth(f"{exchanges - exchanges_before} other exchanges", [before, after], beside):
                break
        else:
            raise AssertionError(f"{TURNS} times, streams were slowed down")
