"""Files of environment variables, in the form that systemd's ``EnvironmentFile=`` and Docker Compose read alike.

``NAME=value``, one per line, with or without ``export`` in front; quotes around a whole value are removed, and nothing
is expanded. Lines that begin with ``#`` are comments. What those programs understand differently, a ``#`` behind an
unquoted value or escapes between double quotes, is a problem instead of a guess.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from cgw.errors import ConfigError, explain_os_error

MAX_FILE_BYTES = 1 << 20

_ASSIGNMENT = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)=(.*)")
_QUOTED = re.compile(r"'([^']*)'|\"([^\"\\$`]*)\"")


def read_env_file(path: Path) -> dict[str, str]:
    """Return the variables of the file at ``path``. Blocks.

    Raises :exc:`~cgw.errors.ConfigError` with every problem, as ``path:line: …``; none repeats a value.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        reason = explain_os_error(error)
        raise ConfigError([f"{path}: cannot be read: {reason}: name a file with --env-file that can be"]) from None
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError([f"{path}: is larger than 1 MiB: name a file of variables with --env-file"])
    try:
        variables, problems = parse_env_file(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: is not UTF-8 at byte {error.start}: write it as UTF-8"]) from None
    if problems:
        raise ConfigError([f"{path}:{problem}" for problem in problems])
    return variables


def parse_env_file(text: str) -> tuple[dict[str, str], list[str]]:
    """Return the variables that ``text`` sets, and its problems as ``line: what is wrong: what to do``. Pure."""
    variables: dict[str, str] = {}
    problems: list[str] = []
    for number, name, value in _read_lines(text, problems):
        if name in variables:
            problems.append(f"{number}: sets {name} again: keep one of the lines")
        variables[name] = value
    return variables, problems


def _read_lines(text: str, problems: list[str]) -> Iterator[tuple[int, str, str]]:
    """Yield number, name and value of each assignment; add a problem for each line that is something else."""
    # Not splitlines(), which also splits at characters that are part of a value, as U+2028.
    for number, raw_line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        line = raw_line.strip(" \t\r")
        if not line or line.startswith("#"):
            continue
        match = _ASSIGNMENT.fullmatch(line)
        if match is None:
            problems.append(f"{number}: is not NAME=value: correct it, or begin it with # to make it a comment")
            continue
        problem, value = _read_value(match[2].strip(" \t"))
        if problem:
            problems.append(f"{number}: {match[1]} {problem}")
            continue
        yield number, match[1], value


def _read_value(text: str) -> tuple[str, str]:
    """Return a problem or ``""``, and the value that ``text`` writes."""
    if not text.replace("\t", "").isprintable():
        return "has a control character in its value: remove it", ""
    quoted = _QUOTED.fullmatch(text)
    if quoted is not None:
        return "", quoted[1] if quoted[1] is not None else quoted[2]
    if text[:1] in ("'", '"'):
        return "begins with a quote that does not end its value plainly: use single quotes around all of it", ""
    if re.search(r"\s#", text):
        return "has a # after a blank, a comment to some programs: put the value in single quotes", ""
    if text.endswith("\\"):
        return "ends in a backslash: lines cannot be continued, so write the value on one line", ""
    return "", text
