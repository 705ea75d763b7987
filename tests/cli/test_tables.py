"""Tables for terminals: wrapped by words, and never cut."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from cgw.cli.tables import Column, render_table

COLUMNS = [Column("day", is_whole=True), Column("actor"), Column("feature"), Column("model"), Column("tokens in", True)]
ROW = [
    "2026-11-25",
    "Acme Production (acme-eu)",
    "chat_completions",
    "anthropic/claude-sonnet-4-5-20250929",
    "1,234,567",
]


def render(width: int) -> list[str]:
    text = render_table(COLUMNS, [ROW], is_terminal=True, width=width)
    return re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()


def test_a_wide_table_wraps_by_words() -> None:
    """Names break behind their separators, words only where they are too long for any line; figures never do."""
    assert render(200)[1].split() == " ".join(ROW).split()
    assert render(72) == [
        "day         actor            feature      model           tokens in",
        "2026-11-25  Acme Production  chat_        anthropic/      1,234,567",
        "            (acme-eu)        completions  claude-sonnet-",
        "                                          4-5-20250929",
    ]


def test_lines_fit_until_nothing_can_be_wrapped() -> None:
    """No line is wider than the terminal as long as the longest pieces fit side by side."""
    for width in range(60, 120):
        assert max(map(len, render(width))) <= width
    assert render(1) == render(max(map(len, render(1))))


@given(st.lists(st.text(max_size=40), min_size=1, max_size=3), st.integers(1, 100))
def test_nothing_is_cut_off(cells: list[str], width: int) -> None:
    """Whatever the texts and the width, all that is visible of each text is in the table, in order."""
    columns = [Column("x") for _ in cells]
    for index, cell in enumerate(cells):
        row = [cell if other == index else "" for other in range(len(cells))]
        lines = re.sub(r"\x1b\[[0-9;]*m", "", render_table(columns, [row], is_terminal=True, width=width)).splitlines()
        body = "".join("".join(line.split()) for line in lines[1:])
        printable = "".join(character if character.isprintable() else "�" for character in cell)
        assert body == "".join(printable.split())
