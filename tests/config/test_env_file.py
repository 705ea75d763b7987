"""Files of environment variables: what they set, and what is refused instead of guessed."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgw.config.env_file import MAX_FILE_BYTES, parse_env_file, read_env_file
from cgw.errors import ConfigError


def test_assignments_comments_and_quotes_are_read() -> None:
    """Blank lines and comments do not count; quotes around a whole value are removed, and nothing is expanded."""
    text = """\
    # a comment
    PORT=8080
export CODY_GATEWAY_HOST = ::
CODY_GATEWAY_HOST=::\r
EMPTY=
SINGLE='a "b" $c #d\\'
DOUBLE="it's"
PLAIN=a=b#c it's $d
"""
    variables, problems = parse_env_file(text)
    assert problems == ["3: is not NAME=value: correct it, or begin it with # to make it a comment"]
    assert variables == {
        "PORT": "8080",
        "CODY_GATEWAY_HOST": "::",
        "EMPTY": "",
        "SINGLE": 'a "b" $c #d\\',
        "DOUBLE": "it's",
        "PLAIN": "a=b#c it's $d",
    }


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("CANARY", "is not NAME=value"),
        ("1A=CANARY", "is not NAME=value"),
        ("A=CANARY # comment", "has a # after a blank"),
        ("A='CANARY", "begins with a quote"),
        ('A="CANARY" # comment', "begins with a quote"),
        ('A="CANARY\\n"', "begins with a quote"),
        ("A=CANARY\\", "ends in a backslash"),
        ("A=CANARY\x00", "has a control character"),
        ("A=1\nA=CANARY", "sets A again"),
    ],
)
def test_what_programs_read_differently_is_a_problem(line: str, what: str) -> None:
    """Each problem has the number of its line and what to do, and does not repeat a value."""
    _, problems = parse_env_file(f"# first\n{line}\n")
    (problem,) = problems
    assert what in problem
    assert problem.partition(":")[0] in ("2", "3")
    assert problem.count(": ") >= 2 or problem.startswith("2: is not")
    assert "CANARY" not in problem


NAMES = st.from_regex(r"[A-Z_][A-Z0-9_]{0,8}", fullmatch=True)
VALUES = st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters="'"), max_size=12)


@given(st.dictionaries(NAMES, VALUES, max_size=5))
def test_single_quotes_hold_any_value(variables: dict[str, str]) -> None:
    """Whatever the value, between single quotes it arrives as it is."""
    text = "\n".join(f"{name}='{value}'" for name, value in variables.items())
    assert parse_env_file(text) == (variables, [])


@given(st.text(max_size=60))
def test_any_text_gives_variables_or_problems(text: str) -> None:
    """The parser never raises, and each line is an assignment, a comment, or a problem."""
    variables, problems = parse_env_file(text)
    lines = [line.strip(" \t\r") for line in text.removeprefix("\ufeff").split("\n")]
    assert len(variables) + len(problems) == sum(1 for line in lines if line and not line.startswith("#"))


def test_a_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    """A missing, large or binary file, and a wrong line, are problems that begin with the path."""
    path = tmp_path / "cgw.env"
    for content in (None, b"A" * (MAX_FILE_BYTES + 1), b"\xff", b"PORT\n"):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ConfigError) as caught:
            read_env_file(path)
        assert str(caught.value).startswith(f"{path}:")
    path.write_bytes(b"PORT=1\n")
    assert read_env_file(path) == {"PORT": "1"}
