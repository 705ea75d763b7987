"""Whole gateways while Redis is away, by each policy, and the charges to Redis afterwards."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anthropic
import httpx
import openai
import pytest
import trio

from cgw.service.lifecycle import Service
from cgw.testing.scripted_upstream import ScriptedUpstream
from tests.gateway.test_sdks import ask_anthropic, ask_openai, open_anthropic, open_openai
from tests.support.gateway import open_gateway
from tests.support.limits import count_held, get_usage, open_http, slow_down, wait_nothing_held
from tests.support.redis_server import RedisServer, run_redis_server
from tests.support.requests import ROUTES, build_body

PATH = "/v1/completions/anthropic-messages"
DEADLINE = {"CODY_GATEWAY_REDIS_TIMEOUT": "250ms"}
"""Longer than the default, so that pauses of a busy machine are not taken for outages."""
BACK_SECONDS = 1.0
GRACE_SECONDS = 1.0
"""The allowed time until all is as before, and a reserve for a busy machine."""
LIMIT = 8


@asynccontextmanager
async def open_pair(
    folder: Path, upstream: ScriptedUpstream, when_down: str
) -> AsyncIterator[tuple[Service, RedisServer, httpx.AsyncClient]]:
    """Run a gateway with a quota of :data:`LIMIT`, the Redis server that it uses, and a client of the gateway."""
    with run_redis_server(folder) as server:
        more = {"REDIS_ENDPOINT": server.url, "CODY_GATEWAY_LIMITS_WHEN_REDIS_DOWN": when_down, **DEADLINE}
        async with (
            open_gateway(folder, upstream.url, limit=LIMIT, chat_lines="max_in_flight = 3", more=more) as gateway,
            open_http(gateway) as client,
        ):
            yield gateway, server, client


async def ask(client: httpx.AsyncClient, path: str = PATH) -> httpx.Response:
    return await client.post(path, json=build_body(path, stream=False))


async def wait_back(client: httpx.AsyncClient) -> None:
    """Wait until healthz is ok without a detail; fails after a time limit."""
    with trio.fail_after(BACK_SECONDS + GRACE_SECONDS):
        while (await client.get("/-/healthz")).text != "healthz: ok":  # noqa: ASYNC110 - it happens in Redis
            await trio.sleep(0.01)


async def wait_usage(gateway: Service, usage: int) -> None:
    """Wait until Redis counts ``usage``; fails after a time limit."""
    with trio.fail_after(BACK_SECONDS + GRACE_SECONDS):
        while await get_usage(gateway) != usage:
            pass


def list_changes(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the log lines about the outage, without their reasons."""
    messages = [record.getMessage() for record in caplog.records if record.name == "cgw.limits"]
    return [message.partition(":")[0] for message in messages]


