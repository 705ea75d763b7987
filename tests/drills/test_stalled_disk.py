"""A drill: the disk of the event log stops for two seconds under a whole gateway."""

from __future__ import annotations

import math
import sys
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
import trio

from cgw.testing.script import Script
from cgw.testing.scripted_upstream import open_scripted_upstream
from tests.support.disk import install_disk
from tests.support.gateway import ANTHROPIC_KEY, ANTHROPIC_MODEL, OPENAI_KEY, OPENAI_MODEL, open_gateway
from tests.support.limits import open_http, read_recorded
from tests.support.requests import build_body
from tests.support.stalls import watch_stalls

SHORT_PATH, STREAM_PATH = "/v1/completions/anthropic-messages", "/v1/completions/openai"
STALL_SECONDS = 2.0
MAX_GAP_SECONDS = 0.5
"""Far below the stall, and far above one slow write on a busy machine."""


async def test_disk_that_stops_does_not_stop_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the disk hangs, answers wait for their end, and streams flow; afterwards every event is there, once."""
    disk = install_disk(monkeypatch)
    scripts = {
        ANTHROPIC_MODEL: Script(answer="Good day.", tokens_per_second=math.inf, api_key=ANTHROPIC_KEY),
        OPENAI_MODEL: Script(answer="word " * 150, tokens_per_second=50, api_key=OPENAI_KEY),
    }
    arrivals: list[float] = []
    answered_at: list[float] = []
    async with (
        open_scripted_upstream(scripts) as upstream,
        open_gateway(tmp_path, upstream.url) as gateway,
        open_http(gateway) as client,
        watch_stalls() as stalls,
    ):

        async def stream() -> None:
            async with client.stream("POST", STREAM_PATH, json=build_body(STREAM_PATH, stream=True)) as answer:
                arrivals.extend([trio.current_time() async for _ in answer.aiter_raw()])

        async def ask(client: httpx.AsyncClient) -> None:
            answer = await client.post(SHORT_PATH, json=build_body(SHORT_PATH, stream=False))
            assert answer.status_code == 200
            answered_at.append(trio.current_time())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream)
            await trio.sleep(0.3)
            disk.write_seconds = 0.05
            await ask(client)
            disk.write_seconds = 0
            with disk.stalled():
                for _ in range(5):
                    nursery.start_soon(ask, client)
                await trio.sleep(STALL_SECONDS)
                released_at = trio.current_time()
                assert "the disk of the usage events is slow" in (await client.get("/-/healthz")).text
        longest_gap = max(later - earlier for earlier, later in pairwise(arrivals))
        statistics = gateway.gateway.event_log.statistics()
    sys.stdout.write(
        f"\na disk that hangs for {STALL_SECONDS} s: longest gap of a stream {longest_gap * 1000:.0f} ms\n"
    )
    assert longest_gap < MAX_GAP_SECONDS + stalls.total_seconds
    assert all(moment >= released_at for moment in answered_at[1:])
    assert len(answered_at) == 6
    assert (statistics.dropped, statistics.recorded) == (0, 7)
    assert len(read_recorded(tmp_path)) == 7
