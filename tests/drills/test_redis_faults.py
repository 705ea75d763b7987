"""Drills with figures: the effect on clients of each way in which Redis can fail. Show the figures with ``-s``.

Three gateways, one per policy, share a Redis and are under steady load. The promises: no request waits longer for
its limits than the deadline plus 20 ms, each response is the one of the policy, everything works within 1 s of the
recovery, and each admitted request is counted. The bounds are wider, since the load, and in CI other jobs, share the
machine.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import redis
import trio

from cgw.testing.script import Script
from cgw.testing.scripted_upstream import open_scripted_upstream
from tests.support.gateway import build_environ
from tests.support.process import open_gateway_process, start_cgw
from tests.support.redis_cluster import find_free_ports
from tests.support.redis_drill import DEADLINE_SECONDS, GatewayDrill, open_gateway_drill
from tests.support.redis_server import RedisServer, run_redis_server
from tests.support.waiting import wait_until

WAIT_GRACE_SECONDS = 0.15
BACK_SECONDS = 1.0
BACK_GRACE_SECONDS = 1.0
"""The most that a busy machine may add to the promises."""
FAULT_SECONDS = 0.7
PASSWORD = "before"

LONG = "CGW_LONG_DRILLS"
"""The environment variable that lets the drill of 30 s run."""


class RestartableServer:
    """The server of a drill, which can be killed and restarted at the same port."""

    def __init__(self, folder: Path, *options: str) -> None:
        (self.port,) = find_free_ports(1)
        self._folder = folder
        self._options = ("--port", str(self.port), "--bind", "127.0.0.1", *options)
        self.url = f"redis://127.0.0.1:{self.port}"

    @contextmanager
    def run(self) -> Iterator[RedisServer]:
        """Run the server for the length of the block."""
        with run_redis_server(self._folder, *self._options) as server:
            yield server


@contextmanager
def open_control(server: RedisServer, password: str | None = None) -> Iterator[redis.Redis]:
    """Open a client for the commands of operators."""
    with redis.Redis(unix_socket_path=str(server.path), password=password) as client:
        yield client


@asynccontextmanager
async def open_case(
    name: str, folder: Path, *options: str
) -> AsyncIterator[tuple[GatewayDrill, RedisServer, redis.Redis]]:
    """Run a drill on a new server, with the load running."""
    store = RestartableServer(folder, *options)
    with store.run() as server, open_control(server) as control:
        async with open_gateway_drill(name, folder, store.url) as drill:
            await drill.wait_calm()
            yield drill, server, control


def report(text: str) -> None:
    """Print a line of figures, for ``-s``."""
    sys.stdout.write(f"{text}\n")


async def conclude(drill: GatewayDrill, *, loses_store: bool = False) -> None:
    """End a drill, print its figures, and check them against the promises. ``local`` does not show who counted."""
    await drill.finish()
    report("")
    for line in drill.lines:
        refused = sum(one.status != 200 for one in line.samples)
        back = "-" if line.policy == "local" else f"{_show(drill.back_seconds(line))}"
        report(
            f"{drill.name:24} {line.policy:6} {len(line.samples):4} requests, 503: {refused:3}, "
            f"wrong: {len(drill.list_wrong(line))}, usual {_show(drill.usual_seconds(line))}, "
            f"waited at most {_show(drill.longest_wait_seconds(line))}, counted again {back}, "
            f"healthz {_show(drill.healthy_seconds(line))}"
        )
    missed = 0.0
    if not loses_store:
        missed = await drill.count_missed()
        report(f"{drill.name:24} answered, and not counted: {missed:.0f}; stalled: {_show(drill.stalled_seconds)}")
    for line in drill.lines:
        assert drill.list_wrong(line) == []
        most_seconds = BACK_SECONDS + BACK_GRACE_SECONDS + drill.stalled_seconds
        assert drill.longest_wait_seconds(line) <= DEADLINE_SECONDS + WAIT_GRACE_SECONDS + drill.stalled_seconds
        assert line.policy == "local" or drill.back_seconds(line) <= most_seconds
        assert drill.healthy_seconds(line) <= most_seconds
    assert missed == 0


def _show(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"


async def test_killed_and_restarted_empty(tmp_path: Path) -> None:
    """kill -9, and a restart without data."""
    store = RestartableServer(tmp_path)
    with store.run() as server:
        async with open_gateway_drill("kill -9, restart empty", tmp_path, store.url) as drill:
            await drill.wait_calm()
            server.send_signal(signal.SIGKILL)
            server.process.wait()
            await trio.sleep(FAULT_SECONDS)
            with store.run():
                drill.recovered()
                await conclude(drill, loses_store=True)


async def test_scripts_forgotten(tmp_path: Path) -> None:
    """SCRIPT FLUSH has no effect on clients."""
    async with open_case("SCRIPT FLUSH", tmp_path) as (drill, _, control):
        for _ in range(5):
            control.script_flush()
            await trio.sleep(0.1)
        drill.recovered()
        await conclude(drill)
    assert all(one.status == 200 for line in drill.lines for one in line.samples)


@pytest.mark.parametrize(
    "seconds", [1, pytest.param(30, marks=pytest.mark.skipif(LONG not in os.environ, reason=LONG))]
)
async def test_stopped(tmp_path: Path, seconds: int) -> None:
    """SIGSTOP: the server is connected, and silent."""
    async with open_case(f"SIGSTOP {seconds} s", tmp_path) as (drill, server, _):
        server.send_signal(signal.SIGSTOP)
        await trio.sleep(seconds)
        server.send_signal(signal.SIGCONT)
        drill.recovered()
        await conclude(drill)


async def test_paused(tmp_path: Path) -> None:
    """CLIENT PAUSE, as during a failover."""
    async with open_case("CLIENT PAUSE 700 ms", tmp_path) as (drill, _, control):
        control.client_pause(round(FAULT_SECONDS * 1000), all=True)
        await trio.sleep(FAULT_SECONDS)
        drill.recovered()
        await conclude(drill)


async def test_connections_killed(tmp_path: Path) -> None:
    """CLIENT KILL of every connection, repeatedly."""
    async with open_case("CLIENT KILL, 5 times", tmp_path) as (drill, _, control):
        for _ in range(5):
            control.client_kill_filter(_type="normal", skipme=True)
            await trio.sleep(0.1)
        drill.recovered()
        await conclude(drill)


async def test_read_only(tmp_path: Path) -> None:
    """READONLY: the server has become a replica."""
    async with open_case("READONLY", tmp_path) as (drill, _, control):
        control.replicaof("127.0.0.1", "1")
        await trio.sleep(FAULT_SECONDS)
        control.replicaof("NO", "ONE")
        drill.recovered()
        await conclude(drill)


async def test_out_of_memory(tmp_path: Path) -> None:
    """OOM: the server refuses writes."""
    async with open_case("OOM", tmp_path) as (drill, _, control):
        control.config_set("maxmemory", "1")
        await trio.sleep(FAULT_SECONDS)
        control.config_set("maxmemory", "0")
        drill.recovered()
        await conclude(drill)


async def test_busy(tmp_path: Path) -> None:
    """BUSY: the script of another client does not end."""
    async with (
        open_case("BUSY", tmp_path, "--lua-time-limit", "5") as (drill, server, control),
        trio.open_nursery() as n,
    ):

        def run_forever() -> None:
            with open_control(server) as other, pytest.raises(redis.ResponseError, match="killed"):
                other.eval("while true do end", 0)

        n.start_soon(trio.to_thread.run_sync, run_forever)
        await trio.sleep(FAULT_SECONDS)
        control.script_kill()
        drill.recovered()
        await conclude(drill)


async def test_password_rotated(tmp_path: Path) -> None:
    """The password is changed and all connections are closed; later the old one is set again."""
    async with open_case("wrong password, rotated", tmp_path) as (drill, server, control):
        control.config_set("requirepass", "after")
        with open_control(server, "after") as other:
            other.client_kill_filter(_type="normal", skipme=True)
            await trio.sleep(FAULT_SECONDS)
            other.config_set("requirepass", "")
        drill.recovered()
        await conclude(drill)


@contextmanager
def open_deaf_listener(port: int) -> Iterator[None]:
    """Listen on ``port`` without accepting: the kernel completes connections, and nothing answers on them."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(64)
        yield


