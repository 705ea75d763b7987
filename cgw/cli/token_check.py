"""``cgw token check``: what the gateway would make of a token."""

from __future__ import annotations

import click

from cgw.cli.process import EPILOG, exit_on_closed_pipe, load_process_settings, terminal_width
from cgw.cli.secret_input import read_secret, refuse_arguments


@click.command(name="check", epilog=EPILOG)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object instead of text.")
@refuse_arguments
def check_token(as_json: bool) -> None:
    """Say which source knows a token, what it may do, and how old that knowledge is.

    The token is read from standard input, or asked for on a terminal; it is not an argument, as those end in the
    shell's history. The sources are asked as the gateway with these settings asks them: its Redis first, if that is
    running. A token that would get 401 or 503 is exit status 1.
    """
    exit_on_closed_pipe()
    token = read_secret("token")
    settings = load_process_settings()
    from cgw.cli import actor_report

    actor_report.check_token(settings, token, as_json=as_json, width=terminal_width())
