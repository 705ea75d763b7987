"""The report of ``cgw usage``, as JSON or as a table."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from cgw.cli import tables
from cgw.cli.tables import Column, format_figure
from cgw.events.report import UsageRow


def render_json(rows: Sequence[UsageRow]) -> str:
    """Return ``rows`` as a JSON list of flat objects whose keys are :class:`UsageRow`'s fields."""
    return msgspec.json.format(msgspec.json.encode(rows), indent=2).decode()


def render_table(rows: Sequence[UsageRow], *, is_terminal: bool = False, width: int | None = None) -> str:
    """Return ``rows`` as a table for people, ending in a newline; see :func:`cgw.cli.tables.render_table`."""
    columns = [Column("day", is_whole=True), *map(Column, ("actor", "feature", "model"))]
    columns += [Column(title, is_figure=True) for title in ("requests", "errors", "tokens in", "tokens out")]
    cells = []
    for row in rows:
        # In the order of the columns above.
        figures = (row.requests, row.errors, row.prompt_tokens, row.completion_tokens)
        cells.append((row.day, _name_actor(row), row.feature, row.model, *map(format_figure, figures)))
    return tables.render_table(columns, cells, is_terminal=is_terminal, width=width)


def _name_actor(row: UsageRow) -> str:
    return f"{row.actor_name} ({row.actor})" if row.actor_name and row.actor_name != row.actor else row.actor
