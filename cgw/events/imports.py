"""Bringing events into the log from elsewhere: the log lines of events that could not be written, and SQLite files.

Either way they end up in a segment of their own, and those that the log has already are left out.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import msgspec
from attrs import frozen

from cgw.errors import EventLogError, explain_os_error
from cgw.events.lines import EventLine, encode
from cgw.events.reading import read_events
from cgw.events.segments import create_segment
from cgw.file_lock import hold_file_lock

LOG_MARK = "usage event not written: "
"""Stands in the log before an event that could not be written."""

LOCK_NAME = "import.lock"
LOCK_SECONDS = 60.0
_ROWS = "SELECT id, name, source, identifier, created_at, metadata FROM events ORDER BY seq"

logger = logging.getLogger("cgw.events")
_decode_event = msgspec.json.Decoder(EventLine).decode


@frozen
class ImportCounts:
    """The findings of an import: events that are new, that were in the log already, and that could not be read."""

    imported: int
    known: int
    damaged: int


def import_lines(lines: Iterable[bytes], folder: Path) -> ImportCounts:
    """Import events from log lines, or from lines of a segment; anything else in ``lines`` is passed over.

    An event whose id is in the log already is not imported again, so that the same file may be imported twice. Memory
    grows with the number of ids, about 100 bytes each. Raises :exc:`~cgw.errors.EventLogError`.
    """
    damaged = 0

    def find_events() -> Iterator[EventLine]:
        nonlocal damaged
        for line in lines:
            try:
                event = find_event(line)
            except ValueError:
                damaged += 1
                continue
            if event is not None:
                yield event

    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with hold_file_lock(folder / LOCK_NAME, timeout_seconds=LOCK_SECONDS):
            imported, known = _import_new(find_events(), folder)
    except OSError as error:
        raise EventLogError(f"events cannot be imported into {folder}: {explain_os_error(error)}") from error
    return ImportCounts(imported, known, damaged)


def _import_new(events: Iterable[EventLine], folder: Path) -> tuple[int, int]:
    """Write the events that the log does not have to a segment; return how many these are, and how many it has.

    An import that is interrupted leaves a part of them, and can be repeated.
    """
    found: set[str] = set()
    with TemporaryFile(dir=folder) as candidates:
        for event in events:
            if event.id not in found:
                found.add(event.id)
                candidates.write(encode(event) + b"\n")
        new = found.difference(event.id for event in read_events(folder))
        candidates.seek(0)
        segment = create_segment(folder, has_sync=True)
        try:
            for line in candidates:
                if _decode_event(line).id in new:
                    segment.append(line)
        finally:
            segment.seal()
    return len(new), len(found) - len(new)


def find_event(line: bytes) -> EventLine | None:
    """Return the event in a line of the log or of a segment; ``None`` when there is none.

    It is found in text and in JSON entries, as they are written or wrapped by a container's runtime. Raises
    :exc:`ValueError` for a line that announces an event and does not hold a whole one.
    """
    text = line.decode("utf-8", "replace")
    if LOG_MARK in text:
        return _find_marked(text)
    try:
        return _decode_event(line)
    except (ValueError, RecursionError):
        return None


def _find_marked(text: str) -> EventLine:
    _, _, rest = text.partition(LOG_MARK)
    with suppress(ValueError):  # msgspec's errors are ValueErrors
        value, _ = json.JSONDecoder().raw_decode(rest)
        return msgspec.convert(value, EventLine)
    # The text is a JSON entry: the event is in one of its values, with its quotes escaped.
    for inner in _walk_texts(json.loads(text[text.index("{") :])):
        if LOG_MARK in inner and inner != text:
            return _find_marked(inner)
    raise ValueError("no whole event follows the mark")


def _walk_texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _walk_texts(item)


def import_sqlite(path: Path, folder: Path) -> None:
    """Import the SQLite file of an earlier version, if there is one, and rename it to ``<name>.imported``.

    A damaged file is renamed to ``<name>.corrupt-<time>`` after what can be read of it was imported. Whatever happens
    is logged, and nothing is raised: a file that cannot be imported now stays where it is for the next start.
    """
    if not path.exists():
        return
    try:
        with hold_file_lock(folder / LOCK_NAME, timeout_seconds=LOCK_SECONDS):
            if path.exists():  # otherwise another process has imported it meanwhile
                _import_sqlite(path, folder)
    except (OSError, sqlite3.Error) as error:
        logger.error("%s cannot be imported now, it stays for the next start: %s", path, explain_os_error(error))


def _import_sqlite(path: Path, folder: Path) -> None:
    damage: sqlite3.DatabaseError | None = None

    def read_readable() -> Iterator[EventLine]:
        nonlocal damage
        try:
            yield from _read_rows(connection)
        except sqlite3.OperationalError:
            raise  # locked, no such table, read-only: not damage
        except sqlite3.DatabaseError as error:
            damage = error

    with closing(sqlite3.connect(path, timeout=5, isolation_level=None)) as connection:
        count, _ = _import_new(read_readable(), folder)
        _set_aside(path, "imported" if damage is None else f"corrupt-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")
    if damage is None:
        logger.info("imported %d usage events from %s, which is now %s.imported", count, path, path.name)
    else:
        logger.error("%s is damaged (%s): %d usage events could be imported; it is set aside beside it as "
                     "%s.corrupt-…", path, damage, count, path.name)  # fmt: skip


def _read_rows(connection: sqlite3.Connection) -> Iterator[EventLine]:
    connection.text_factory = lambda data: data.decode("utf-8", "replace")
    with suppress(sqlite3.DatabaseError):
        # Folds the write-ahead log into the file, unless another process has it open, too.
        connection.execute("PRAGMA journal_mode = DELETE")
    # Held until the file is renamed: a process of the earlier version that still runs waits, and then notices.
    connection.execute("BEGIN IMMEDIATE")
    for event_id, name, source, identifier, created_at, text in connection.execute(_ROWS):
        try:
            metadata = json.loads(text)
        except ValueError:
            metadata = {"unreadable_metadata": text}
        yield EventLine(event_id, name, source, identifier, created_at, metadata)


def _set_aside(path: Path, suffix: str) -> None:
    target = path.with_name(f"{path.name}.{suffix}")
    if target.exists():  # an earlier version ran again since the last import
        target = target.with_name(f"{target.name}-{secrets.token_hex(4)}")
    for part in ("-wal", "-shm", ""):
        with suppress(FileNotFoundError):
            os.replace(path.with_name(path.name + part), target.with_name(target.name + part))
