"""The SQLite file of an earlier version: imported once, and set aside."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from cgw.events.event_log import open_event_log
from cgw.events.imports import import_sqlite
from cgw.events.reading import read_events
from cgw.events.segments import list_segments

SCHEMA = """CREATE TABLE events (
    seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, name TEXT NOT NULL, source TEXT NOT NULL,
    identifier TEXT NOT NULL, created_at TEXT NOT NULL, metadata TEXT NOT NULL, shipped_at TEXT
)"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.sqlite"


def fill(path: Path, count: int, *, has_wal: bool = False) -> None:
    """Write a file as the earlier version left it; with its write-ahead log, as after ``kill -9``."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(SCHEMA)
        connection.execute("BEGIN")
        for number in range(count):
            metadata = json.dumps({"model": "a/b", "padding": "x" * 200})
            row = (f"id-{number}", "CompletionsFinished", "static", "acme", "2026-11-23T00:00:00.000000Z", metadata)
            connection.execute(
                "INSERT INTO events (id, name, source, identifier, created_at, metadata) VALUES (?,?,?,?,?,?)", row
            )
        connection.execute("COMMIT")
        names = (path.name, f"{path.name}-wal") if has_wal else ()
        copies = {name: path.with_name(name).read_bytes() for name in names}
    for name, content in copies.items():
        path.with_name(name).write_bytes(content)


@pytest.mark.parametrize("has_wal", [False, True])
async def test_events_are_imported_once(path: Path, folder: Path, has_wal: bool) -> None:
    """All rows become lines, with their ids; the file gets another name, and the next start finds nothing to do."""
    fill(path, 100, has_wal=has_wal)
    for _ in range(2):
        async with open_event_log(folder):
            assert [event.id for event in read_events(folder)] == [f"id-{number}" for number in range(100)]
    assert {entry.name for entry in folder.parent.iterdir()} == {"events", "events.sqlite.imported"}


def test_row_that_cannot_be_read_as_it_is_costs_no_other(path: Path, folder: Path) -> None:
    """Metadata that is not JSON, or not UTF-8, is kept as text."""
    folder.mkdir()
    fill(path, 3)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE events SET metadata = '{broken' WHERE seq = 1")
        connection.execute("UPDATE events SET metadata = CAST(x'7bff' AS TEXT) WHERE seq = 2")
    import_sqlite(path, folder)
    metadata = [event.metadata for event in read_events(folder)]
    assert metadata[:2] == [{"unreadable_metadata": "{broken"}, {"unreadable_metadata": "{\ufffd"}]
    assert metadata[2]["model"] == "a/b"


def test_interrupted_import_is_repeated_without_duplicates(path: Path, folder: Path) -> None:
    """An import whose file was not renamed any more is replaced by the next."""
    folder.mkdir()
    fill(path, 10)
    content = path.read_bytes()
    import_sqlite(path, folder)
    path.write_bytes(content)
    import_sqlite(path, folder)
    assert len(list(read_events(folder))) == 10
    assert not path.exists()
    assert len(list(folder.parent.glob("events.sqlite.imported*"))) == 2


@pytest.mark.parametrize("start", [0, 8 * 4096], ids=["whole file", "part of the rows"])
async def test_damaged_file_does_not_stop_the_start(
    path: Path, folder: Path, start: int, caplog: pytest.LogCaptureFixture
) -> None:
    """What can be read of a damaged file is imported; the file is set aside with an error."""
    fill(path, 1000)
    content = bytearray(path.read_bytes())
    content[start : start + 20 * 4096] = b"\xa5" * (20 * 4096)
    path.write_bytes(content)
    async with open_event_log(folder):
        found = len(list(read_events(folder)))
    assert (found > 0) == (start > 0)
    assert found < 1000
    (kept,) = folder.parent.glob("events.sqlite.corrupt-*")
    assert kept.read_bytes()[100:] == content[100:]  # the header says whether there is a write-ahead log
    assert "is damaged" in caplog.text


@pytest.mark.parametrize("content", ["CREATE TABLE accounts (id)", ""], ids=["another's database", "empty"])
async def test_what_is_no_spool_is_left_alone(
    path: Path, folder: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A database that is not cgw's is neither changed nor renamed, and the start goes on."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(content)
    before = path.read_bytes()
    async with open_event_log(folder):
        pass
    assert path.read_bytes() == before
    assert list_segments(folder) == []
    assert "no such table: events" in caplog.text