async def test_local_holds_limits_in_the_process(
    tmp_path: Path, upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    """Requests go on up to the limit, with the usual headers and refusals; all usage is in Redis afterwards."""
    async with open_pair(tmp_path, upstream, "local") as (gateway, server, client):
        assert [(await ask(client)).headers["x-ratelimit-remaining"] for _ in range(3)] == ["7", "6", "5"]
        server.send_signal(signal.SIGSTOP)
        answers = [await ask(client, path) for path in (*ROUTES, *ROUTES)]
        assert [answer.status_code for answer in answers] == [200] * 5 + [429] * 3
        assert [answer.headers["x-ratelimit-remaining"] for answer in answers] == list("43210000")
        assert answers[5].json()["error"].startswith(f"you have exceeded the rate limit of {LIMIT} requests per ")
        assert all('"in_flight";r=' in answer.headers["ratelimit"] for answer in answers)
        health = await client.get("/-/healthz")
        assert health.status_code == 200
        first, second = health.text.splitlines()
        assert first == "healthz: ok"
        assert second.startswith("Redis has been unavailable for ")
        assert second.endswith(": limits are held in this process alone")
        limits = (await client.get("/v1/limits")).json()["chat_completions"]
        assert (limits["usage"], limits["remaining"]) == (LIMIT, 0)
        server.send_signal(signal.SIGCONT)
        await wait_back(client)
        await wait_usage(gateway, LIMIT)
        await wait_nothing_held(gateway)
        assert (await ask(client)).status_code == 429
    away, back = list_changes(caplog)
    assert away == "Redis is unavailable, so limits are held in this process alone until it is back"
    assert back.startswith("Redis is back after ")


async def test_open_admits_all(tmp_path: Path, upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture) -> None:
    """No request is refused, and responses have no limit headers; all usage is in Redis afterwards."""
    async with open_pair(tmp_path, upstream, "open") as (gateway, server, client):
        assert (await ask(client)).status_code == 200
        server.send_signal(signal.SIGSTOP)
        answers = [await ask(client) for _ in range(6)]
        assert [answer.status_code for answer in answers] == [200] * 6
        assert not any(name.startswith(("ratelimit", "x-ratelimit")) for answer in answers for name in answer.headers)
        health = await client.get("/-/healthz")
        assert (health.status_code, health.text.splitlines()[0]) == (200, "healthz: ok")
        assert health.text.endswith(": no limits are held")
        limits = await client.get("/v1/limits")
        assert (limits.status_code, limits.headers["retry-after"]) == (503, "1")
        server.send_signal(signal.SIGCONT)
        await wait_back(client)
        await wait_usage(gateway, 7)
        assert [(await ask(client)).status_code for _ in range(2)] == [200, 429]
    assert len(list_changes(caplog)) == 2


async def test_closed_refuses_all(tmp_path: Path, upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture) -> None:
    """Every response is a 503 with retry-after, in its dialect, and healthz a 500; nothing is counted for it."""
    async with open_pair(tmp_path, upstream, "closed") as (gateway, server, client):
        assert (await ask(client)).status_code == 200
        server.send_signal(signal.SIGSTOP)
        for path in ROUTES:
            answer = await ask(client, path)
            error = answer.json()["error"]
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            text = error if isinstance(error, str) else error["message"]
            assert text == "limits cannot be checked right now, please retry"
        async with open_anthropic(gateway) as anthropic_client:
            with pytest.raises(anthropic.InternalServerError):
                await ask_anthropic(anthropic_client)
        async with open_openai(gateway) as openai_client:
            with pytest.raises(openai.InternalServerError):
                await ask_openai(openai_client)
        health = await client.get("/-/healthz")
        assert (health.status_code, health.text.splitlines()[0]) == (500, "healthz: err")
        assert health.text.endswith(": requests are refused")
        assert (await client.get("/v1/limits")).status_code == 503
        server.send_signal(signal.SIGCONT)
        await wait_back(client)
        await wait_usage(gateway, 1)
        await wait_nothing_held(gateway)
        assert (await ask(client)).headers["x-ratelimit-remaining"] == "6"
    assert upstream.request_count == 2
    assert len(list_changes(caplog)) == 2


@pytest.mark.parametrize("when_down", ["local", "open"])
async def test_streams_outlive_the_outage(tmp_path: Path, upstream: ScriptedUpstream, when_down: str) -> None:
    """Streams that began before, in or after an outage end normally, are charged once each and hold no slot."""
    slow_down(upstream, "word " * 15)
    async with open_pair(tmp_path, upstream, when_down) as (gateway, server, client):
        statuses: list[int] = []

        async def stream() -> None:
            answer = await client.post(PATH, json=build_body(PATH))
            assert "message_stop" in answer.text
            statuses.append(answer.status_code)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream)
            await upstream.wait_request(1)
            assert (await count_held(gateway)).slots == 1
            server.send_signal(signal.SIGSTOP)
            nursery.start_soon(stream)
            await upstream.wait_request(2)
            server.send_signal(signal.SIGCONT)
            await wait_back(client)
            nursery.start_soon(stream)
        assert statuses == [200, 200, 200]
        await wait_usage(gateway, 3)
        await wait_nothing_held(gateway)
        assert gateway.gateway.limiter.statistics().backlog == 0


async def test_a_server_that_came_back_empty_is_counted_on(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """A server that restarts empty gets the usage of the outage, and limits are enforced from then on."""
    async with open_pair(tmp_path, upstream, "local") as (gateway, server, client):
        for _ in range(2):
            assert (await ask(client)).status_code == 200
        server.send_signal(signal.SIGKILL)
        server.process.wait()
        for _ in range(3):
            assert (await ask(client)).status_code == 200
        with run_redis_server(tmp_path):
            await wait_back(client)
            await wait_usage(gateway, 3)
            assert (await ask(client)).headers["x-ratelimit-remaining"] == str(LIMIT - 4)
