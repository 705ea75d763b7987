"""Draining the public port: what was asked already is answered, what waits ends, and nothing holds the exit."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from cgw.service.lifecycle import Service
from cgw.transport.http1_connection import GRACE_SECONDS
from tests.support.fault_bench import OK, PATH, WHOLE, Bench, open_bench, read_message
from tests.support.quiet_log import quiet_log
from tests.support.raw_client import RawClient, open_client
from tests.support.raw_server import read_request
from tests.support.requests import ROUTES, build_request

__all__ = ["quiet_log"]

VERSION = b"GET /-/__version HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path) as bench:
        bench.upstream.answer = WHOLE
        yield bench


@asynccontextmanager
async def draining(gateway: Service, seconds: float = 5) -> AsyncIterator[list[bool]]:
    """Drain while the block runs; yields a list that gets the result."""
    results: list[bool] = []

    async def drain() -> None:
        results.append(await gateway.drain(seconds))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(drain)
        # Until the drain has begun.
        while not gateway.server.is_draining:
            await trio.lowlevel.checkpoint()
        yield results


async def test_answer_under_way_is_the_last_of_its_connection(bench: Bench) -> None:
    """An exchange that is open when the drain begins is finished, says ``close``, and the drain succeeds."""
    proceed = trio.Event()

    async def play(stream: trio.SocketStream) -> None:
        await read_request(stream)
        await proceed.wait()
        await stream.send_all(WHOLE)

    bench.upstream.handler = play
    async with open_client(bench.gateway.port) as client:
        await client.send(build_request(PATH))
        await trio.sleep(0.05)
        async with draining(bench.gateway) as results:
            proceed.set()
            answer = await client.read_answer()
            assert (answer.status, answer.headers["connection"]) == (200, "close")
            assert await client.read_end() == b""
            client.stream.socket.close()
        assert results == [True]


async def test_idle_kept_connection_is_closed_at_once(bench: Bench) -> None:
    """A connection between two requests is closed, on both kinds of routes."""
    async with open_client(bench.gateway.port) as one, open_client(bench.gateway.port) as two:
        await one.ask(VERSION)
        await two.ask(build_request(PATH))
        started = trio.current_time()
        async with draining(bench.gateway) as results:
            for client in (one, two):
                assert await client.read_end() == b""
        assert results == [True]
        assert trio.current_time() - started < GRACE_SECONDS


@pytest.mark.parametrize("is_first", [True, False], ids=["first", "kept"])
@pytest.mark.parametrize("request_bytes", [VERSION, build_request(PATH), b"\r\n" + VERSION])
async def test_request_that_is_there_already_is_served(bench: Bench, is_first: bool, request_bytes: bytes) -> None:
    """A request whose bytes the kernel has when the drain begins gets its answer, with ``close``."""
    async with open_client(bench.gateway.port) as client:
        if not is_first:
            await client.ask(VERSION)
        await trio.testing.wait_all_tasks_blocked()
        # Sent in the same turn as the drain begins: no task of the gateway runs in between.
        os.write(client.stream.socket.fileno(), request_bytes)
        begin_drain(bench.gateway)
        answer = await client.read_answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")


async def test_connection_in_the_backlog_gets_a_moment(bench: Bench) -> None:
    """A connection that the kernel had accepted is served when its request comes soon, and closed otherwise."""
    await trio.testing.wait_all_tasks_blocked()
    address = ("127.0.0.1", bench.gateway.port)
    quick, silent = (RawClient(wrap(socket.create_connection(address))) for _ in range(2))
    begin_drain(bench.gateway)
    started = trio.current_time()
    await trio.sleep(GRACE_SECONDS / 5)
    answer = await quick.ask(VERSION)
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    quick.stream.socket.close()
    assert await silent.read_end() == b""
    assert GRACE_SECONDS / 2 < trio.current_time() - started < GRACE_SECONDS + 2
    silent.stream.socket.close()


def wrap(sock: socket.socket) -> trio.SocketStream:
    sock.setblocking(False)
    return trio.SocketStream(trio.socket.from_stdlib_socket(sock))


def begin_drain(gateway: Service) -> None:
    """Begin the drain without a turn of any task, as ``Service.drain`` does after its delay."""
    gateway.server.stop_accepting()
    gateway.http_engine.drain()


@pytest.mark.parametrize("data", [b"GET", VERSION[:-2], b"\r\n", b"\r", b"", b"PRI * HTTP/2.0\r\n"])
@pytest.mark.parametrize("is_first", [True, False], ids=["first", "kept"])
async def test_half_a_head_does_not_hold_the_exit(bench: Bench, data: bytes, is_first: bool) -> None:
    """Whatever of a head has come, the connection ends within the moment; who has sent something reads 503."""
    async with open_client(bench.gateway.port) as client:
        if not is_first:
            await client.ask(VERSION)
        await client.send(data)
        await trio.sleep(0.05)
        started = trio.current_time()
        async with draining(bench.gateway) as results:
            rest = await client.read_end()
            assert rest.startswith(b"HTTP/1.1 503 ") == bool(data.strip())
            client.stream.socket.close()
        assert results == [True]
        assert trio.current_time() - started < GRACE_SECONDS + 2


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("is_stream", [True, False])
async def test_what_waits_for_its_upstream_at_the_deadline_gets_503(bench: Bench, path: str, is_stream: bool) -> None:
    """An exchange without a response head is answered when it is cut, in its route's shape, and recorded as such."""

    async def play(stream: trio.SocketStream) -> None:
        await read_request(stream)
        await stream.receive_some(1)

    bench.upstream.handler = play
    async with open_client(bench.gateway.port) as client:
        await client.ask(VERSION)
        await client.send(build_request(path, stream=is_stream))
        await trio.sleep(0.05)
        async with draining(bench.gateway, 0.1) as results:
            answer = await client.read_answer()
            assert (answer.status, answer.headers["retry-after"]) == (503, "1")
            assert answer.headers["connection"] == "close"
            assert "shutting down" in read_message(path, answer)
            assert await client.read_end() == b""
        assert results == [False]
    await bench.wait_rest()
    (event,) = bench.read_events()
    assert event["resolved_status_code"] == 503
    (record,) = bench.records
    assert (record.outcome.value, record.status) == ("shutdown", 503)


