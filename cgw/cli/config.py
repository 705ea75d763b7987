"""``cgw config``: all settings and their values."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cgw.cli.process import EPILOG, env_file_option, exit_on_closed_pipe, load_process_settings, terminal_width

if TYPE_CHECKING:
    from cgw.config.describe import SettingRow


@click.command(epilog=EPILOG)
@env_file_option
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of flat objects instead of a table.")
@click.option("--changed", "is_changed", is_flag=True, help="Only the settings whose value is not the default.")
def config(env_file: Path | None, as_json: bool, is_changed: bool) -> None:
    """List every setting with its effective value (secrets masked), its default and its meaning."""
    exit_on_closed_pipe()
    settings = load_process_settings(env_file)
    from cgw.config.describe import describe_settings

    rows = [row for row in describe_settings(settings) if not (is_changed and row.is_default)]
    if as_json:
        click.echo(_render_json(rows))
    elif sys.stdout.isatty():
        _print_for_people(rows, terminal_width())
    else:
        _print_table(rows)
    for warning in settings.warnings:
        # On standard error, so that the list can be piped.
        click.echo(f"cgw: warning: {warning}", err=True)


def _render_json(rows: Sequence[SettingRow]) -> str:
    import attrs

    return json.dumps([attrs.asdict(row) for row in rows], indent=2, ensure_ascii=False)


def _print_for_people(rows: Sequence[SettingRow], width: int) -> None:
    """Print a short paragraph for each setting: the table's lines are longer than a terminal's."""
    indent = " " * 4
    # By words: a terminal would break its lines within them. Names of headers and settings stay whole.
    wrapper = textwrap.TextWrapper(
        max(width, 20),
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    for row in rows:
        # Some defaults are in parentheses already: (not set).
        default = "" if row.is_default else f"  (default: {row.default.strip('()')})"
        value = row.value if row.is_default else click.style(row.value, bold=True)
        click.echo(f"{row.name} = {value}{default}")
        click.echo(wrapper.fill(row.help))


def _print_table(rows: Sequence[SettingRow]) -> None:
    """Print one line for each setting, never wrapped: for other programs."""
    cells = [("setting", "value", "default", "meaning")]
    cells += [(row.name, row.value, "" if row.is_default else row.default, row.help) for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
