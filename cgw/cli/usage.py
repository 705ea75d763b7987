"""``cgw usage``: totals of the recorded completions and embeddings."""

from __future__ import annotations

import re
import sys
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import click

from cgw.cli.process import EPILOG, data_dir_option, exit_on_closed_pipe, find_events_folder, terminal_width

BY = ("day", "actor", "feature", "provider", "model")
DEFAULT_BY = ("day", "actor", "feature", "model")
_DAYS = {"d": 1, "w": 7}


def _parse_day(context: click.Context, parameter: click.Parameter, value: str | None) -> date | None:
    if value is None:
        return None
    try:
        if ago := re.fullmatch("([0-9]{1,6})([dw])", value):
            return datetime.now(UTC).date() - timedelta(int(ago[1]) * _DAYS[ago[2]])
        # fromisoformat() alone would also take 20261125 and 2026-W48-3.
        if not re.fullmatch("[0-9]{4}-[0-9]{2}-[0-9]{2}", value):
            raise ValueError
        return date.fromisoformat(value)
    except (ValueError, OverflowError):
        raise click.BadParameter(
            f"must be a day as YYYY-MM-DD, such as 2026-11-25, or so many days or weeks ago, such as 7d or 2w, "
            f"not {value!r}."
        ) from None


def _parse_by(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    names = [name.strip() for value in values for name in value.split(",")]
    for name in names:
        if name not in BY:
            raise click.BadParameter(f"must be of {', '.join(BY)}, not {name!r}.")
    return tuple(key for key in BY if key in names) or DEFAULT_BY


@click.command(epilog=EPILOG)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of flat objects instead of a table.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV instead of a table.")
@click.option(
    "--by",
    metavar="KEY",
    multiple=True,
    callback=_parse_by,
    help=f"A row for each {', '.join(BY[:-1])} or {BY[-1]}; several are separated by commas, or --by is repeated. "
    f"Default: {','.join(DEFAULT_BY)}.",
)
@click.option("--since", metavar="YYYY-MM-DD", callback=_parse_day, help="The first day (UTC), or 7d, 2w: so long ago.")
@click.option("--until", metavar="YYYY-MM-DD", callback=_parse_day, help="The last day (UTC), included.")
@click.option("--actor", metavar="ID", help="Only this actor's requests.")
@data_dir_option
def usage(
    as_json: bool,
    as_csv: bool,
    by: tuple[str, ...],
    since: date | None,
    until: date | None,
    actor: str | None,
    data_dir: Path | None,
) -> None:
    """Sum up the recorded completions and embeddings.

    `aborted` are those whose client left before the end, `errors` those that failed otherwise. `cached` are the tokens
    in that came from the provider's cache. `p50 ms` and `p99 ms` are of the time to the first byte, within 2 %.
    A `–` is unknown.
    """
    exit_on_closed_pipe()
    if since is not None and until is not None and since > until:
        raise click.UsageError(f"--since {since} is after --until {until}: no day is in between.")
    if as_json and as_csv:
        raise click.UsageError("--json and --csv exclude each other.")
    from cgw.cli.usage_report import render_csv, render_json, render_table
    from cgw.events.report import summarise

    folder = find_events_folder(data_dir)
    keys = (*by, "source") if "actor" in by else by
    rows = summarise(folder, since=since or date.min, until=until or date.max, actor=actor, by=keys)
    if as_json:
        click.echo(render_json(rows, by))
    elif as_csv:
        click.echo(render_csv(rows, by), nl=False)
    else:
        click.echo(render_table(rows, by, is_terminal=sys.stdout.isatty(), width=terminal_width()), nl=False)
    # On standard error: a program that reads the report finds nothing but rows.
    if not rows:
        click.echo(_explain_nothing(folder, since, until, actor), err=True)
    earlier = folder.with_name("events.sqlite")
    if earlier.exists():
        click.echo(f"{earlier} is of an earlier version and not counted; cgw imports it when it starts", err=True)


def _explain_nothing(folder: Path, since: date | None, until: date | None, actor: str | None) -> str:
    from cgw.events.report import summarise

    recorded = summarise(folder, by=("day",))
    if not recorded:
        return f"no completions are recorded in {folder} yet"
    choice = [f"since {since}"] * (since is not None) + [f"until {until}"] * (until is not None)
    choice += [f"by the actor {actor!r}"] * (actor is not None)
    return (
        f"no completions {' '.join(choice)} are recorded in {folder}: it has those of "
        f"{recorded[0].day} to {recorded[-1].day}"
    )