async def test_listener_that_never_accepts(tmp_path: Path) -> None:
    """At the server's port something takes connections and sends nothing."""
    store = RestartableServer(tmp_path)
    with store.run() as server:
        async with open_gateway_drill("never accepts", tmp_path, store.url) as drill:
            await drill.wait_calm()
            server.send_signal(signal.SIGKILL)
            server.process.wait()
            with open_deaf_listener(store.port):
                await trio.sleep(FAULT_SECONDS)
            with store.run():
                drill.recovered()
                await conclude(drill, loses_store=True)


async def test_wrong_password_at_the_start(tmp_path: Path) -> None:
    """A store that refuses the login at the start: cgw prints one sentence without the password, and exits with 1."""
    store = RestartableServer(tmp_path, "--requirepass", "right")
    environ = {"REDIS_ENDPOINT": f"redis://:canary@127.0.0.1:{store.port}", "CODY_GATEWAY_REDIS_TIMEOUT": "100ms"}
    async with open_scripted_upstream(Script()) as upstream:
        with store.run():
            started = trio.current_time()
            process = start_cgw(build_environ(tmp_path, upstream.url, more=environ), tmp_path / "log")
            await wait_until(lambda: process.poll() is not None, seconds=20)
            report(f"wrong password at start      ended after {(trio.current_time() - started) * 1000:.0f} ms")
    text = (tmp_path / "log").read_text()
    assert process.returncode == 1
    (sentence,) = [line for line in text.splitlines() if line.startswith("cgw: ")]
    assert f"127.0.0.1:{store.port}" in sentence
    report(f"  {sentence}")
    assert "canary" not in text
    assert "Traceback" not in text


async def test_listener_that_never_accepts_at_the_start(tmp_path: Path) -> None:
    """A store that takes connections and sends nothing at the start delays it by one attempt, and is then an outage."""
    store = RestartableServer(tmp_path)
    environ = {"REDIS_ENDPOINT": f"redis://:canary@127.0.0.1:{store.port}", "CODY_GATEWAY_REDIS_TIMEOUT": "100ms"}
    async with open_scripted_upstream(Script()) as upstream:
        with open_deaf_listener(store.port):
            started = trio.current_time()
            async with open_gateway_process(
                build_environ(tmp_path, upstream.url, more=environ), tmp_path / "log"
            ) as gateway:
                report(f"never accepts at start       serves after {(trio.current_time() - started) * 1000:.0f} ms")
                gateway.terminate()
                assert await gateway.wait() == 0
    text = (tmp_path / "log").read_text()
    assert f"limits are held in this process alone until it is back: Redis at 127.0.0.1:{store.port} did" in text
    assert "canary" not in text
