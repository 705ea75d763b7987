"""The usage report: completions summed from the event log, and printed for people and programs."""

from __future__ import annotations

import csv
import json
import os
import tracemalloc
from contextlib import suppress
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from cgw.cli.usage_report import render_csv, render_json, render_table
from cgw.errors import EventLogError
from cgw.event_ids import build_event_id
from cgw.events.event_log import open_event_log
from cgw.events.lines import render_line
from cgw.events.records import embeddings_finished
from cgw.events.report import summarise
from cgw.events.sums import KEYS, UsageRow
from cgw.model import Actor, EventName, UsageEvent, UsageQuality
from tests.events.conftest import read_metadata


def finished(actor: str = "acme", day: int = 23, **metadata: Any) -> UsageEvent:
    return UsageEvent(
        EventName.COMPLETIONS_FINISHED,
        "static",
        actor,
        {
            "feature": "chat_completions",
            "model": "openai/gpt-4o",
            "provider": "openai",
            "resolved_status_code": 200,
            **metadata,
        },
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
    provider="openai",
    model="openai/gpt-4o",
    requests=3,
    errors=1,
    aborted=0,
    prompt_tokens=30,
    completion_tokens=None,
    cached_tokens=7,
    prompt_characters=5,
    completion_characters=None,
    first_bytes={118: 1},
)

BY = ("day", "actor", "feature", "model")


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
    assert read_metadata(done).items() >= figures.items()
    await record(folder, done, structs.replace(done, id=build_event_id()))
    (row,) = summarise(folder)
    assert (row.feature, row.model, row.requests, row.errors) == ("embeddings", "sourcegraph/st", 2, 0)
    assert (row.prompt_tokens, row.prompt_characters, row.completion_tokens) == (18, 60, None)


