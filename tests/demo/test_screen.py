"""Output of the tour on a terminal and in a pipe."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cgw.demo.screen import Screen, WordWrapper, has_colour
from cgw.demo.snippets import Snippet, build_snippets
from cgw.testing.script import DEFAULT_ANSWER, split_tokens


class Terminal(io.StringIO):
    """A file that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def show_everything(screen: Screen) -> None:
    screen.show_title("cgw demo", "A text about it. " * 10)
    screen.show_section("Section")
    screen.say("Some prose [with brackets]. " * 6, "dim")
    screen.show_facts([("name", "value"), ("longer name", "x" * 150)])
    wrapper = screen.begin_text()
    for token in split_tokens(DEFAULT_ANSWER):
        screen.show_token(wrapper, token)
    screen.end_text()
    for snippet in build_snippets("http://127.0.0.1:9992", "cgw_" + "0" * 64, "sgd_" + "0" * 64):
        screen.show_snippet(snippet)


def test_piped_output_is_plain_text() -> None:
    """A pipe gets no escape sequences, box characters or trailing blanks; values stay whole."""
    file = io.StringIO()
    show_everything(Screen(file))
    text = file.getvalue()
    assert text.isascii()
    assert "\x1b" not in text
    assert all(line == line.rstrip() for line in text.splitlines())
    assert "x" * 150 in text
    assert "Some prose [with brackets]." in text


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_a_terminal_gets_colours_within_its_width(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal gets colours, and only snippets are wider than the terminal or 96 columns."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    file = Terminal()
    show_everything(Screen(file))
    text = file.getvalue()
    assert "\x1b[" in text
    prose = re.sub(r"\x1b\[[0-9;]*m", "", text).partition("# Anthropic's models")[0]
    assert "\x1b" not in prose
    assert max(len(line) for line in prose.splitlines()) <= min(columns, 96)


def test_snippets_are_never_wrapped_or_indented(monkeypatch: pytest.MonkeyPatch) -> None:
    """A snippet is printed as it is, also on a narrow terminal."""
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("TERM", "dumb")
    code = 'import anthropic\nfor text in ["a long line that is wider than the terminal"]:\n    print(text)'
    for file in (Terminal(), io.StringIO()):
        Screen(file).show_snippet(Snippet("Title", "python", code))
        assert code in file.getvalue()


def test_no_color_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    """``NO_COLOR`` switches colours off where a terminal would have them; a pipe never has them."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert has_colour(Terminal())
    assert not has_colour(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not has_colour(Terminal())


@given(st.text(alphabet="ab \n", max_size=200), st.integers(1, 40))
@example("aaaa a ", 6)  # the last blanks of a text may be beyond the edge, where they cannot be seen
def test_streamed_words_are_broken_only_between_words(text: str, width: int) -> None:
    """For any width, words stay whole and in order, and only a line of a single word may be too long."""
    wrapper = WordWrapper(width)
    printed = "".join(wrapper.place(token) for token in split_tokens(text))
    assert printed.split() == text.split()
    for line in printed.splitlines():
        assert len(line.rstrip()) <= width or len(line.split()) <= 1
