"""Read usage events back from the gateway's event log, while the gateway writes it."""

from __future__ import annotations

from pathlib import Path

from cgw.events.lines import EventLine
from cgw.events.reading import read_events
from cgw.model import EventName


def read_last_completion(events_folder: Path, identifier: str) -> EventLine | None:
    """Return the newest completion of the actor ``identifier``, or ``None``. Blocks on the disk."""
    completions = [event for event in _read_completions(events_folder) if event.identifier == identifier]
    return max(completions, key=lambda event: event.created_at, default=None)


def count_completions(events_folder: Path) -> int:
    """Count the recorded completions. Blocks on the disk."""
    return len(_read_completions(events_folder))


def _read_completions(events_folder: Path) -> list[EventLine]:
    return [event for event in read_events(events_folder) if event.name == EventName.COMPLETIONS_FINISHED.value]
