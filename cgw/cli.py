"""The command line. Everything but click is imported where it is used: ``cgw --help`` answers within 0.3 s."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cgw import __version__
from cgw.errors import CgwError, ConfigError

if TYPE_CHECKING:
    from cgw.config import SettingRow, Settings
    from cgw.model import Feature

EXIT_FAILURE = 1
EXIT_INTERRUPTED = 128 + signal.SIGINT

EPILOG = """\
Exit status: 0 when all went well, 1 when a setting, a file or a server is not as it should be (the reason is on
standard error), 2 for a wrong command line, 130 when interrupted by Ctrl-C.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``cgw`` with ``arguments`` (default: the process's own), and exit with its status."""
    status = run(sys.argv[1:] if arguments is None else arguments)
    if status == EXIT_INTERRUPTED:
        _discard_output()
    sys.exit(status)


def run(arguments: Sequence[str]) -> int:
    """Run ``cgw`` and return its exit status; what went wrong stands on standard error, without a traceback."""
    try:
        status = cli.main(list(arguments), prog_name="cgw", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except ConfigError as error:
        for problem in error.problems:
            click.echo(f"cgw: {problem}", err=True)
        return EXIT_FAILURE
    except CgwError as error:
        click.echo(f"cgw: {error}", err=True)
        return EXIT_FAILURE
    return status if isinstance(status, int) else 0


@click.group(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cgw", message="%(prog)s %(version)s")
def cli() -> None:
    """cgw, a managed proxy for LLM traffic: it authenticates, limits, streams and records completions.

    All settings are environment variables; `cgw config` lists them.
    """


@cli.command(epilog=EPILOG)
def serve() -> int:
    """Run the gateway until SIGTERM or SIGINT; open responses may finish within CODY_GATEWAY_DRAIN_TIMEOUT."""
    settings = _load_settings()
    from cgw.app import run_service

    return run_service(settings)


@cli.command(epilog=EPILOG)
@click.option("--once", is_flag=True, help="End after the tour instead of serving on.")
@click.option("--port", type=click.IntRange(0, 65535), help="The port to serve on (default: 9992, or any free one).")
def demo(once: bool, port: int | None) -> int:
    """Show a request streaming through the gateway; needs no key and no network."""
    from cgw.demo.tour import run_demo

    return run_demo(once=once, port=port)


@cli.command(epilog=EPILOG)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of flat objects instead of a table.")
@click.option("--since", type=click.DateTime(["%Y-%m-%d"]), metavar="DATE", help="The first day (UTC).")
@click.option("--until", type=click.DateTime(["%Y-%m-%d"]), metavar="DATE", help="The last day (UTC), included.")
@click.option("--actor", metavar="ID", help="Only this actor's completions.")
@click.option("--data-dir", type=click.Path(file_okay=False, path_type=Path), help="Instead of CODY_GATEWAY_DATA_DIR.")
def usage(
    as_json: bool, since: datetime | None, until: datetime | None, actor: str | None, data_dir: Path | None
) -> None:
    """Sum up the recorded completions by day, actor, feature and model."""
    _end_quietly_with_the_reader()
    from cgw.events.report import render_json, render_table, summarise

    path = (data_dir or _load_settings().store.data_dir) / "events.sqlite"
    rows = summarise(
        path,
        since=since and since.replace(tzinfo=UTC),
        until=until and until.replace(tzinfo=UTC) + timedelta(days=1),
        actor=actor,
    )
    if as_json:
        click.echo(render_json(rows))
        return
    click.echo(render_table(rows, is_terminal=sys.stdout.isatty(), width=_terminal_width()), nl=False)
    if not rows:
        click.echo(f"no such completions are recorded in {path}", err=True)


@cli.command(epilog=EPILOG)
def config() -> None:
    """List every setting: its effective value (secrets masked), its default, and what it is for."""
    _end_quietly_with_the_reader()
    settings = _load_settings()
    from cgw.config import describe_settings

    _print_settings(describe_settings(settings))
    for warning in settings.warnings:
        click.echo(f"cgw: warning: {warning}", err=True)


@cli.group()
def token() -> None:
    """Tokens of static actors."""


@token.command(epilog=EPILOG)
@click.option("--id", "actor_id", required=True, help="The actor's id: the pool that limits count on.")
@click.option("--name", default="", help="The actor's name, for people.")
def new(actor_id: str, name: str) -> None:
    """Print a fresh token, and the entry to paste into CODY_GATEWAY_ACTORS_FILE. The token is shown only now."""
    _end_quietly_with_the_reader()
    from cgw.actors.tokens import ACTOR_ID, ACTOR_ID_RULE, NAME_RULE, build_entry, hash_token, is_valid_name, new_token

    if not ACTOR_ID.fullmatch(actor_id):
        raise click.BadParameter(ACTOR_ID_RULE, param_hint="'--id'")
    if not is_valid_name(name):
        raise click.BadParameter(NAME_RULE, param_hint="'--name'")
    fresh = new_token()
    click.echo(f"The token, to be kept secret; it is not shown again:\n\n{fresh}\n")
    click.echo("The entry for the file that CODY_GATEWAY_ACTORS_FILE names; adjust its limits:\n")
    click.echo(build_entry(actor_id, name, hash_token(fresh)), nl=False)


@cli.group()
def limits() -> None:
    """The limits of an actor, as Redis counts them for all gateways.

    They are read from the store of the settings: REDIS_ENDPOINT, or the embedded store of the gateway that runs with
    CODY_GATEWAY_DATA_DIR.
    """


def _parse_feature(context: click.Context, parameter: click.Parameter, value: str | None) -> Feature | None:
    from cgw.model import Feature

    name = _check_choice(value, [feature.value for feature in Feature])
    return None if name is None else Feature(name)


def _check_source(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    from cgw.limits.maintenance import KNOWN_SOURCES

    return _check_choice(value, KNOWN_SOURCES)


def _check_choice(value: str | None, choices: Sequence[str]) -> str | None:
    if value is not None and value not in choices:
        raise click.BadParameter(f"must be one of {', '.join(choices)}, not {value!r}.")
    return value


ACTOR_OPTION = click.option("--actor", "actor_id", required=True, metavar="ID", help="The actor's id, as limits count.")
FEATURE_OPTION = click.option("--feature", metavar="NAME", callback=_parse_feature, help="Only this feature's limits.")
SOURCE_OPTION = click.option("--source", metavar="NAME", callback=_check_source, help="Only the actor of this source.")


@limits.command(name="show", epilog=EPILOG)
@ACTOR_OPTION
@FEATURE_OPTION
@SOURCE_OPTION
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of flat objects instead of a table.")
def show_limits(actor_id: str, feature: Feature | None, source: str | None, as_json: bool) -> None:
    """Print how the limits of an actor stand; changes nothing.

    Of an actor that no local source knows, what is counted now is shown: unused limits are not.
    """
    _end_quietly_with_the_reader()
    settings = _load_settings()
    from cgw import cli_limits

    width = _terminal_width()
    cli_limits.show(settings, actor_id, feature=feature, source=source, as_json=as_json, width=width)


@limits.command(name="reset", epilog=EPILOG)
@ACTOR_OPTION
@FEATURE_OPTION
@SOURCE_OPTION
@click.option(
    "--in-flight",
    "has_in_flight",
    is_flag=True,
    help="Free the places of requests in flight too. Those really under way are counted again with their gateway's "
    "next heartbeat: this is for what a dead one left, which three heartbeats end anyway.",
)
def reset_limits(actor_id: str, feature: Feature | None, source: str | None, has_in_flight: bool) -> None:
    """Make the limits of an actor unused: quota, short-term rate, and which notices were told.

    What is under way is under way: places in flight stay, unless --in-flight is given. Prints what was used.
    """
    settings = _load_settings()
    from cgw import cli_limits

    cli_limits.reset(settings, actor_id, feature=feature, source=source, has_in_flight=has_in_flight)


def _load_settings() -> Settings:
    from cgw.config import load_settings

    return load_settings(os.environ)


def _end_quietly_with_the_reader() -> None:
    """Let ``cgw usage | head`` end as any Unix filter does. Not for ``serve``, whose sockets break all the time."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)


def _discard_output() -> None:
    """Drop what is not written yet: its flush at exit would wait for the reader that kept us waiting."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def _terminal_width() -> int:
    return shutil.get_terminal_size().columns


def _print_settings(rows: Sequence[SettingRow]) -> None:
    """A table for `grep` and `column`; on a terminal, where its lines would be folded, two lines for each setting."""
    if sys.stdout.isatty():
        for row in rows:
            default = "" if row.is_default else f"  (default: {row.default.strip('()')})"
            value = row.value if row.is_default else click.style(row.value, bold=True)
            click.echo(f"{row.name} = {value}{default}\n    {row.help}")
        return
    cells = [("setting", "value", "default", "meaning")]
    cells += [(row.name, row.value, "" if row.is_default else row.default, row.help) for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
