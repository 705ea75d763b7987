"""Reading a secret for a command: never from its arguments, which the shell's history and ``ps`` show."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

MAX_CHARACTERS = 64 * 1024
"""Licence keys, the longest of these secrets, have some hundred."""


def _refuse(context: click.Context, parameter: click.Parameter, value: Sequence[str]) -> None:
    # Without this, click would repeat what it does not expect.
    if value:
        raise click.UsageError(
            "this command takes no arguments: a secret on the command line ends in the shell's history, and others "
            "can see it in the list of processes. Pipe it in, or enter it when asked"
        )


refuse_arguments = click.argument("arguments", nargs=-1, metavar="", expose_value=False, callback=_refuse)
"""Refuse arguments of a command that reads a secret, without repeating them."""


def read_secret(name: str) -> str:
    """Return the secret called ``name``: asked for without echo on a terminal, otherwise standard input's first line.

    Blanks around it do not count. Raises :exc:`click.UsageError` if there is none.
    """
    if sys.stdin.isatty():
        # On standard error, so that the output can be piped. An empty answer is asked for again.
        text = click.prompt(name.capitalize(), hide_input=True, err=True)
    else:
        # Bytes that are not UTF-8 are kept, as in the gateway: the secret is then unknown, which is the right answer.
        text = sys.stdin.buffer.readline(MAX_CHARACTERS).decode("utf-8", "surrogateescape")
    secret: str = text.strip()
    if not secret:
        raise click.UsageError(f"no {name} on standard input: pipe it in, or run the command on a terminal")
    return secret
