"""``cgw events``: looking after the recorded usage events."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import click

from cgw.cli.process import EPILOG, data_dir_option, env_file_option, find_events_folder, load_process_settings


@click.group(epilog=EPILOG)
def events() -> None:
    """Look after the recorded usage events."""


@events.command(name="import", epilog=EPILOG)
@click.argument("file", type=click.File("rb"))
@data_dir_option
def import_(file: BinaryIO, data_dir: Path | None) -> None:
    """Import usage events from FILE (- is standard input).

    FILE is a log of cgw, whose lines `usage event not written: …` hold the events that a full disk did not take, or
    lines of JSON as in the data directory. Events that are there already are left out, so that an import may be
    repeated. cgw may be running.
    """
    from cgw.errors import EventLogError
    from cgw.events.imports import import_lines

    folder = find_events_folder(data_dir)
    counts = import_lines(file, folder)
    click.echo(f"imported {counts.imported} events into {folder}; {counts.known} were there already", err=True)
    if counts.damaged:
        raise EventLogError(f"{counts.damaged} lines announce an event and do not hold a whole one")


@events.command(epilog=EPILOG)
@env_file_option
@click.option("--dry-run", is_flag=True, help="Only print the SQL statement that creates the table; nothing is asked.")
def create_table(env_file: Path | None, dry_run: bool) -> None:
    """Create the BigQuery table that usage events are shipped to.

    Its name is in CODY_GATEWAY_BIGQUERY_PROJECT_ID, _DATASET and _TABLE. It is partitioned by day, and clustered by
    source and identifier. A table that is there already keeps its rows, and gets the columns that it lacks. The
    dataset must be there: its place (EU, US) cannot be changed later, and is for you to choose.
    """
    settings = load_process_settings(env_file).bigquery
    from cgw.errors import ConfigError
    from cgw.events.sinks.bigquery.client import TableClient, require_client
    from cgw.events.sinks.bigquery.table import build_ddl

    if settings.project_id is None:
        raise ConfigError(["CODY_GATEWAY_BIGQUERY_PROJECT_ID: is not set: name the Google Cloud project of the table"])
    if dry_run:
        click.echo(build_ddl(settings.table_name), nl=False)
        return
    require_client(settings)
    click.echo(f"the table {settings.table_name} {TableClient(settings).create()}", err=True)
