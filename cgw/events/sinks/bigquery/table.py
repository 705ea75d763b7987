"""The table of usage events: its columns, its rows, and what is wrong with a table that has others. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from attrs import frozen

from cgw.events.sinks.bigquery.settings import BigQuerySettings
from cgw.events.sinks.sink import RejectedEvent

CREATE_COMMAND = "cgw events create-table"


@frozen
class TableColumn:
    """A column. ``types`` are those that take its values; the first one is that of a table that cgw creates."""

    name: str
    types: tuple[str, ...]
    is_required: bool
    description: str


# The reference's columns (§13.1) and their order, and `id`, which comes last because tables that the reference has
# filled get it added.
COLUMNS = (
    TableColumn("name", ("STRING",), True, "The kind of event, such as CompletionsFinished."),
    TableColumn("source", ("STRING",), True, "The source of the actor."),
    TableColumn("identifier", ("STRING",), True, "The id of the actor."),
    TableColumn("created_at", ("TIMESTAMP",), True, "When the event was recorded."),
    # Written as text, which both types take. With JSON, a query pays for the keys that it reads only.
    TableColumn("metadata", ("JSON", "STRING"), False, "Everything else; its keys depend on the kind of event."),
    TableColumn("id", ("STRING",), True, "The id of the event: rows with the same one are duplicates."),
)

PARTITION_COLUMN = "created_at"
CLUSTER_COLUMNS = ("source", "identifier")
DESCRIPTION = "Usage events of cgw: at least one row for each; rows with the same id are duplicates."


class _Line(msgspec.Struct):
    """A line of the event log; its metadata stays the text that it is."""

    id: str
    name: str
    source: str
    identifier: str
    created_at: str
    metadata: msgspec.Raw


@frozen
class TableProblem:
    """A reason why a table cannot take events, and what to do."""

    wrong: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.wrong}: {self.remedy}"


@frozen
class Row:
    """A row to insert: the position of its event in the batch, the event's id, and the values of the columns."""

    index: int
    id: str
    values: Mapping[str, str]


_decode_line = msgspec.json.Decoder(_Line).decode


def build_rows(lines: Sequence[bytes]) -> tuple[list[Row], list[RejectedEvent]]:
    """Return the rows of the events in ``lines``, and the lines that hold no event."""
    rows, rejected = [], []
    for index, text in enumerate(lines):
        try:
            line = _decode_line(text)
        except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
            rejected.append(RejectedEvent(index, f"is not a line of the event log: {error}"))
            continue
        values = {
            "name": line.name,
            "source": line.source,
            "identifier": line.identifier,
            "created_at": line.created_at,
            "metadata": bytes(line.metadata).decode(),
            "id": line.id,
        }
        rows.append(Row(index, line.id, values))
    return rows, rejected


def build_table_resource(settings: BigQuerySettings) -> dict[str, Any]:
    """Return the table as the REST API describes it, to create it."""
    return {
        "tableReference": {
            "projectId": settings.project_id,
            "datasetId": settings.dataset,
            "tableId": settings.table,
        },
        "description": DESCRIPTION,
        "schema": {"fields": [build_field(column, is_required=column.is_required) for column in COLUMNS]},
        "timePartitioning": {"type": "DAY", "field": PARTITION_COLUMN},
        "clustering": {"fields": list(CLUSTER_COLUMNS)},
    }


def build_field(column: TableColumn, *, is_required: bool) -> dict[str, str]:
    """Return a column as the REST API describes it. Only a table without rows can get a required one."""
    mode = "REQUIRED" if is_required else "NULLABLE"
    return {"name": column.name, "type": column.types[0], "mode": mode, "description": column.description}


def build_ddl(table_name: str) -> str:
    """Return the SQL statement that creates the table, for a database administrator to run."""
    columns = ",\n".join(
        f"  {column.name} {column.types[0]}{' NOT NULL' if column.is_required else ''}"
        f' OPTIONS (description = "{column.description}")'
        for column in COLUMNS
    )
    return (
        f"CREATE TABLE IF NOT EXISTS `{table_name}` (\n{columns}\n)\n"
        f"PARTITION BY DATE({PARTITION_COLUMN})\n"
        f"CLUSTER BY {', '.join(CLUSTER_COLUMNS)}\n"
        f'OPTIONS (description = "{DESCRIPTION}");\n'
    )


def find_missing_columns(resource: Mapping[str, Any]) -> list[TableColumn]:
    """Return the columns that a table, as the REST API describes it, does not have."""
    names = {str(field.get("name", "")).casefold() for field in _list_fields(resource)}
    return [column for column in COLUMNS if column.name not in names]


def find_table_problems(resource: Mapping[str, Any]) -> list[TableProblem]:
    """Return each reason why a table, as the REST API describes it, cannot take events; an empty list if it can."""
    kind = resource.get("type", "TABLE")
    if kind != "TABLE":
        return [TableProblem(f"it is a {kind}, which takes no rows", "name a table in CODY_GATEWAY_BIGQUERY_TABLE")]
    missing = find_missing_columns(resource)
    problems = []
    if missing:
        names = ", ".join(column.name for column in missing)
        wrong = f"it has no column{'s' if len(missing) > 1 else ''} {names}"
        problems.append(TableProblem(wrong, f"run `{CREATE_COMMAND}`, which adds what is missing"))
    by_name = {column.name: column for column in COLUMNS}
    for field in _list_fields(resource):
        name, mode = str(field.get("name", "")), field.get("mode", "NULLABLE")
        column = by_name.get(name.casefold())  # names of columns have no case in BigQuery
        if column is not None:
            problems += _find_column_problems(column, field)
        elif mode == "REQUIRED":
            remedy = f"run `ALTER TABLE … ALTER COLUMN {name} DROP NOT NULL`, or name another table"
            problems.append(TableProblem(f"its column {name} is required, and events have no such value", remedy))
    return problems


def _find_column_problems(column: TableColumn, field: Mapping[str, Any]) -> list[TableProblem]:
    kind = str(field.get("type", ""))
    if field.get("mode") == "REPEATED":
        kind = f"ARRAY<{kind}>"
    if kind in column.types:
        return []
    remedy = f"name another table in CODY_GATEWAY_BIGQUERY_TABLE and run `{CREATE_COMMAND}`"
    return [TableProblem(f"its column {column.name} is {kind}, not {' or '.join(column.types)}", remedy)]


def describe_problems(settings: BigQuerySettings, problems: Sequence[TableProblem]) -> str:
    """Return ``problems``, of which there is at least one, as a line for operators."""
    return f"the table {settings.table_name} does not take events: {'; '.join(map(str, problems))}"


def _list_fields(resource: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    schema = resource.get("schema") or {}
    return list(schema.get("fields") or ())
