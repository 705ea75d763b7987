"""The API's own end is the end: its last event goes out once the exchange is recorded, and completes the answer."""

from __future__ import annotations

import http.client
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
import trio

from cgw.telemetry.exchange_record import Outcome
from tests.support.fault_bench import EVENTS, OK, PATH, Bench, open_bench
from tests.support.gateway import ANTHROPIC_MODEL, OPENAI_MODEL, TOKEN
from tests.support.raw_client import open_client
from tests.support.raw_server import read_request
from tests.support.requests import build_request, read_until
from tests.support.streams import ANTHROPIC, OPENAI, encode_chunked, split_events
from tests.support.waiting import wait_until

OPENAI_PATH = "/openai/v1/chat/completions"
BODIES = {PATH: ANTHROPIC, OPENAI_PATH: OPENAI}
BLOCK_START = b"""event: content_block_start
data: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}

"""
FOR_SDK = ANTHROPIC.replace(b"event: content_block_delta", BLOCK_START + b"event: content_block_delta")
"""The recorded stream with the event that the SDK wants before the text."""

STREAMS = 10
PAUSE_SECONDS = 0.05
"""Between a client's streams, so that HTTP's end of the last answer has come."""

MESSAGES: Any = [{"role": "user", "content": "Good day"}]


def frame(body: bytes) -> bytes:
    """Return the chunks of ``body``, an event each, without HTTP's end."""
    return encode_chunked(split_events(body)).removesuffix(b"0\r\n\r\n")


def decode(answer: bytes) -> bytes:
    """Return what has come of the payload of a chunked answer."""
    payload, position = bytearray(), answer.index(b"\r\n\r\n") + 4
    while (end := answer.find(b"\r\n", position)) >= 0:
        size = int(answer[position:end], 16)
        payload += answer[end + 2 : end + 2 + size]
        position = end + 2 + size + 2
    return bytes(payload)


@pytest.fixture
async def bench(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Bench]:
    caplog.set_level(logging.INFO, "cgw.exchange")
    async with open_bench(tmp_path) as bench:
        yield bench


def end_late(bench: Bench, body: bytes, seconds: float = 0.01) -> None:
    """Have the upstream send HTTP's end of each answer some time after the API's last event."""

    async def answer(stream: trio.SocketStream) -> None:
        while await read_request(stream) is not None:
            await stream.send_all(OK + b"transfer-encoding: chunked\r\n\r\n" + frame(body))
            await trio.sleep(seconds)
            await stream.send_all(b"0\r\n\r\n")

    bench.upstream.handler = answer


def stream_openai(url: str) -> None:
    """Read a stream with the synchronous SDK, which closes its connection at ``[DONE]``."""
    with openai.OpenAI(base_url=f"{url}/openai/v1", api_key=TOKEN, max_retries=0) as client:
        for _ in range(STREAMS):
            time.sleep(PAUSE_SECONDS)
            stream = client.chat.completions.create(model=OPENAI_MODEL, messages=MESSAGES, stream=True)
            assert any(chunk.choices and chunk.choices[0].delta.content for chunk in stream)


def stream_anthropic(url: str) -> None:
    with anthropic.Anthropic(base_url=f"{url}/anthropic", api_key=TOKEN, max_retries=0) as client:
        for _ in range(STREAMS):
            time.sleep(PAUSE_SECONDS)
            with client.messages.stream(model=ANTHROPIC_MODEL, max_tokens=50, messages=MESSAGES) as stream:
                assert stream.get_final_text() == "Grüße"


