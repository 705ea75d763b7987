"""``cgw events create-table``: the BigQuery table of usage events."""

from __future__ import annotations

from pathlib import Path

import click

from cgw.cli.process import EPILOG, env_file_option, load_process_settings


@click.command(epilog=EPILOG)
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
