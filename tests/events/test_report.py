"""The usage report: completions summed from the spool, and printed for people and programs."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs
import pytest

from cgw.cli.usage_report import render_json, render_table
from cgw.errors import ConfigError, SpoolError
from cgw.events.report import UsageRow, summarise
from cgw.events.spool import open_spool
from cgw.model import EventName, UsageEvent


def finished(actor: str = "acme", day: int = 23, **metadata: Any) -> UsageEvent:
    return UsageEvent(
        EventName.COMPLETIONS_FINISHED,
        "static",
        actor,
        {"feature": "chat_completions", "model": "openai/gpt-4o", "resolved_status_code": 200} | metadata,
        created_at=datetime(2026, 11, day, 12, tzinfo=UTC),
    )


async def record(path: Path, *events: UsageEvent) -> None:
    async with open_spool(path) as spool:
        for event in events:
            await spool.record(event)


ROW = UsageRow(
    day="2026-11-23",
    actor="acme",
    actor_name="Acme Inc.",
    source="static",
    feature="chat_completions",
    model="openai/gpt-4o",
    requests=3,
    errors=1,
    prompt_tokens=30,
    completion_tokens=None,
    prompt_characters=5,
    completion_characters=None,
)


async def test_completions_are_summed_by_day_actor_feature_and_model(path: Path) -> None:
    """Each combination has one row, with the known figures summed, failures counted, and refusals left out."""
    await record(
        path,
        finished(prompt_token_count=10, actor_name="Acme"),
        finished(prompt_token_count=20, prompt_character_count=5, resolved_status_code=503),
        finished(actor_name="Acme Inc."),
        finished(model="openai/gpt-4o-mini"),
        finished(feature="code_completions"),
        finished(actor="zeta", day=22),
        UsageEvent(EventName.RATE_LIMITED, "static", "acme"),
    )
    rows = summarise(path)
    assert [(row.day, row.actor, row.feature, row.model, row.requests) for row in rows] == [
        ("2026-11-22", "zeta", "chat_completions", "openai/gpt-4o", 1),
        ("2026-11-23", "acme", "chat_completions", "openai/gpt-4o", 3),
        ("2026-11-23", "acme", "chat_completions", "openai/gpt-4o-mini", 1),
        ("2026-11-23", "acme", "code_completions", "openai/gpt-4o", 1),
    ]
    assert rows[1] == ROW


async def test_missing_status_is_an_error(path: Path) -> None:
    """A completion without a known status counts as an error."""
    await record(path, finished(resolved_status_code=None), finished(resolved_status_code=299))
    assert [row.errors for row in summarise(path)] == [1]


async def test_report_can_be_narrowed(path: Path) -> None:
    """``since`` is inclusive, ``until`` exclusive, and ``actor`` an exact id."""
    await record(path, finished(day=21), finished(day=22), finished(day=23), finished("acme2", day=22))
    days = [datetime(2026, 11, day, 12, tzinfo=UTC) for day in (22, 23)]
    assert [row.day for row in summarise(path, since=days[0], actor="acme")] == ["2026-11-22", "2026-11-23"]
    assert [row.day for row in summarise(path, until=days[1], actor="acme")] == ["2026-11-21", "2026-11-22"]
    assert [row.actor for row in summarise(path, since=days[0], until=days[1])] == ["acme", "acme2"]


async def test_open_spool_can_be_read(path: Path) -> None:
    """The report reads committed events while the spool is open for writing, and does not disturb it."""
    async with open_spool(path) as spool:
        await spool.record(finished())
        assert [row.requests for row in summarise(path)] == [1]
        await spool.record(finished())
        assert [row.requests for row in summarise(path)] == [2]


def test_absent_spool_is_no_usage(path: Path) -> None:
    """A missing file means no rows, and it is not created."""
    assert summarise(path) == []
    assert not path.parent.exists()


def test_other_files_are_refused(path: Path) -> None:
    """A file that is not a database, and a database that is not a spool, are refused by name."""
    path.parent.mkdir()
    path.write_text("hello " * 1000)
    with pytest.raises(SpoolError, match="cannot be read: file is not a database"):
        summarise(path)
    path.unlink()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE accounts (id)")
    with pytest.raises(ConfigError, match="not an event spool"):
        summarise(path)


def test_json_is_a_list_of_flat_objects() -> None:
    """The JSON has the fields of each row, with null where a sum is unknown."""
    assert json.loads(render_json([ROW])) == [attrs.asdict(ROW)]
    assert json.loads(render_json([])) == []


def test_plain_table_has_one_whole_line_for_each_row() -> None:
    """In a pipe, the table is a header and a line for each row, neither coloured nor truncated."""
    model = "openai/" + "long" * 50
    lines = render_table([ROW, attrs.evolve(ROW, actor_name="", model=model)]).splitlines()
    assert [line.split()[0] for line in lines] == ["day", "2026-11-23", "2026-11-23"]
    assert "Acme Inc. (acme)" in lines[1]
    assert lines[1].split()[-4:] == ["3", "1", "30", "–"]
    assert model in lines[2]
    assert "\x1b" not in "".join(lines)


def test_terminal_table_fits_its_width() -> None:
    """On a terminal the heading is styled and no line is wider than the terminal."""
    table = render_table([ROW], is_terminal=True, width=100)
    assert "\x1b[1m" in table
    assert all(len(line) <= 100 for line in table.replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines())


def test_names_cannot_drive_the_terminal() -> None:
    """Control characters and markup in names are escaped."""
    row = attrs.evolve(ROW, actor_name="\x1b[2J[bold]x\r\n")
    for is_terminal in (True, False):
        table = render_table([row], is_terminal=is_terminal, width=200)
        assert "[2J[bold]x" in table
        assert "\x1b[2J" not in table
        assert len(table.splitlines()) == 2
