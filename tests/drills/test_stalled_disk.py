"""Drills: the disk of the event log stops for two seconds under a whole gateway, and under one of its own process."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
import trio

import cgw
from cgw.testing.script import Script
from cgw.testing.scripted_upstream import open_scripted_upstream
from tests.support.disk import install_disk
from tests.support.gateway import ANTHROPIC_KEY, ANTHROPIC_MODEL, OPENAI_KEY, OPENAI_MODEL, build_environ, open_gateway
from tests.support.limits import PATIENT, open_http, read_recorded
from tests.support.process import wait_ended, wait_until_serving
from tests.support.requests import HEADERS, build_body
from tests.support.stalls import watch_stalls
from tests.support.waiting import wait_until

SHORT_PATH, STREAM_PATH = "/v1/completions/anthropic-messages", "/v1/completions/openai"
LONG_STREAM = build_body(STREAM_PATH, stream=True, max_tokens=1000)
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
            async with client.stream("POST", STREAM_PATH, json=LONG_STREAM) as answer:
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


STREAMS = 20

SERVE_ON_A_STALLING_DISK = """
import os, stat, sys, time
from cgw.__main__ import main

write, flag = os.write, sys.argv.pop(1)

def write_when_open(descriptor, data):
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        while os.path.exists(flag):
            time.sleep(0.001)
    return write(descriptor, data)

os.write = write_when_open
main()
"""
"""Runs cgw, whose writes to files do not return while a certain file exists."""


def serve_on_a_stalling_disk(environ: dict[str, str], flag: Path, log_path: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", SERVE_ON_A_STALLING_DISK, str(flag), "serve"]
    root = Path(cgw.__file__).parents[1]
    with log_path.open("wb") as log:
        return subprocess.Popen(command, cwd=root, env=environ, stdout=log, stderr=log)


@contextmanager
def stalled(flag: Path) -> Iterator[None]:
    """Let no write of the process return while the block runs."""
    flag.touch()
    try:
        yield
    finally:
        flag.unlink()


def measure_gap(arrivals: list[list[float]], begin: float) -> float:
    """Return the longest time between two pieces of a stream, of those around a stall that began at ``begin``."""
    end = begin + STALL_SECONDS
    return max(
        later - earlier for times in arrivals for earlier, later in pairwise(times) if earlier < end and later > begin
    )


async def test_unexpected_stall_stops_no_stream(tmp_path: Path) -> None:
    """A stall that comes without a warning stops new requests for that one write; the next one stops nothing.

    Streams go on in both: the thread of the relay forwards them, also while Trio's waits for the disk.
    """
    scripts = {
        ANTHROPIC_MODEL: Script(answer="Good day.", tokens_per_second=math.inf, api_key=ANTHROPIC_KEY),
        OPENAI_MODEL: Script(answer="word " * 300, tokens_per_second=50, api_key=OPENAI_KEY),
    }
    flag, log_path = tmp_path / "stalled", tmp_path / "log"
    arrivals: list[list[float]] = [[] for _ in range(STREAMS)]
    answered_at: list[float] = []

    async def stream(client: httpx.AsyncClient, number: int) -> None:
        async with client.stream("POST", STREAM_PATH, json=LONG_STREAM) as answer:
            assert answer.status_code == 200
            arrivals[number].extend([trio.current_time() async for _ in answer.aiter_raw()])

    async def ask(client: httpx.AsyncClient) -> None:
        answer = await client.post(SHORT_PATH, json=build_body(SHORT_PATH, stream=False))
        assert answer.status_code == 200
        answered_at.append(trio.current_time())

    async with open_scripted_upstream(scripts) as upstream:
        environ = build_environ(tmp_path, upstream.url, more=PATIENT)
        process = serve_on_a_stalling_disk(environ, flag, log_path)
        try:
            url = f"http://127.0.0.1:{await wait_until_serving(process, log_path)}"
            limits = httpx.Limits(max_connections=STREAMS + 10)
            async with (
                httpx.AsyncClient(base_url=url, headers=HEADERS, timeout=30, limits=limits) as client,
                watch_stalls() as stalls,
                trio.open_nursery() as nursery,
            ):
                for number in range(STREAMS):
                    nursery.start_soon(stream, client, number)
                await ask(client)
                await trio.sleep(0.5)
                begins: list[float] = []
                for _ in range(2):
                    begins.append(trio.current_time())
                    with stalled(flag):
                        for _ in range(5):
                            nursery.start_soon(ask, client)
                        await trio.sleep(STALL_SECONDS)
                        if len(begins) == 2:  # by now a thread writes, and everything else goes on
                            health = await client.get("/-/healthz")
                            assert "the disk of the usage events is slow; 5 events wait for it" in health.text
                    await wait_until(lambda: len(answered_at) == 1 + 5 * len(begins), seconds=10)
                with trio.fail_after(20):
                    while "is quick again:" not in log_path.read_text():
                        await ask(client)
                        await trio.sleep(0.1)
            process.terminate()
            assert await wait_ended(process) == 0
        finally:
            process.kill()
            process.wait()
    gaps = [measure_gap(arrivals, begin) for begin in begins]
    sys.stdout.write(
        f"\na disk that hangs for {STALL_SECONDS} s: longest gap of {STREAMS} streams {gaps[0] * 1000:.0f} ms when it "
        f"comes unexpectedly, {gaps[1] * 1000:.0f} ms when a thread writes\n"
    )
    assert max(gaps) < MAX_GAP_SECONDS + stalls.total_seconds
    assert log_path.read_text().partition("is quick again:")[0].count("a thread writes them until") == 1
    assert len(read_recorded(tmp_path)) == len(answered_at) + STREAMS
