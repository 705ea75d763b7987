"""``cgw config``: the settings and their values."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from cgw.cli.process import EPILOG, end_quietly_on_closed_pipe, load_settings_of_process

if TYPE_CHECKING:
    from cgw.config.describe import SettingRow


@click.command(epilog=EPILOG)
def config() -> None:
    """List every setting: its effective value (secrets masked), its default, and what it is for."""
    end_quietly_on_closed_pipe()
    settings = load_settings_of_process()
    from cgw.config.describe import describe_settings

    _print_settings(describe_settings(settings))
    for warning in settings.warnings:
        click.echo(f"cgw: warning: {warning}", err=True)


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
