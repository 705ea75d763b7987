"""Drills with figures: one Redis server fails in every way, while callers use it. Show the figures with ``-s``.

Each asserts that no call waited longer than its deadline, that no caller had another caller's reply, and that all
calls succeed within a second of the recovery. ``CGW_LONG_DRILLS=1`` adds those that take half a minute.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio
from redis.exceptions import ResponseError

from cgw.errors import StoreUnavailable
from cgw.redis.opening import Store, open_redis
from tests.support.redis_callers import GRACE, run_caller_drill
from tests.support.redis_cluster import find_free_ports
from tests.support.redis_server import RedisServer, ask_server, run_redis_server

SECRET = "first-password"
CONNECT_TIMEOUT = 0.3

needs_patience = pytest.mark.skipif("CGW_LONG_DRILLS" not in os.environ, reason="takes half a minute")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A new server."""
    with run_redis_server(tmp_path, "--lua-time-limit", "5") as server:
        yield server


@asynccontextmanager
async def _open_operator(url: str) -> AsyncIterator[Store]:
    """Open a store with a long deadline, for the commands of an operator."""
    async with open_redis(url, timeout_seconds=60) as operator:
        yield operator


async def test_kill_and_restart_empty(tmp_path: Path) -> None:
    """kill -9, and an empty server at the same address a moment later."""
    with run_redis_server(tmp_path) as first:
        async with run_caller_drill("kill -9, restart empty", first.url) as drill:
            first.send_signal(signal.SIGKILL)
            first.process.wait()
            await drill.wait_outage()
            with run_redis_server(tmp_path):
                await drill.wait_back()
                await drill.wait_answers(100)


async def test_script_flush(server: RedisServer) -> None:
    """SCRIPT FLUSH has no effect on callers."""
    # With a deadline that a server on a busy machine keeps: then no error is the drill's.
    async with run_caller_drill("SCRIPT FLUSH", server.url, timeout_seconds=5) as drill:
        for _ in range(20):
            await ask_server(server.path, "SCRIPT", "FLUSH")
            await drill.wait_back()
        assert drill.errors == 0


@pytest.mark.parametrize("seconds", [1, pytest.param(30, marks=needs_patience)])
async def test_stopped_server(server: RedisServer, seconds: int) -> None:
    """SIGSTOP and, later, SIGCONT."""
    async with run_caller_drill(f"SIGSTOP {seconds} s", server.url) as drill:
        server.send_signal(signal.SIGSTOP)
        await trio.sleep(seconds)
        assert drill.errors > 0
        server.send_signal(signal.SIGCONT)
        await drill.wait_back()


async def test_paused_clients(server: RedisServer) -> None:
    """CLIENT PAUSE for half a second."""
    async with run_caller_drill("CLIENT PAUSE 500", server.url) as drill:
        paused_at = trio.current_time()
        await ask_server(server.path, "CLIENT", "PAUSE", 500)
        await drill.wait_outage()
        await drill.wait_back(paused_at + 0.5)


