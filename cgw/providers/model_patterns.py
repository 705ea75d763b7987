"""Lists of models, as settings and actors have them: names, and patterns such as ``anthropic/claude-*``."""

from __future__ import annotations

import re
from functools import lru_cache

from attrs import frozen

from cgw.model import ANY_MODEL

MAX_NAME_CHARACTERS = 256
"""Longer names are in no list, so that no pattern is compared with a name as long as a body."""

SNAPSHOT = r"20\d{6}|20\d\d-\d\d-\d\d|(?:0[1-9]|1[0-2])[0-3]\d|0\d\d"
"""What ends the name of a model's snapshot: Anthropic's and OpenAI's dates, OpenAI's older ones (gpt-4-0613), Google's
version numbers (gemini-1.5-pro-002)."""

_SNAPSHOT = re.compile(f"-(?:{SNAPSHOT})$")


def add_prefix(provider: str, model: str) -> str:
    """Return ``provider/model``; a name with another slash is taken to have its prefix already."""
    return model if "/" in model else f"{provider}/{model}"


@frozen
class AllowList:
    """A list of models, ready to be asked. ``names`` and ``patterns`` are in lower case, and have their prefix."""

    is_everything: bool
    names: frozenset[str]
    patterns: tuple[str, ...]

    def admits(self, model: str) -> bool:
        """Return whether ``model`` (``provider/model``) is in the list, ignoring case, as in the reference (§9.1).

        It is in the list by its name or a pattern, with or without the date at its end: a model admits its snapshots.
        """
        # The name is the value of a header field in the answer, so it must not break the line, for example.
        folded = model.lower() if len(model) <= MAX_NAME_CHARACTERS and model.isprintable() else ""
        if not folded or folded in self.names or self.is_everything:
            return bool(folded)
        undated = _SNAPSHOT.sub("", folded)
        return undated in self.names or any(
            matches_pattern(folded, pattern) or matches_pattern(undated, pattern) for pattern in self.patterns
        )


# Bounded; the same few lists are asked for every request, and hashing one takes less time than looking through it.
@lru_cache(maxsize=4096)
def compile_allow_list(entries: tuple[str, ...], provider: str | None = None) -> AllowList:
    """Return the list of ``entries``: ``provider/model`` names and patterns, in which ``*`` stands for any text.

    An entry without a slash gets the prefix of ``provider``; without a ``provider``, it means that model of every
    provider (as in the reference, for actors from before model names were prefixed). Exactly ``("*",)`` means
    everything; a ``*`` beside other entries has no meaning (the reference's §1.2).
    """
    full = {add_prefix(provider or ANY_MODEL, entry).lower() for entry in entries if entry != ANY_MODEL}
    patterns = {name for name in full if "*" in name}
    return AllowList(entries == (ANY_MODEL,), frozenset(full - patterns), tuple(sorted(patterns)))


def matches_pattern(name: str, pattern: str) -> bool:
    """Return whether ``name`` matches ``pattern``, in which each ``*`` stands for any text. In linear time."""
    first, *middle = pattern.split("*")
    if not middle:
        return name == pattern
    last = middle.pop()
    if len(name) < len(first) + len(last) or not name.startswith(first) or not name.endswith(last):
        return False
    at, end = len(first), len(name) - len(last)
    for part in middle:
        # The leftmost place leaves the most room for the parts that follow, so there is no need to try others.
        found = name.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True
