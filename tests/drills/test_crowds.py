"""Drills: many concurrent streams, and very many in sequence, leave nothing behind. ``-s`` prints the figures."""

from __future__ import annotations

import gc
import os
import sys
import time

import pytest
import trio
import trio.testing

from cgw.testing.bare_relay import open_bare_gateway
from cgw.transport.flat_relay import FlatRelay
from cgw.wire.messages import Origin
from tests.support.descriptors import allow_descriptors, count_descriptors, read_resident_bytes
from tests.support.raw_client import open_client
from tests.support.raw_server import open_raw_server, read_request
from tests.support.smooth_load import closing_all, open_stage
from tests.support.streams import ANTHROPIC, encode_chunked, split_events
from tests.support.waiting import wait_until

CROWD = 1_000
DESCRIPTORS_PER_STREAM = 4  # both ends of both connections are this process's

SEQUENCE = 10_000 if "CGW_LONG_DRILLS" in os.environ else 3_000
SEQUENCE_SECONDS = 90.0
"""The timeout of the sequence, for the slowest machine."""

GROWTH_BYTES = 1024 * 1024
GROWTH_BLOCKS = 2_500
"""Objects in free lists and tables come and go: up to 2,300, for any number of streams. One per stream is a leak."""


def report(text: str) -> None:
    """Print a line of figures, for ``-s``."""
    sys.stdout.write(f"{text}\n")


async def test_a_thousand_streams_dropped_at_once() -> None:
    """When 1000 clients disconnect at once, all their upstreams are closed, and the gateway is as before."""
    room = allow_descriptors(CROWD * DESCRIPTORS_PER_STREAM + 500)
    count = min(CROWD, (room - 500) // DESCRIPTORS_PER_STREAM)
    if count < 100:
        pytest.skip("needs more file descriptors than the hard limit allows")
    async with open_stage() as stage:
        for turn in range(2):
            await trio.testing.wait_all_tasks_blocked()
            before = count_descriptors()
            clients = [await trio.to_thread.run_sync(stage.ask, b"%d-%d" % (turn, index)) for index in range(count)]
            with closing_all(clients):
                await stage.wait_open(count)
            left_at = time.perf_counter()
            await wait_until(lambda: len(stage.upstreams) == 0, seconds=20)
            seconds = time.perf_counter() - left_at
            await wait_until(lambda: stage.gateway.server.connection_count == 0)
            await trio.testing.wait_all_tasks_blocked()
            report(f"\n{count} streams dropped at once: all upstreams closed {seconds * 1000:.0f} ms later")
            assert stage.flat.statistics().streams == 0
            assert stage.gateway.pool.statistics().busy == 0
            assert seconds < 10
            if turn:  # the first streams allocate what threads and listeners keep
                assert count_descriptors() == before


async def test_thousands_of_streams_after_one_another() -> None:
    """Short streams in sequence leak neither memory, nor objects, nor descriptors: the slopes are flat."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    first, *rest = split_events(ANTHROPIC)
    begin, end = head + encode_chunked([first])[: -len(b"0\r\n\r\n")], encode_chunked(rest)
    request = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}"
    flat = FlatRelay(tick_seconds=0.001)

    async def play(stream: trio.SocketStream) -> None:
        while await read_request(stream) is not None:
            await stream.send_all(begin)
            await trio.lowlevel.checkpoint()  # the rest comes after the head, and so over the fast path
            await stream.send_all(end)

    async with (
        open_raw_server(play) as port,
        open_bare_gateway(Origin("http", "127.0.0.1", port), flat=flat, stops_with_client=True) as gateway,
        open_client(gateway.port) as client,
    ):

        async def ask(count: int) -> None:
            for _ in range(count):
                answer = await client.ask(request)
                assert answer.body == ANTHROPIC

        await ask(500)
        gc.collect()
        resident, blocks, descriptors = read_resident_bytes(), sys.getallocatedblocks(), count_descriptors()
        began, done = time.perf_counter(), 0
        while done < SEQUENCE and time.perf_counter() - began < SEQUENCE_SECONDS:
            await ask(250)
            done += 250
        seconds = time.perf_counter() - began
        gc.collect()
        grown_bytes, grown_blocks = read_resident_bytes() - resident, sys.getallocatedblocks() - blocks
        report(
            f"\n{done} streams in {seconds:.1f} s ({done / seconds:.0f}/s): "
            f"resident memory {grown_bytes / 1024:+.0f} KiB, blocks {grown_blocks:+d}"
        )
        assert count_descriptors() == descriptors
        assert flat.statistics().streams == 0
        assert gateway.pool.statistics().opened == 1
        assert flat.statistics().events > done / 2
    flat.close()
    assert done == SEQUENCE
    assert grown_bytes < GROWTH_BYTES
    assert grown_blocks < GROWTH_BLOCKS
