"""Records begin when the kernel has a request, and the upstream's part ends when it has the answer.

A process that is busy reads both later. That time is cgw's own, as its client waits for it.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.lowlevel

from cgw.telemetry.exchange_record import ExchangeRecord, Moment
from tests.support.arrivals import open_timed_sockets
from tests.support.fault_bench import EVENTS, OK, PATH, WHOLE, Bench, open_bench
from tests.support.raw_client import open_client
from tests.support.raw_server import read_request
from tests.support.requests import build_request
from tests.support.streams import encode_chunked
from tests.support.waiting import wait_until

SECONDS = 0.05

BODY = b'{"type":"message","content":[],"usage":{"input_tokens":9,"output_tokens":1}}'
JSON = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n" % len(BODY)
ANSWERS = {
    "a stream that is whole": [WHOLE],
    "a stream in pieces": [OK + b"transfer-encoding: chunked\r\n\r\n", encode_chunked(EVENTS)],
    "a body that comes with its head": [JSON + b"\r\n" + BODY],
    "a body that h11 reads": [JSON.replace(b"HTTP/1.1 200 OK", b"HTTP/1.1 200") + b"\r\n" + BODY],
}


def send_and_keep_busy(stream: trio.SocketStream, data: bytes) -> None:
    """Send ``data``, and let no task run for a while: neither the one that reads it, nor any other."""
    assert os.write(stream.socket.fileno(), data) == len(data)
    time.sleep(SECONDS)


@pytest.fixture
async def bench(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Bench]:
    caplog.set_level(logging.INFO, "cgw.exchange")
    with open_timed_sockets():
        async with open_bench(tmp_path) as bench:
            yield bench


async def wait_record(bench: Bench) -> ExchangeRecord:
    await wait_until(lambda: bool(bench.records))
    return bench.records.pop()


def check_order(record: ExchangeRecord) -> None:
    """Check that no moment is noted as before an earlier one: spans would last for negative times."""
    noted = [at for at in record.times if at is not None]
    assert noted == sorted(noted)


async def test_a_request_that_waits_for_a_busy_loop(bench: Bench) -> None:
    """The record, its log's latency and the usage event begin when the request came; all of the wait is overhead."""
    bench.upstream.answer = WHOLE
    async with open_client(bench.gateway.port) as client:
        await client.ask(b"GET /-/__version HTTP/1.1\r\nhost: x\r\n\r\n")
        began_at = time.time()
        send_and_keep_busy(client.stream, build_request(PATH))
        await client.read_answer()
        record = await wait_record(bench)
    check_order(record)
    duration, first_byte, upstream, overhead = record.measure()
    assert first_byte is not None
    assert upstream is not None
    assert overhead is not None
    assert SECONDS <= overhead <= duration
    assert first_byte >= SECONDS
    assert upstream + overhead == pytest.approx(duration)
    await bench.wait_rest()
    (metadata,) = bench.read_events()
    assert metadata["overhead_ms"] >= SECONDS * 1000
    for started_at in (record.started_at, metadata["started_at"]):
        assert began_at - 0.001 <= started_at <= time.time() - SECONDS


@pytest.mark.parametrize("pieces", ANSWERS.values(), ids=ANSWERS.keys())
async def test_an_answer_that_waits_for_a_busy_loop(bench: Bench, pieces: list[bytes]) -> None:
    """It is the upstream's time up to its arrival, and cgw's from then on, in whichever way the body is relayed."""

    async def answer(stream: trio.SocketStream) -> None:
        while await read_request(stream) is not None:
            for piece in pieces:
                send_and_keep_busy(stream, piece)
                await trio.lowlevel.checkpoint()

    bench.upstream.handler = answer
    for _ in range(2):  # on a new connection, and on a kept one
        async with open_client(bench.gateway.port) as client:
            await client.ask(build_request(PATH))
        record = await wait_record(bench)
        check_order(record)
        _, _, upstream, overhead = record.measure()
        assert upstream is not None
        assert overhead is not None
        assert overhead >= SECONDS
        # All pieces but the last are within the time of the upstream.
        assert upstream >= SECONDS * (len(pieces) - 1)


async def test_an_upstream_that_takes_its_time(bench: Bench) -> None:
    """What it takes to answer is its own, up to the last byte."""

    async def answer(stream: trio.SocketStream) -> None:
        while await read_request(stream) is not None:
            await trio.sleep(SECONDS)
            await stream.send_all(JSON + b"\r\n" + BODY[:9])
            await trio.sleep(SECONDS)
            await stream.send_all(BODY[9:])

    bench.upstream.handler = answer
    for _ in range(2):
        async with open_client(bench.gateway.port) as client:
            await client.ask(build_request(PATH))
        record = await wait_record(bench)
        check_order(record)
        assert (record.measure()[2] or 0.0) >= 2 * SECONDS
        asked, answered = record.times[Moment.ADMITTED], record.times[Moment.ANSWERED]
        assert (answered or 0.0) - (asked or 0.0) >= SECONDS
