"""Usage events on their way to BigQuery: real processes, and a stand-in for the service on loopback."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
import trio

import cgw
from cgw.events.lines import render_line
from cgw.events.shipping.cursor import SHIPPING_NAME
from cgw.events.shipping.failed import FAILED_NAME
from cgw.events.sinks.bigquery.client import TableClient
from cgw.model import EventName, UsageEvent
from cgw.service.settings import load_settings
from cgw.testing.json_server import JsonAnswer
from cgw.testing.script import Script
from cgw.testing.scripted_bigquery import ScriptedBigQuery, build_error, build_row_errors, open_scripted_bigquery
from cgw.testing.scripted_upstream import open_scripted_upstream
from tests.support.gateway import ANTHROPIC_KEY, ANTHROPIC_MODEL, build_environ
from tests.support.limits import read_recorded
from tests.support.process import GatewayProcess, open_gateway_process
from tests.support.requests import HEADERS, build_body
from tests.support.waiting import wait_until

PATH = "/v1/completions/anthropic-messages"
TABLE = "cody_gateway.events"
PROJECT = "acme-events"


@pytest.fixture
async def bigquery() -> AsyncIterator[ScriptedBigQuery]:
    """A BigQuery with the dataset, and without the table."""
    async with open_scripted_bigquery() as bigquery:
        yield bigquery


@pytest.fixture
async def environ(tmp_path: Path, bigquery: ScriptedBigQuery) -> AsyncIterator[dict[str, str]]:
    """The environment of a gateway that ships to it; its upstream answers at once."""
    scripts = {ANTHROPIC_MODEL: Script(answer="Good day.", tokens_per_second=math.inf, api_key=ANTHROPIC_KEY)}
    async with open_scripted_upstream(scripts) as upstream:
        more = {
            "CODY_GATEWAY_BIGQUERY_PROJECT_ID": PROJECT,
            "BIGQUERY_EMULATOR_HOST": bigquery.url,
            "CODY_GATEWAY_EVENTS_BATCH_AGE": "0.1s",
        }
        yield build_environ(tmp_path, upstream.url, more=more)


@asynccontextmanager
async def open_gateway(environ: dict[str, str], tmp_path: Path, name: str = "log") -> AsyncIterator[GatewayProcess]:
    """Run a gateway whose log file has this name."""
    async with open_gateway_process(environ, tmp_path / name) as gateway:
        yield gateway


async def run_cgw(environ: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run ``cgw`` to its end."""
    with trio.fail_after(30):
        return await trio.run_process(
            [sys.executable, "-m", "cgw", *arguments],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(cgw.__file__).parents[1]), **environ},
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )


async def create_table(environ: dict[str, str]) -> None:
    """Create the table as the command does, without its process."""
    client = TableClient(load_settings(environ).bigquery)
    try:
        await trio.to_thread.run_sync(client.create)
    finally:
        client.close()


async def ask(gateway: GatewayProcess, count: int) -> None:
    """Make ``count`` requests, one after the other, each of which is answered."""
    async with httpx.AsyncClient(base_url=gateway.url, headers=HEADERS, timeout=30, trust_env=False) as client:
        for _ in range(count):
            answer = await client.post(PATH, json=build_body(PATH, stream=False))
            assert answer.status_code == 200


def count_ids(bigquery: ScriptedBigQuery) -> int:
    """Count the distinct events that arrived."""
    return len({row["id"] for row in bigquery.rows})


async def test_events_wait_for_the_table(tmp_path: Path, environ: dict[str, str], bigquery: ScriptedBigQuery) -> None:
    """A start without the table serves, and says what to run; once it is there, all events arrive, each once."""
    async with open_gateway(environ, tmp_path) as gateway:
        await ask(gateway, 3)
        advice = "run `cgw events create-table`"
        await wait_until(lambda: advice in gateway.log_path.read_text(), seconds=20)
        assert bigquery.rows == []
        created = await run_cgw(environ, "events", "create-table")
        assert (created.returncode, created.stdout) == (0, b"")
        assert b"the table acme-events.cody_gateway.events was created" in created.stderr
        await ask(gateway, 2)
        await wait_until(lambda: len(bigquery.rows) == 5, seconds=30)
        gateway.terminate()
        assert await gateway.wait() == 0
    assert count_ids(bigquery) == len(bigquery.rows) == 5
    row = bigquery.rows[0]
    assert (row["name"], row["identifier"]) == ("CompletionsFinished", "acme")
    assert [json.loads(row["metadata"]) for row in bigquery.rows] == [data for _, data in read_recorded(tmp_path)]


async def test_every_fault_of_bigquery_ends_in_every_event_there(
    tmp_path: Path, environ: dict[str, str], bigquery: ScriptedBigQuery
) -> None:
    """Quotas, failures, answers that are lost or garbage, and rows refused for now: everything arrives."""
    await create_table(environ)
    bigquery.faults.extend(
        [
            build_error(429, "rateLimitExceeded", "Exceeded rate limits", retry_after=1),
            build_error(503, "backendError", "try again"),
            build_row_errors({0: "backendError"}),
            JsonAnswer(is_broken=True),
        ]
    )
    async with open_gateway(environ, tmp_path) as gateway:
        await ask(gateway, 5)
        await wait_until(lambda: count_ids(bigquery) == 5, seconds=40)
    assert not bigquery.faults
    assert len(bigquery.rows) == 5


