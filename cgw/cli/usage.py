"""``cgw usage``: totals of the recorded completions."""

from __future__ import annotations

import sys
from datetime import date, datetime
from pathlib import Path

import click

from cgw.cli.process import EPILOG, exit_on_closed_pipe, load_process_settings, terminal_width


@click.command(epilog=EPILOG)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of flat objects instead of a table.")
@click.option("--since", type=click.DateTime(["%Y-%m-%d"]), metavar="DATE", help="The first day (UTC).")
@click.option("--until", type=click.DateTime(["%Y-%m-%d"]), metavar="DATE", help="The last day (UTC), included.")
@click.option("--actor", metavar="ID", help="Only this actor's completions.")
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="The data directory, instead of CODY_GATEWAY_DATA_DIR.",
)
def usage(
    as_json: bool, since: datetime | None, until: datetime | None, actor: str | None, data_dir: Path | None
) -> None:
    """Sum up the recorded completions by day, actor, feature and model."""
    exit_on_closed_pipe()
    from cgw.cli.usage_report import render_json, render_table
    from cgw.events.report import summarise

    folder = (data_dir or load_process_settings().data.directory) / "events"
    rows = summarise(
        folder,
        since=since.date() if since else date.min,
        until=until.date() if until else date.max,
        actor=actor,
    )
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
