"""Tables on standard output: fitted to a terminal, or plain text for other programs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import zip_longest

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
    titles = [column.title for column in columns]
    cells = [[_printable(cell) for cell in row] for row in rows]
    if is_terminal and width is not None:
        widths = _choose_widths(columns, [titles, *cells], width)
        titles, *cells = (list(map(_wrap, line, widths)) for line in [titles, *cells])
    # Not a table of rich's, which takes 0.5 ms for each row.
    split = [[cell.split("\n") for cell in row] for row in [titles, *cells]]
    widths = [max(measure(line) for cell in cells for line in cell) for cells in zip(*split, strict=True)]
    header, *body = (_lay_out(columns, row, widths) for row in split)
    return (f"\x1b[1m{header.rstrip()}\x1b[0m\n" if is_terminal else header) + "".join(body)


def _lay_out(columns: Sequence[Column], cells: Sequence[Sequence[str]], widths: Sequence[int]) -> str:
    lines = []
    for pieces in zip_longest(*cells, fillvalue=""):
        padded = []
        for column, piece, width in zip(columns, pieces, widths, strict=True):
            gap = " " * (width - measure(piece))
            padded.append(gap + piece if column.is_figure else piece + gap)
        lines.append((" " * GAP_WIDTH).join(padded).rstrip(" ") + "\n")
    return "".join(lines)


def _choose_widths(columns: Sequence[Column], lines: Sequence[Sequence[str]], width: int) -> list[int]:
    """Return a width for each column: the widest ones are narrowed first, none below its longest piece of a word."""
    widths = [max(map(measure, cells)) for cells in zip(*lines, strict=True)]
    least = []
    for column, (title, *cells) in zip(columns, zip(*lines, strict=True), strict=True):
        is_wrapped = not (column.is_figure or column.is_whole)
        # Titles consist of words, so they can be wrapped in every column.
        least.append(max([_measure_pieces(title), *map(_measure_pieces if is_wrapped else measure, cells)]))
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
        for piece in [word] if measure(word.strip()) <= width else _PIECES.findall(word):
            if lines[-1] and measure(lines[-1] + piece.rstrip()) > width:
                lines.append("")
            lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines)


def measure(text: str) -> int:
    """Return how many columns of a terminal ``text`` takes."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len  # imported here, so that `cgw --help` stays quick

    return cell_len(text)


def _measure_pieces(text: str) -> int:
    return max((measure(piece.rstrip()) for piece in _PIECES.findall(text)), default=0)


def format_figure(figure: int | None) -> str:
    """Return ``1,234``, or ``–`` where the figure is unknown."""
    return "–" if figure is None else f"{figure:,}"


def _printable(text: str) -> str:
    # A name from a client must not be able to move the terminal's cursor or change its colours.
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else "�" for character in text)