async def stream_openai_async(url: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{url}/openai/v1", api_key=TOKEN, max_retries=0) as client:
        for _ in range(STREAMS):
            await trio.sleep(PAUSE_SECONDS)
            async for _ in await client.chat.completions.create(model=OPENAI_MODEL, messages=MESSAGES, stream=True):
                pass


async def stream_anthropic_async(url: str) -> None:
    async with anthropic.AsyncAnthropic(base_url=f"{url}/anthropic", api_key=TOKEN, max_retries=0) as client:
        for _ in range(STREAMS):
            await trio.sleep(PAUSE_SECONDS)
            async with client.messages.stream(model=ANTHROPIC_MODEL, max_tokens=50, messages=MESSAGES) as stream:
                assert await stream.get_final_text() == "Grüße"


def leave_at_done(url: str) -> None:
    """Read lines up to the marker and hang up there, as simple clients do, on a connection of its own each time."""
    for _ in range(STREAMS):
        time.sleep(PAUSE_SECONDS)
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
        head, _, body = build_request(OPENAI_PATH).partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
        connection.request("POST", OPENAI_PATH, body, fields)
        answer = connection.getresponse()
        while answer.readline().strip() != b"data: [DONE]":
            pass
        connection.close()


@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("run", "body"),
    [
        (stream_openai, OPENAI),
        (leave_at_done, OPENAI),
        (stream_openai_async, OPENAI),
        (stream_anthropic, FOR_SDK),
        (stream_anthropic_async, FOR_SDK),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_clients_that_close_at_the_last_event_are_complete(
    bench: Bench, run: Callable[[str], Any], body: bytes
) -> None:
    """All answers count as complete, with exact usage, and connections to the upstream serve one after the other."""
    end_late(bench, body)
    if run in (stream_openai_async, stream_anthropic_async):
        await run(bench.gateway.url)
    else:
        await trio.to_thread.run_sync(run, bench.gateway.url)
    await bench.wait_rest()
    assert [record.outcome for record in bench.records] == [Outcome.OK] * STREAMS
    assert [record.response_bytes for record in bench.records] == [len(body)] * STREAMS
    events = await bench.check("final", resolved=200, upstream=200, count=STREAMS)
    assert [event["usage_quality"] for event in events] == ["exact"] * STREAMS
    # One as a rule; on a busy machine the next request may come before a connection is back.
    assert bench.gateway.gateway.pool.statistics().opened <= STREAMS // 3


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("step", [1, 7, 1000])
@pytest.mark.parametrize("is_framed", [True, False], ids=["chunked", "until the connection ends"])
async def test_event_is_durable_before_the_last_event_goes_out(
    bench: Bench, path: str, step: int, is_framed: bool
) -> None:
    """When the client sees the marker, wherever the stream was cut, the usage event can be read."""
    body = BODIES[path]
    raw = frame(body) if is_framed else body
    go_on = trio.Event()

    async def answer(stream: trio.SocketStream) -> None:
        await read_request(stream)
        await stream.send_all(OK + (b"transfer-encoding: chunked\r\n\r\n" if is_framed else b"\r\n"))
        for start in range(0, len(raw), step):
            await stream.send_all(raw[start : start + step])
        await go_on.wait()
        if is_framed:
            await stream.send_all(b"0\r\n\r\n")

    bench.upstream.handler = answer
    marker = b"event: message_stop\n" if body is ANTHROPIC else b"data: [DONE]\r"
    async with open_client(bench.gateway.port) as client:
        await client.send(build_request(path))
        received = b""
        with trio.fail_after(10):
            while b"\r\n\r\n" not in received or marker not in decode(received):
                received += await client.stream.receive_some(65536)
        (event,) = bench.read_events()
        assert event["usage_quality"] == "exact"
        go_on.set()
        await read_until(client.stream, b"0\r\n\r\n")
    await wait_until(lambda: len(bench.records) == 1)
    assert bench.records[0].outcome is Outcome.OK
    bench.charged += 1


async def test_upstream_that_never_ends_its_answer(bench: Bench) -> None:
    """After a second the client's answer is ended for it, properly; the upstream's connection is not kept."""

    async def answer(stream: trio.SocketStream) -> None:
        await read_request(stream)
        await stream.send_all(OK + b"transfer-encoding: chunked\r\n\r\n" + frame(ANTHROPIC))
        assert not await stream.receive_some(1)

    bench.upstream.handler = answer
    for version in ("1.1", "1.0"):
        with trio.fail_after(10):
            assert (await bench.ask(version=version)).body == ANTHROPIC
    events = await bench.check("endless", resolved=200, upstream=200, count=2)
    assert [event["usage_quality"] for event in events] == ["exact"] * 2
    assert bench.gateway.gateway.pool.statistics().idle == 0


async def test_upstream_that_breaks_after_its_last_event(bench: Bench) -> None:
    """The answer is complete: nothing that the client needs was lost."""
    bench.upstream.answer = OK + b"transfer-encoding: chunked\r\n\r\n" + frame(ANTHROPIC)
    bench.upstream.is_reset = True
    assert (await bench.ask()).body == ANTHROPIC
    (event,) = await bench.check("broken", resolved=200, upstream=200)
    assert event["usage_quality"] == "exact"
    assert bench.records[-1].outcome is Outcome.OK


async def test_upstream_that_breaks_within_its_last_event(bench: Bench) -> None:
    """An event without its empty line is none for SDKs: the answer is cut, with all that came of it."""
    part = ANTHROPIC.removesuffix(b"\n")
    bench.upstream.answer = (
        OK + b"transfer-encoding: chunked\r\n\r\n" + encode_chunked([part]).removesuffix(b"0\r\n\r\n")
    )
    cut = await bench.ask_cut(build_request(PATH))
    assert cut.body == part
    await bench.check("part", resolved=200, upstream=200)
    assert bench.records[-1].outcome is Outcome.UPSTREAM_BROKE


async def test_what_follows_the_last_event_passes(bench: Bench) -> None:
    """A comment or an event behind the marker reaches the client as it came."""
    more = b": bye\n\n"
    bench.upstream.answer = OK + b"transfer-encoding: chunked\r\n\r\n" + frame(ANTHROPIC) + encode_chunked([more])
    assert (await bench.ask()).body == ANTHROPIC + more

    async def answer(stream: trio.SocketStream) -> None:
        await read_request(stream)
        await stream.send_all(OK + b"transfer-encoding: chunked\r\n\r\n" + frame(ANTHROPIC))
        await trio.sleep(0.05)
        await stream.send_all(encode_chunked([more]))

    bench.upstream.handler = answer
    assert (await bench.ask()).body == ANTHROPIC + more
    await bench.check("more", resolved=200, upstream=200, count=2)


HALF_CHUNK = b"10\r\nabc"


@pytest.mark.parametrize("rest", [HALF_CHUNK, b"3\r\nabcXY"], ids=["half a chunk", "no end of the chunk"])
@pytest.mark.parametrize("breaks", [False, True], ids=["silent", "broken"])
@pytest.mark.parametrize("is_late", [False, True], ids=["with the event", "later"])
async def test_rest_that_stops_within_a_chunk_ends_the_connection(
    bench: Bench, rest: bytes, breaks: bool, is_late: bool
) -> None:
    """The end of the body is never sent in place of a chunk's rest, for which the client would wait."""

    async def answer(stream: trio.SocketStream) -> None:
        await read_request(stream)
        head = OK + b"transfer-encoding: chunked\r\n\r\n" + frame(ANTHROPIC)
        if is_late:
            await stream.send_all(head)
            await trio.sleep(0.05)
            await stream.send_all(rest)
        else:
            await stream.send_all(head + rest)
        if not breaks:
            await stream.receive_some(1)

    bench.upstream.handler = answer
    with trio.fail_after(10):
        async with open_client(bench.gateway.port) as client:
            await client.send(build_request(PATH))
            received = b""
            while data := await client.stream.receive_some(65536):
                received += data
    payload = received.partition(b"\r\n\r\n")[2]
    assert payload.startswith(frame(ANTHROPIC))
    assert not payload.endswith(b"0\r\n\r\n")
    await bench.check("rest", resolved=200, upstream=200)
    assert bench.gateway.gateway.pool.statistics().idle == 0


@pytest.mark.parametrize("first", [b"", b"5;name=value\r\n: bye\r\n"], ids=["fast path", "fallback path"])
async def test_client_that_stalls_in_a_flood_behind_the_last_event(bench: Bench, first: bytes) -> None:
    """Its answer stops where it was cut: what it reads later has no end of the body inside a chunk."""

    async def answer(stream: trio.SocketStream) -> None:
        await read_request(stream)
        await stream.send_all(OK + b"transfer-encoding: chunked\r\n\r\n" + frame(ANTHROPIC) + first)
        flood = encode_chunked([b"x" * 60_000]).removesuffix(b"0\r\n\r\n")
        with suppress(trio.BrokenResourceError):
            while True:
                await stream.send_all(flood)

    bench.upstream.handler = answer
    with trio.fail_after(20):
        async with open_client(bench.gateway.port) as client:
            await client.send(build_request(PATH))
            received = bytearray(await read_until(client.stream, b"message_stop"))
            await wait_until(lambda: len(bench.records) == 1)
            with suppress(trio.BrokenResourceError):
                while data := await client.stream.receive_some(2**20):
                    received += data
    assert not received.endswith(b"0\r\n\r\n")
    assert set(decode(bytes(received)).removeprefix(ANTHROPIC)) <= set(b": byex"), "payload alone"
    await bench.check("stalled", resolved=200, upstream=200)


async def test_last_event_that_does_not_end_is_not_kept_for_ever(bench: Bench) -> None:
    """An upstream that goes on for megabytes behind the marker's line costs a bounded amount of memory."""
    flood = encode_chunked([b"x" * 60_000]).removesuffix(b"0\r\n\r\n")
    marked = frame(ANTHROPIC.removesuffix(b"\n"))
    sent = 0

    async def answer(stream: trio.SocketStream, head: bytes, marked: bytes, flood: bytes) -> None:
        nonlocal sent
        await read_request(stream)
        await stream.send_all(OK + head + marked)
        with suppress(trio.BrokenResourceError):
            while True:
                await stream.send_all(flood)
                sent += len(flood)

    raw = b"transfer-encoding: chunked\r\n\r\n", marked, flood
    for head, start, more in [raw, (b"\r\n", ANTHROPIC.removesuffix(b"\n"), b"x" * 60_000)]:
        bench.upstream.handler = partial(answer, head=head, marked=start, flood=more)
        sent = 0
        async with open_client(bench.gateway.port) as client:
            await client.send(build_request(PATH))
            with trio.fail_after(10):
                await read_until(client.stream, b'message_stop"}\n')
            assert len(bench.read_events()) == 1
        await bench.wait_rest()
        bench.charged += 1


async def test_chunk_extension_behind_the_last_event(bench: Bench) -> None:
    """What only the fallback path can read, in one read with the last event, does not take that along early."""

    async def answer(stream: trio.SocketStream) -> None:
        await read_request(stream)
        rest = b"5;name=value\r\n: bye\r\n"
        await stream.send_all(OK + b"transfer-encoding: chunked\r\n\r\n" + frame(ANTHROPIC) + rest)
        await stream.receive_some(1)

    bench.upstream.handler = answer
    async with open_client(bench.gateway.port) as client:
        await client.send(build_request(PATH))
        await read_until(client.stream, b"message_stop")
        (event,) = bench.read_events()
        assert event["usage_quality"] == "exact"
        await read_until(client.stream, b"0\r\n\r\n")
    bench.charged += 1


async def test_client_that_leaves_in_mid_stream_is_logged_with_its_bytes(bench: Bench) -> None:
    """The log has the bytes that really went out, on both paths of the relay."""
    sent = b"".join(EVENTS[:2])

    async def answer(stream: trio.SocketStream, head: bytes, data: bytes) -> None:
        await read_request(stream)
        await stream.send_all(OK + head)
        await stream.send_all(data)
        await stream.receive_some(1)

    for head, data in [(b"transfer-encoding: chunked\r\n\r\n", frame(sent)), (b"\r\n", sent)]:
        bench.upstream.handler = partial(answer, head=head, data=data)
        async with open_client(bench.gateway.port) as client:
            await client.send(build_request(PATH))
            await read_until(client.stream, b"text_delta")
        await bench.wait_rest()
        record = bench.records[-1]
        assert (record.outcome, record.response_bytes) == (Outcome.CLIENT_GONE, len(sent))
        (event,) = await bench.check("left", resolved=200, upstream=200)
        assert event["usage_quality"] != "exact"
