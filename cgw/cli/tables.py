"""Tables on standard output: fitted to a terminal, or plain text for other programs."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO

from attrs import frozen


@frozen
class Column:
    """A column. Figures are right-aligned and never wrapped; nor are cells of a column with ``is_whole``."""

    title: str
    is_figure: bool = False
    is_whole: bool = False


def render_table(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], *, is_terminal: bool = False, width: int | None = None
) -> str:
    """Return a table of ``rows`` under the titles of ``columns``, ending in a newline.

    For a terminal of ``width`` columns, cells that are too long are wrapped; otherwise the text is never cut or
    wrapped. Control characters are replaced.
    """
    from rich.console import Console  # imported here, so that `cgw --help` stays quick
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold" if is_terminal else "")
    for column in columns:
        table.add_column(
            column.title,
            justify="right" if column.is_figure else "left",
            overflow="ellipsis" if column.is_figure else "fold",
            no_wrap=not is_terminal or column.is_whole,
        )
    for row in rows:
        table.add_row(*(Text(_printable(cell)) for cell in row))
    console = Console(
        file=StringIO(),
        force_terminal=is_terminal,
        no_color=not is_terminal,
        width=width if is_terminal else 10_000,
        highlight=False,
        legacy_windows=False,
    )
    with console.capture() as capture:
        console.print(table)
    return "".join(line.rstrip(" ") + "\n" for line in capture.get().splitlines())


def format_figure(figure: int | None) -> str:
    """Return ``1,234``, or ``–`` where the figure is unknown."""
    return "–" if figure is None else f"{figure:,}"


def _printable(text: str) -> str:
    # A name from a client must not be able to move the terminal's cursor or change its colours.
    return "".join(character if character.isprintable() else "�" for character in text)
