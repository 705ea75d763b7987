"""``cgw usage``: totals of the recorded completions."""

from __future__ import annotations

import re
import sys
from datetime import date
from pathlib import Path

import click

from cgw.cli.process import EPILOG, data_dir_option, exit_on_closed_pipe, find_events_folder, terminal_width


def _parse_day(context: click.Context, parameter: click.Parameter, value: str | None) -> date | None:
    if value is None:
        return None
    try:
        # fromisoformat() alone would also take 20261125 and 2026-W48-3.
        if not re.fullmatch("[0-9]{4}-[0-9]{2}-[0-9]{2}", value):
            raise ValueError
        return date.fromisoformat(value)
    except ValueError:
        raise click.BadParameter(f"must be a day as YYYY-MM-DD, such as 2026-11-25, not {value!r}.") from None


@click.command(epilog=EPILOG)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of flat objects instead of a table.")
@click.option("--since", metavar="YYYY-MM-DD", callback=_parse_day, help="The first day (UTC).")
@click.option("--until", metavar="YYYY-MM-DD", callback=_parse_day, help="The last day (UTC), included.")
@click.option("--actor", metavar="ID", help="Only this actor's completions.")
@data_dir_option
def usage(as_json: bool, since: date | None, until: date | None, actor: str | None, data_dir: Path | None) -> None:
    """Sum up the recorded completions by day, actor, feature and model."""
    exit_on_closed_pipe()
    if since is not None and until is not None and since > until:
        raise click.UsageError(f"--since {since} is after --until {until}: no day is in between.")
    from cgw.cli.usage_report import render_json, render_table
    from cgw.events.report import summarise

    folder = find_events_folder(data_dir)
    rows = summarise(folder, since=since or date.min, until=until or date.max, actor=actor)
    if as_json:
        click.echo(render_json(rows))
        return
    click.echo(render_table(rows, is_terminal=sys.stdout.isatty(), width=terminal_width()), nl=False)
    # On standard error: a program that reads the list or table finds nothing but rows.
    if not rows:
        click.echo(f"no such completions are recorded in {folder}", err=True)
    earlier = folder.with_name("events.sqlite")
    if earlier.exists():
        click.echo(f"{earlier} is of an earlier version and not counted; cgw imports it when it starts", err=True)