async def test_what_a_killed_process_has_not_shipped_ships_the_next(
    tmp_path: Path, environ: dict[str, str], bigquery: ScriptedBigQuery
) -> None:
    """``kill -9`` while BigQuery is down loses nothing, and what arrives twice has one id."""
    await create_table(environ)
    async with open_gateway(environ, tmp_path, "first") as gateway:
        await ask(gateway, 3)
        await wait_until(lambda: count_ids(bigquery) == 3, seconds=20)
        bigquery.fault = build_error(503, "backendError", "down")
        await ask(gateway, 4)
        gateway.kill()
        await gateway.wait()
    bigquery.fault = None
    async with open_gateway(environ, tmp_path, "second"):
        await wait_until(lambda: count_ids(bigquery) == 7, seconds=20)


async def test_an_event_that_bigquery_never_takes_is_set_aside(
    tmp_path: Path, environ: dict[str, str], bigquery: ScriptedBigQuery
) -> None:
    """It costs no other event; ``cgw events failed`` has it with BigQuery's words."""
    await create_table(environ)
    old = UsageEvent(EventName.ACCESS_DENIED, "static", "acme", created_at=datetime(1990, 1, 1, tzinfo=UTC))
    lines = tmp_path / "old.ndjson"
    lines.write_bytes(render_line(old))
    async with open_gateway(environ, tmp_path) as gateway:
        await run_cgw(environ, "events", "import", str(lines))
        await ask(gateway, 3)
        await wait_until(lambda: count_ids(bigquery) == 3, seconds=20)
        await wait_until((tmp_path / "events" / SHIPPING_NAME / "bigquery" / FAILED_NAME).exists, seconds=40)
        failed = await run_cgw(environ, "events", "failed")
    (line,) = failed.stdout.splitlines()
    found = json.loads(line)
    assert (found["sink"], found["event"]["id"]) == ("bigquery", old.id)
    assert "outside the allowed bounds" in found["reason"]
    assert count_ids(bigquery) == 3


async def test_a_bigquery_that_hangs_does_not_hold_up_the_end(
    tmp_path: Path, environ: dict[str, str], bigquery: ScriptedBigQuery
) -> None:
    """SIGTERM ends the process within the drain's time, though a thread still waits for an answer."""
    await create_table(environ)
    environ["CODY_GATEWAY_EVENTS_DRAIN_TIMEOUT"] = "1s"
    async with open_gateway(environ, tmp_path) as gateway:
        bigquery.hang()
        calls = bigquery.calls
        await ask(gateway, 2)
        await wait_until(lambda: bigquery.calls > calls, seconds=20)
        gateway.terminate()
        assert await gateway.wait(10) == 0
        assert "are not shipped to bigquery yet" in gateway.log_path.read_text()
    bigquery.answer()


async def test_the_command_creates_the_table_and_mends_it(environ: dict[str, str], bigquery: ScriptedBigQuery) -> None:
    """It may be run again; a column that is missing is added, and what it cannot mend is a problem."""
    bigquery.datasets.clear()
    failed = await run_cgw(environ, "events", "create-table")
    assert failed.returncode == 1
    assert b"create the dataset, then run" in failed.stderr
    bigquery.datasets.add("cody_gateway")
    for text in (b"was created", b"is there already, as it should be"):
        completed = await run_cgw(environ, "events", "create-table")
        assert (completed.returncode, text in completed.stderr) == (0, True)
    table = bigquery.tables[TABLE]
    assert table["timePartitioning"] == {"type": "DAY", "field": "created_at"}
    assert table["clustering"] == {"fields": ["source", "identifier"]}
    del table["schema"]["fields"][-1]
    completed = await run_cgw(environ, "events", "create-table")
    assert b"has got the columns that it lacked: id" in completed.stderr
    assert table["schema"]["fields"][-1]["mode"] == "NULLABLE"
    table["schema"]["fields"][0]["type"] = "INTEGER"
    completed = await run_cgw(environ, "events", "create-table")
    assert completed.returncode == 1
    assert b"its column name is INTEGER, not STRING" in completed.stderr


async def test_a_dry_run_asks_nobody(environ: dict[str, str], bigquery: ScriptedBigQuery) -> None:
    """It prints the statement with the names of the settings."""
    completed = await run_cgw(environ, "events", "create-table", "--dry-run")
    assert completed.returncode == 0
    assert completed.stdout.startswith(b"CREATE TABLE IF NOT EXISTS `acme-events.cody_gateway.events` (\n")
    assert bigquery.calls == 0
    completed = await run_cgw({}, "events", "create-table", "--dry-run")
    assert completed.returncode == 1
    assert b"CODY_GATEWAY_BIGQUERY_PROJECT_ID: is not set" in completed.stderr


async def test_check_asks_bigquery(environ: dict[str, str], bigquery: ScriptedBigQuery) -> None:
    """``cgw check`` says what is wrong with the table, under the variable that names the project."""
    completed = await run_cgw(environ, "check")
    (line,) = completed.stdout.decode().splitlines()
    assert line.startswith("CODY_GATEWAY_BIGQUERY_PROJECT_ID: the table acme-events.cody_gateway.events is not there")
    assert line.endswith(": run `cgw events create-table`")
    await create_table(environ)
    del bigquery.tables[TABLE]["schema"]["fields"][-1]
    completed = await run_cgw(environ, "check")
    assert b": it has no column id: run `cgw events create-table`, which adds what is missing\n" in completed.stdout
    await create_table(environ)
    completed = await run_cgw(environ, "check")
    assert (completed.returncode, completed.stdout) == (0, b"")
