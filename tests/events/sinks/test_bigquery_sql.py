"""The SQL in ``deploy/bigquery/``: what can be told of it without BigQuery."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import cgw
from cgw.events.records import completions_finished, embeddings_finished
from cgw.events.sinks.bigquery.table import COLUMNS, build_ddl
from cgw.model import Actor, EventName, Feature, Usage, UsageQuality
from tests.events.conftest import read_metadata

FOLDER = Path(cgw.__file__).parents[1] / "deploy" / "bigquery"
FILES = sorted(FOLDER.glob("*.sql"))
TABLE = "${PROJECT}.${DATASET}.${TABLE}"

ACTOR = Actor(id="acme", name="Acme Inc.", source="static", access_enabled=True)
USAGE = Usage(1, 2, 3, 4, UsageQuality.EXACT, 5, 6)


def list_keys() -> dict[str, set[str]]:
    """Return the metadata keys of the events that queries count, by the event's name."""
    completion = completions_finished(
        ACTOR,
        feature=Feature.CHAT_COMPLETIONS,
        model="anthropic/m",
        provider="anthropic",
        usage=USAGE,
        resolved_status=200,
    )
    embeddings = embeddings_finished(
        ACTOR,
        model="openai/e",
        provider="openai",
        input_character_count=1,
        tokens_used=2,
        quality=UsageQuality.EXACT,
        resolved_status=200,
        upstream_status=200,
        upstream_request_duration_ms=3,
        metadata={"batch_size": 1},
    )
    return {event.name: set(read_metadata(event)) for event in (completion, embeddings)}


def read_code(path: Path) -> str:
    """Return the SQL of a file without its comments and texts in quotes."""
    code = re.sub(r"--[^\n]*", "", path.read_text("utf-8"))
    return re.sub(r"\"[^\"\n]*\"|'[^'\n]*'", "''", code)


def test_there_is_a_file_for_each_purpose() -> None:
    """The table, the view, the reference's two queries, and the bill."""
    assert [path.stem for path in FILES] == [
        "completions_per_day",
        "embeddings_tokens_per_day",
        "monthly_bill",
        "table",
        "unique_view",
    ]


def test_the_table_is_the_one_that_the_command_creates() -> None:
    """The file and ``cgw events create-table`` cannot differ."""
    comment, _, statement = (FOLDER / "table.sql").read_text("utf-8").partition("\n")
    assert comment.startswith("-- ")
    assert statement == build_ddl(TABLE)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_is_one_statement_with_known_names(path: Path) -> None:
    """Placeholders are the three that the documentation sets, parameters those that the comment lists."""
    text, code = path.read_text("utf-8"), read_code(path)
    assert code.count("(") == code.count(")")
    assert text.endswith(";\n")
    assert code.count(";") == 1
    names = {f"{TABLE}", f"{TABLE}_unique"}
    assert set(re.findall(r"`([^`]*)`", code)) <= names
    assert re.sub(r"`[^`]*`", "", code).count("$") == 0
    listed = re.search(r"^-- Parameters?: (.*)$", text, re.MULTILINE)
    used = set(re.findall(r"@(\w+)", code))
    assert all(name in (listed[1] if listed else "") for name in used)
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("stem", ["completions_per_day", "embeddings_tokens_per_day", "monthly_bill"])
def test_a_query_reads_keys_that_events_have(stem: str) -> None:
    """A key that no event has would be an empty column for ever, which nobody notices."""
    text = (FOLDER / f"{stem}.sql").read_text("utf-8")
    assert f"FROM `{TABLE}_unique`" in text
    assert f"FROM `{TABLE}`" not in text
    names = set(re.findall(r"'(\w+Finished)'", text))
    assert names
    assert names <= {name.value for name in EventName}
    keys = set(re.findall(r"JSON_VALUE\(metadata, '\$\.(\w+)'\)", text))
    assert keys
    assert keys <= set().union(*(list_keys()[name] for name in names))


def test_the_view_has_all_columns_and_keeps_filters_effective() -> None:
    """Rows with one id are one; conditions on partition and cluster columns reach the table."""
    text = (FOLDER / "unique_view.sql").read_text("utf-8")
    assert f"SELECT {', '.join(column.name for column in COLUMNS)}\n" in text
    assert "PARTITION BY created_at, source, identifier, id" in text
    assert "id IS NULL OR" in text
