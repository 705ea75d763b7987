"""Drill: a flood of random tokens beside good requests. ``-s`` prints the figures.

Gateway and flood are processes of their own. ``CGW_LONG_DRILLS=1`` sends 50,000 tokens. The bound on the good requests'
latency is wide, for machines that do other work at the same time; the goal, 1.5 times the quiet value, is for one that
does not, and is printed with the figures.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import trio

from cgw.testing.script import Script
from cgw.testing.scripted_sourcegraph import SERVICE_TOKEN, ScriptedUser, open_scripted_sourcegraph
from cgw.testing.scripted_upstream import open_scripted_upstream
from tests.support.gateway import OPENAI_KEY, build_environ
from tests.support.open_load import quantile
from tests.support.process import GatewayProcess, open_gateway_process
from tests.support.raw_client import open_client
from tests.support.sources import user_token
from tests.support.token_flood import BODY, FLOOD_SECONDS

IS_LONG = os.environ.get("CGW_LONG_DRILLS") == "1"
TOKENS, RATE = (50_000, 800) if IS_LONG else (3_000, 300)
GOOD_PER_SECOND = 50
QUIET_SECONDS = 6.0 if IS_LONG else 3.0
BUDGET_PER_MINUTE = 300
GROWTH_BYTES = 24 * 2**20
GOAL = 1.5
FACTOR, SLACK_MS = 4.0, 25.0
TOKEN = user_token("good")
REQUEST = (
    f"POST /v1/completions/openai HTTP/1.1\r\nhost: x\r\nx-sourcegraph-feature: chat_completions\r\n"
    f"authorization: Bearer {TOKEN}\r\ncontent-length: {len(BODY)}\r\n\r\n"
).encode() + BODY


def report(text: str) -> None:
    """Print a line of figures, for ``-s``."""
    sys.stdout.write(f"{text}\n")


async def measure_good(gateway: GatewayProcess, is_over: trio.Event | None) -> list[float]:
    """Send good requests at a steady pace until ``is_over``, or for the quiet time; return sorted milliseconds."""
    latencies, started = [], trio.current_time()
    async with open_client(gateway.port) as client:
        while not is_over.is_set() if is_over is not None else trio.current_time() - started < QUIET_SECONDS:
            began = time.perf_counter()
            answer = await client.ask(REQUEST)
            latencies.append((time.perf_counter() - began) * 1000)
            assert answer.status == 200
            await trio.sleep(1 / GOOD_PER_SECOND)
    return sorted(latencies)


async def run_flood(gateway: GatewayProcess, is_over: trio.Event) -> dict[str, int]:
    """Run the flood; return the number of answers by status."""
    command = [sys.executable, "-m", "tests.support.token_flood", str(gateway.port), str(TOKENS), str(RATE)]
    try:
        done = await trio.run_process(command, capture_stdout=True, stdin=subprocess.DEVNULL)
    finally:
        is_over.set()
    statuses: dict[str, int] = json.loads(done.stdout)
    return statuses


def read_resident_bytes(gateway: GatewayProcess) -> int:
    """Return the resident memory of the gateway."""
    pages = int(Path(f"/proc/{gateway.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def test_flood_of_random_tokens(tmp_path: Path) -> None:
    """No fetch beyond the address's budget, bounded memory, and good requests hardly notice."""
    scripts = {"*": Script(answer="Hi.", tokens_per_second=0, api_key=OPENAI_KEY)}
    async with (
        open_scripted_sourcegraph() as sourcegraph,
        open_scripted_upstream(scripts, keep_requests=10) as upstream,
    ):
        sourcegraph.users[TOKEN] = ScriptedUser(1, limits={"chatCompletions": _unlimited()})
        more = {
            "CODY_GATEWAY_DOTCOM_API_URL": sourcegraph.url,
            "CODY_GATEWAY_DOTCOM_ACCESS_TOKEN": SERVICE_TOKEN,
            "CODY_GATEWAY_UNKNOWN_TOKENS_PER_ADDRESS": str(BUDGET_PER_MINUTE),
        }
        environ = build_environ(tmp_path, upstream.url, more=more)
        async with open_gateway_process(environ, tmp_path / "gateway.log") as gateway:
            before = await measure_good(gateway, None)
            resident, fetched, started = (
                read_resident_bytes(gateway),
                sum(sourcegraph.counts.values()),
                time.monotonic(),
            )
            is_over = trio.Event()
            statuses: dict[str, int] = {}

            async def flood() -> None:
                statuses.update(await run_flood(gateway, is_over))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(flood)
                beside = await measure_good(gateway, is_over)
            seconds = time.monotonic() - started
            fetches = sum(sourcegraph.counts.values()) - fetched
            grown = read_resident_bytes(gateway) - resident
            after = await measure_good(gateway, None)
    budget = BUDGET_PER_MINUTE * (1 + seconds / 60)
    quiet_p99 = max(quantile(before, 0.99), quantile(after, 0.99))
    p99 = quantile(beside, 0.99)
    report(f"\n{TOKENS} random tokens in {seconds:.0f} s: answers {statuses}, {fetches} fetches (budget {budget:.0f})")
    report(f"resident memory {grown / 2**20:+.1f} MiB")
    report(
        f"good requests, p50 / p99 in ms: quiet {describe(before)}, beside {describe(beside)}, quiet {describe(after)}"
    )
    report(f"p99 beside is {p99 / quiet_p99:.2f} times the quiet one (goal: at most {GOAL})")
    assert sum(statuses.values()) == TOKENS or seconds > FLOOD_SECONDS
    assert set(statuses) <= {"401", "429"}
    assert 1 <= fetches <= budget + 1
    assert grown < GROWTH_BYTES
    assert p99 <= FACTOR * quiet_p99 + SLACK_MS


def describe(latencies: list[float]) -> str:
    """Return median and 99th percentile."""
    return f"{quantile(latencies, 0.5):.1f} / {quantile(latencies, 0.99):.1f}"


def _unlimited() -> dict[str, object]:
    return {"allowedModels": ["*"], "source": "OVERRIDE", "limit": "20000000", "intervalSeconds": 86_400}
