"""Floods: whatever one peer sends, and however fast, no turn of its tasks is long, and others are served beside it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from cgw.errors import Refusal
from cgw.testing.bare_relay import open_bare_gateway
from cgw.transport.sockets import LINGER_BYTES
from cgw.wire.messages import Origin, RequestHead
from tests.support.counting import LongestStep, measure_longest_step
from tests.support.http_engine import CHUNKED, HEAD, echo, open_engine, read_refusal
from tests.support.quiet_log import quiet_log
from tests.support.raw_client import open_client
from tests.support.raw_server import open_raw_server, read_request
from tests.support.waiting import wait_until

__all__ = ["quiet_log"]

LONGEST_SECONDS = 0.02
REQUEST = HEAD + b"Content-Length: 2\r\n\r\nok"


@asynccontextmanager
async def flood(port: int, head: bytes, data: bytes) -> AsyncIterator[Callable[[], int]]:
    """Send ``head``, then ``data`` for ever, on a connection of its own; yield a count of the bytes that were taken."""
    sent = 0

    async def send() -> None:
        nonlocal sent
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async with open_client(port) as client:
                await client.send(head)
                while True:
                    await client.send(data)
                    sent += len(data)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        yield lambda: sent
        nursery.cancel_scope.cancel()


async def serve_beside(port: int, *, count: int = 20) -> LongestStep:
    """Have ``count`` requests answered on another connection; return the longest turn of any task meanwhile."""
    with measure_longest_step() as longest, trio.fail_after(10):
        async with open_client(port) as client:
            for _ in range(count):
                assert (await client.ask(REQUEST)).status == 200
    return longest


FLOODS = {
    "empty lines": (b"", b"\r\n" * 30_000),
    "chunks of one byte": (CHUNKED, b"1\r\nx\r\n" * 10_000),
    "chunks of one byte with extensions": (CHUNKED, b"1;a=b\r\nx\r\n" * 6_000),
    "small chunks with long extensions": (CHUNKED, b"20;" + b"a" * 200 + b"\r\n" + b"x" * 32 + b"\r\n"),
    "one large chunk": (CHUNKED + b"1E00000\r\n", b"x" * 60_000),
    "one large body": (HEAD + b"Content-Length: 30000000\r\n\r\n", b"x" * 60_000),
    "an endless head": (HEAD, b"a: b\r\n" * 10_000),
    "pipelined requests": (b"", REQUEST * 500),
}


@pytest.mark.parametrize("name", FLOODS)
async def test_flood_of_a_client_holds_nobody_up(name: str) -> None:
    """Each turn of a task is short while one client floods, and another client's requests are answered."""
    head, data = FLOODS[name]
    async with open_engine() as engine, flood(engine.port, head, data):
        longest = await serve_beside(engine.port)
        assert longest.seconds < LONGEST_SECONDS, longest.name


async def test_flood_of_requests_that_are_shed_holds_nobody_up() -> None:
    """Pipelined requests that are refused unread need not wait for anything, and still take turns with others."""

    def shed(head: RequestHead) -> Refusal | None:
        return Refusal(503, "overloaded") if head.path == b"/shed" else None

    data = b"GET /shed HTTP/1.1\r\nHost: x\r\n\r\n" * 1500
    async with open_engine(check_load=shed) as engine:
        # The client ends after its tasks.
        async with open_client(engine.port) as client, trio.open_nursery() as nursery:
            nursery.start_soon(send_until_cancelled, client.stream, data)
            nursery.start_soon(discard, client.stream)
            longest = await serve_beside(engine.port)
            nursery.cancel_scope.cancel()
        assert longest.seconds < LONGEST_SECONDS, longest.name


async def send_until_cancelled(stream: trio.SocketStream, data: bytes) -> None:
    while True:
        await stream.send_all(data)


async def discard(stream: trio.SocketStream) -> None:
    while await stream.receive_some(65536):
        pass


