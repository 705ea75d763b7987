"""``cgw events``: looking after the recorded usage events."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import BinaryIO

import click

from cgw.cli.process import EPILOG, data_dir_option, exit_on_closed_pipe, find_events_folder


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
@click.option("--lines", "-n", default=10, show_default=True, type=click.IntRange(0, 10_000), help="Begin so far back.")
@click.option("--no-follow", is_flag=True, help="End after these, instead of waiting for more.")
@data_dir_option
def tail(lines: int, no_follow: bool, data_dir: Path | None) -> None:
    """Print usage events as they are recorded, each as a line of JSON, until Ctrl-C.

    All processes that share the data directory are followed.
    """
    exit_on_closed_pipe()
    from cgw.events.following import Follower

    follower = Follower(find_events_folder(data_dir))
    output = sys.stdout.buffer
    for line in follower.read_last(lines):
        output.write(line + b"\n")
    output.flush()
    if no_follow:
        return
    for line in follower.follow():
        output.write(line + b"\n")
        output.flush()


@events.command(epilog=EPILOG)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of flat objects instead of text.")
@data_dir_option
def status(as_json: bool, data_dir: Path | None) -> None:
    """Show how far each sink is: what is shipped, how old the oldest unshipped event is, and what failed.

    cgw need not be running.
    """
    exit_on_closed_pipe()
    from attrs import asdict

    from cgw.cli.events_report import render_status
    from cgw.events.shipping.status import read_status

    folder = find_events_folder(data_dir)
    found = read_status(folder)
    if as_json:
        click.echo(json.dumps([asdict(sink) for sink in found]))
        return
    click.echo(render_status(found), nl=False)
    if not found:
        click.echo(f"nothing was shipped from {folder} yet; CODY_GATEWAY_EVENTS_SINKS names sinks", err=True)


@events.command(epilog=EPILOG)
@click.option("--sink", metavar="NAME", help="Only this sink's.")
@data_dir_option
def failed(sink: str | None, data_dir: Path | None) -> None:
    """Print the events that a sink rejected, each as a line of JSON: {sink, failed_at, reason, event}."""
    exit_on_closed_pipe()
    from msgspec import to_builtins

    from cgw.events.shipping.failed import list_sink_folders, read_failed

    for folder in list_sink_folders(find_events_folder(data_dir), sink):
        for event in read_failed(folder):
            click.echo(json.dumps({"sink": folder.name, **to_builtins(event)}))


@events.command(epilog=EPILOG)
@click.option("--sink", metavar="NAME", help="Only this sink's.")
@data_dir_option
def retry(sink: str | None, data_dir: Path | None) -> None:
    """Send the events that a sink rejected again, once its table or the receiver was mended.

    A running cgw sends them within a minute, otherwise the next start does.
    """
    from cgw.events.shipping.failed import list_sink_folders, retry_failed

    for folder in list_sink_folders(find_events_folder(data_dir), sink):
        click.echo(f"{folder.name}: {retry_failed(folder)} events are sent again", err=True)
