"""A stand-in for the REST API of BigQuery: a table, streaming inserts, and the ways in which both fail.

It behaves as documented at https://cloud.google.com/bigquery/docs/streaming-data-into-bigquery and
https://cloud.google.com/bigquery/docs/error-messages: a request of which one row is invalid inserts none, the rows that
are not to blame are reported as ``stopped``, and rows with an insert id of the last minute are dropped.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import trio
from attrs import define, field

from cgw.testing.json_server import JsonAnswer, JsonCall, open_json_server

DEDUPLICATION_SECONDS = 60.0
MAX_REQUEST_BYTES = 10 * 10**6
MAX_REQUEST_ROWS = 50_000
# A partitioned table takes rows of the last 10 years, and of the year to come.
_OLDEST, _NEWEST = timedelta(days=3650), timedelta(days=366)


def build_error(status: int, reason: str, message: str, *, retry_after: int | None = None) -> JsonAnswer:
    """Return an answer of BigQuery's that is an error: ``build_error(403, "quotaExceeded", "Quota exceeded: …")``."""
    detail = {"message": message, "domain": "global", "reason": reason}
    headers = [(b"content-type", b"application/json; charset=UTF-8")]
    if retry_after is not None:
        headers.append((b"retry-after", b"%d" % retry_after))
    content = {"error": {"code": status, "message": message, "errors": [detail]}}
    return JsonAnswer(content, status, tuple(headers))


def build_row_errors(reasons: Mapping[int, str]) -> JsonAnswer:
    """Return an answer that refuses the rows at these positions, for these reasons (``backendError``, ``timeout``)."""
    return JsonAnswer(
        {
            "kind": "bigquery#tableDataInsertAllResponse",
            "insertErrors": [_build_entry(index, reason, "") for index, reason in reasons.items()],
        }
    )


@define
class ScriptedBigQuery:
    """A BigQuery with one project. ``url`` is for ``BIGQUERY_EMULATOR_HOST``.

    ``datasets`` are those that exist, ``tables`` are table resources by ``dataset.table``. ``rows`` are the rows that
    were inserted, in order; ``calls`` counts all requests that came, ``insert_calls`` the inserts that were looked at.
    ``faults`` are answered to the next inserts, one after the other, and ``fault``, if it is set, to all;
    ``refuse_request`` says which are refused as a whole for their rows.
    """

    url: str
    datasets: set[str] = field(factory=lambda: {"cody_gateway"})
    tables: dict[str, dict[str, Any]] = field(factory=dict)
    rows: list[dict[str, Any]] = field(factory=list)
    faults: deque[JsonAnswer] = field(factory=deque)
    fault: JsonAnswer | None = None
    refuse_request: Callable[[Sequence[Mapping[str, Any]]], bool] = lambda rows: False
    calls: int = 0
    insert_calls: int = 0
    authorizations: set[str] = field(factory=set)
    _seen: dict[str, float] = field(factory=dict)
    _answers: trio.Event = field(factory=trio.Event)

    def hang(self) -> None:
        """Leave requests without an answer until :meth:`answer`."""
        self._answers = trio.Event()

    def answer(self) -> None:
        """Answer the requests that wait, and those that come."""
        self._answers.set()

    async def handle(self, call: JsonCall) -> JsonAnswer:
        """Answer one request of a client."""
        self.calls += 1
        await self._answers.wait()
        self.authorizations.add(call.header("authorization") or "")
        # /bigquery/v2/projects/p/datasets/d/tables/t/insertAll
        parts = call.target.partition("?")[0].strip("/").split("/")[4:]
        match call.method, parts:
            case "POST", ["datasets", dataset, "tables", table, "insertAll"]:
                return self._insert_all(f"{dataset}.{table}", call)
            case method, ["datasets", dataset, "tables", *names]:
                return self._handle_table(method, dataset, names, call)
        return build_error(404, "notFound", f"Not found: {call.target}")

    # --- tables -------------------------------------------------------------------------------------------------------

    def _handle_table(self, method: str, dataset: str, names: list[str], call: JsonCall) -> JsonAnswer:
        if dataset not in self.datasets:
            return build_error(404, "notFound", f"Not found: Dataset project:{dataset}")
        if method == "POST" and not names:
            resource = call.json()
            name = f"{dataset}.{resource['tableReference']['tableId']}"
            if name in self.tables:
                return build_error(409, "duplicate", f"Already Exists: Table {name}")
            self.tables[name] = {"type": "TABLE", "etag": "1", **resource}
            return JsonAnswer(self.tables[name])
        name = f"{dataset}.{names[0]}"
        if name not in self.tables:
            return build_error(404, "notFound", f"Not found: Table project:{name}")
        if method == "PATCH":
            return self._patch(self.tables[name], call.json())
        return JsonAnswer(self.tables[name])

    def _patch(self, table: dict[str, Any], change: dict[str, Any]) -> JsonAnswer:
        old = {column["name"] for column in table["schema"]["fields"]}
        for column in change["schema"]["fields"]:
            if column["name"] not in old and column.get("mode") == "REQUIRED":
                text = f"Provided Schema does not match Table. Cannot add required fields: {column['name']}"
                return build_error(400, "invalid", text)
        table["schema"] = change["schema"]
        return JsonAnswer(table)

    # --- inserts ------------------------------------------------------------------------------------------------------

    def _insert_all(self, name: str, call: JsonCall) -> JsonAnswer:
        self.insert_calls += 1
        if self.faults:
            return self.faults.popleft()
        if self.fault is not None:
            return self.fault
        if len(call.body) > MAX_REQUEST_BYTES:
            return build_error(413, "uploadTooLarge", "Request Entity Too Large")
        table = self.tables.get(name)
        if table is None:
            return build_error(404, "notFound", f"Not found: Table project:{name}")
        if table.get("type") != "TABLE":
            return build_error(400, "invalid", f"Cannot add rows to a table of type {table['type']}.")
        request = call.json()
        rows = request.get("rows") or []
        if not rows:
            return build_error(400, "required", "No rows present in the request.")
        if len(rows) > MAX_REQUEST_ROWS:
            return build_error(400, "invalid", f"too many rows present in the request, limit: {MAX_REQUEST_ROWS}")
        if self.refuse_request(rows):
            return build_error(400, "badRequest", "Request contains an invalid argument.")
        columns = {column["name"]: column for column in table["schema"]["fields"]}
        wrong = {index: text for index, row in enumerate(rows) if (text := _find_fault(row["json"], columns))}
        skips = bool(request.get("skipInvalidRows"))
        for index, row in enumerate(rows):
            if index not in wrong and (skips or not wrong):
                self._insert(row)
        entries = [_build_entry(index, "invalid", text) for index, text in wrong.items()]
        if wrong and not skips:
            entries += [_build_entry(index, "stopped", "") for index in range(len(rows)) if index not in wrong]
        content: dict[str, Any] = {"kind": "bigquery#tableDataInsertAllResponse"}
        return JsonAnswer({**content, "insertErrors": entries} if entries else content)

    def _insert(self, row: dict[str, Any]) -> None:
        insert_id, now = row.get("insertId"), trio.current_time()
        if insert_id:
            if now - self._seen.get(insert_id, -DEDUPLICATION_SECONDS) < DEDUPLICATION_SECONDS:
                return
            self._seen[insert_id] = now
        self.rows.append(row["json"])


