"""Patterns of model names in an actor's list: ``anthropic/claude-*`` means every such model of the gateway's list."""

from __future__ import annotations

from functools import lru_cache

from cgw.model import ANY_MODEL


@lru_cache(maxsize=1024)
def select_models(named: tuple[str, ...], master: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of ``master``, in its order, that ``named`` has or that match a pattern in it.

    A ``*`` matches any text, in the provider's name too; a ``*`` alone matches nothing (the reference's §1.2).
    Remembered, because the same few lists are evaluated for every request.
    """
    exact = frozenset(named)
    patterns = [name for name in named if "*" in name and name != ANY_MODEL]
    return tuple(
        model for model in master if model in exact or any(matches_pattern(model, pattern) for pattern in patterns)
    )


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
