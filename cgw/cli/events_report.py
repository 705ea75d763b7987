"""The text of ``cgw events status``."""

from __future__ import annotations

from collections.abc import Sequence

from cgw.cli.tables import Column, format_figure, render_table
from cgw.durations import format_duration
from cgw.events.shipping.status import SinkStatus

COLUMNS = (
    Column("sink", is_whole=True),
    Column("shipped bytes", is_figure=True),
    Column("unshipped events", is_figure=True),
    Column("bytes", is_figure=True),
    Column("oldest", is_figure=True),
    Column("failed events", is_figure=True),
)


def render_status(sinks: Sequence[SinkStatus]) -> str:
    """Return a table of the sinks, and below it a line for each that is in trouble or has rejected events."""
    if not sinks:
        return ""
    lines = [render_table(COLUMNS, [_build_row(sink) for sink in sinks])]
    for sink in sinks:
        if sink.trouble is not None:
            lines.append(f"{sink.sink} takes nothing {sink.trouble}\n")
        if sink.failed_events:
            lines.append(f"{sink.sink} rejected {sink.failed_events} events: see `cgw events failed`\n")
    return "".join(lines)


def _build_row(sink: SinkStatus) -> list[str]:
    age = sink.oldest_age_seconds
    return [
        sink.sink,
        format_figure(sink.shipped_bytes),
        format_figure(sink.unshipped_events),
        format_figure(sink.unshipped_bytes),
        "–" if age is None else format_duration(round(age, 1)),
        format_figure(sink.failed_events),
    ]
