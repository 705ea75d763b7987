"""The usage report: completions summed from the event log, and printed for people and programs."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from msgspec import structs

from cgw.cli.usage_report import render_json, render_table
from cgw.errors import EventLogError
from cgw.event_ids import build_event_id
from cgw.events.event_log import open_event_log
from cgw.events.records import embeddings_finished
from cgw.events.report import UsageRow, summarise
from cgw.model import Actor, EventName, UsageEvent, UsageQuality


def finished(actor: str = "acme", day: int = 23, **metadata: Any) -> UsageEvent:
    return UsageEvent(
        EventName.COMPLETIONS_FINISHED,
        "static",
        actor,
        {"feature": "chat_completions", "model": "openai/gpt-4o", "resolved_status_code": 200} | metadata,
        created_at=datetime(2026, 11, day, 12, tzinfo=UTC),
    )


async def record(folder: Path, *events: UsageEvent) -> None:
    async with open_event_log(folder) as event_log:
        for event in events:
            event_log.record(event)


ROW = UsageRow(
    day="2026-11-23",
    actor="acme",
    actor_name="Acme Inc.",
    named_at="2026-11-23T12:00:00.000000Z",
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


async def test_embeddings_are_summed_too(folder: Path) -> None:
    """Tokens and characters of embeddings are those of a prompt; failures count, as for completions."""
    figures = {"tokens_used": 9, "input_character_count": 30, "batch_size": 2}
    actor = Actor("acme", "Acme Inc.", "static", access_enabled=True)
    done = embeddings_finished(
        actor,
        model="sourcegraph/st",
        provider="sourcegraph",
        input_character_count=30,
        tokens_used=9,
        quality=UsageQuality.EXACT,
        resolved_status=200,
        upstream_status=200,
        upstream_request_duration_ms=5,
        metadata={"batch_size": 2},
    )
    assert done.metadata.items() >= figures.items()
    await record(folder, done, evolve(done, id=build_event_id()))
    (row,) = summarise(folder)
    assert (row.feature, row.model, row.requests, row.errors) == ("embeddings", "sourcegraph/st", 2, 0)
    assert (row.prompt_tokens, row.prompt_characters, row.completion_tokens) == (18, 60, None)


async def test_completions_are_summed_by_day_actor_feature_and_model(folder: Path) -> None:
    """Each combination has one row, with the known figures summed, failures counted, and refusals left out."""
    await record(
        folder,
        finished(prompt_token_count=10, actor_name="Acme"),
        finished(prompt_token_count=20, prompt_character_count=5, resolved_status_code=503),
        finished(actor_name="Acme Inc."),
        finished(model="openai/gpt-4o-mini"),
        finished(feature="code_completions"),
        finished(actor="zeta", day=22),
        UsageEvent(EventName.RATE_LIMITED, "static", "acme"),
    )
    rows = summarise(folder)
    assert [(row.day, row.actor, row.feature, row.model, row.requests) for row in rows] == [
        ("2026-11-22", "zeta", "chat_completions", "openai/gpt-4o", 1),
        ("2026-11-23", "acme", "chat_completions", "openai/gpt-4o", 3),
        ("2026-11-23", "acme", "chat_completions", "openai/gpt-4o-mini", 1),
        ("2026-11-23", "acme", "code_completions", "openai/gpt-4o", 1),
    ]
    assert rows[1] == ROW


async def test_missing_status_is_an_error(folder: Path) -> None:
    """A completion without a known status counts as an error."""
    await record(folder, finished(resolved_status_code=None), finished(resolved_status_code=299))
    assert [row.errors for row in summarise(folder)] == [1]


async def test_report_can_be_narrowed(folder: Path) -> None:
    """``since`` and ``until`` are days that are included, and ``actor`` is an exact id."""
    await record(folder, finished(day=21), finished(day=22), finished(day=23), finished("acme2", day=22))
    day = date(2026, 11, 22)
    for _ in range(2):  # also from the summary
        assert [row.day for row in summarise(folder, since=day, actor="acme")] == ["2026-11-22", "2026-11-23"]
        assert [row.day for row in summarise(folder, until=day, actor="acme")] == ["2026-11-21", "2026-11-22"]
        assert [row.actor for row in summarise(folder, since=day, until=day)] == ["acme", "acme2"]


async def test_open_event_log_can_be_read(folder: Path) -> None:
    """The report sees what is recorded while the event log is open for writing, and does not disturb it."""
    async with open_event_log(folder) as event_log:
        event_log.record(finished())
        assert [row.requests for row in summarise(folder)] == [1]
        event_log.record(finished())
        assert [row.requests for row in summarise(folder)] == [2]


def test_nothing_recorded_is_no_usage(folder: Path) -> None:
    """A data directory without events has no rows, and nothing is created in it."""
    assert summarise(folder) == []
    assert not folder.exists()


def test_what_is_no_event_log_is_refused(folder: Path) -> None:
    """A missing data directory, and a file in place of the folder, are named."""
    with pytest.raises(EventLogError, match=r"cannot be read from .*/missing: No such file or directory; see"):
        summarise(folder.parent / "missing" / "events")
    folder.write_text("hello")
    with pytest.raises(EventLogError, match=r"cannot be read from .*/events: Not a directory"):
        summarise(folder)


def test_json_is_a_list_of_flat_objects() -> None:
    """The JSON has the fields of each row, with null where a sum is unknown."""
    assert json.loads(render_json([ROW])) == [structs.asdict(ROW)]
    assert json.loads(render_json([])) == []


def test_plain_table_has_one_whole_line_for_each_row() -> None:
    """In a pipe, the table is a header and a line for each row, neither coloured nor truncated."""
    model = "openai/" + "long" * 50
    lines = render_table([ROW, structs.replace(ROW, actor_name="", model=model)]).splitlines()
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
    row = structs.replace(ROW, actor_name="\x1b[2J[bold]x\r\n")
    for is_terminal in (True, False):
        table = render_table([row], is_terminal=is_terminal, width=200)
        assert "[2J[bold]x" in table
        assert "\x1b[2J" not in table
        assert len(table.splitlines()) == 2
