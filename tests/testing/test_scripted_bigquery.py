"""The stand-in for BigQuery behaves as BigQuery is documented, as far as the sink can tell."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
import trio.testing

from cgw.events.sinks.bigquery.settings import BigQuerySettings
from cgw.events.sinks.bigquery.table import build_table_resource
from cgw.testing.json_server import JsonAnswer, JsonCall
from cgw.testing.scripted_bigquery import DEDUPLICATION_SECONDS, MAX_REQUEST_ROWS, ScriptedBigQuery

DATASETS = "/bigquery/v2/projects/p/datasets"
TABLES = f"{DATASETS}/cody_gateway/tables"


@pytest.fixture
def bigquery() -> ScriptedBigQuery:
    """A BigQuery with the table of usage events."""
    bigquery = ScriptedBigQuery("")
    bigquery.answer()
    resource = build_table_resource(BigQuerySettings(project_id="acme-events"))
    bigquery.tables["cody_gateway.events"] = {"type": "TABLE", **resource}
    return bigquery


async def call(bigquery: ScriptedBigQuery, method: str, target: str, body: Any = None) -> JsonAnswer:
    """Return the answer to one request."""
    return await bigquery.handle(JsonCall(1, method, f"{target}?prettyPrint=false", (), json.dumps(body).encode()))


async def insert(bigquery: ScriptedBigQuery, *rows: dict[str, Any], skips: bool = False) -> dict[int, str]:
    """Insert ``rows``; return the reasons of those with an error."""
    body = {"rows": rows, "skipInvalidRows": skips}
    answer = await call(bigquery, "POST", f"{TABLES}/events/insertAll", body)
    assert answer.status == 200
    return {entry["index"]: entry["errors"][0]["reason"] for entry in answer.content.get("insertErrors", ())}


def build_row(insert_id: str | None = None, **changes: str) -> dict[str, Any]:
    """Return a row as in a request."""
    values = {"name": "n", "source": "s", "identifier": "i", "created_at": "2026-11-25T12:00:00Z", "id": "1"}
    return {"insertId": insert_id, "json": {**values, **changes}}


async def test_one_invalid_row_stops_all(bigquery: ScriptedBigQuery) -> None:
    """None is inserted, unless invalid rows may be skipped."""
    rows = [build_row(), build_row(created_at="yesterday"), build_row()]
    assert await insert(bigquery, *rows) == {0: "stopped", 1: "invalid", 2: "stopped"}
    assert bigquery.rows == []
    assert await insert(bigquery, *rows, skips=True) == {1: "invalid"}
    assert len(bigquery.rows) == 2


@pytest.mark.parametrize(
    "row",
    [
        build_row(colour="red"),
        {"json": {"name": "n"}},
        build_row(created_at="2010-01-01T00:00:00Z"),
        build_row(created_at="9999-01-01T00:00:00Z"),
        build_row(metadata="{"),
    ],
)
async def test_rows_that_are_invalid(bigquery: ScriptedBigQuery, row: dict[str, Any]) -> None:
    """Unknown and missing columns, times outside of the partitions, and text that is no JSON."""
    assert await insert(bigquery, row) == {0: "invalid"}


async def test_insert_ids_are_remembered_for_a_minute(
    bigquery: ScriptedBigQuery, autojump_clock: trio.testing.MockClock
) -> None:
    """A row that is sent again later is a duplicate, as one without an insert id is at once."""
    for _ in range(2):
        assert await insert(bigquery, build_row("a")) == {}
    assert len(bigquery.rows) == 1
    await trio.sleep(DEDUPLICATION_SECONDS + 1)
    assert await insert(bigquery, build_row("a")) == {}
    assert await insert(bigquery, build_row(), build_row()) == {}
    assert len(bigquery.rows) == 4


async def test_requests_that_are_refused(bigquery: ScriptedBigQuery) -> None:
    """No table, no dataset, no rows, too many."""
    target = f"{TABLES}/events/insertAll"
    assert (await call(bigquery, "POST", f"{TABLES}/other/insertAll", {"rows": [build_row()]})).status == 404
    assert (await call(bigquery, "GET", f"{TABLES}/other")).status == 404
    assert (await call(bigquery, "GET", f"{DATASETS}/other/tables/events")).status == 404
    assert (await call(bigquery, "POST", target, {"rows": []})).status == 400
    assert (await call(bigquery, "POST", target, {"rows": [{}] * (MAX_REQUEST_ROWS + 1)})).status == 400
    assert (await call(bigquery, "POST", target, {"rows": ["x" * 11_000_000]})).status == 413


async def test_required_columns_cannot_be_added(bigquery: ScriptedBigQuery) -> None:
    """A table that is there has rows without a value for them."""
    fields = bigquery.tables["cody_gateway.events"]["schema"]["fields"]
    new = {"name": "region", "type": "STRING", "mode": "REQUIRED"}
    answer = await call(bigquery, "PATCH", f"{TABLES}/events", {"schema": {"fields": [*fields, new]}})
    assert answer.status == 400
    new["mode"] = "NULLABLE"
    answer = await call(bigquery, "PATCH", f"{TABLES}/events", {"schema": {"fields": [*fields, new]}})
    assert answer.status == 200
