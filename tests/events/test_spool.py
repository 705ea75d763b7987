"""The spool: durable when record() returns, few transactions, and every loss is reported."""

from __future__ import annotations

import logging
import signal
import sqlite3
import subprocess
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from cgw.errors import ConfigError, SpoolError
from cgw.events.database import APPLICATION_ID, SCHEMA_VERSION, SpoolDatabase
from cgw.events.spool import MAX_METADATA_BYTES, Spool, open_spool
from cgw.model import EventName, UsageEvent

Query = Callable[[str], list[tuple[Any, ...]]]
Hold = Callable[[], AbstractContextManager[None]]
StartPython = Callable[..., "subprocess.Popen[str]"]


def build_event(identifier: str = "acme", **metadata: Any) -> UsageEvent:
    return UsageEvent(EventName.COMPLETIONS_FINISHED, "static", identifier, metadata)


async def wait_handed_over(spool: Spool, count: int) -> None:
    """Wait until ``count`` events are in the queue and every task is parked."""
    while spool.statistics().pending < count:
        await trio.testing.wait_all_tasks_blocked()


async def test_recorded_event_is_committed_when_record_returns(path: Path, query: Query) -> None:
    """Another connection reads the complete event as soon as record() has returned."""
    event = build_event(feature="chat_completions", stream=True, prompt_token_count=7)
    async with open_spool(path) as spool:
        await spool.record(event)
        rows = query("SELECT seq, id, name, source, identifier, metadata, shipped_at FROM events")
    metadata = '{"feature":"chat_completions","stream":true,"prompt_token_count":7}'
    assert rows == [(1, event.id, "CompletionsFinished", "static", "acme", metadata, None)]


async def test_time_is_stored_as_utc_text_of_fixed_width(path: Path, query: Query) -> None:
    """Times sort as text, also those on a whole second and those given in another time zone."""
    zone = timezone(timedelta(hours=2))
    moments = (datetime(2026, 11, 23, 1, 30, tzinfo=zone), datetime(2026, 11, 22, 23, 30, 0, 5, tzinfo=UTC))
    async with open_spool(path) as spool:
        for moment in moments:
            await spool.record(UsageEvent(EventName.UNAUTHORIZED, "dotcom", "unknown", created_at=moment))
    assert query("SELECT created_at FROM events ORDER BY created_at") == [
        ("2026-11-22T23:30:00.000000Z",),
        ("2026-11-22T23:30:00.000005Z",),
    ]


async def test_concurrent_callers_share_transactions(path: Path, query: Query, hold_writes: Hold) -> None:
    """Events that arrive while a transaction waits for the disk all go into the next transaction."""
    async with open_spool(path) as spool, trio.open_nursery() as nursery:
        with hold_writes():
            for _ in range(200):
                nursery.start_soon(spool.record, build_event())
            await wait_handed_over(spool, 200)
    statistics = spool.statistics()
    assert query("SELECT count(*) FROM events") == [(200,)]
    assert (statistics.recorded, statistics.pending, statistics.failed) == (200, 0, 0)
    assert statistics.commits <= 3
    assert statistics.largest_batch >= 100


async def test_same_id_is_kept_once(path: Path, query: Query) -> None:
    """Recording an event twice leaves one row and counts a duplicate."""
    event = build_event()
    async with open_spool(path) as spool:
        await spool.record(event)
        await spool.record(event)
    assert query("SELECT count(*) FROM events") == [(1,)]
    assert (spool.statistics().recorded, spool.statistics().duplicates) == (2, 1)


async def test_event_of_a_cancelled_caller_is_recorded(path: Path, query: Query, hold_writes: Hold) -> None:
    """Cancelling record() returns at once; the event is still written."""
    async with open_spool(path) as spool:
        with hold_writes():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(spool.record, build_event())
                await wait_handed_over(spool, 1)
                nursery.cancel_scope.cancel()
        with trio.CancelScope() as client_scope:
            client_scope.cancel()
            await spool.record(build_event("late"))
        assert client_scope.cancelled_caught
    assert query("SELECT identifier FROM events ORDER BY seq") == [("acme",), ("late",)]


