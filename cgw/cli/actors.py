"""``cgw actors``: the actors that the gateway knows."""

from __future__ import annotations

import click

from cgw.cli.limits import SOURCE_OPTION
from cgw.cli.process import EPILOG, exit_on_closed_pipe, load_process_settings, terminal_width


@click.group()
def actors() -> None:
    """The actors that the gateway knows: who may send requests."""


@actors.command(name="list", epilog=EPILOG)
@SOURCE_OPTION
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of objects instead of a table.")
def list_(source: str | None, as_json: bool) -> None:
    """List actors: those of the actors file, and those that were fetched from a source and are kept in Redis.

    Product subscriptions are all there after a sync; users of Sourcegraph.com for as long as
    CODY_GATEWAY_SOURCES_CACHE_TTL after a request. Redis is searched for at most a minute and 10,000 actors.
    """
    exit_on_closed_pipe()
    settings = load_process_settings()
    from cgw.cli.actor_report import list_actors

    list_actors(settings, source=source, as_json=as_json, width=terminal_width())
