"""``cgw config``: all settings and their values."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from cgw.cli.process import EPILOG, exit_on_closed_pipe, load_process_settings

if TYPE_CHECKING:
    from cgw.config.describe import SettingRow


@click.command(epilog=EPILOG)
def config() -> None:
    """List every setting with its effective value (secrets masked), its default and its meaning."""
    exit_on_closed_pipe()
    settings = load_process_settings()
    from cgw.config.describe import describe_settings

    _print_settings(describe_settings(settings))
    for warning in settings.warnings:
        click.echo(f"cgw: warning: {warning}", err=True)


def _print_settings(rows: Sequence[SettingRow]) -> None:
    if sys.stdout.isatty():
        # Two short lines for each setting: a terminal would fold the long lines of the table.
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