async def test_blank_identifier_is_dropped_and_counted(path: Path, query: Query) -> None:
    """An event without identifier is dropped without an error, as in the reference; record() still is a checkpoint."""
    async with open_spool(path) as spool:
        with trio.testing.assert_checkpoints():
            await spool.record(build_event("  "))
        spool.submit(build_event(""))
    assert query("SELECT count(*) FROM events") == [(0,)]
    assert spool.statistics().dropped_blank == 2


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"a": object()}, "cannot be written as JSON"),
        ({"a": "x" * MAX_METADATA_BYTES}, "is the limit"),
    ],
)
async def test_unusable_metadata_is_refused(path: Path, metadata: dict[str, Any], reason: str) -> None:
    """Metadata that cannot be JSON, or is too large, raises to its caller and does not affect other events."""
    async with open_spool(path) as spool:
        with pytest.raises(SpoolError, match=reason):
            await spool.record(build_event(**metadata))
        await spool.record(build_event())
    assert (spool.statistics().recorded, spool.statistics().failed) == (1, 1)


async def test_half_surrogate_pairs_do_not_hinder_recording(path: Path, query: Query) -> None:
    """Text that is not valid UTF-8 is stored with question marks instead of failing a whole batch."""
    async with open_spool(path) as spool:
        await spool.record(build_event("a\ud800", model="m\udfff"))
    assert query("SELECT identifier, json_extract(metadata, '$.model') FROM events") == [("a?", "m?")]


async def test_submitted_events_are_drained_on_closing(path: Path, query: Query, hold_writes: Hold) -> None:
    """submit() does not wait, also while the disk is held up; closing does, even when the block is cancelled."""
    with trio.CancelScope() as scope:
        async with open_spool(path) as spool:
            with hold_writes():
                for _ in range(50):
                    spool.submit(build_event())
            scope.cancel()
    assert query("SELECT count(*) FROM events") == [(50,)]


async def test_flood_is_bounded(path: Path, hold_writes: Hold, caplog: pytest.LogCaptureFixture) -> None:
    """Refusals fill half of the queue and are dropped then, with one warning; completions have the rest."""
    async with open_spool(path, max_pending=10) as spool:
        async with trio.open_nursery() as nursery:
            with hold_writes():
                for _ in range(20):
                    spool.submit(build_event())
                assert (spool.statistics().pending, spool.statistics().dropped_when_full) == (5, 15)
                for _ in range(5):
                    nursery.start_soon(spool.record, build_event())
                await wait_handed_over(spool, 10)
                with pytest.raises(SpoolError, match="waiting for the disk"):
                    await spool.record(build_event())
        await spool.record(build_event())
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert (spool.statistics().recorded, spool.statistics().dropped_when_full) == (11, 16)


async def test_failed_commit_raises_to_its_callers_only(
    path: Path, query: Query, hold_writes: Hold, caplog: pytest.LogCaptureFixture
) -> None:
    """A disk that blocks for too long fails the waiting callers; later ones succeed, and both are logged."""
    async with open_spool(path, busy_timeout_seconds=0.05) as spool:
        with hold_writes():
            for _ in range(2):
                with pytest.raises(SpoolError, match="could not be recorded: database is locked"):
                    await spool.record(build_event("lost"))
        await spool.record(build_event("kept"))
    assert query("SELECT identifier FROM events") == [("kept",)]
    assert [record.levelno for record in caplog.records] == [logging.ERROR, logging.WARNING]
    assert "2 events were lost" in caplog.text


async def test_closing_is_bounded(path: Path, hold_writes: Hold, caplog: pytest.LogCaptureFixture) -> None:
    """A disk that stays blocked delays closing until its deadline only, and the lost events are logged."""
    with hold_writes_once_open(path) as held:
        async with open_spool(path, busy_timeout_seconds=30, close_timeout_seconds=0.05) as spool:
            held.execute("BEGIN IMMEDIATE")
            spool.submit(build_event())
        assert "1 usage events were not recorded within 0.05 s" in caplog.text
        held.execute("ROLLBACK")
    for thread in threading.enumerate():
        if thread.name == "cgw-spool":
            await trio.to_thread.run_sync(thread.join)


