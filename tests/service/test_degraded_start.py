"""Starting as it runs: without Redis, and on a full disk."""

from __future__ import annotations

import math
import re
import resource
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import trio

from cgw.events.imports import import_lines
from cgw.service.lifecycle import Service
from cgw.testing.script import Script
from cgw.testing.scripted_upstream import ScriptedUpstream, open_scripted_upstream
from tests.support.gateway import ANTHROPIC_KEY, ANTHROPIC_MODEL, build_environ, open_gateway
from tests.support.limits import read_recorded
from tests.support.process import GatewayProcess, wait_until_serving
from tests.support.redis_cluster import find_free_ports
from tests.support.redis_server import run_redis_server
from tests.support.requests import HEADERS, build_body
from tests.support.waiting import wait_until

PATH = "/v1/completions/anthropic-messages"
ROOM = resource.RLIM_INFINITY


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    """An upstream that answers at once."""
    scripts = {ANTHROPIC_MODEL: Script(answer="Good day.", tokens_per_second=math.inf, api_key=ANTHROPIC_KEY)}
    async with open_scripted_upstream(scripts) as upstream:
        yield upstream


def is_listening(port: int) -> bool:
    """Return whether a connection to ``port`` is accepted."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def ask(client: httpx.AsyncClient) -> int:
    """Send a request to a provider route; return the status."""
    return (await client.post(PATH, json=build_body(PATH, stream=False))).status_code


async def get_health(client: httpx.AsyncClient) -> tuple[int, list[str]]:
    """Return the status and the lines of healthz."""
    answer = await client.get("/-/healthz")
    return answer.status_code, answer.text.splitlines()


async def wait_healthy(client: httpx.AsyncClient) -> None:
    """Wait until healthz reports nothing any more."""
    with trio.fail_after(20):
        while await get_health(client) != (200, ["healthz: ok"]):  # noqa: ASYNC110 - it may be another process's state
            await trio.sleep(0.02)


@asynccontextmanager
async def open_without_redis(folder: Path, url: str, policy: str) -> AsyncIterator[tuple[Service, httpx.AsyncClient]]:
    """Run a gateway whose Redis is not there yet, with a quota of 3, and yield it with a client."""
    more = {"REDIS_ENDPOINT": f"unix://{folder / 'redis.sock'}", "CODY_GATEWAY_LIMITS_WHEN_REDIS_DOWN": policy}
    async with (
        open_gateway(folder, url, limit=3, more=more) as gateway,
        httpx.AsyncClient(base_url=gateway.url, headers=HEADERS) as client,
    ):
        yield gateway, client


@pytest.mark.parametrize("policy", ["local", "open"])
async def test_a_redis_that_is_away_does_not_keep_it_from_serving(
    tmp_path: Path, upstream: ScriptedUpstream, policy: str
) -> None:
    """It is ready at once, and limits follow the policy; once Redis is there, it counts, also what it missed."""
    async with open_without_redis(tmp_path, upstream.url, policy) as (gateway, client):
        assert (await client.get("/-/readyz")).status_code == 200
        status, lines = await get_health(client)
        assert (status, lines[0], len(lines)) == (200, "healthz: ok", 2)
        assert lines[1].startswith("Redis has been unavailable for ")
        statuses = [await ask(client) for _ in range(4)]
        assert statuses == [200, 200, 200, 429 if policy == "local" else 200]
        with run_redis_server(tmp_path):
            await wait_healthy(client)
            assert not gateway.redis.is_cluster
            assert await gateway.redis.commands.keys("*quota")
            assert await ask(client) == 429


async def test_with_closed_it_waits_for_redis(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """Where nothing may be served without Redis, it is not ready before, and answers 503 to whoever comes."""
    async with open_without_redis(tmp_path, upstream.url, "closed") as (_, client):
        for _ in range(2):
            answer = await client.get("/-/readyz")
            assert (answer.status_code, answer.text) == (503, "readyz: starting")
            assert await ask(client) == 503
        status, lines = await get_health(client)
        assert (status, lines[0]) == (500, "healthz: err")
        with run_redis_server(tmp_path):
            await wait_healthy(client)
            with trio.fail_after(5):
                while (await client.get("/-/readyz")).status_code != 200:  # noqa: ASYNC110 - no event for a client
                    await trio.sleep(0.01)
            assert await ask(client) == 200


async def test_a_drain_does_not_become_ready_again(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """A Redis that comes during the drain of a gateway that waited for it does not make that ready."""
    async with (
        open_without_redis(tmp_path, upstream.url, "closed") as (gateway, client),
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(lambda: gateway.drain(0, delay_seconds=60))
        await wait_until(lambda: gateway.status.phase.value == "draining")
        with run_redis_server(tmp_path):
            await wait_healthy(client)
            assert (await client.get("/-/readyz")).text == "readyz: draining"
        gateway.cut()


async def test_health_names_each_part_that_does_not_work(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """Redis, the event log and the source of actors have a line each, without what their files contain."""
    async with open_without_redis(tmp_path, upstream.url, "local") as (gateway, client):
        actors_file = tmp_path / "actors.toml"
        former = actors_file.read_text()
        actors_file.write_text("wrong = 'cgw_canary'")
        (reload,) = gateway.reloads
        with pytest.raises(Exception, match="wrong"):
            await reload.run()
        shutil.rmtree(gateway.events_folder)
        gateway.events_folder.write_text("a file where the folder should be")
        with trio.fail_after(10):
            while len((await get_health(client))[1]) < 4:  # noqa: ASYNC110 - the log looks at its segment by itself
                await trio.sleep(0.05)
        status, lines = await get_health(client)
        assert status == 200
        redis, events, actors = lines[1:]
        assert redis.startswith("Redis has been unavailable for ")
        assert events.startswith("usage events cannot be written (")
        assert actors == "the actors file cannot be used now (see the log); what was read before stays in force"
        actors_file.write_text(former)
        await reload.run()
        assert not [line for line in (await get_health(client))[1] if "actors" in line]


async def test_health_names_a_sink_that_takes_nothing(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """Events wait on the disk, so it is no failure; the line does not name the sink's host."""
    sink = {"CODY_GATEWAY_EVENTS_SINKS": "http", "CODY_GATEWAY_EVENTS_HTTP_URL": "http://127.0.0.1:9/canary"}
    async with (
        open_gateway(tmp_path, upstream.url, more=sink) as gateway,
        httpx.AsyncClient(base_url=gateway.url, headers=HEADERS) as client,
    ):
        assert await get_health(client) == (200, ["healthz: ok"])
        assert await ask(client) == 200
        with trio.fail_after(20):
            while not any("sink" in line for line in (await get_health(client))[1]):  # noqa: ASYNC110 - asked by itself
                await trio.sleep(0.05)
        status, lines = await get_health(client)
        assert status == 200
        (line,) = (line for line in lines if "sink" in line)
        assert re.fullmatch(r"sink http takes no events \(see the log\): about \d+ wait", line)