async def test_killed_clients(server: RedisServer) -> None:
    """CLIENT KILL of all connections, five times."""
    async with run_caller_drill("CLIENT KILL", server.url) as drill:
        for _ in range(5):
            await ask_server(server.path, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await drill.wait_back()
        assert drill.redis.statistics().reconnects == 5


async def test_read_only_server(server: RedisServer) -> None:
    """READONLY: the server becomes a replica, and a master again."""
    async with run_caller_drill("READONLY", server.url) as drill:
        await ask_server(server.path, "REPLICAOF", "127.0.0.1", "1")
        await drill.wait_outage()
        await trio.sleep(0.5)
        await ask_server(server.path, "REPLICAOF", "NO", "ONE")
        await drill.wait_back()


async def test_full_server(server: RedisServer) -> None:
    """OOM, inside scripts too; the link stays up."""
    async with run_caller_drill("OOM", server.url) as drill:
        await ask_server(server.path, "CONFIG", "SET", "maxmemory", 1)
        await drill.wait_outage()
        await ask_server(server.path, "CONFIG", "SET", "maxmemory", 0)
        await drill.wait_back()
        assert drill.redis.statistics().reconnects == 0


async def test_busy_server(server: RedisServer) -> None:
    """BUSY: a script of another client runs until it is killed."""

    async def run_forever(operator: Store) -> None:
        with pytest.raises(ResponseError, match="killed"):
            await operator.commands.eval("while true do end", 0)

    async with (
        _open_operator(server.url) as culprit,
        _open_operator(server.url) as operator,
        run_caller_drill("BUSY", server.url) as drill,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(run_forever, culprit)
        await drill.wait_outage()
        await trio.sleep(0.5)
        await operator.commands.script_kill()
        await drill.wait_back()


async def test_rotated_password(tmp_path: Path) -> None:
    """The password is changed and all connections are closed; later the old one is set again."""
    with run_redis_server(tmp_path, "--requirepass", SECRET) as server:
        url = f"unix://:{SECRET}@{server.path}"
        async with _open_operator(url) as operator, run_caller_drill("password rotated and back", url) as drill:
            await operator.execute_command("CONFIG", "SET", "requirepass", "another-one")
            await operator.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await drill.wait_outage()
            await trio.sleep(0.5)
            await operator.execute_command("CONFIG", "SET", "requirepass", SECRET)
            await drill.wait_back()


async def test_wrong_password_at_the_start(tmp_path: Path) -> None:
    """A wrong password is reported at once."""
    with run_redis_server(tmp_path, "--requirepass", SECRET) as server:
        started = trio.current_time()
        with pytest.raises(StoreUnavailable, match="WRONGPASS"):
            async with open_redis(f"unix://:wrong@{server.path}"):
                raise AssertionError("opened")
        took = trio.current_time() - started
        sys.stdout.write(f"\nwrong password at the start: refused after {took * 1000:.1f} ms\n")
        assert took < GRACE


@contextmanager
def _listen_without_accepting(port: int, is_full: bool) -> Iterator[int]:
    """Listen without accepting: the kernel completes connections, or drops their packets when the queue is full."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(0 if is_full else 128)
        for _ in range(4 if is_full else 0):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


@pytest.mark.parametrize("is_full", [False, True])
async def test_listener_that_never_accepts_at_the_start(is_full: bool) -> None:
    """Connecting to a listener that never accepts ends with the timeout for connecting."""
    with _listen_without_accepting(0, is_full) as port:
        started = trio.current_time()
        with pytest.raises(StoreUnavailable, match=r"did not answer within 0\.3 s"):
            async with open_redis(f"127.0.0.1:{port}", connect_timeout_seconds=CONNECT_TIMEOUT):
                raise AssertionError("opened")
        took = trio.current_time() - started
        sys.stdout.write(f"\nnever accepts at the start, full: {is_full}: given up after {took * 1000:.1f} ms of 300\n")
        assert took < CONNECT_TIMEOUT + GRACE


@pytest.mark.parametrize("is_full", [False, True])
async def test_listener_that_never_accepts_at_a_reconnect(tmp_path: Path, is_full: bool) -> None:
    """The server is killed, a listener that never accepts has its port for a while, then a new server has it."""
    (port,) = find_free_ports(1)
    options = ("--port", str(port), "--bind", "127.0.0.1")
    with run_redis_server(tmp_path, *options) as first:
        name = f"never accepts at a reconnect, full: {is_full}"
        async with run_caller_drill(name, f"redis://127.0.0.1:{port}") as drill:
            first.send_signal(signal.SIGKILL)
            first.process.wait()
            with _listen_without_accepting(port, is_full):
                await drill.wait_outage()
                await trio.sleep(1)
            with run_redis_server(tmp_path, *options):
                await drill.wait_back()