def hold_writes_once_open(path: Path) -> closing[sqlite3.Connection]:
    path.parent.mkdir()
    return closing(sqlite3.connect(path, isolation_level=None))


async def test_closed_spool_refuses(path: Path) -> None:
    """An event after closing raises instead of waiting for ever."""
    async with open_spool(path) as spool:
        pass
    with pytest.raises(SpoolError, match="closed"):
        await spool.record(build_event())
    spool.submit(build_event())
    assert spool.statistics().failed == 2


RECORD_UNTIL_KILLED = """
import sys, trio
from pathlib import Path
from cgw.events.spool import open_spool
from cgw.model import EventName, UsageEvent

async def record(spool):
    while True:
        event = UsageEvent(EventName.COMPLETIONS_FINISHED, "static", "acme", {"model": "a/b"})
        await spool.record(event)
        print(event.id, flush=True)

async def main():
    async with open_spool(Path(sys.argv[1])) as spool, trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(record, spool)

trio.run(main)
"""


async def test_recorded_events_survive_kill_9(path: Path, query: Query, start_python: StartPython) -> None:
    """After kill -9 under load the file opens again, and has every event whose record() returned."""
    process = start_python(RECORD_UNTIL_KILLED, str(path))
    assert process.stdout is not None
    announced = [process.stdout.readline().strip() for _ in range(500)]
    process.send_signal(signal.SIGKILL)
    rest, _ = process.communicate()
    announced += rest.split("\n")[:-1]
    async with open_spool(path) as spool:
        await spool.record(build_event())
    stored = {row[0] for row in query("SELECT id FROM events")}
    assert {event_id for event_id in announced if len(event_id) == 36} <= stored
    assert query("PRAGMA integrity_check") == [("ok",)]


RECORD_HUNDRED = """
import sys, trio
from pathlib import Path
from cgw.events.spool import open_spool
from cgw.model import EventName, UsageEvent

async def main():
    async with open_spool(Path(sys.argv[1])) as spool, trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(spool.record, UsageEvent(EventName.COMPLETIONS_FINISHED, "static", "acme"))

trio.run(main)
"""


async def test_processes_share_a_spool(path: Path, query: Query, start_python: StartPython) -> None:
    """Four processes that create and fill the same file at the same time lose nothing."""
    processes = [start_python(RECORD_HUNDRED, str(path)) for _ in range(4)]
    for process in processes:
        await trio.to_thread.run_sync(process.communicate)
        assert process.returncode == 0
    assert query("SELECT count(*) FROM events") == [(400,)]
    assert list(path.parent.glob("*corrupt*")) == []


FILL_DISK = """
import resource, sys, trio
from pathlib import Path
from cgw.errors import SpoolError
from cgw.events.spool import open_spool
from cgw.model import EventName, UsageEvent

async def main():
    async with open_spool(Path(sys.argv[1])) as spool:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        kept = 0
        try:
            while True:
                await spool.record(UsageEvent(EventName.COMPLETIONS_FINISHED, "static", "before", {"x": "y" * 4000}))
                kept += 1
        except SpoolError as error:
            print(kept, error, sep=";")
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        await spool.record(UsageEvent(EventName.COMPLETIONS_FINISHED, "static", "after"))

trio.run(main)
"""


async def test_full_disk_fails_until_there_is_space(path: Path, query: Query, start_python: StartPython) -> None:
    """On a full disk record() raises; with space it works again, and nothing committed is lost."""
    process = start_python(FILL_DISK, str(path))
    output, _ = await trio.to_thread.run_sync(process.communicate)
    assert process.returncode == 0
    kept, error = output.strip().split(";")
    assert error.startswith("the usage event could not be recorded: ")
    assert int(kept) > 0
    assert query("SELECT identifier, count(*) FROM events GROUP BY 1 ORDER BY 1") == [
        ("after", 1),
        ("before", int(kept)),
    ]


async def fill(path: Path, count: int = 50) -> None:
    async with open_spool(path) as spool:
        for _ in range(count):
            spool.submit(build_event(x="y" * 1000))