def start_on_full_disk(environ: Mapping[str, str], log: int = subprocess.PIPE) -> subprocess.Popen[bytes]:
    """Start ``cgw serve`` as a process that can write no byte to a file until its limit is raised; a pipe is none."""
    return subprocess.Popen(
        ["/bin/sh", "-c", 'ulimit -S -f 0; exec "$@"', "sh", sys.executable, "-m", "cgw", "serve"],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path), "PYTHONDONTWRITEBYTECODE": "1", **environ},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
    )


@asynccontextmanager
async def open_on_full_disk(folder: Path, url: str, when_full: str) -> AsyncIterator[GatewayProcess]:
    """Run such a process, and kill it at the end; a thread copies its log to a file."""
    process = start_on_full_disk(build_environ(folder, url, more={"CODY_GATEWAY_EVENTS_WHEN_FULL": when_full}))
    log_path = folder / "log"
    assert process.stdout is not None
    pipe = process.stdout
    with log_path.open("wb", buffering=0) as log:
        copying = threading.Thread(target=lambda: [log.write(line) for line in pipe])
        copying.start()
        try:
            yield GatewayProcess(process, await wait_until_serving(process, log_path), log_path)
        finally:
            process.kill()
            process.wait()
            copying.join()
            pipe.close()


@pytest.mark.parametrize("when_full", ["drop", "refuse"])
async def test_a_full_disk_does_not_keep_it_from_starting(
    tmp_path: Path, upstream: ScriptedUpstream, when_full: str
) -> None:
    """It says what it cannot do, acts as on a disk that fills up while it runs, and recovers once there is room."""
    is_refusing = when_full == "refuse"
    async with (
        open_on_full_disk(tmp_path, upstream.url, when_full) as gateway,
        httpx.AsyncClient(base_url=gateway.url, headers=HEADERS) as client,
    ):
        assert await ask(client) == (503 if is_refusing else 200)
        status, lines = await get_health(client)
        assert (status, len(lines)) == (500 if is_refusing else 200, 3)
        log = gateway.log_path.read_text()
        assert "the embedded store cannot be started on a full disk; trying again" in log
        assert "usage events cannot be written" in log
        assert "cgw events import" in log
        assert "Traceback" not in log
        resource.prlimit(gateway.process.pid, resource.RLIMIT_FSIZE, (ROOM, ROOM))
        await wait_healthy(client)
        assert await ask(client) == 200
        recorded = [name for name, _ in read_recorded(tmp_path)]
        assert recorded == ["CompletionsFinished"]
        gateway.terminate()
        assert await gateway.wait() == 0


async def test_usage_survives_a_full_disk_that_log_and_data_share(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """An event that neither the event log nor the log can take is in the log as soon as there is room, to import."""
    (port,) = find_free_ports(1)
    log_path = tmp_path / "log"
    with log_path.open("wb") as log:
        process = start_on_full_disk(build_environ(tmp_path, upstream.url, more={"PORT": str(port)}), log.fileno())
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=HEADERS) as client:
            await wait_until(lambda: is_listening(port), seconds=20)
            assert await ask(client) == 200
            assert log_path.read_bytes() == b""
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (ROOM, ROOM))
            await wait_healthy(client)
            await wait_until(lambda: "the log could not be written for " in log_path.read_text())
            with log_path.open("rb") as lines:
                assert import_lines(lines, tmp_path / "events").imported == 1
    finally:
        process.kill()
        process.wait()
