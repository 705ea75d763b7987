"""Reading what cgw recorded: the event log's sums for an actor, and the lines of the request log."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from attrs import Factory, define

from cgw.events.reading import read_events

LOG_NAME = "cgw.log"
"""The file in the data directory that the runner writes cgw's log to."""


@define
class Recorded:
    """The sums of an actor's events of one name. ``count`` counts repeated refusals one by one."""

    count: int = 0
    outcomes: Counter[str] = Factory(Counter)
    qualities: Counter[str] = Factory(Counter)
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def describe(self) -> str:
        """Return it in words."""
        outcomes = ", ".join(f"{count} {name}" for name, count in self.outcomes.items())
        return f"{self.count} events ({outcomes or 'no outcome'})" if self.count else "no event"


def count_logged(data_folder: Path, status: int) -> int:
    """Return how many lines of the request log say that cgw answered with ``status``."""
    lines = (data_folder / LOG_NAME).read_text("utf-8").splitlines()
    return sum('"logger":"cgw.exchange"' in line and f" status={status} " in line for line in lines)


def read_recorded(data_folder: Path, actor: str, name: str) -> Recorded:
    """Return the sums of the events called ``name`` of ``actor``."""
    sums = Recorded()
    for line in read_events(data_folder / "events"):
        if (line.identifier, line.name) != (actor, name):
            continue
        fields = line.metadata
        sums.count += fields.get("count", 1)
        if "outcome" in fields:
            sums.outcomes[fields["outcome"]] += 1
        if "usage_quality" in fields:
            sums.qualities[fields["usage_quality"]] += 1
        sums.prompt_tokens += fields.get("prompt_token_count", 0)
        sums.completion_tokens += fields.get("completion_token_count", 0)
    return sums
