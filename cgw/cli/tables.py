"""Tables for people, as commands print them."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO

from attrs import frozen


@frozen
class Column:
    """A column: figures stand to the right; on a narrow terminal other cells are wrapped, unless ``is_whole``."""

    title: str
    is_figure: bool = False
    is_whole: bool = False


def render_table(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], *, is_terminal: bool = False, width: int | None = None
) -> str:
    """``rows`` of cells under the titles of ``columns``, ending in a newline.

    On a terminal of ``width`` columns it wraps what is too long; else it is plain text that is never cut or wrapped.
    Whatever a terminal might obey is replaced.
    """
    from rich.console import Console  # here, so that `cgw --help` does not pay for it
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


def write_figure(figure: int | None) -> str:
    """``1,234``; ``–`` where unknown."""
    return "–" if figure is None else f"{figure:,}"


def _printable(text: str) -> str:
    """``text`` with everything that a terminal might obey, rather than show, replaced."""
    return "".join(character if character.isprintable() else "�" for character in text)
