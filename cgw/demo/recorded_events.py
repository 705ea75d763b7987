"""Read usage events back from the gateway's spool.

The functions open the SQLite file read-only while the gateway writes it; WAL mode lets both work at once.
"""

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
    """One row of the spool. ``seq`` numbers events in the order of their commits, from 1."""

    seq: int
    id: str
    name: str
    source: str
    identifier: str
    created_at: str
    metadata: dict[str, Any]


def read_last_completion(spool_path: Path, identifier: str) -> RecordedEvent | None:
    """Return the newest completion of the actor ``identifier``, or ``None``. Blocks on the disk."""
    # By seq, not by time: clocks may step back.
    query = """SELECT seq, id, name, source, identifier, created_at, metadata FROM events
        WHERE name = ? AND identifier = ? ORDER BY seq DESC LIMIT 1"""
    with _open_spool(spool_path) as connection:
        row = connection.execute(query, (EventName.COMPLETIONS_FINISHED.value, identifier)).fetchone()
    if row is None:
        return None
    seq, event_id, name, source, actor, created_at, metadata = row
    return RecordedEvent(seq, event_id, name, source, actor, created_at, json.loads(metadata))


def count_completions(spool_path: Path, *, after_seq: int = 0) -> int:
    """Count the completions recorded after the event ``after_seq``. Blocks on the disk."""
    query = "SELECT count(*) FROM events WHERE name = ? AND seq > ?"
    with _open_spool(spool_path) as connection:
        count: int = connection.execute(query, (EventName.COMPLETIONS_FINISHED.value, after_seq)).fetchone()[0]
    return count


def read_last_seq(spool_path: Path) -> int:
    """Return the ``seq`` of the newest event, 0 for none. Blocks on the disk."""
    with _open_spool(spool_path) as connection:
        seq: int = connection.execute("SELECT coalesce(max(seq), 0) FROM events").fetchone()[0]
    return seq


@contextmanager
def _open_spool(path: Path) -> Iterator[sqlite3.Connection]:
    # `mode=ro`: a missing file is an error here, where the default would create an empty one.
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5)) as connection:
        yield connection
