"""Reading a parsed TOML document, with all problems collected, each by the path of its key."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")

_NAMES = {str: "a string", int: "a whole number", bool: "true or false", list: "a list", dict: "a table"}


class TableReader:
    """A reader of one table. Problems are appended to ``problems``, and reading goes on.

    ``path`` is that of the table (``actor[0].limits``; ``""`` at the top).
    """

    def __init__(self, table: Mapping[str, Any], path: str, problems: list[str]) -> None:
        self._table = table
        # Keys that were read: the others are unknown, see `finish`.
        self._taken: set[str] = set()
        self._path = path
        self._problems = problems

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of the table."""
        return tuple(self._table)

    def path_of(self, key: str) -> str:
        """Return the full path of ``key`` in this table."""
        return f"{self._path}.{key}" if self._path else key

    def add_problem(self, key: str, problem: str) -> None:
        """Add a problem of ``key``; ``problem`` is a sentence without its subject (``must be …``)."""
        self._problems.append(f"{self.path_of(key)}: {problem}")

    def take(self, key: str, kind: type[T]) -> T | None:
        """Return the value of ``key``, or ``None`` if it is missing or of another type; the latter is a problem."""
        self._taken.add(key)
        value = self._table.get(key)
        if value is None:
            return None
        if type(value) is not kind:  # not isinstance: `True` is an int
            self.add_problem(key, f"must be {_NAMES[kind]}, not {_NAMES.get(type(value), 'a ' + type(value).__name__)}")
            return None
        return value

    def require(self, key: str, kind: type[T]) -> T | None:
        """Return the value of ``key`` as :meth:`take`; if it is missing, that is a problem too."""
        if key not in self._table:
            self.add_problem(key, "is missing")
        return self.take(key, kind)

    def take_strings(self, key: str, *, is_required: bool = False) -> list[str] | None:
        """Return the list of strings at ``key``; each entry of another type is a problem, and left out."""
        values = self.require(key, list) if is_required else self.take(key, list)
        if values is None:
            return None
        for index, value in enumerate(values):
            if not isinstance(value, str):
                self.add_problem(f"{key}[{index}]", "must be a string")
        return [value for value in values if isinstance(value, str)]

    def take_table(self, key: str) -> TableReader | None:
        """Return a reader of the table at ``key``; ``None`` if it is missing or of another type."""
        table = self.take(key, dict)
        return None if table is None else TableReader(table, self.path_of(key), self._problems)

    def take_tables(self, key: str) -> list[TableReader] | None:
        """Return readers of the array of tables at ``key`` (``[[key]]``); ``None`` if it is missing."""
        self._taken.add(key)
        values = self._table.get(key)
        if values is None:
            return None
        if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
            self.add_problem(key, f"must be written as [[{self.path_of(key)}]], with two brackets")
            return []
        return [
            TableReader(value, self.path_of(f"{key}[{index}]"), self._problems) for index, value in enumerate(values)
        ]

    def finish(self) -> None:
        """Add a problem for every key that was not taken, with the most similar one that was."""
        for key in self._table:
            # A misspelt key would otherwise be ignored, and a limit with it.
            if key not in self._taken:
                nearest = difflib.get_close_matches(key, sorted(self._taken), n=1)
                self.add_problem(key, "unknown key" + (f"; did you mean {nearest[0]}?" if nearest else ""))