@pytest.mark.parametrize("lines", [8, 9])
async def test_empty_lines_before_a_request_are_counted(lines: int) -> None:
    """Eight empty lines are skipped, also one at a time; the ninth is refused."""
    for pieces in ([b"\r\n" * lines], [b"\r\n"] * lines, [b"\r", *[b"\n\r"] * (lines - 1), b"\n"]):
        async with open_engine() as engine, open_client(engine.port) as client:
            for piece in pieces:
                await client.send(piece)
                await trio.testing.wait_all_tasks_blocked()
            if lines > 8:
                assert "empty lines" in await read_refusal(client, 400)
            else:
                assert (await client.ask(REQUEST)).status == 200


@pytest.mark.parametrize("chunk", [b"1\r\nx\r\n", b"1;a=b\r\nx\r\n", b"1f\r\n" + b"x" * 31 + b"\r\n"])
async def test_small_chunks_are_refused_after_a_while(chunk: bytes) -> None:
    """A body of few small chunks is served; one that goes on like that is refused before it is read to its end."""
    async with open_engine() as engine:
        for count, status in ((1000, 200), (1100, 400)):
            async with open_client(engine.port) as client:
                answer = await client.ask(CHUNKED + chunk * count + b"0\r\n\r\n")
                assert answer.status == status
                assert status == 200 or b"smaller than 32 bytes in the mean" in answer.body


async def test_chunks_of_a_reasonable_size_are_served() -> None:
    """Many chunks of 32 bytes in the mean are served."""
    async with open_engine() as engine, open_client(engine.port) as client:
        answer = await client.ask(
            CHUNKED + b"20\r\n" + (b"x" * 32 + b"\r\n20\r\n") * 20_000 + b"y" * 32 + b"\r\n0\r\n\r\n"
        )
        assert (answer.status, len(answer.body)) == (200, len(b"/fast ") + 20_001 * 32)


@pytest.mark.parametrize("chunk", [b"1\r\nx\r\n", b"1;a=b\r\nx\r\n", b"1;" + b"a" * 200 + b"\r\nx\r\n"])
async def test_small_chunks_of_an_upstream_hold_nobody_up(chunk: bytes) -> None:
    """An upstream that sends tiny chunks as fast as it can is relayed on the fallback path, in short turns."""

    async def play(stream: trio.SocketStream) -> None:
        request = await read_request(stream)
        if request is None:
            return
        if request[0].target == b"/fast":
            await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            return
        await stream.send_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        while True:
            await stream.send_all(chunk * (60_000 // len(chunk)))

    async with (
        open_raw_server(play) as upstream_port,
        open_bare_gateway(Origin("http", "127.0.0.1", upstream_port)) as gateway,
        open_client(gateway.port) as victim,
    ):
        await victim.send(b"POST /flood HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(discard, victim.stream)
            longest = await serve_beside(gateway.port, count=5)
            nursery.cancel_scope.cancel()
        assert longest.seconds < LONGEST_SECONDS, longest.name


async def test_flood_after_a_refusal_is_not_read_for_ever() -> None:
    """What comes behind a refused head is discarded up to a bound, then the connection is closed."""
    async with open_engine() as engine:
        async with flood(engine.port, b"", b"\r\n" * 30_000) as count:
            await wait_until(lambda: engine.server.statistics().accepted == 1)
            await wait_until(lambda: engine.server.connection_count == 0, seconds=15)
        assert count() < LINGER_BYTES + 16 * 1024 * 1024  # the kernel's buffers besides
    assert engine.handled == 0


async def test_a_request_behind_a_flood_of_chunks_is_the_next_request() -> None:
    """What follows a chunked body that was read in slices is the next request, cut anywhere."""
    body = b"64\r\n" + b"x" * 100 + b"\r\n"
    first = CHUNKED + body * 100 + b"0\r\n\r\n"
    async with open_engine(echo) as engine, open_client(engine.port) as client:
        for cut in range(len(REQUEST)):
            await client.send(first + REQUEST[:cut])
            assert len((await client.read_answer()).body) == len(b"/fast ") + 10_000
            await client.send(REQUEST[cut:])
            assert (await client.read_answer()).body == b"/fast ok"
