"""A successor takes over under load: no request fails, whether systemd holds the port or both processes share it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio

from cgw.redis.embedded import open_embedded_redis
from cgw.testing.script import Script
from cgw.testing.scripted_upstream import ScriptedUpstream, open_scripted_upstream
from tests.support.gateway import ANTHROPIC_KEY, ANTHROPIC_MODEL, build_environ
from tests.support.limits import PATIENT
from tests.support.process import open_gateway_process, wait_ended, wait_until_serving
from tests.support.requests import build_request
from tests.support.restart_load import RestartLoad
from tests.support.waiting import wait_until

PATH = "/v1/completions/anthropic-messages"
CLIENTS = 4
RESTARTS = 3

LAUNCHER = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(int(sys.argv[2]) or os.getpid()))
os.execv(sys.executable, [sys.executable, "-m", "cgw", "serve"])
"""
"""Does what systemd does: passes a listening socket as descriptor 3, and names the process that it is for."""


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    """An upstream whose streams last 50 ms, so that each restart finds some under way."""
    script = Script(answer="word " * 5, tokens_per_second=100, api_key=ANTHROPIC_KEY)
    async with open_scripted_upstream({ANTHROPIC_MODEL: script}) as upstream:
        yield upstream


@asynccontextmanager
async def open_load(port: int) -> AsyncIterator[RestartLoad]:
    """Send requests during the block, on fresh and on kept connections."""
    load = RestartLoad(port, build_request(PATH))
    async with trio.open_nursery() as nursery:
        for _ in range(CLIENTS):
            nursery.start_soon(load.send_on_fresh_connections)
            nursery.start_soon(load.send_on_kept_connections)
        try:
            yield load
        finally:
            load.is_stopping = True


async def wait_answers(load: RestartLoad, count: int) -> None:
    """Wait for ``count`` more responses, or a failure."""
    target = load.answered + count
    await wait_until(lambda: load.answered >= target or bool(load.failures), seconds=30)


def start_activated(
    environ: Mapping[str, str], log_path: Path, sock: socket.socket, *, pid: int = 0
) -> subprocess.Popen[bytes]:
    """Start ``cgw serve`` with ``sock`` as systemd would; ``pid`` names another process than the right one."""
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ}
    with log_path.open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, str(sock.fileno()), str(pid)],
            env={**inherited, **environ},
            pass_fds=(sock.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )


async def test_restarts_with_socket_activation_lose_no_request(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """While systemd holds the listening socket, processes end and start one after the other and no request fails.

    In between, connections wait in the kernel's backlog. All processes use one data directory.
    """
    environ = build_environ(tmp_path, upstream.url, limit=1_000_000, concurrent_requests=1_000_000, more=PATIENT)
    with socket.create_server(("127.0.0.1", 0), backlog=512) as sock:
        port = sock.getsockname()[1]
        process = start_activated(environ, tmp_path / "log-0", sock)
        try:
            assert await wait_until_serving(process, tmp_path / "log-0") == port
            async with open_load(port) as load:
                for number in range(1, RESTARTS + 1):
                    await wait_answers(load, 50)
                    process.terminate()
                    assert await wait_ended(process) == 0
                    process = start_activated(environ, tmp_path / f"log-{number}", sock)
                    await wait_until_serving(process, tmp_path / f"log-{number}")
                await wait_answers(load, 50)
        finally:
            process.kill()
            process.wait()
    assert load.failures == []
    assert load.answered >= 50 * (RESTARTS + 1)


async def test_restarts_with_a_shared_port_lose_no_request(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """With SO_REUSEPORT each successor serves beside its predecessor before that one is stopped."""
    async with AsyncExitStack() as stack:
        store = tmp_path / "store"
        store.mkdir()
        redis_url = await stack.enter_async_context(open_embedded_redis(store))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        more = {"REDIS_ENDPOINT": redis_url, "CODY_GATEWAY_REUSE_PORT": "on", "PORT": str(port), **PATIENT}

        def build(number: int) -> dict[str, str]:
            data_dir = tmp_path / str(number)
            data_dir.mkdir()
            return build_environ(data_dir, upstream.url, limit=1_000_000, concurrent_requests=1_000_000, more=more)

        gateway = await stack.enter_async_context(open_gateway_process(build(0), tmp_path / "log-0"))
        async with open_load(port) as load:
            for number in range(1, RESTARTS + 1):
                await wait_answers(load, 50)
                successor = await stack.enter_async_context(
                    open_gateway_process(build(number), tmp_path / f"log-{number}")
                )
                gateway.terminate()
                assert await gateway.wait() == 0
                gateway = successor
            await wait_answers(load, 50)
    assert load.failures == []


async def test_sockets_for_another_process_are_not_served(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """When LISTEN_PID names another process, LISTEN_FDS is ignored with a warning, and PORT is bound."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        process = start_activated(build_environ(tmp_path, upstream.url), tmp_path / "log", sock, pid=1)
        try:
            assert await wait_until_serving(process, tmp_path / "log") != sock.getsockname()[1]
            assert "LISTEN_FDS is ignored: LISTEN_PID is 1" in (tmp_path / "log").read_text()
        finally:
            process.kill()
            process.wait()


async def test_a_passed_descriptor_that_cannot_be_served_is_one_sentence(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    """A passed socket that does not listen is named, and the exit status is 1."""
    with socket.socket() as sock:
        process = start_activated(build_environ(tmp_path, upstream.url), tmp_path / "log", sock)
        assert await wait_ended(process) == 1
    lines = [line for line in (tmp_path / "log").read_text().splitlines() if line.startswith("cgw: ")]
    assert lines == ["cgw: LISTEN_FDS: cannot serve 1 passed sockets: descriptor 3 is not a listening TCP socket"]
