"""Header fields that cgw adds to every answer that it can, and secrets that it takes out of provider's errors."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
import trio

from tests.support.fault_bench import OK, PATH, WHOLE, Bench, open_bench
from tests.support.gateway import ANTHROPIC_KEY, ANTHROPIC_MODEL, OPENAI_KEY, OPENAI_MODEL, open_gateway
from tests.support.limits import open_http
from tests.support.raw_server import open_raw_server, read_request
from tests.support.requests import HEADERS, ROUTES, build_body
from tests.support.streams import encode_chunked

LIMIT_FIELDS = ("x-ratelimit-limit", "x-ratelimit-remaining", "ratelimit-policy", "ratelimit")


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path) as bench:
        yield bench


def open_chosen(bench: Bench, *, http2: bool) -> httpx.AsyncClient:
    """Return a client that speaks one version of HTTP only."""
    return httpx.AsyncClient(base_url=bench.gateway.url, headers=HEADERS, http1=not http2, http2=http2)


def check_fields(path: str, answer: httpx.Response) -> None:
    """Check that ``answer`` tells the model that was asked, and how the limits stand."""
    provider, model = ("openai", OPENAI_MODEL) if "openai" in path else ("anthropic", ANTHROPIC_MODEL)
    assert answer.headers["x-cody-resolved-model"] == f"{provider}/{model}"
    for name in LIMIT_FIELDS:
        assert answer.headers[name]
    assert answer.headers["x-ratelimit-limit"] == "1000"


@pytest.mark.parametrize("http2", [False, True], ids=["HTTP/1.1", "HTTP/2"])
@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204),
        (b"HTTP/1.1 304 Not Modified\r\n\r\n", 304),
        (b"no HTTP at all", 502),
        (b"", 502),
    ],
    ids=["204", "304", "502 for nonsense", "502 for nothing"],
)
async def test_model_and_limits_are_in_every_answer_to_an_admitted_request(
    bench: Bench, answer: bytes, status: int, http2: bool
) -> None:
    """204 and 304, and cgw's own 502, have x-cody-resolved-model and the limits' fields on every route."""
    bench.upstream.answer = answer
    async with open_chosen(bench, http2=http2) as client:
        for path in ROUTES:
            got = await client.post(path, json=build_body(path))
            assert got.status_code == status
            check_fields(path, got)
            if status == 502:
                provider = "openai" if "openai" in path else "anthropic"
                assert f"upstream provider {provider}" in got.text
                assert "127.0.0.1" not in got.text


async def test_model_and_limits_are_in_a_504(tmp_path: Path) -> None:
    """An upstream that takes too long leads to a 504 that names the provider, with model and limits."""

    async def hang(stream: trio.SocketStream) -> None:
        await read_request(stream)
        await trio.sleep_forever()

    async with (
        open_raw_server(hang) as port,
        open_gateway(tmp_path, f"http://127.0.0.1:{port}") as gateway,
        open_http(gateway, x_timeout_ms="100") as client,
    ):
        for path in ROUTES:
            got = await client.post(path, json=build_body(path))
            assert got.status_code == 504
            check_fields(path, got)
            assert f"upstream provider {'openai' if 'openai' in path else 'anthropic'} timed out" in got.text
            assert str(port) not in got.text


# --- X-Timeout-Ms -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "is_read"), [("soon", False), ("1.5", False), ("1e3", False), ("60000", True)])
async def test_a_timeout_that_cannot_be_read_is_said(
    bench: Bench, value: str, is_read: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The request is served with the default, and both the response and the log line say so, without the value."""
    caplog.set_level(logging.INFO, "cgw.exchange")
    bench.upstream.answer = WHOLE
    async with open_http(bench.gateway, x_timeout_ms=value) as client:
        got = await client.post(PATH, json=build_body(PATH))
        assert got.status_code == 200
        bench.upstream.answer = b""
        assert (await client.post(PATH, json=build_body(PATH))).status_code == 502
    await bench.wait_rest()
    text = "X-Timeout-Ms is not a whole number of milliseconds, so the default applies"
    assert got.headers.get("x-cgw-warning") == (None if is_read else text)
    assert [record.warning for record in bench.records] == [None if is_read else text] * 2
    assert is_read or text in str(bench.records[0])


# --- secrets in error bodies ------------------------------------------------------------------------------------------

BODY = b'{"error": {"message": "Incorrect API key provided: %b. %b"}}' % (ANTHROPIC_KEY.encode(), OPENAI_KEY.encode())
MASKED = BODY.replace(ANTHROPIC_KEY.encode(), b"*" * len(ANTHROPIC_KEY)).replace(
    OPENAI_KEY.encode(), b"*" * len(OPENAI_KEY)
)


def build_error(status: int, framing: str, cuts: list[int]) -> list[bytes]:
    """Return an error of the upstream in pieces that are sent one by one: its body is cut at ``cuts``."""
    pieces = [BODY[start:end] for start, end in pairwise([0, *cuts, len(BODY)])]
    head = b"HTTP/1.1 %d Wrong\r\ncontent-type: application/json\r\n" % status
    if framing == "length":
        return [head + b"content-length: %d\r\n\r\n" % len(BODY), *pieces]
    if framing == "chunked":
        chunks = [encode_chunked([piece]).removesuffix(b"0\r\n\r\n") for piece in pieces]
        return [head + b"transfer-encoding: chunked\r\n\r\n", *chunks, b"0\r\n\r\n"]
    return [head + b"connection: close\r\n\r\n", *pieces]


AT = BODY.index(ANTHROPIC_KEY.encode())


@pytest.mark.parametrize("http2", [False, True], ids=["HTTP/1.1", "HTTP/2"])
@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
@pytest.mark.parametrize("cuts", [[], [AT + 1], [AT + 3, AT + 9, AT + 10]], ids=["whole", "two pieces", "four pieces"])
async def test_secrets_in_an_error_body_are_masked(bench: Bench, framing: str, cuts: list[int], http2: bool) -> None:
    """A provider's error that repeats a key passes with asterisks in its place, however it was cut and framed."""
    pieces: list[bytes] = []

    async def serve(stream: trio.SocketStream) -> None:
        await read_request(stream)
        for piece in pieces:
            await stream.send_all(piece)
            await trio.testing.wait_all_tasks_blocked(0.002)

    bench.upstream.handler = serve
    async with open_chosen(bench, http2=http2) as client:
        for status in (400, 401, 500):
            pieces[:] = build_error(status, framing, cuts)
            got = await client.post(PATH, json=build_body(PATH))
            assert (got.status_code, got.content) == (status, MASKED)


async def test_successes_are_not_looked_through(bench: Bench) -> None:
    """A 2xx passes unchanged, on the fast path: what the model says is the caller's."""
    bench.upstream.answer = OK + b"content-length: %d\r\n\r\n" % len(BODY) + BODY
    got = await bench.ask()
    assert got.body == BODY


async def test_a_masked_error_keeps_its_connection(bench: Bench) -> None:
    """The upstream's connection is kept after an error whose body was masked."""

    async def serve(stream: trio.SocketStream) -> None:
        while await read_request(stream) is not None:
            bench.upstream.requests += 1
            await stream.send_all(b"".join(build_error(401, "chunked", [])))

    bench.upstream.handler = serve
    async with open_http(bench.gateway) as client:
        for _ in range(3):
            assert (await client.post(PATH, json=build_body(PATH))).content == MASKED
    assert (bench.upstream.requests, bench.upstream.connections) == (3, 1)
    bench.gateway.gateway.pool.close_idle()
