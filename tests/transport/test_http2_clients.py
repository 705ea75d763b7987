"""Real HTTP/2 clients against the engine: httpx and curl, as they come; and the requests of a load generator."""

from __future__ import annotations

import shutil
import subprocess

import httpx
import pytest
import trio

from cgw.transport.http2_client import Http2Client
from cgw.wire.http2_frames import DATA, END_HEADERS, END_STREAM, HEADERS, pack_frame
from tests.support.http2_engine import Http2Engine, echo, open_frames, open_http2_engine

EVENTS = b"data: {}\n\n"


def open_httpx(engine: Http2Engine) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{engine.port}", http1=False, http2=True, timeout=30)


async def stream(client: Http2Client) -> None:
    await client.receive_body()
    await client.send_head(200, [(b"content-type", b"text/event-stream")], is_stream=True)
    for _ in range(20):
        await client.send_chunk(EVENTS)
        await trio.sleep(0.001)
    await client.finish()


async def test_httpx_streams_on_one_connection() -> None:
    """100 streams at a time on one connection, each read to its end."""
    async with open_http2_engine(stream) as engine, open_httpx(engine) as httpx_client:
        answers: list[httpx.Response] = []

        async def ask() -> None:
            answers.append(await httpx_client.post("/v1/x", content=b"{}"))

        await ask()
        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(ask)
        assert {(answer.status_code, answer.http_version, answer.content) for answer in answers} == {
            (200, "HTTP/2", EVENTS * 20)
        }
        assert len(engine.connections) == 1


async def test_httpx_sends_and_reads_megabytes() -> None:
    """Bodies far larger than the windows, both ways."""
    body = bytes(range(256)) * 8192
    async with open_http2_engine() as engine, open_httpx(engine) as httpx_client:
        answer = await httpx_client.post("/v1/x", content=body)
        assert answer.content == b"POST /v1/x " + body


async def test_httpx_reads_an_early_401() -> None:
    """An answer that comes while the body is still on its way is read, and the connection serves the next request."""

    async def refuse(client: Http2Client) -> None:
        if client.head.target == b"/secret":
            await client.send_response(401, [], b"no")
        else:
            await echo(client)

    async with open_http2_engine(refuse) as engine, open_httpx(engine) as httpx_client:
        for _ in range(20):
            answer = await httpx_client.post("/secret", content=bytes(50_000))
            assert (answer.status_code, answer.content) == (401, b"no")
        assert (await httpx_client.get("/open")).status_code == 200
        assert len(engine.connections) == 1


async def test_httpx_that_leaves_ends_its_exchanges() -> None:
    """A client that closes its connection in the middle of an answer ends the exchange."""
    gone = trio.Event()

    async def answer(client: Http2Client) -> None:
        await client.send_head(200, [], is_stream=True)
        await client.send_chunk(EVENTS)
        await client.wait_gone()
        gone.set()

    async with open_http2_engine(answer) as engine:
        async with open_httpx(engine) as httpx_client, httpx_client.stream("GET", "/long") as response:
            async for _ in response.aiter_raw():
                break
        with trio.fail_after(1):
            await gone.wait()


async def test_10000_requests_on_one_connection() -> None:
    """As h2load sends them, 100 at a time; what is remembered of streams that have ended is bounded."""
    block = b"\x82\x86\x84\x01\x01x"  # GET, http, /, :authority x
    async with open_http2_engine() as engine, open_frames(engine.port) as client:
        asked = answered = 0
        with trio.fail_after(60):
            while answered < 10_000:
                count = min(100 - (asked - answered), 10_000 - asked)
                streams = range(1 + 2 * asked, 1 + 2 * (asked + count), 2)
                flags = END_HEADERS | END_STREAM
                await client.send(b"".join(pack_frame(HEADERS, flags, stream_id, block) for stream_id in streams))
                asked += count
                client.frames.clear()
                assert await client.receive()
                bodies = [frame for frame in client.frames if frame.type == DATA]
                await client.send(client.window_update(0, sum(len(frame.payload) for frame in bodies) or 1))
                answered += sum(frame.flags & END_STREAM for frame in bodies)
        assert engine.handled == 10_000
        assert not client.goaways
        protocol = engine.connections[0].protocol
        assert len(protocol._closed) <= 1000
        assert len(protocol._h2.streams) <= 200


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_curl() -> None:
    """curl with prior knowledge: a body with and without an expectation, and an early refusal."""

    async def answer(client: Http2Client) -> None:
        if client.head.target == b"/secret":
            await client.send_response(401, [], b"no")
        else:
            await echo(client)

    body = b"a" * 2_000_000
    async with open_http2_engine(answer) as engine:
        for path, more, expected in (
            ("/open", [], b"POST /open " + body),
            ("/open", ["-H", "Expect: 100-continue"], b"POST /open " + body),
            ("/secret", [], b"no"),
        ):
            command = ["curl", "-sS", "--http2-prior-knowledge", "--data-binary", "@-", *more]
            result = await trio.run_process(
                [*command, f"http://127.0.0.1:{engine.port}{path}"],
                stdin=body,
                capture_stdout=True,
                stderr=subprocess.DEVNULL,
            )
            assert result.stdout == expected
