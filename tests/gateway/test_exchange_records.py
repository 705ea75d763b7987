"""The record of an exchange, and what its usage event tells of it: ids, moments, sizes, outcome."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio

from cgw.telemetry.exchange_record import ExchangeRecord, Moment, Outcome, RequestKind
from cgw.telemetry.readers import Readers
from tests.support.fault_bench import OK, PART, PATH, WHOLE, Bench, open_bench
from tests.support.raw_client import AnswerCut, ask, open_client
from tests.support.raw_server import read_request
from tests.support.records import build_record
from tests.support.requests import build_request, read_until
from tests.support.streams import ANTHROPIC
from tests.support.waiting import wait_until

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
async def bench(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Bench]:
    caplog.set_level(logging.INFO, "cgw.exchange")
    more = {"CODY_GATEWAY_UPSTREAM_SILENCE_TIMEOUT": "300ms"}
    async with open_bench(tmp_path, more) as bench:
        yield bench


async def wait_record(bench: Bench) -> tuple[ExchangeRecord, dict[str, Any]]:
    """Return the record and the event's metadata of the only exchange since the last call."""
    await bench.wait_rest()
    (metadata,) = bench.read_events()
    await wait_until(lambda: bool(bench.records))
    return bench.records.pop(), metadata


@pytest.mark.parametrize("is_stream", [True, False])
async def test_one_id_finds_everything(bench: Bench, is_stream: bool) -> None:
    """Answer, record and event have the same id, which is not the caller's; the caller's context is kept beside it."""
    bench.upstream.answer = WHOLE
    request = build_request(PATH, stream=is_stream).replace(
        b"\r\n\r\n", f"\r\ntraceparent: {TRACEPARENT}\r\n\r\n".encode(), 1
    )
    answer = await ask(bench.gateway.port, request)
    record, metadata = await wait_record(bench)
    request_id = answer.headers["x-cgw-request-id"]
    assert (answer.headers["x-trace"], record.request_id, metadata["trace_id"]) == (request_id,) * 3
    assert answer.headers["x-trace-span"] == record.trace.span_id
    caller = record.trace.caller
    assert caller is not None
    assert (f"00-{caller.trace_id}-{caller.span_id}-01", caller.is_sampled) == (TRACEPARENT, True)
    assert request_id not in TRACEPARENT
    assert (record.kind, record.route, record.provider) == (RequestKind.EXCHANGE, PATH, "anthropic")


async def test_moments_are_in_their_order(bench: Bench) -> None:
    """All are noted, one after the other; a kept connection is not connected again."""

    async def answer(stream: trio.SocketStream) -> None:
        while await read_request(stream) is not None:
            await stream.send_all(WHOLE)

    bench.upstream.handler = answer
    for is_reused in (False, True):
        await bench.ask()
        record, metadata = await wait_record(bench)
        start = record.times[Moment.STARTED] or 0.0
        noted = [None if at is None else at - start for at in record.times]
        relayed = noted[Moment.RELAYED]
        if is_reused:
            assert noted.pop(Moment.CONNECTED) is None
        assert None not in noted
        assert noted == sorted(noted, key=lambda seconds: seconds or 0)
        assert record.is_reused is is_reused
        duration, first_byte, upstream, overhead = record.measure()
        assert upstream is not None
        assert overhead is not None
        assert upstream + overhead == pytest.approx(duration)
        assert metadata["ended_at"] - metadata["started_at"] == pytest.approx(relayed, abs=1e-5)
        assert metadata["time_to_first_byte_ms"] == pytest.approx((first_byte or 0) * 1000, abs=1e-2)
        assert metadata["overhead_ms"] <= overhead * 1000
        sizes = (record.response_bytes, metadata["response_bytes"], metadata["request_bytes"], record.chunks)
        assert sizes == (len(ANTHROPIC), len(ANTHROPIC), record.request_bytes, metadata["response_chunks"])
        assert record.chunks is not None
        assert record.chunks > 0
        assert (record.prompt_tokens, record.usage_quality) == (metadata["prompt_token_count"], "exact")


async def check_outcome(bench: Bench, outcome: Outcome, told: str) -> None:
    record, metadata = await wait_record(bench)
    assert (record.outcome, metadata["outcome"]) == (outcome, told)
    # The log has the id of the event.
    (event_id,) = {record.event_id}
    assert event_id is not None
    assert len(event_id) == 36


async def test_event_tells_what_became_of_the_exchange(bench: Bench) -> None:
    """Completed, broken off, refused by the upstream, too slow: as the log has it."""
    bench.upstream.answer = WHOLE
    assert (await bench.ask()).status == 200
    await check_outcome(bench, Outcome.OK, "completed")
    bench.upstream.answer = OK + b"transfer-encoding: chunked\r\n\r\n" + PART
    await bench.ask_cut(build_request(PATH))
    await check_outcome(bench, Outcome.UPSTREAM_BROKE, "upstream_broken")
    bench.upstream.answer = b""
    assert (await bench.ask()).status == 502
    await check_outcome(bench, Outcome.UPSTREAM_BROKE, "upstream_broken")
    bench.upstream.answer = b"HTTP/1.1 529 overloaded\r\ncontent-length: 0\r\n\r\n"
    assert (await bench.ask()).status == 503
    await check_outcome(bench, Outcome.REFUSED, "refused")
    bench.upstream.answer = b"HTTP/1.1 400 Bad\r\ncontent-length: 2\r\n\r\n{}"
    assert (await bench.ask()).status == 400
    await check_outcome(bench, Outcome.OK, "completed")  # with the upstream's status beside it

    async def go_silent(stream: trio.SocketStream) -> None:
        await read_request(stream)
        await stream.send_all(OK + b"transfer-encoding: chunked\r\n\r\n" + PART)
        await stream.receive_some(1)

    bench.upstream.handler = go_silent
    async with open_client(bench.gateway.port) as client:
        with pytest.raises(AnswerCut):
            await client.ask(build_request(PATH))
    await check_outcome(bench, Outcome.TIMEOUT, "timed_out")


@pytest.mark.parametrize("has_begun", [True, False])
async def test_event_tells_that_the_client_left(bench: Bench, has_begun: bool) -> None:
    """Before the first byte, and within the stream."""
    asked = trio.Event()

    async def answer(stream: trio.SocketStream) -> None:
        await read_request(stream)
        if has_begun:
            await stream.send_all(OK + b"transfer-encoding: chunked\r\n\r\n" + PART)
        asked.set()
        await stream.receive_some(1)

    bench.upstream.handler = answer
    async with open_client(bench.gateway.port) as client:
        await client.send(build_request(PATH))
        await asked.wait()
        if has_begun:
            await read_until(client.stream, b"message_start")
    record, metadata = await wait_record(bench)
    assert (record.outcome, metadata["outcome"]) == (Outcome.CLIENT_GONE, "client_gone")
    assert bool(metadata["response_bytes"]) is has_begun


def test_a_reader_that_fails_costs_its_own_report(caplog: pytest.LogCaptureFixture) -> None:
    """The others get the record, and the failure is logged once."""
    got: list[ExchangeRecord] = []

    def fail(records: Sequence[ExchangeRecord]) -> None:
        raise ValueError("odd")

    readers = Readers([fail, got.extend])
    record = build_record()
    for _ in range(3):
        readers(record)
    assert got == [record] * 3
    assert len([entry for entry in caplog.records if entry.exc_info]) == 1