async def test_completions_are_summed_by_day_actor_feature_and_model(folder: Path) -> None:
    """Each combination has one row, with the known figures summed, failures counted, and refusals left out."""
    await record(
        folder,
        finished(prompt_token_count=10, actor_name="Acme", time_to_first_byte_ms=100, prompt_cache_read_token_count=7),
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


async def test_requests_are_complete_failed_or_aborted(folder: Path) -> None:
    """A request is aborted if its client left, and an error if it failed otherwise or its status is unknown."""
    complete = [finished(), finished(outcome="completed"), finished(resolved_status_code=299)]
    failed = [
        finished(resolved_status_code=None),
        finished(resolved_status_code=429, outcome="refused"),
        # After the status was sent.
        finished(outcome="upstream_broken"),
        finished(outcome="timed_out"),
    ]
    aborted = [finished(outcome="client_gone"), finished(resolved_status_code=499)]
    await record(folder, *complete, *failed, *aborted)
    (row,) = summarise(folder)
    assert (row.requests, row.errors, row.aborted) == (9, 4, 2)


async def test_rows_are_summed_by_the_keys_asked_for(folder: Path) -> None:
    """There is a row for each value of the keys, over all values of the others; an actor is its source's."""
    await record(
        folder,
        finished(actor_name="Acme Inc.", time_to_first_byte_ms=100),
        finished("zeta", model="openai/gpt-4o-mini", time_to_first_byte_ms=1000),
        finished(day=22, feature="code_completions", provider="google", time_to_first_byte_ms=10, prompt_token_count=4),
        structs.replace(finished(), source="dotcom-user"),
    )
    for _ in range(2):  # also from the summary
        (everything,) = summarise(folder, by=())
        assert (everything.requests, everything.prompt_tokens, everything.actor_name) == (4, 4, "")
        assert sorted(everything.first_bytes.values()) == [1, 1, 1]
        assert [(row.day, row.requests) for row in summarise(folder, by=("day",))] == [
            ("2026-11-22", 1),
            ("2026-11-23", 3),
        ]
        rows = summarise(folder, by=("provider", "feature"))
        assert [(row.feature, row.provider, row.requests, row.model) for row in rows] == [
            ("chat_completions", "openai", 3, ""),
            ("code_completions", "google", 1, ""),
        ]
        rows = summarise(folder, by=("actor", "source"))
        assert [(row.actor, row.source, row.actor_name, row.requests) for row in rows] == [
            ("acme", "dotcom-user", "", 1),
            ("acme", "static", "Acme Inc.", 2),
            ("zeta", "static", "", 1),
        ]
        assert len(summarise(folder, by=KEYS)) == len(summarise(folder)) == 4


def test_memory_does_not_grow_with_the_number_of_events(folder: Path) -> None:
    """Four times the events take the same memory: it depends on the rows, and on the buckets that they have."""
    folder.mkdir()
    lines = b"".join(
        render_line(finished(f"actor-{number % 50}", time_to_first_byte_ms=1.01 ** (number % 1000)))
        for number in range(4000)
    )
    (folder / "0.ndjson").write_bytes(lines)

    def measure(segments: int) -> int:
        for number in range(1, segments):
            with suppress(FileExistsError):
                os.link(folder / "0.ndjson", folder / f"{number}.ndjson")
        peaks = []
        for _ in range(2):  # without summaries, and with them
            tracemalloc.start()
            rows = summarise(folder)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
            assert (len(rows), sum(row.requests for row in rows)) == (50, 4000 * segments)
        for path in folder.glob("*.summary.json"):
            path.unlink()
        return max(peaks)

    measure(2)  # what is only done once
    few = measure(2)
    assert measure(8) < 1.2 * few


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


FLAT = {
    "day": "2026-11-23",
    "actor": "acme",
    "actor_name": "Acme Inc.",
    "source": "static",
    "feature": "chat_completions",
    "model": "openai/gpt-4o",
    "requests": 3,
    "errors": 1,
    "aborted": 0,
    "prompt_tokens": 30,
    "completion_tokens": None,
    "cached_tokens": 7,
    "prompt_characters": 5,
    "completion_characters": None,
    "time_to_first_byte_p50_ms": 100.0,
    "time_to_first_byte_p99_ms": 100.0,
}


def test_json_is_a_list_of_flat_objects() -> None:
    """The JSON has the keys asked for and all sums of each row, with null where a sum is unknown."""
    assert json.loads(render_json([ROW], BY)) == [FLAT]
    assert list(json.loads(render_json([ROW], ("provider",)))[0])[:2] == ["provider", "requests"]
    assert json.loads(render_json([], BY)) == []


def test_csv_has_the_names_of_the_json() -> None:
    """The CSV has a line of names, also without rows, and one for each row, quoted where that is necessary."""
    row = structs.replace(ROW, actor_name='Acme, "Inc."\n')
    (read,) = csv.DictReader(render_csv([row], BY).splitlines(keepends=True))
    assert read == {key: "" if value is None else str(value) for key, value in FLAT.items()} | {
        "actor_name": 'Acme, "Inc."\n'
    }
    assert render_csv([], BY) == ",".join(FLAT) + "\n"


def test_plain_table_has_one_whole_line_for_each_row() -> None:
    """In a pipe, the table is a header and a line for each row, neither coloured nor truncated."""
    model = "openai/" + "long" * 50
    lines = render_table([ROW, structs.replace(ROW, actor_name="", model=model)], BY).splitlines()
    assert [line.split()[0] for line in lines] == ["day", "2026-11-23", "2026-11-23"]
    assert "Acme Inc. (acme)" in lines[1]
    assert lines[1].split()[-8:] == ["3", "1", "0", "30", "–", "7", "100", "100"]
    assert model in lines[2]
    assert "\x1b" not in "".join(lines)


def test_terminal_table_fits_its_width() -> None:
    """On a terminal the heading is styled and no line is wider than the terminal."""
    for width in (120, 150):
        table = render_table([ROW], BY, is_terminal=True, width=width)
        assert "\x1b[1m" in table
        assert all(len(line) <= width for line in table.replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines())


def test_a_terminal_with_room_has_bars() -> None:
    """Beside the table, each row has a bar for its share of the most requests; not where there is no room for any."""
    rows = [structs.replace(ROW, requests=requests) for requests in (8, 4, 1)]
    by = ("day",)
    lines = render_table(rows, by, is_terminal=True, width=200).splitlines()
    assert [line.split()[-1] for line in lines[1:]] == ["█" * 30, "█" * 15, "███▊"]
    for width, is_terminal in ((70, True), (200, False)):
        assert "█" not in render_table(rows, by, is_terminal=is_terminal, width=width)


def test_names_cannot_drive_the_terminal() -> None:
    """Control characters and markup in names are escaped."""
    row = structs.replace(ROW, actor_name="\x1b[2J[bold]x\r\n")
    for is_terminal in (True, False):
        table = render_table([row], BY, is_terminal=is_terminal, width=200)
        assert "[2J[bold]x" in table
        assert "\x1b[2J" not in table
        assert len(table.splitlines()) == 2
