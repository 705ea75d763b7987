"""How the tour looks: colours and rules on a terminal, plain text without escapes anywhere else."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import TextIO

from rich.console import Console
from rich.panel import Panel
from rich.rule import Rule
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from cgw.demo.snippets import Snippet

READING_WIDTH = 96
"""Prose and streamed words are kept to this many columns, however wide the terminal is."""

PLAIN_WIDTH = 80


def has_colour(file: TextIO) -> bool:
    """Whether colours may be written to ``file``: a terminal that has them, and nobody said ``NO_COLOR``."""
    console = Console(file=file)
    return console.color_system is not None and not console.no_color


class WordWrapper:
    """Breaks words that come one by one into lines of at most ``width`` columns."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._column = 0

    def place(self, token: str) -> str:
        """What to print for ``token``: itself, or itself on a new line without the blanks before it."""
        if self._column and self._column + len(token.rstrip()) > self._width:
            token = "\n" + token.lstrip()
        newline = token.rfind("\n")
        self._column = self._column + len(token) if newline < 0 else len(token) - newline - 1
        return token


class Screen:
    """Prints the parts of the tour to ``file``, each at once."""

    def __init__(self, file: TextIO) -> None:
        self._console = Console(file=file, highlight=False, soft_wrap=False)
        self.is_terminal = self._console.is_terminal
        self._width = min(self._console.width, READING_WIDTH) if self.is_terminal else PLAIN_WIDTH

    def show_title(self, title: str, text: str) -> None:
        """The head of the tour."""
        if self.is_terminal:
            panel = Panel(Text(text), title=Text(title, "bold cyan"), title_align="left", width=self._width)
            self._console.print(panel)
        else:
            self._write(f"{title}\n{'=' * len(title)}\n{textwrap.fill(text, self._width)}\n")

    def show_section(self, title: str) -> None:
        """The head of a section."""
        if self.is_terminal:
            self._console.print()
            self._console.print(Rule(Text(title, "bold"), align="left", style="cyan"), width=self._width)
        else:
            self._write(f"\n{title}\n{'-' * len(title)}\n")

    def skip_line(self) -> None:
        """An empty line."""
        self._write("\n")

    def say(self, text: str, style: str = "") -> None:
        """A paragraph of prose."""
        if self.is_terminal:
            self._console.print(Text(text, style), width=self._width)
        else:
            self._write(textwrap.fill(text, self._width, break_long_words=False, break_on_hyphens=False) + "\n")

    def show_facts(self, facts: Iterable[tuple[str, str]]) -> None:
        """Names and values, one a line; values are never cut."""
        rows = list(facts)
        if self.is_terminal:
            grid = Table.grid(padding=(0, 2))
            grid.add_column(style="cyan", no_wrap=True)
            grid.add_column(overflow="fold")
            for name, value in rows:
                grid.add_row(Text(name), Text(value))
            self._console.print(grid, width=self._width)
        else:
            longest = max(len(name) for name, _ in rows)
            self._write("".join(f"{name:<{longest}}  {value}\n" for name, value in rows))

    def begin_text(self) -> WordWrapper:
        """Begin a text that comes word by word, for :meth:`show_token`."""
        return WordWrapper(self._width)

    def show_token(self, flow: WordWrapper, token: str) -> None:
        """Print one token of a text as it arrives."""
        self._write(flow.place(token), "green")

    def end_text(self) -> None:
        """End the line of the last token."""
        self._write("\n")

    def show_snippet(self, snippet: Snippet) -> None:
        """Lines to paste: never wrapped, never indented, so that what is copied is what was meant."""
        comment = f"# {snippet.title}"
        if self.is_terminal:
            syntax = Syntax("", snippet.language, theme="ansi_dark", background_color="default")
            self._console.print(Text(f"\n{comment}", "dim"), soft_wrap=True)
            code = syntax.highlight(snippet.code)
            code.rstrip()
            self._console.print(code, soft_wrap=True)
        else:
            self._write(f"\n{comment}\n{snippet.code}\n")

    def _write(self, text: str, style: str = "") -> None:
        # `out` neither wraps nor reads markup, and writes escapes only to a terminal.
        self._console.out(text, style=style or None, end="", highlight=False)
        self._console.file.flush()
