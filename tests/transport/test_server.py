"""The listener: its bounds, what it does when descriptors run out, and its end."""

from __future__ import annotations

import errno
import ipaddress
import logging
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from cgw.transport.client_address import AddressBound, TrustedProxies
from cgw.transport.listeners import open_listeners
from cgw.transport.server import MAX_TURNING_AWAY, AcceptedConnection, ServeConnection, Server
from tests.support.quiet_log import quiet_log
from tests.support.raw_client import RawClient, open_client
from tests.support.waiting import wait_until

__all__ = ["quiet_log"]

ANY = TrustedProxies([ipaddress.ip_network("127.0.0.0/8")])


async def echo(accepted: AcceptedConnection) -> None:
    """Send back what comes."""
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(accepted.sock.dup()))
    accepted.sock.close()
    async with stream:
        try:
            async for data in stream:
                await stream.send_all(data)
        except trio.BrokenResourceError:
            return


@asynccontextmanager
async def serve(
    serve_connection: ServeConnection = echo,
    *,
    max_connections: int = 100,
    max_per_address: int | None = None,
    trusted: TrustedProxies | None = None,
) -> AsyncIterator[Server]:
    server = Server(
        await open_listeners("127.0.0.1", 0),
        max_connections=max_connections,
        addresses=AddressBound(max_per_address),
        trusted=trusted,
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.run, serve_connection)
        yield server
        nursery.cancel_scope.cancel()


async def is_served(client: RawClient) -> bool:
    """Return whether the server sends back what it gets, after a check that it answers 503 otherwise."""
    await client.send(b"ping")
    data = bytes(await client.stream.receive_some(4))
    if data == b"ping":
        return True
    answer = data + await client.read_end()
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"\r\nretry-after: 1\r\n" in answer
    assert b"\r\nconnection: close\r\n" in answer
    return False


@pytest.mark.parametrize("is_per_address", [False, True], ids=["in all", "per address"])
async def test_connections_above_a_bound_are_told_and_places_come_back(is_per_address: bool) -> None:
    """Above a bound a client reads 503, whether it has sent something or not; an end makes room for the next."""
    bounds = {"max_per_address": 2} if is_per_address else {"max_connections": 2}
    async with serve(**bounds) as server:  # type: ignore[arg-type]
        async with open_client(server.port) as first, open_client(server.port) as second:
            assert await is_served(first)
            assert await is_served(second)
            for _ in range(3):
                async with open_client(server.port) as third:
                    assert not await is_served(third)
            async with open_client(server.port) as silent:
                assert (await silent.read_answer()).status == 503
            assert (server.statistics().open, server.statistics().accepted) == (2, 2)
            assert server.statistics().turned_away == 4
        await wait_until(lambda: server.connection_count == 0)
        async with open_client(server.port) as fourth:
            assert await is_served(fourth)


async def test_trusted_proxies_are_exempt_from_the_bound_per_address() -> None:
    """A proxy stands for many clients; the bound on all connections holds for it as well."""
    async with (
        serve(max_per_address=1, max_connections=3, trusted=ANY) as server,
        open_client(server.port) as first,
        open_client(server.port) as second,
        open_client(server.port) as third,
        open_client(server.port) as fourth,
    ):
        assert [await is_served(client) for client in (first, second, third, fourth)] == [True, True, True, False]


async def test_clients_that_are_turned_away_and_stay_are_bounded(autojump_clock: trio.testing.MockClock) -> None:
    """Who does not read its 503 is closed after a second, and at most so many are waited for at once."""
    autojump_clock.autojump_threshold = 0.02
    async with serve(max_connections=0) as server, trio.open_nursery() as nursery:
        started = trio.current_time()
        ended: list[float] = []

        async def stay() -> None:
            async with open_client(server.port) as client:
                await trio.testing.wait_all_tasks_blocked()
                while await client.stream.receive_some(65536):
                    pass
                await trio.sleep(5)
                ended.append(trio.current_time() - started)

        for _ in range(MAX_TURNING_AWAY + 10):
            nursery.start_soon(stay)
    assert len(ended) == MAX_TURNING_AWAY + 10
    assert server.statistics().turned_away == MAX_TURNING_AWAY + 10