@pytest.mark.parametrize("rest", [b"", b"Expect: 100-continue\r\n"])
async def test_body_that_does_not_come_is_cut_with_503(bench: Bench, rest: bytes) -> None:
    """A client that is still sending its body at the deadline gets 503, too."""
    head, _, _ = build_request(PATH).replace(b"host:", rest + b"host:", 1).partition(b"\r\n\r\n")
    async with open_client(bench.gateway.port) as client:
        await client.send(head + b"\r\n\r\n")
        await trio.sleep(0.05)
        async with draining(bench.gateway, 0.1):
            assert (await client.read_answer()).status == 503


async def test_stream_that_is_open_at_the_deadline_breaks_off(bench: Bench) -> None:
    """An answer that has begun cannot become a 503: it is cut visibly."""

    async def play(stream: trio.SocketStream) -> None:
        await read_request(stream)
        await stream.send_all(OK + b"transfer-encoding: chunked\r\n\r\n4\r\npart\r\n")
        await stream.receive_some(1)

    bench.upstream.handler = play
    async with open_client(bench.gateway.port) as client:
        await client.send(build_request(PATH))
        await trio.sleep(0.05)
        async with draining(bench.gateway, 0.1):
            data = await client.read_end()
    assert data.endswith(b"4\r\npart\r\n")
    assert b" 503 " not in data


async def test_client_that_left_before_the_deadline_costs_nothing(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """A client that leaves while the gateway drains ends its exchange, as at any other time."""

    async def play(stream: trio.SocketStream) -> None:
        await read_request(stream)
        await stream.receive_some(1)

    caplog.set_level(logging.INFO, "cgw.exchange")
    bench.upstream.handler = play
    async with open_client(bench.gateway.port) as client:
        await client.send(build_request(PATH))
        await trio.sleep(0.05)
        async with draining(bench.gateway, 0.1):
            client.stream.socket.close()
    await bench.wait_rest()
    (record,) = bench.records
    assert record.outcome.value == "client_gone"
