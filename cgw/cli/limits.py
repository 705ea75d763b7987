"""The options of ``cgw limits``. The work of its commands is in :mod:`cgw.cli.limits_report`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from cgw.cli.process import EPILOG, exit_on_closed_pipe, load_process_settings, terminal_width

if TYPE_CHECKING:
    from cgw.model import Feature


@click.group()
def limits() -> None:
    """The limits of actors, as Redis counts them for all gateways.

    They are read from the store of the settings: REDIS_ENDPOINT, or the embedded store of the gateway that runs with
    CODY_GATEWAY_DATA_DIR.
    """


# Not click.Choice: it needs the names when this module is imported, which `cgw --help` does, too.
def _parse_feature(context: click.Context, parameter: click.Parameter, value: str | None) -> Feature | None:
    from cgw.model import Feature

    name = _check_choice(value, [feature.value for feature in Feature])
    return None if name is None else Feature(name)


def _check_source(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    from cgw.actors.policies import POLICIES

    return _check_choice(value, tuple(POLICIES))


def _check_choice(value: str | None, choices: Sequence[str]) -> str | None:
    if value is not None and value not in choices:
        raise click.BadParameter(f"must be one of {', '.join(choices)}, not {value!r}.")
    return value


ACTOR_OPTION = click.option("--actor", "actor_id", required=True, metavar="ID", help="The actor's id, as limits count.")
OPTIONAL_ACTOR_OPTION = click.option("--actor", "actor_id", metavar="ID", help="Only this actor, by its id.")
FEATURE_OPTION = click.option("--feature", metavar="NAME", callback=_parse_feature, help="Only this feature's limits.")
SOURCE_OPTION = click.option("--source", metavar="NAME", callback=_check_source, help="Only the actor of this source.")


@limits.command(name="show", epilog=EPILOG)
@OPTIONAL_ACTOR_OPTION
@FEATURE_OPTION
@SOURCE_OPTION
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of flat objects instead of a table.")
def show_limits(actor_id: str | None, feature: Feature | None, source: str | None, as_json: bool) -> None:
    """Print how the limits of an actor stand, or without --actor those of all actors with activity; changes nothing.

    Of all actors, and of one that no local source knows, only limits that are used now are shown. Actors with activity
    are found by a scan of Redis, which takes some seconds per million keys and ends after a minute or 10,000 actors.
    """
    exit_on_closed_pipe()
    settings = load_process_settings()
    from cgw.cli import limits_report

    width = terminal_width()
    if actor_id is None:
        limits_report.show_active(settings, feature=feature, source=source, as_json=as_json, width=width)
    else:
        limits_report.show(settings, actor_id, feature=feature, source=source, as_json=as_json, width=width)


@limits.command(name="reset", epilog=EPILOG)
@ACTOR_OPTION
@FEATURE_OPTION
@SOURCE_OPTION
@click.option(
    "--in-flight",
    "has_in_flight",
    is_flag=True,
    help="Free the slots of requests in flight too. Those really in flight are counted again with their gateway's "
    "next heartbeat: this is for slots that a crashed gateway left, which end after three heartbeats anyway.",
)
def reset_limits(actor_id: str, feature: Feature | None, source: str | None, has_in_flight: bool) -> None:
    """Make the limits of an actor unused: quota and short-term rate; usage alerts are sent again.

    Requests in flight stay counted, unless --in-flight is given. Prints what was used.
    """
    settings = load_process_settings()
    from cgw.cli import limits_report

    limits_report.reset(settings, actor_id, feature=feature, source=source, has_in_flight=has_in_flight)