@pytest.mark.parametrize(
    ("errors", "lines"),
    [
        ([errno.ECONNABORTED, errno.EPROTO], []),
        (
            [errno.EMFILE] * 5,
            ["connections cannot be accepted for now: Too many open files", "connections are accepted again"],
        ),
        (
            [errno.ENOBUFS, errno.ECONNABORTED],
            ["connections cannot be accepted for now: No buffer space available", "connections are accepted again"],
        ),
    ],
)
async def test_errors_of_accept_pass(
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    errors: list[int],
    lines: list[str],
) -> None:
    """A connection that was aborted is no error; other errors are waited out, with one line for all tries."""
    autojump_clock.autojump_threshold = 0.02
    (listener,) = await open_listeners("127.0.0.1", 0)
    accept = socket.socket.accept

    def fail_at_first(listening: socket.socket) -> tuple[socket.socket, object]:
        if errors:
            number = errors.pop(0)
            raise OSError(number, os.strerror(number))
        return accept(listening)

    monkeypatch.setattr(socket.socket, "accept", fail_at_first)
    server = Server([listener])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.run, echo)
        async with open_client(server.port) as client:
            assert await is_served(client)
        nursery.cancel_scope.cancel()
    assert caplog.messages == lines


async def test_backlog_is_served() -> None:
    """A client whose connection was completed by the kernel before the port closed gets its answer."""
    async with serve() as server:
        port = server.port
        await trio.testing.wait_all_tasks_blocked()
        with socket.create_connection(("127.0.0.1", port)) as one, socket.create_connection(("127.0.0.1", port)) as two:
            server.stop_accepting()  # in the same turn: nothing was accepted yet
            await trio.testing.wait_all_tasks_blocked()
            assert server.connection_count == 2
            for sock in (one, two):
                sock.sendall(b"ping")
            await trio.testing.wait_all_tasks_blocked()
            for sock in (one, two):
                assert sock.recv(4) == b"ping"
        with trio.fail_after(5):
            await server.drained.wait()


async def test_cut_ends_connections_that_do_not_end() -> None:
    """``drained`` is set once all connections have ended, which ``cut`` brings about."""
    async with serve() as server, open_client(server.port) as client:
        assert await is_served(client)
        server.stop_accepting()
        await trio.testing.wait_all_tasks_blocked()
        assert not server.drained.is_set()
        server.cut()
        with trio.fail_after(5):
            await server.drained.wait()
        assert await client.read_end() == b""
    assert server.statistics().open == 0


async def test_connection_that_fails_is_alone(caplog: pytest.LogCaptureFixture) -> None:
    """An OSError that leaves a connection is one line; the server goes on."""

    async def fail(accepted: AcceptedConnection) -> None:
        await trio.lowlevel.checkpoint()
        raise OSError(errno.EHOSTUNREACH, "no route")

    async with serve(fail) as server:
        for _ in range(2):
            async with open_client(server.port) as client:
                assert await client.read_end() == b""
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2


STARVED = """
import logging, os, resource, socket, sys, trio
sys.path.insert(0, os.getcwd())
from tests.transport.test_server import echo, serve

logging.basicConfig(stream=sys.stdout, format="%(message)s")

async def main():
    async with serve() as server:
        await trio.testing.wait_all_tasks_blocked()
        port = server.port
        client = socket.create_connection(("127.0.0.1", port))  # is in the backlog
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        fillers = []
        try:
            while True:
                fillers.append(os.dup(0))
        except OSError:
            pass
        await trio.sleep(0.3)
        assert server.connection_count == 0
        if "at once" in sys.argv:
            server.stop_accepting()
            await server.drained.wait()
            print("drained")
            return
        for filler in fillers[:20]:
            os.close(filler)
        client.sendall(b"ping")
        client.setblocking(False)
        with trio.fail_after(5):
            await trio.lowlevel.wait_readable(client)
        assert client.recv(4) == b"ping"
        client.close()
        if "afterwards" in sys.argv:
            server.stop_accepting()
            await server.drained.wait()
        print("served")

import trio.testing
trio.run(main)
"""


@pytest.mark.parametrize("arguments", [[], ["afterwards"]])
async def test_server_without_descriptors_recovers(arguments: list[str]) -> None:
    """Out of descriptors, one line is logged; once there are some, the connection that waited is served."""
    command = [sys.executable, "-c", STARVED, *arguments]
    result = await trio.run_process(
        command, capture_stdout=True, capture_stderr=True, check=False, stdin=subprocess.DEVNULL
    )
    assert result.stdout.decode().splitlines() == [
        "connections cannot be accepted for now: Too many open files",
        "connections are accepted again",
        "served",
    ], result.stderr.decode()


async def test_port_closes_without_a_descriptor_left() -> None:
    """Closing the port takes no descriptor: the server ends, and does not fail."""
    command = [sys.executable, "-c", STARVED, "at once"]
    result = await trio.run_process(
        command, capture_stdout=True, capture_stderr=True, check=False, stdin=subprocess.DEVNULL
    )
    assert result.stdout.decode().splitlines() == [
        "connections cannot be accepted for now: Too many open files",
        "drained",
    ], result.stderr.decode()
