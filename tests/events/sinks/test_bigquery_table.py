"""The table of usage events: its rows, its columns, and the settings that name it."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgw.events.lines import render_line
from cgw.events.sinks.bigquery.settings import BigQuerySettings
from cgw.events.sinks.bigquery.table import (
    COLUMNS,
    build_ddl,
    build_rows,
    build_table_resource,
    find_missing_columns,
    find_table_problems,
)
from cgw.model import EventName, UsageEvent
from cgw.service.settings import examine_settings, load_settings

SETTINGS = BigQuerySettings(project_id="acme-events")
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), JSON_VALUES, max_size=5), st.text(min_size=1))
def test_any_event_becomes_a_row_without_a_change(metadata: dict[str, Any], identifier: str) -> None:
    """Whatever a client sends, the row has it, with metadata as the text that the line has."""
    line = render_line(UsageEvent(EventName.COMPLETIONS_FINISHED, "static", identifier, metadata))
    (row,), rejected = build_rows([line])
    stored = json.loads(line)
    assert rejected == []
    assert json.loads(row.values["metadata"]) == stored["metadata"]
    assert {**row.values, "metadata": stored["metadata"]} == stored
    assert row.id == stored["id"]
    assert list(row.values) == [column.name for column in COLUMNS]


@given(st.lists(st.binary(max_size=80) | st.sampled_from([b"{}", b"[" * 5000, b'{"id":"\xff"}', b"null\n"])))
def test_every_line_is_a_row_or_is_rejected(lines: list[bytes]) -> None:
    """Garbage never raises, and never costs another line."""
    good = render_line(UsageEvent(EventName.ACCESS_DENIED, "static", "acme"))
    rows, rejected = build_rows([*lines, good])
    assert sorted([row.index for row in rows] + [event.index for event in rejected]) == list(range(len(lines) + 1))
    assert rows[-1].index == len(lines)


def test_the_table_that_is_created_has_no_problem() -> None:
    """What ``create-table`` makes is what the check wants; partitions and clusters are columns of it."""
    resource = build_table_resource(SETTINGS)
    assert find_table_problems(resource) == []
    names = [column["name"] for column in resource["schema"]["fields"]]
    assert resource["timePartitioning"] == {"type": "DAY", "field": "created_at"}
    assert {"created_at", *resource["clustering"]["fields"]} <= set(names)
    for name in names:
        assert f"\n  {name} " in build_ddl(SETTINGS.table_name)


def build_fields(**changes: dict[str, Any] | None) -> dict[str, Any]:
    """Return a table whose columns are changed, or dropped (``None``)."""
    by_name: dict[str, Any] = {field["name"]: field for field in build_table_resource(SETTINGS)["schema"]["fields"]}
    for name, change in changes.items():
        by_name[name] = None if change is None else {"name": name, **by_name.get(name, {}), **change}
    return {"type": "TABLE", "schema": {"fields": [field for field in by_name.values() if field is not None]}}


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        (build_fields(id=None), "it has no column id: run `cgw events create-table`, which adds what is missing"),
        (build_fields(id=None, name=None), "it has no columns name, id: "),
        (build_fields(metadata={"type": "RECORD"}), "its column metadata is RECORD, not JSON or STRING: "),
        (build_fields(source={"mode": "REPEATED"}), "its column source is ARRAY<STRING>, not STRING: "),
        (build_fields(region={"type": "STRING", "mode": "REQUIRED"}), "its column region is required, and events "),
        ({"type": "VIEW", "schema": {}}, "it is a VIEW, which takes no rows: name a table in CODY_GATEWAY_BIGQUERY_"),
        ({"type": "TABLE"}, "it has no columns name, source, identifier, created_at, metadata, id: "),
    ],
)
def test_a_table_that_takes_no_events(table: dict[str, Any], problem: str) -> None:
    """One problem for each column, with what to do."""
    (found,) = find_table_problems(table)
    assert str(found).startswith(problem)
    assert found.remedy


@pytest.mark.parametrize(
    "table",
    [
        build_fields(id={"mode": "NULLABLE"}, metadata={"type": "STRING", "mode": "REQUIRED"}),
        build_fields(region={"type": "STRING"}, copies={"type": "STRING", "mode": "REPEATED"}),
        json.loads(json.dumps(build_fields()).replace('"identifier"', '"Identifier"')),
    ],
)
def test_a_table_with_other_columns_that_takes_events(table: dict[str, Any]) -> None:
    """More columns, other modes, and capitals, which mean nothing in BigQuery."""
    assert find_table_problems(table) == []
    assert find_missing_columns(table) == []


# --- settings --------------------------------------------------------------------------------------------------------


def test_settings_have_the_references_names_and_defaults() -> None:
    """Its table 11.1, with the fallback of the project."""
    assert load_settings({}).bigquery == BigQuerySettings(project_id=None, dataset="cody_gateway", table="events")
    assert load_settings({"GOOGLE_CLOUD_PROJECT": "acme-events"}).bigquery == SETTINGS
    environ = {
        "GOOGLE_CLOUD_PROJECT": "acme-web",
        "CODY_GATEWAY_BIGQUERY_PROJECT_ID": "example.com:acme-events",
        "CODY_GATEWAY_BIGQUERY_DATASET": "gateway",
        "CODY_GATEWAY_BIGQUERY_TABLE": "usage-2026",
    }
    settings = load_settings(environ)
    assert settings.bigquery.table_name == "example.com:acme-events.gateway.usage-2026"
    assert settings.warnings == ()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CODY_GATEWAY_BIGQUERY_PROJECT_ID", "Acme Events"),
        ("CODY_GATEWAY_BIGQUERY_PROJECT_ID", "123456789"),
        ("GOOGLE_CLOUD_PROJECT", "a/b"),
        ("CODY_GATEWAY_BIGQUERY_DATASET", "acme-events.gateway"),
        ("CODY_GATEWAY_BIGQUERY_TABLE", "events`; DROP TABLE x"),
        ("BIGQUERY_EMULATOR_HOST", "http://user:canary@host"),
        ("BIGQUERY_EMULATOR_HOST", "ftp://host"),
    ],
)
def test_names_that_bigquery_cannot_have(name: str, value: str) -> None:
    """They would end up in URLs and SQL."""
    (problem,) = examine_settings({name: value}).problems.values()
    assert problem.startswith(f"{name}: must ")
    assert "canary" not in problem


@pytest.mark.parametrize("text", ["localhost:9050", "http://localhost:9050", "http://localhost:9050/"])
def test_an_emulator_is_named_as_any_client_wants_it(text: str) -> None:
    """Google's client for Python takes a URL, those for other languages host and port."""
    assert load_settings({"BIGQUERY_EMULATOR_HOST": text}).bigquery.emulator_url == "http://localhost:9050"


def test_times_are_a_timestamp_to_bigquery() -> None:
    """ISO 8601 with a zone, to the microsecond."""
    (row,), _ = build_rows([render_line(UsageEvent(EventName.ACCESS_DENIED, "static", "acme"))])
    assert datetime.fromisoformat(row.values["created_at"]).utcoffset() is not None
    assert row.values["created_at"].endswith("Z")
