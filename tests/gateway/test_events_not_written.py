"""Whole exchanges while usage events cannot be written, by policy; and what healthz says of it."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from cgw.events.imports import import_lines
from cgw.service.lifecycle import Service
from cgw.testing.scripted_upstream import ScriptedUpstream
from tests.support.errors import read_error
from tests.support.gateway import open_gateway
from tests.support.limits import open_http, read_recorded
from tests.support.requests import build_body
from tests.support.waiting import wait_until

PATH = "/v1/completions/anthropic-messages"


@asynccontextmanager
async def open_without_folder(data_dir: Path, upstream_url: str, when_full: str) -> AsyncIterator[Service]:
    """A gateway whose events folder was replaced by a file, and which knows that by now."""
    more = {"CODY_GATEWAY_EVENTS_WHEN_FULL": when_full}
    async with open_gateway(data_dir, upstream_url, more=more) as gateway:
        shutil.rmtree(gateway.events_folder)
        gateway.events_folder.write_text("")
        await wait_until(lambda: gateway.gateway.event_log.describe() is not None)
        yield gateway


async def ask(client: httpx.AsyncClient) -> httpx.Response:
    return await client.post(PATH, json=build_body(PATH, stream=False))


async def test_drop_serves_and_writes_events_to_the_log(
    tmp_path: Path, upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    """With ``drop`` requests are served; healthz says why it is not well; the event is in the log."""
    async with open_without_folder(tmp_path, upstream.url, "drop") as gateway, open_http(gateway) as client:
        assert (await ask(client)).status_code == 200
        health = await client.get("/-/healthz")
        first, detail = health.text.splitlines()
        assert (health.status_code, first) == (200, "healthz: ok")
        assert detail.startswith("usage events cannot be written (a new segment cannot be started: File exists)")
        assert gateway.gateway.event_log.statistics().dropped == 1
        gateway.events_folder.unlink()
        await wait_until(lambda: gateway.gateway.event_log.describe() is None)
        assert (await client.get("/-/healthz")).text == "healthz: ok"
        assert (await ask(client)).status_code == 200
    import_lines([record.getMessage().encode() for record in caplog.records], tmp_path / "events")
    assert [name for name, _ in read_recorded(tmp_path)] == ["CompletionsFinished"] * 2


async def test_refuse_answers_503_before_the_upstream_is_asked(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """With ``refuse`` requests get 503 with retry-after, and cost nothing; healthz fails; then all is well again."""
    async with open_without_folder(tmp_path, upstream.url, "refuse") as gateway, open_http(gateway) as client:
        answer = await ask(client)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert read_error(answer) == {"error": "usage cannot be recorded right now, please retry"}
        assert upstream.request_count == 0
        health = await client.get("/-/healthz")
        assert (health.status_code, health.text.splitlines()[0]) == (500, "healthz: err")
        assert "new requests are refused" in health.text
        gateway.events_folder.unlink()
        await wait_until(lambda: gateway.gateway.event_log.is_accepting)
        assert (await ask(client)).status_code == 200
    assert [name for name, _ in read_recorded(tmp_path)] == ["CompletionsFinished"]
