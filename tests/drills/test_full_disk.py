"""Drills: the disk of a whole gateway takes no more bytes. Its process's limit of file sizes stands in for the disk."""

from __future__ import annotations

import math
import resource
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx
import pytest
import trio
from attrs import frozen

from cgw.testing.script import Script
from cgw.testing.scripted_upstream import ScriptedUpstream, open_scripted_upstream
from tests.support.errors import read_error
from tests.support.gateway import ANTHROPIC_KEY, ANTHROPIC_MODEL, build_environ
from tests.support.limits import PATIENT, read_recorded
from tests.support.process import GatewayProcess, open_gateway_process, start_cgw, wait_ended
from tests.support.requests import HEADERS, build_body

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits another process, as only Linux can")

PATH = "/v1/completions/anthropic-messages"
ACTOR_UID = {"x-sourcegraph-actor-anonymous-uid": "x" * 2000}
"""Makes events several times larger than log lines, so that the segment is the file that meets the limit."""

FULL_AT_BYTES = 60_000  # less than a new segment has to take


@frozen
class Stage:
    """A running ``cgw serve`` with its upstream."""

    gateway: GatewayProcess
    upstream: ScriptedUpstream
    client: httpx.AsyncClient

    @contextmanager
    def full_disk(self, size: int) -> Iterator[None]:
        """Let no file of the process grow beyond ``size`` bytes while the block runs; not those of its store."""
        pid = self.gateway.process.pid
        before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, before)

    async def ask(self) -> httpx.Response:
        return await self.client.post(PATH, json=build_body(PATH, stream=False))

    async def read_health(self) -> tuple[int, str]:
        answer = await self.client.get("/-/healthz")
        return answer.status_code, answer.text

    async def get_usage(self) -> int:
        usage: int = (await self.client.get("/v1/limits")).json()["chat_completions"]["usage"]
        return usage

    async def wait_healthy(self) -> None:
        with trio.fail_after(20):
            health = await self.read_health()
            while health != (200, "healthz: ok"):
                await trio.sleep(0.05)
                health = await self.read_health()


@asynccontextmanager
async def open_stage(tmp_path: Path, when_full: str) -> AsyncIterator[Stage]:
    scripts = {ANTHROPIC_MODEL: Script(answer="Good day.", tokens_per_second=math.inf, api_key=ANTHROPIC_KEY)}
    async with open_scripted_upstream(scripts) as upstream:
        more = {**PATIENT, "CODY_GATEWAY_EVENTS_WHEN_FULL": when_full}
        async with (
            open_gateway_process(build_environ(tmp_path, upstream.url, more=more), tmp_path / "log") as gateway,
            httpx.AsyncClient(base_url=gateway.url, headers={**HEADERS, **ACTOR_UID}, timeout=30) as client,
        ):
            yield Stage(gateway, upstream, client)


async def test_refuse_costs_nothing_while_the_disk_is_full(tmp_path: Path) -> None:
    """From the first event that the disk does not take, requests get 503 and cost nothing; no event is lost."""
    async with open_stage(tmp_path, "refuse") as stage:
        with stage.full_disk(FULL_AT_BYTES):
            served = 0
            while (answer := await stage.ask()).status_code == 200:
                served += 1
                assert served < 1000
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert read_error(answer) == {"error": "usage cannot be recorded right now, please retry"}
            usage = await stage.get_usage()
            for _ in range(10):
                assert (await stage.ask()).status_code == 503
            await trio.sleep(1.5)  # a check, and it finds no room either
            status, health = await stage.read_health()
            assert (status, health.splitlines()[0]) == (500, "healthz: err")
            assert "new requests are refused; 1 went to the log" in health
            assert (stage.upstream.request_count, await stage.get_usage(), usage) == (served, served, served)
        await stage.wait_healthy()
        assert (await stage.ask()).status_code == 200
    log = tmp_path / "log"
    assert log.read_text().count("usage event not written: ") == 1
    assert len(read_recorded(tmp_path)) == served  # with that of the request after, and without the lost one
    process = start_cgw({}, tmp_path / "import.log", "events", "import", str(log), f"--data-dir={tmp_path}")
    assert await wait_ended(process) == 0
    events = read_recorded(tmp_path)
    assert [name for name, _ in events] == ["CompletionsFinished"] * (served + 1)


async def test_full_disk_that_holds_the_log_too_is_counted(tmp_path: Path) -> None:
    """Where events can go neither to their segment nor to the log, healthz says how many there were."""
    async with open_stage(tmp_path, "drop") as stage:
        assert (await stage.ask()).status_code == 200
        with stage.full_disk(100):
            for _ in range(5):
                assert (await stage.ask()).status_code == 200
            status, health = await stage.read_health()
            assert (status, health.splitlines()[0]) == (200, "healthz: ok")
            assert "usage events cannot be written (File too large)" in health
            assert "5 went to the log" in health
        await stage.wait_healthy()
        assert (await stage.ask()).status_code == 200
    assert len(read_recorded(tmp_path)) == 2
