"""The sink ``http``, against a real server on loopback."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from cgw.config.kinds import Secret
from cgw.events.lines import render_line
from cgw.events.settings import HttpSinkSettings
from cgw.events.sinks.http import MAX_HALVINGS, HttpSink, open_http_sink, sign
from cgw.events.sinks.sink import SinkUnavailable
from tests.events.conftest import build_event
from tests.support.collector import OK, Answer, Collector, Received, open_collector
from tests.support.raw_server import open_raw_server, read_request

LINES = [render_line(build_event(f"e{number}")) for number in range(20)]


@asynccontextmanager
async def open_sink(secret: str | None = None, timeout_seconds: float = 5) -> AsyncIterator[tuple[HttpSink, Collector]]:
    """Open a sink whose receiver is a collector."""
    async with open_collector() as collector:
        settings = HttpSinkSettings(
            url=Secret(collector.url),
            secret=None if secret is None else Secret(secret),
            timeout_seconds=timeout_seconds,
        )
        async with open_http_sink(settings, ssl.create_default_context()) as sink:
            yield sink, collector


async def test_a_batch_is_one_request_of_json_lines() -> None:
    """Compressed, with the batch's id as idempotency key, on a connection that is kept."""
    async with open_sink() as (sink, collector):
        assert await sink.send(LINES, "segment.0-100") == ()
        assert await sink.send(LINES[:1], "segment.100-101") == ()
        first, second = collector.requests
        assert first.headers["idempotency-key"] == "segment.0-100"
        assert first.headers["content-encoding"] == "gzip"
        assert first.headers["content-type"] == "application/x-ndjson"
        assert "x-cgw-signature" not in first.headers
        assert [json.dumps(event, separators=(",", ":")).encode() + b"\n" for event in first.events] == LINES
        assert len(first.body) < sum(map(len, LINES)) / 2
        assert len(second.events) == 1


async def test_a_request_is_signed() -> None:
    """The receiver computes the same signature from the timestamp, the key and the body as sent."""
    async with open_sink(secret="whsec") as (sink, collector):
        assert repr(sink) == "<HttpSink at 127.0.0.1>"
        await sink.send(LINES, "id")
        (received,) = collector.requests
        timestamp = received.headers["x-cgw-timestamp"]
        assert received.headers["x-cgw-signature"] == "sha256=" + sign("whsec", timestamp, "id", received.body)
        assert sign("other", timestamp, "id", received.body) != sign("whsec", timestamp, "id", received.body)
        assert sign("whsec", timestamp, "id2", received.body) != sign("whsec", timestamp, "id", received.body)


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504, 401, 403, 404, 301, 307])
async def test_an_answer_that_may_pass_is_an_outage(status: int) -> None:
    """Also one about the URL or the secret: that is the operator's to mend, and no event's fault."""
    async with open_sink(secret="whsec") as (sink, collector):
        collector.decide = lambda received: Answer(status, headers=(("retry-after", "120"),))
        with pytest.raises(SinkUnavailable, match=f"answered {status}") as caught:
            await sink.send(LINES, "id")
        assert caught.value.retry_after_seconds == (120 if status in (408, 409, 425, 429) or status >= 500 else 0)
        assert "whsec" not in str(caught.value)
        assert len(collector.requests) == 1


async def test_a_receiver_that_does_not_answer_is_an_outage() -> None:
    """Whether it refuses connections, hangs, or closes them."""
    async with open_sink(timeout_seconds=0.2) as (sink, collector):
        collector.decide = lambda received: Answer(-1)
        with pytest.raises(SinkUnavailable, match=r"did not answer within 0\.2 s"):
            await sink.send(LINES, "id")
        collector.decide = lambda received: Answer(0)
        with pytest.raises(SinkUnavailable, match="broke the connection"):
            await sink.send(LINES, "id")
    settings = HttpSinkSettings(url=Secret(collector.url), secret=None)
    async with open_http_sink(settings, ssl.create_default_context()) as sink:
        with pytest.raises(SinkUnavailable, match="cannot be reached: Connection refused"):
            await sink.send(LINES, "id")


