"""Usage alerts of whole gateways: posted to Slack once each, without delaying anything."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from cgw.testing.scripted_upstream import ScriptedUpstream
from tests.support.limits import open_http, open_patient_gateway
from tests.support.raw_server import open_raw_server, read_request
from tests.support.redis_server import RedisServer, run_redis_server
from tests.support.requests import build_body
from tests.support.waiting import wait_until

PATH = "/v1/completions/anthropic-messages"
SECRET = "/services/T0CANARY/B0CANARY/x7secretcanary"
LIMIT = 4


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """Run one Redis for all gateways of a test."""
    (tmp_path / "redis").mkdir()
    with run_redis_server(tmp_path / "redis") as running:
        yield running


def build_settings(server: RedisServer, port: int) -> dict[str, str]:
    return {
        "REDIS_ENDPOINT": server.url,
        "CODY_GATEWAY_ACTOR_RATE_LIMIT_NOTIFY_SLACK_WEBHOOK_URL": f"http://127.0.0.1:{port}{SECRET}",
        "CODY_GATEWAY_ACTOR_RATE_LIMIT_NOTIFY_THRESHOLDS": "50,100",
    }


async def test_each_threshold_is_posted_once_over_all_replicas(
    tmp_path: Path, server: RedisServer, upstream: ScriptedUpstream
) -> None:
    """Two gateways share an actor's quota: 50 % and 100 % are posted once each, with all facts."""
    posted: list[dict[str, Any]] = []
    surplus = trio.Event()

    async def take(stream: trio.SocketStream) -> None:
        request = await read_request(stream)
        assert request is not None
        assert request[0].target == SECRET.encode()
        posted.append(json.loads(request[1]))
        if len(posted) > 2:
            surplus.set()
        await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    statuses = []
    async with open_raw_server(take) as port:
        settings = build_settings(server, port)
        for name in ("one", "other"):
            (tmp_path / name).mkdir()
        async with (
            open_patient_gateway(tmp_path / "one", upstream.url, limit=LIMIT, more=settings) as one,
            open_patient_gateway(tmp_path / "other", upstream.url, limit=LIMIT, more=settings) as other,
        ):
            for number in range(LIMIT + 2):
                async with open_http((one, other)[number % 2]) as client:
                    answer = await client.post(PATH, json=build_body(PATH, stream=False))
                statuses.append(answer.status_code)
            await wait_until(lambda: len(posted) == 2)
            with trio.move_on_after(0.1):
                await surplus.wait()
    assert statuses == [200] * LIMIT + [429] * 2
    texts = [message["text"] for message in posted]
    assert ["50%" in texts[0], "100%" in texts[1], len(texts)] == [True, True, 2]
    for text in texts:
        assert "Acme Inc." in text
        assert "chat_completions" in text
        assert "static" in text
        assert "resets in" in text


async def test_a_webhook_that_never_answers_delays_nothing(
    tmp_path: Path, server: RedisServer, upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    """Requests and the end of the gateway are not delayed; the log has the lost alerts, but no secret."""
    asked = trio.Event()

    async def never(stream: trio.SocketStream) -> None:
        asked.set()
        while await stream.receive_some(1000):
            pass

    async with open_raw_server(never) as port:
        settings = build_settings(server, port)
        with trio.fail_after(10):
            async with (
                open_patient_gateway(tmp_path, upstream.url, limit=LIMIT, more=settings) as gateway,
                open_http(gateway) as client,
            ):
                for _ in range(LIMIT):
                    answer = await client.post(PATH, json=build_body(PATH, stream=False))
                    assert answer.status_code == 200
                await asked.wait()
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert any("usage alerts were not delivered" in line for line in lines)
    assert not any("x7secretcanary" in record.getMessage() for record in caplog.records)


async def test_without_a_webhook_alerts_are_logged(
    tmp_path: Path, upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    """An alert is one line in the log, with the same facts."""
    caplog.set_level(logging.INFO)
    more = {"CODY_GATEWAY_ACTOR_RATE_LIMIT_NOTIFY_THRESHOLDS": "100"}
    async with (
        open_patient_gateway(tmp_path, upstream.url, limit=1, more=more) as gateway,
        open_http(gateway) as client,
    ):
        assert (await client.post(PATH, json=build_body(PATH, stream=False))).status_code == 200
        await wait_until(lambda: any("new usage alert" in record.getMessage() for record in caplog.records))
    (line,) = [record.getMessage() for record in caplog.records if "new usage alert" in record.getMessage()]
    assert "acme" in line
    assert "100" in line
