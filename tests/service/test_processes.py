"""``cgw serve`` as operators run it: several processes on one Redis, killed, drained, and misconfigured."""

from __future__ import annotations

import math
import os
import signal
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest
import trio

from cgw.redis.embedded import open_embedded_redis
from cgw.testing.script import Script
from cgw.testing.scripted_upstream import ScriptedUpstream, open_scripted_upstream
from tests.support.gateway import ANTHROPIC_KEY, ANTHROPIC_MODEL, build_environ
from tests.support.limits import PATIENT, read_recorded
from tests.support.process import GatewayProcess, open_gateway_process, start_cgw
from tests.support.redis_server import run_redis_server
from tests.support.requests import HEADERS, build_body, build_request, read_until
from tests.support.waiting import wait_until

PATH = "/v1/completions/anthropic-messages"


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    """An upstream that answers at once."""
    scripts = {ANTHROPIC_MODEL: Script(answer="Good day.", tokens_per_second=math.inf, api_key=ANTHROPIC_KEY)}
    async with open_scripted_upstream(scripts) as upstream:
        yield upstream


async def test_three_processes_admit_exactly_the_limit(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """Of 200 concurrent requests to three processes that share one Redis, a limit of 50 admits 50."""
    statuses: Counter[int] = Counter()
    async with AsyncExitStack() as stack:
        store = tmp_path / "store"
        store.mkdir()
        redis_url = await stack.enter_async_context(open_embedded_redis(store))
        gateways: list[GatewayProcess] = []
        for name in ("a", "b", "c"):
            data_dir = tmp_path / name
            data_dir.mkdir()
            environ = build_environ(
                data_dir, upstream.url, limit=50, concurrent_requests=200, more={"REDIS_ENDPOINT": redis_url, **PATIENT}
            )
            gateways.append(await stack.enter_async_context(open_gateway_process(environ, data_dir / "log")))
        limits = httpx.Limits(max_connections=200)
        client = await stack.enter_async_context(httpx.AsyncClient(headers=HEADERS, limits=limits, timeout=60))

        async def ask(gateway: GatewayProcess) -> None:
            answer = await client.post(f"{gateway.url}{PATH}", json=build_body(PATH, stream=False))
            statuses[answer.status_code] += 1

        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(ask, gateways[number % 3])
        usage = (await client.get(f"{gateways[0].url}/v1/limits")).json()["chat_completions"]["usage"]
        # Repeated refusals share an event, a second long: the gateways are killed at the end of the block.
        await wait_until(lambda: count_events(tmp_path)["RateLimited"] == 150)
    assert statuses == {200: 50, 429: 150}
    assert usage == 50
    assert upstream.request_count == 50
    assert count_events(tmp_path) == {"CompletionsFinished": 50, "RateLimited": 150}


def count_events(directory: Path) -> Counter[str]:
    """Count what the gateways a, b and c recorded, by name."""
    events: Counter[str] = Counter()
    for gateway in "abc":
        for name, metadata in read_recorded(directory / gateway):
            events[name] += metadata.get("count", 1)
    return events


async def test_kill_9_loses_no_usage_and_leaves_no_orphan(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """After a kill amid 100 streams every complete response is recorded, the server is gone, and cgw restarts."""
    for number in range(100):
        upstream.scripts[f"claude-{number}"] = Script(
            answer="word " * (number + 1), tokens_per_second=200, api_key=ANTHROPIC_KEY
        )
    models = ",".join(f"claude-{number}" for number in range(100))
    environ = build_environ(tmp_path, upstream.url, more={"CODY_GATEWAY_ANTHROPIC_ALLOWED_MODELS": models})
    complete: set[str] = set()
    broken: set[str] = set()
    async with open_gateway_process(environ, tmp_path / "log") as gateway:
        store_pid = find_store_pid(tmp_path)
        async with (
            httpx.AsyncClient(base_url=gateway.url, timeout=60, limits=httpx.Limits(max_connections=100)) as client,
            trio.open_nursery() as nursery,
        ):

            async def ask(number: int) -> None:
                headers = {**HEADERS, "x-sourcegraph-actor-anonymous-uid": str(number)}
                body = build_body(PATH, model=f"claude-{number}", max_tokens=1000)
                try:
                    answer = await client.post(PATH, json=body, headers=headers)
                except httpx.TransportError:
                    broken.add(str(number))
                else:
                    assert answer.status_code == 200
                    complete.add(str(number))
                    if len(complete) == 40:
                        gateway.kill()

            for number in range(100):
                nursery.start_soon(ask, number)
        assert await gateway.wait() == -signal.SIGKILL
    assert len(complete) >= 40
    assert broken
    await wait_until(lambda: not is_alive(store_pid), seconds=10)
    async with open_gateway_process(environ, tmp_path / "log"):
        pass
    recorded = {metadata["sg_actor_anonymous_uid"] for _, metadata in read_recorded(tmp_path)}
    assert complete <= recorded


def find_store_pid(data_dir: Path) -> int:
    """Return the process id of the embedded server whose data is in ``data_dir``."""
    (pid_file,) = data_dir.rglob("*.pid")
    return int(pid_file.read_text().split()[0])


def is_alive(pid: int) -> bool:
    """Return whether a process is running; a zombie is not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.parametrize("is_after_control", [False, True], ids=["first request", "after a control request"])
async def test_sigterm_lets_streams_finish(tmp_path: Path, upstream: ScriptedUpstream, is_after_control: bool) -> None:
    """After SIGTERM the port is closed, the open stream finishes, and the exit status is 0."""
    upstream.scripts[ANTHROPIC_MODEL] = Script(answer="word " * 60, tokens_per_second=100, api_key=ANTHROPIC_KEY)
    environ = build_environ(tmp_path, upstream.url)
    async with open_gateway_process(environ, tmp_path / "log") as gateway:
        async with await trio.open_tcp_stream("127.0.0.1", gateway.port) as stream:
            if is_after_control:
                await stream.send_all(b"GET /-/__version HTTP/1.1\r\nhost: x\r\n\r\n")
                await read_until(stream, b"0.1.0")
            async with await trio.open_tcp_stream("127.0.0.1", gateway.port) as idle:
                await stream.send_all(build_request(PATH))
                await read_until(stream, b"content_block_delta")
                gateway.terminate()
                assert await idle.receive_some(100) == b""
            await wait_until(lambda: not is_listening(gateway.port))
            data = await read_until(stream, b"\r\n0\r\n\r\n")
            assert data.endswith(b"\r\n0\r\n\r\n")
            assert b"message_stop" in data
            assert await stream.receive_some(100) == b""
        assert await gateway.wait() == 0
    ((name, metadata),) = read_recorded(tmp_path)
    assert (name, metadata["resolved_status_code"]) == ("CompletionsFinished", 200)


def is_listening(port: int) -> bool:
    """Return whether something accepts connections at ``port``."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("is_after_control", [False, True], ids=["first request", "after a control request"])
async def test_what_does_not_finish_in_time_is_cut_and_recorded(
    tmp_path: Path, upstream: ScriptedUpstream, is_after_control: bool
) -> None:
    """When the drain timeout is over, open streams break visibly, are recorded and charged; the exit status is 0."""
    upstream.scripts[ANTHROPIC_MODEL] = Script(answer="word " * 9000, tokens_per_second=100, api_key=ANTHROPIC_KEY)
    environ = build_environ(tmp_path, upstream.url, more={"CODY_GATEWAY_DRAIN_TIMEOUT": "200ms"})
    async with open_gateway_process(environ, tmp_path / "log") as gateway:
        async with await trio.open_tcp_stream("127.0.0.1", gateway.port) as stream:
            if is_after_control:
                await stream.send_all(b"GET /-/__version HTTP/1.1\r\nhost: x\r\n\r\n")
                await read_until(stream, b"0.1.0")
            await stream.send_all(build_request(PATH))
            await read_until(stream, b"content_block_delta")
            gateway.terminate()
            try:
                data = await read_until(stream, b"\r\n0\r\n\r\n")
            except trio.BrokenResourceError:
                data = b""
            assert not data.endswith(b"\r\n0\r\n\r\n")
        assert await gateway.wait() == 0
        assert "shutdown" in gateway.log_path.read_text()
    ((name, metadata),) = read_recorded(tmp_path)
    assert (name, metadata["upstream_status_code"], metadata["usage_quality"]) == (
        "CompletionsFinished",
        200,
        "partial",
    )


async def test_redis_that_refuses_the_password_is_one_sentence(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """If Redis refuses the login, cgw says so once, with its address but not its password, and exits with 1."""
    with run_redis_server(tmp_path, "--requirepass", "another") as server:
        environ = build_environ(tmp_path, upstream.url, more={"REDIS_ENDPOINT": f"unix://:canary@{server.path}"})
        process = start_cgw(environ, tmp_path / "log")
        await wait_until(lambda: process.poll() is not None, seconds=20)
    assert process.returncode == 1
    lines = [line for line in (tmp_path / "log").read_text().splitlines() if line.startswith("cgw: ")]
    assert len(lines) == 1
    assert f"{server.path} refused us: WRONGPASS" in lines[0]
    assert "canary" not in (tmp_path / "log").read_text()
    assert "Traceback" not in (tmp_path / "log").read_text()


async def test_a_taken_port_is_one_sentence(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """If the port is in use, cgw names it and exits with 1."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        process = start_cgw(build_environ(tmp_path, upstream.url, more={"PORT": port}), tmp_path / "log")
        await wait_until(lambda: process.poll() is not None, seconds=20)
    assert process.returncode == 1
    lines = [line for line in (tmp_path / "log").read_text().splitlines() if line.startswith("cgw: ")]
    assert len(lines) == 1
    assert port in lines[0]


@pytest.mark.parametrize("when_down", ["local", "open", "closed"])
async def test_a_store_that_dies(tmp_path: Path, upstream: ScriptedUpstream, when_down: str) -> None:
    """While its server is killed and restarted, cgw answers at once by its policy: 200, or 503 with retry-after."""
    settings = {"CODY_GATEWAY_LIMITS_WHEN_REDIS_DOWN": when_down}
    async with (
        open_gateway_process(build_environ(tmp_path, upstream.url, more=settings), tmp_path / "log") as gateway,
        httpx.AsyncClient(base_url=gateway.url, headers=HEADERS) as client,
    ):
        body = build_body(PATH, stream=False)
        assert (await client.post(PATH, json=body)).status_code == 200
        os.kill(find_store_pid(tmp_path), signal.SIGKILL)
        statuses: set[int] = set()
        with trio.fail_after(20):
            while (health := await client.get("/-/healthz")).text.count("\n") == 0:
                statuses.add((await client.post(PATH, json=body)).status_code)
            assert health.status_code == (500 if when_down == "closed" else 200)
            while health.text != "healthz: ok":
                answer = await client.post(PATH, json=body)
                statuses.add(answer.status_code)
                assert answer.headers.get("retry-after") == ("1" if answer.status_code == 503 else None)
                health = await client.get("/-/healthz")
        assert (await client.post(PATH, json=body)).headers["x-ratelimit-limit"] == "1000"
    assert statuses - {200} == ({503} if when_down == "closed" else set())
