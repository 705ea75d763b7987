"""Output of the tour: colours and rules on a terminal, plain text without escape sequences elsewhere."""

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
"""The most columns that prose and streamed words take, however wide the terminal is."""

PLAIN_WIDTH = 80


def has_colour(file: TextIO) -> bool:
    """Return whether ``file`` is a terminal with colours and ``NO_COLOR`` is unset."""
    console = Console(file=file)
    return console.color_system is not None and not console.no_color


class WordWrapper:
    """Wraps words that arrive one by one to lines of at most ``width`` columns."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._column = 0

    def place(self, token: str) -> str:
        """Return the text to print: ``token``, or a newline and ``token`` without leading blanks if it does not fit."""
        # Trailing blanks may lie beyond the width, where they cannot be seen.
        if self._column and self._column + len(token.rstrip()) > self._width:
            token = "\n" + token.lstrip()
        newline = token.rfind("\n")
        self._column = self._column + len(token) if newline < 0 else len(token) - newline - 1
        return token


class Screen:
    """Prints the parts of the tour to ``file`` and flushes after each."""

    def __init__(self, file: TextIO) -> None:
        self._console = Console(file=file, highlight=False, soft_wrap=False)
        self.is_terminal = self._console.is_terminal
        self._width = min(self._console.width, READING_WIDTH) if self.is_terminal else PLAIN_WIDTH

    def show_title(self, title: str, text: str) -> None:
        if self.is_terminal:
            panel = Panel(Text(text), title=Text(title, "bold cyan"), title_align="left", width=self._width)
            self._console.print(panel)
        else:
            self._write(f"{title}\n{'=' * len(title)}\n{textwrap.fill(text, self._width)}\n")

    def show_section(self, title: str) -> None:
        if self.is_terminal:
            self._console.print()
            self._console.print(Rule(Text(title, "bold"), align="left", style="cyan"), width=self._width)
        else:
            self._write(f"\n{title}\n{'-' * len(title)}\n")

    def skip_line(self) -> None:
        self._write("\n")

    def say(self, text: str, style: str = "") -> None:
        """Print a paragraph, wrapped. ``style`` is rich's; plain text ignores it."""
        if self.is_terminal:
            self._console.print(Text(text, style), width=self._width)
        else:
            self._write(textwrap.fill(text, self._width, break_long_words=False, break_on_hyphens=False) + "\n")

    def show_facts(self, facts: Iterable[tuple[str, str]]) -> None:
        """Print names and values, one pair a line. Values may be folded, but are never cut."""
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
        """Begin a text that arrives word by word; pass the result to :meth:`show_token`."""
        return WordWrapper(self._width)

    def show_token(self, wrapper: WordWrapper, token: str) -> None:
        """Print the next token of a text."""
        self._write(wrapper.place(token), "green")

    def end_text(self) -> None:
        """End the last line of a text."""
        self._write("\n")

    def show_snippet(self, snippet: Snippet) -> None:
        """Print a snippet, never wrapped or indented, so that it can be copied from the terminal as it is."""
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
