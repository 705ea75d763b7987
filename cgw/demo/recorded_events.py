"""Reading back what the gateway wrote down: its event spool, looked at from outside."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from attrs import frozen

from cgw.model import EventName


@frozen
class RecordedEvent:
    """A usage event as the spool has it. ``seq`` is its place in the order of commits."""

    seq: int
    id: str
    name: str
    source: str
    identifier: str
    created_at: str
    metadata: dict[str, Any]


def read_last_completion(spool_path: Path, identifier: str) -> RecordedEvent | None:
    """The newest completion of the actor ``identifier``, or ``None``. Blocks on the disk."""
    query = """SELECT seq, id, name, source, identifier, created_at, metadata FROM events
        WHERE name = ? AND identifier = ? ORDER BY seq DESC LIMIT 1"""
    with _open_spool(spool_path) as connection:
        row = connection.execute(query, (EventName.COMPLETIONS_FINISHED.value, identifier)).fetchone()
    if row is None:
        return None
    seq, event_id, name, source, actor, created_at, metadata = row
    return RecordedEvent(seq, event_id, name, source, actor, created_at, json.loads(metadata))


def count_completions(spool_path: Path, *, after_seq: int = 0) -> int:
    """How many completions were recorded after the event ``after_seq``. Blocks on the disk."""
    query = "SELECT count(*) FROM events WHERE name = ? AND seq > ?"
    with _open_spool(spool_path) as connection:
        count: int = connection.execute(query, (EventName.COMPLETIONS_FINISHED.value, after_seq)).fetchone()[0]
    return count


def read_last_seq(spool_path: Path) -> int:
    """The place of the newest event, 0 for none. Blocks on the disk."""
    with _open_spool(spool_path) as connection:
        seq: int = connection.execute("SELECT coalesce(max(seq), 0) FROM events").fetchone()[0]
    return seq


@contextmanager
def _open_spool(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5)) as connection:
        yield connection
