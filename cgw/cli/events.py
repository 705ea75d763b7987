"""``cgw events``: looking after the recorded usage events."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import click

from cgw.cli.process import EPILOG, data_dir_option, find_events_folder


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
