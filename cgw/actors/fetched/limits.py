"""Collecting the limits of an actor, whatever the form in which its source tells them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from cgw.actors.fetched.backend import Report
from cgw.actors.fetched.fetched_actor import FetchedLimit, LimitProblem
from cgw.model import Feature

T = TypeVar("T")


def collect_limits(
    told: Mapping[Feature, T | None],
    check: Callable[[T], FetchedLimit | None],
    actor_name: str,
    report: Report,
) -> dict[str, FetchedLimit]:
    """Return the limits by feature, as ``check`` reads them.

    One for which that raises :exc:`LimitProblem` is left out, and reported under ``actor_name``.
    """
    limits = {}
    for feature, limit in told.items():
        if limit is None:
            continue
        try:
            checked = check(limit)
        except LimitProblem as problem:
            report(f"{actor_name}: {feature} {problem}; the feature is not available")
            continue
        if checked is not None:
            limits[feature.value] = checked
    return limits
