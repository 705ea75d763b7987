"""Reading a parsed TOML document so that every wrong key is named by its path, all at once."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")

_NAMES = {str: "a string", int: "a whole number", bool: "true or false", list: "a list", dict: "a table"}


class TableReader:
    """One table of the document. What is wrong in it goes to ``problems``, and reading goes on.

    ``path`` is the table's own (``actor[0].limits``; ``""`` at the top).
    """

    def __init__(self, table: Mapping[str, Any], path: str, problems: list[str]) -> None:
        self._table = table
        self._taken: set[str] = set()
        self._path = path
        self._problems = problems

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys that the table has."""
        return tuple(self._table)

    def path_of(self, key: str) -> str:
        """The full path of ``key`` in this table."""
        return f"{self._path}.{key}" if self._path else key

    def add_problem(self, key: str, problem: str) -> None:
        """Note that ``key`` is wrong; ``problem`` is a sentence without its subject (``must be …``)."""
        self._problems.append(f"{self.path_of(key)}: {problem}")

    def take(self, key: str, kind: type[T]) -> T | None:
        """The value of ``key``, or ``None`` where it is missing or of another kind; the latter is a problem."""
        self._taken.add(key)
        value = self._table.get(key)
        if value is None:
            return None
        if type(value) is not kind:  # `True` is no number here
            self.add_problem(key, f"must be {_NAMES[kind]}, not {_NAMES.get(type(value), 'a ' + type(value).__name__)}")
            return None
        return value

    def require(self, key: str, kind: type[T]) -> T | None:
        """As :meth:`take`, but a missing key is a problem too."""
        if key not in self._table:
            self.add_problem(key, "is missing")
        return self.take(key, kind)

    def take_strings(self, key: str, *, is_required: bool = False) -> list[str] | None:
        """The list of strings at ``key``; each entry that is none is a problem, and left out."""
        values = self.require(key, list) if is_required else self.take(key, list)
        if values is None:
            return None
        for index, value in enumerate(values):
            if not isinstance(value, str):
                self.add_problem(f"{key}[{index}]", "must be a string")
        return [value for value in values if isinstance(value, str)]

    def take_table(self, key: str) -> TableReader | None:
        """The table at ``key``, as a reader of its own."""
        table = self.take(key, dict)
        return None if table is None else TableReader(table, self.path_of(key), self._problems)

    def take_tables(self, key: str) -> list[TableReader] | None:
        """The array of tables at ``key`` (``[[key]]``); ``None`` where it is missing."""
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
        """Note every key that nobody took, with the nearest one that somebody did."""
        for key in self._table:
            if key not in self._taken:
                nearest = difflib.get_close_matches(key, sorted(self._taken), n=1)
                self.add_problem(key, "is no known key" + (f"; did you mean {nearest[0]}?" if nearest else ""))