def _build_entry(index: int, reason: str, text: str) -> dict[str, Any]:
    location = text.partition(": ")[2].rstrip(".") if text.startswith("no such field") else ""
    return {"index": index, "errors": [{"reason": reason, "location": location, "debugInfo": "", "message": text}]}


def _find_fault(values: dict[str, Any], columns: Mapping[str, Mapping[str, Any]]) -> str:
    """Return what is invalid in the values of a row; ``""`` if nothing is."""
    for name in values:
        if name not in columns:
            return f"no such field: {name}."
    for name, column in columns.items():
        value = values.get(name)
        if value is None and column.get("mode") == "REQUIRED":
            return f"Missing required field: Msg_0_CLOUD_QUERY_TABLE.{name}."
        if value is not None and (text := _find_value_fault(name, str(column["type"]), value)):
            return text
    return ""


def _find_value_fault(name: str, kind: str, value: Any) -> str:
    if kind == "TIMESTAMP":
        try:
            moment = datetime.fromisoformat(value)
        except (TypeError, ValueError):
            return f"Could not parse '{value}' as a timestamp. Required format is YYYY-MM-DD HH:MM[:SS[.SSSSSS]]"
        if not -_OLDEST < moment - datetime.now(UTC) < _NEWEST:
            return "The destination table's partition is outside the allowed bounds."
    elif kind == "JSON":
        try:
            json.loads(value)
        except (TypeError, ValueError):
            return f"Invalid JSON in the field {name}"
    elif kind in ("INTEGER", "FLOAT") and not isinstance(value, int | float):
        return f"Cannot convert value to {kind.lower()} (bad value): {value}"
    elif kind == "RECORD":
        return f"This field: {name} is not a record."
    return ""


@asynccontextmanager
async def open_scripted_bigquery() -> AsyncIterator[ScriptedBigQuery]:
    """Serve a BigQuery without tables while the block runs, on a free port of loopback."""
    bigquery = ScriptedBigQuery("")
    bigquery.answer()

    async def handle(call: JsonCall) -> JsonAnswer:
        return await bigquery.handle(call)

    async with open_json_server(handle) as url:
        bigquery.url = url
        yield bigquery
