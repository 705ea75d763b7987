"""The command ``cgw``.

Commands import the packages that they use when they run, so that ``cgw --help`` answers within 0.3 s.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from cgw import __version__
from cgw.cli.actors import actors
from cgw.cli.check import check
from cgw.cli.config import config
from cgw.cli.create_table import create_table
from cgw.cli.events import events
from cgw.cli.limits import limits
from cgw.cli.process import EPILOG, discard_output
from cgw.cli.serve import demo, serve
from cgw.cli.token_check import check_token
from cgw.cli.token_derivation import derive, hash_
from cgw.cli.tokens import token
from cgw.cli.usage import usage
from cgw.errors import CgwError, ConfigError

EXIT_FAILURE = 1
EXIT_INTERRUPTED = 128 + signal.SIGINT


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run ``cgw`` with ``arguments`` (default: the process's own), and exit with its status. Never returns."""
    status = run(sys.argv[1:] if arguments is None else arguments)
    if status == EXIT_INTERRUPTED:
        # The interpreter flushes standard output at exit, and would wait for a reader that does not read.
        discard_output()
    sys.exit(status)


def run(arguments: Sequence[str]) -> int:
    """Run ``cgw`` and return its exit status. Errors are reported on standard error, without a traceback."""
    try:
        # Without the standalone mode, click raises instead of printing and exiting on its own.
        status = cli.main(list(arguments), prog_name="cgw", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    # click turns Ctrl-C within a command into Abort.
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    # Before CgwError, of which it is a kind: each problem gets a line of its own.
    except ConfigError as error:
        for warning in error.warnings:
            click.echo(f"cgw: warning: {warning}", err=True)
        for problem in error.problems:
            click.echo(f"cgw: {problem}", err=True)
        return EXIT_FAILURE
    except CgwError as error:
        click.echo(f"cgw: {error}", err=True)
        return EXIT_FAILURE
    # The command's return value: a status, or None for success. --help and --version give 0.
    return status if isinstance(status, int) else 0


@click.group(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cgw", message="%(prog)s %(version)s")
def cli() -> None:
    """cgw, a managed proxy for LLM traffic: it authenticates, limits, streams and records completions.

    All settings are environment variables; `cgw config` lists them.
    """


for command in (serve, check, demo, usage, config, token, actors, limits, events):
    cli.add_command(command)
for command in (check_token, derive, hash_):
    token.add_command(command)
events.add_command(create_table)
