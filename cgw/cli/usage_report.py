"""The report of ``cgw usage``: as JSON, as CSV, or as a table, which has bars in a terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

import msgspec

from cgw.cli import tables
from cgw.cli.tables import GAP_WIDTH, Column, format_figure
from cgw.events.latencies import find_quantile
from cgw.events.sums import UsageRow

_FIGURES = ("requests", "errors", "aborted", "prompt_tokens", "completion_tokens", "cached_tokens")
_TITLES = ("requests", "errors", "aborted", "tokens in", "tokens out", "cached", "p50 ms", "p99 ms")
_CHARACTERS = ("prompt_characters", "completion_characters")
_QUANTILES = {"time_to_first_byte_p50_ms": 0.5, "time_to_first_byte_p99_ms": 0.99}

_EIGHTHS = " ▏▎▍▌▋▊▉"
LEAST_BAR_WIDTH = 8
MOST_BAR_WIDTH = 30


def render_json(rows: Sequence[UsageRow], by: Sequence[str]) -> str:
    """Return ``rows`` as a JSON list of flat objects; what is unknown is ``null``."""
    return msgspec.json.format(msgspec.json.encode([_flatten(row, by) for row in rows]), indent=2).decode()


def render_csv(rows: Sequence[UsageRow], by: Sequence[str]) -> str:
    """Return ``rows`` as CSV under a line of the same names as in JSON; what is unknown is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_flatten(UsageRow(), by))
    writer.writerows(_flatten(row, by).values() for row in rows)
    return text.getvalue()


def _flatten(row: UsageRow, by: Sequence[str]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key in by:
        flat[key] = getattr(row, key)
        if key == "actor":
            flat |= {"actor_name": row.actor_name, "source": row.source}
    flat |= {name: getattr(row, name) for name in (*_FIGURES, *_CHARACTERS)}
    return flat | {name: _round(find_quantile(row.first_bytes, share)) for name, share in _QUANTILES.items()}


def _round(milliseconds: float | None) -> float | None:
    # Three digits; the third is uncertain already.
    return None if milliseconds is None else float(f"{milliseconds:.3g}")


def render_table(
    rows: Sequence[UsageRow], by: Sequence[str], *, is_terminal: bool = False, width: int | None = None
) -> str:
    """Return ``rows`` as a table for people, ending in a newline; see :func:`cgw.cli.tables.render_table`.

    Where a terminal has room beside it, each row gets a bar as long as its share of the most requests.
    """
    columns = [Column(key, is_whole=key == "day") for key in by]
    columns += [Column(title, is_figure=True) for title in _TITLES]
    cells = [_build_cells(row, by) for row in rows]
    table = tables.render_table(columns, cells, is_terminal=is_terminal, width=width)
    if not is_terminal or width is None or not rows:
        return table
    # The first line is bold, which takes characters but no columns.
    room = width - max(map(tables.measure, table.splitlines()[1:])) - GAP_WIDTH
    if room < LEAST_BAR_WIDTH:
        return table
    most = max(row.requests for row in rows)
    for row, line in zip(rows, cells, strict=True):
        line.append(_draw_bar(row.requests / most, min(room, MOST_BAR_WIDTH)))
    return tables.render_table([*columns, Column("", is_whole=True)], cells, is_terminal=True, width=width)


def _build_cells(row: UsageRow, by: Sequence[str]) -> list[str]:
    keys = [_name_actor(row) if key == "actor" else getattr(row, key) for key in by]
    figures = [format_figure(getattr(row, name)) for name in _FIGURES]
    return [*keys, *figures, *(_format_latency(find_quantile(row.first_bytes, share)) for share in _QUANTILES.values())]


def _name_actor(row: UsageRow) -> str:
    return f"{row.actor_name} ({row.actor})" if row.actor_name and row.actor_name != row.actor else row.actor


def _format_latency(milliseconds: float | None) -> str:
    return "–" if milliseconds is None else f"{_round(milliseconds):,g}"


def _draw_bar(share: float, width: int) -> str:
    whole, eighths = divmod(round(share * width * 8), 8)
    return "█" * whole + _EIGHTHS[eighths].strip()
