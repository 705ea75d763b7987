"""Tables on standard output: fitted to a terminal, or plain text for other programs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from io import StringIO

from attrs import frozen

GAP_WIDTH = 2

# A word that is too long may be wrapped behind what separates the parts of names of models and features, or after 24
# characters without any of these.
_PIECES = re.compile(r"[^\s/_-]{1,24}[/_-]?\s*|[/_-]\s*|\s+")


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

    For a terminal of ``width`` columns, cells that are too long are wrapped by words; in a terminal that is too narrow
    even for that, lines are longer than it. Otherwise the text is never wrapped. Nothing is ever cut off. Control
    characters are replaced.
    """
    from rich.console import Console  # imported here, so that `cgw --help` stays quick
    from rich.table import Table
    from rich.text import Text

    titles = [column.title for column in columns]
    cells = [[_printable(cell) for cell in row] for row in rows]
    if is_terminal and width is not None:
        widths = _choose_widths(columns, [titles, *cells], width)
        titles, *cells = (list(map(_wrap, line, widths)) for line in [titles, *cells])
    table = Table(box=None, pad_edge=False, header_style="bold" if is_terminal else "")
    for column, title in zip(columns, titles, strict=True):
        table.add_column(title, justify="right" if column.is_figure else "left", no_wrap=True)
    for row in cells:
        table.add_row(*map(Text, row))
    console = Console(
        file=StringIO(),
        force_terminal=is_terminal,
        no_color=not is_terminal,
        width=10_000,  # the cells are wrapped by now, and rich would assume 80 columns
        highlight=False,
        legacy_windows=False,
    )
    with console.capture() as capture:
        console.print(table)
    # rich fills the last column with spaces.
    return "".join(line.rstrip(" ") + "\n" for line in capture.get().splitlines())


def _choose_widths(columns: Sequence[Column], lines: Sequence[Sequence[str]], width: int) -> list[int]:
    """Return a width for each column: the widest ones are narrowed first, none below its longest piece of a word."""
    widths = [max(map(_measure, cells)) for cells in zip(*lines, strict=True)]
    least = []
    for column, (title, *cells) in zip(columns, zip(*lines, strict=True), strict=True):
        is_wrapped = not (column.is_figure or column.is_whole)
        # Titles consist of words, so they can be wrapped in every column.
        least.append(max([_measure_pieces(title), *map(_measure_pieces if is_wrapped else _measure, cells)]))
    excess = sum(widths) + GAP_WIDTH * (len(widths) - 1) - width
    while excess > 0:
        narrowable = [index for index, column_width in enumerate(widths) if column_width > least[index]]
        if not narrowable:
            break
        widths[max(narrowable, key=widths.__getitem__)] -= 1
        excess -= 1
    return widths


def _wrap(text: str, width: int) -> str:
    """Return ``text`` in lines of at most ``width`` columns, if its pieces allow that."""
    lines = [""]
    for word in re.findall(r"\s*\S+\s*", text):
        # A word stays whole where it fits on a line of its own: dates and ids are easier to read so.
        for piece in [word] if _measure(word.strip()) <= width else _PIECES.findall(word):
            if lines[-1] and _measure(lines[-1] + piece.rstrip()) > width:
                lines.append("")
            lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines)


def _measure(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)


def _measure_pieces(text: str) -> int:
    return max((_measure(piece.rstrip()) for piece in _PIECES.findall(text)), default=0)


def format_figure(figure: int | None) -> str:
    """Return ``1,234``, or ``–`` where the figure is unknown."""
    return "–" if figure is None else f"{figure:,}"


def _printable(text: str) -> str:
    # A name from a client must not be able to move the terminal's cursor or change its colours.
    return "".join(character if character.isprintable() else "�" for character in text)