@pytest.mark.parametrize("wrong", [{0}, {19}, {3, 4, 17}, set(range(20))])
async def test_events_that_are_refused_for_good_are_found(wrong: set[int]) -> None:
    """By halving the batch; all others are taken, each once, and the receiver's words are kept."""

    def decide(received: Received) -> Answer:
        names = {event["identifier"] for event in received.events}
        return Answer(422, b"no such column") if names & {f"e{number}" for number in wrong} else OK

    async with open_sink() as (sink, collector):
        collector.decide = decide
        rejected = await sink.send(LINES, "id")
        assert sorted(event.index for event in rejected) == sorted(wrong)
        assert all(event.reason == "127.0.0.1 answered 422: no such column" for event in rejected)
        assert sorted(event["identifier"] for event in collector.taken) == sorted(
            f"e{number}" for number in range(20) if number not in wrong
        )
        assert len({request.headers["idempotency-key"] for request in collector.requests}) == len(collector.requests)


async def test_halving_has_a_bound() -> None:
    """A receiver that refuses every event is asked so many times per batch at most; all are set aside."""
    lines = [render_line(build_event(f"e{number}")) for number in range(1000)]
    async with open_sink() as (sink, collector):
        collector.decide = lambda received: Answer(400, b"no")
        rejected = await sink.send(lines, "id")
        assert len(collector.requests) == 1 + 2 * MAX_HALVINGS
        assert sorted(event.index for event in rejected) == list(range(1000))
        assert any("events together" in event.reason for event in rejected)


async def test_an_outage_amid_halving_is_an_outage() -> None:
    """The whole batch is sent again later."""

    def decide(received: Received) -> Answer:
        return Answer(400) if len(received.events) > 5 else Answer(503)

    async with open_sink() as (sink, collector):
        collector.decide = decide
        with pytest.raises(SinkUnavailable, match="answered 503"):
            await sink.send(LINES, "id")


@pytest.mark.parametrize("is_dripping", [False, True], ids=["flood", "drip"])
async def test_a_batch_that_was_taken_is_not_sent_again(is_dripping: bool) -> None:
    """The status says so; a body that does not end is neither read for ever, nor makes it a failure."""
    sent_bytes = received = 0

    async def answer(stream: trio.SocketStream) -> None:
        nonlocal sent_bytes, received
        await read_request(stream)
        received += 1
        await stream.send_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        piece = b"1\r\nx\r\n" if is_dripping else b"10000\r\n" + bytes(0x10000) + b"\r\n"
        try:
            while True:
                await stream.send_all(piece)
                sent_bytes += len(piece)
                await trio.sleep(0.1 if is_dripping else 0)
        except trio.BrokenResourceError:
            return

    async with open_raw_server(answer) as port:
        settings = HttpSinkSettings(url=Secret(f"http://127.0.0.1:{port}"), secret=None, timeout_seconds=5)
        async with open_http_sink(settings, ssl.create_default_context()) as sink:
            assert await sink.send(LINES, "id") == ()
            assert received == 1
            assert sent_bytes < 32 * 2**20  # little more than the kernel's buffers


async def test_the_words_of_an_endless_refusal_are_kept() -> None:
    """The part of it that was there."""

    async def answer(stream: trio.SocketStream) -> None:
        await read_request(stream)
        await stream.send_all(b"HTTP/1.1 422 No\r\ncontent-length: 100\r\n\r\nno such column")
        await trio.sleep_forever()

    async with open_raw_server(answer) as port:
        settings = HttpSinkSettings(url=Secret(f"http://127.0.0.1:{port}"), secret=None, timeout_seconds=5)
        async with open_http_sink(settings, ssl.create_default_context()) as sink:
            (rejected,) = await sink.send(LINES[:1], "id")
    assert rejected.reason == "127.0.0.1 answered 422: no such column"