def read_bytes(path: Path) -> bytes:
    return path.read_bytes()


def overwrite(path: Path, start: int) -> None:
    with path.open("r+b") as file:
        size = file.seek(0, 2)
        file.seek(start)
        file.write(b"\xa5" * (size - start))


@pytest.mark.parametrize("start", [0, 4096], ids=["whole file", "all but the first page"])
async def test_damaged_file_is_set_aside(
    path: Path, query: Query, start: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A damaged spool is renamed, with an error in the log, and a new one is started."""
    await fill(path)
    overwrite(path, start)
    damaged = read_bytes(path)
    async with open_spool(path) as spool:
        await spool.record(build_event("fresh"))
    assert query("SELECT identifier FROM events") == [("fresh",)]
    (kept,) = path.parent.glob("events.sqlite.corrupt-*Z")
    assert read_bytes(kept) == damaged
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert f"set aside as {kept.name}" in caplog.text


async def test_damage_found_while_running_is_handled(
    path: Path, query: Query, caplog: pytest.LogCaptureFixture
) -> None:
    """Damage to an open spool loses no event: the spool continues in a new file."""
    async with open_spool(path) as spool:
        for _ in range(50):
            await spool.record(build_event(x="y" * 1000))
        query("PRAGMA wal_checkpoint(TRUNCATE)")
        overwrite(path, 4096)
        await spool.record(build_event("fresh"))
    assert query("SELECT identifier FROM events") == [("fresh",)]
    assert "is damaged" in caplog.text


async def test_removed_file_is_noticed(path: Path, query: Query, caplog: pytest.LogCaptureFixture) -> None:
    """Events are not written to a file that was deleted."""
    async with open_spool(path) as spool:
        await spool.record(build_event())
        for file in path.parent.glob("events.sqlite*"):
            file.unlink()
        await spool.record(build_event("fresh"))
    assert query("SELECT identifier FROM events") == [("fresh",)]
    assert "was removed or replaced" in caplog.text


async def test_foreign_database_is_left_alone(path: Path) -> None:
    """A SQLite file of another program is refused, and not changed."""
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE accounts (id)")
    before = read_bytes(path)
    with pytest.raises(ConfigError, match="not an event spool"):
        async with open_spool(path):
            pass
    assert read_bytes(path) == before


async def test_newer_schema_is_refused(path: Path) -> None:
    """A spool of a newer cgw is refused with both versions named, and not renamed."""
    await fill(path, 1)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    with pytest.raises(ConfigError, match=f"schema version {SCHEMA_VERSION + 1}; this cgw knows {SCHEMA_VERSION}"):
        async with open_spool(path):
            pass
    assert list(path.parent.glob("*corrupt*")) == []


async def test_unusable_folder_is_a_config_error(tmp_path: Path) -> None:
    """A folder that cannot be created is named in one sentence."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"event spool .*/file/events.sqlite cannot be used: "):
        async with open_spool(tmp_path / "file" / "events.sqlite"):
            pass


async def test_folder_in_place_of_the_file_is_a_config_error(tmp_path: Path) -> None:
    """A folder at the spool's path is refused in one sentence."""
    with pytest.raises(ConfigError, match="cannot be used: "):
        async with open_spool(tmp_path):
            pass


def test_file_is_private_and_marked(path: Path, query: Query) -> None:
    """The file is readable by its owner only, and carries cgw's id and the schema's version."""
    SpoolDatabase(path, 5).close()
    assert path.stat().st_mode & 0o777 == 0o600
    assert query("PRAGMA application_id") == [(APPLICATION_ID,)]
    assert query("PRAGMA user_version") == [(SCHEMA_VERSION,)]


def test_write_ahead_log_stays_bounded(path: Path) -> None:
    """Checkpoints between commits keep the WAL from growing with the number of events."""
    database = SpoolDatabase(path, 5)
    for number in range(3000):
        database.insert([(str(number), "RateLimited", "static", "acme", "2026-11-23T00:00:00.000000Z", "{}")])
        database.checkpoint_if_due()
    wal_bytes = path.with_name("events.sqlite-wal").stat().st_size
    database.close()
    assert wal_bytes < 6 * 2**20
