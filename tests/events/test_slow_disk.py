"""An event log on a disk that is slow, hangs, or has to be synced."""

from __future__ import annotations

import errno
import logging
import threading
from pathlib import Path

import pytest
import trio

from cgw.events import event_log as event_log_module
from cgw.events.event_log import EventLog, open_event_log
from cgw.events.options import EventLogOptions
from cgw.events.segments import list_segments
from cgw.events.settings import EventSettings
from cgw.model import UsageEvent
from tests.events.conftest import build_event, read_identifiers
from tests.support.disk import Disk
from tests.support.waiting import wait_until


def build_options(fsync: str, **more: float) -> EventLogOptions:
    return EventLogOptions(EventSettings(fsync=fsync), **{"check_seconds": 0.02, **more})  # type: ignore[arg-type]


async def record_durably(event_log: EventLog, event: UsageEvent) -> None:
    """Record an event as an exchange does."""
    event_log.record(event)
    if event_log.must_wait:
        await event_log.wait_durable()


async def make_slow(event_log: EventLog, disk: Disk) -> None:
    """Let one write take so long that the next ones are deferred."""
    disk.write_seconds = 0.03
    event_log.record(build_event("slow"))
    disk.write_seconds = 0
    assert event_log.must_wait


async def test_disk_that_hangs_stops_one_write_only(
    folder: Path, disk: Disk, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After one slow write, record() returns at once and callers wait; when the disk is back, all is in order."""
    monkeypatch.setattr(event_log_module, "QUICK_AGAIN_SECONDS", 0.1)
    async with open_event_log(folder) as event_log:
        assert not event_log.must_wait
        await make_slow(event_log, disk)
        with disk.stalled():
            for name in ("a", "b", "c"):
                event_log.record(build_event(name))
            with trio.move_on_after(0.05) as waiting_scope:
                await event_log.wait_durable()
            assert waiting_scope.cancelled_caught
            assert event_log.statistics().waiting == 3
            assert event_log.describe() == "the disk of the usage events is slow; 3 events wait for it"
        await event_log.wait_durable()
        assert read_identifiers(folder) == ["slow", "a", "b", "c"]
        await trio.sleep(0.1)
        await record_durably(event_log, build_event("quick"))
        assert not event_log.must_wait
        event_log.record(build_event("direct"))
        assert event_log.describe() is None
    assert read_identifiers(folder) == ["slow", "a", "b", "c", "quick", "direct"]
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert event_log.statistics().recorded == 6


async def test_waiting_ends_at_its_deadline(folder: Path, disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    """A response is not held for longer than its deadline; the event is written when the disk takes it."""
    async with open_event_log(folder) as event_log:
        await make_slow(event_log, disk)
        with disk.stalled():
            event_log.record(build_event("late"))
            for _ in range(2):
                await event_log.wait_durable(trio.current_time() + 0.05)
        assert caplog.text.count("released before their events are on the disk") == 1
    assert read_identifiers(folder) == ["slow", "late"]


async def test_memory_for_a_hanging_disk_is_bounded(folder: Path, disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    """Above 16 MiB, events go to the log instead."""
    async with open_event_log(folder) as event_log:
        await make_slow(event_log, disk)
        with disk.stalled():
            for _ in range(200):
                event_log.record(build_event("much", x="y" * 100_000))
            statistics = event_log.statistics()
            assert statistics.waiting + statistics.dropped == 200
            assert 150 < statistics.waiting < 170
            assert caplog.text.count("usage event not written: ") == statistics.dropped
            assert "events wait for the disk already" in (event_log.describe() or "")
    assert len(read_identifiers(folder)) == 1 + statistics.waiting


async def test_closing_is_bounded(folder: Path, disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    """A disk that does not come back holds closing up for its deadline only; what is missing goes to the log."""
    event = build_event("stuck")
    with disk.stalled():
        pass
    stalled = disk.stalled()
    async with open_event_log(folder, build_options("off", close_seconds=0.05)) as event_log:
        await make_slow(event_log, disk)
        stalled.__enter__()
        event_log.record(event)
    assert "the disk hangs; closing was given up after 0.05 s" in caplog.text
    assert event_log.statistics().dropped == 1
    assert event.id in caplog.text
    stalled.__exit__(None, None, None)
    await wait_until(lambda: not any("_write" in thread.name for thread in threading.enumerate()))


async def test_sync_always_shares_syncs(folder: Path, disk: Disk) -> None:
    """With ``always`` every event is synced before its caller goes on, and callers at once share a sync."""
    async with open_event_log(folder, build_options("always")) as event_log:

        async def record() -> None:
            await record_durably(event_log, build_event())
            assert disk.synced_bytes[-1] >= before

        for _ in range(3):
            async with trio.open_nursery() as nursery:
                before = sum(path.stat().st_size for path in folder.iterdir())
                for _ in range(50):
                    nursery.start_soon(record)
            assert disk.synced_bytes[-1] == sum(path.stat().st_size for path in folder.iterdir())
        assert 3 <= len(disk.synced_bytes) <= 9
    assert len(read_identifiers(folder)) == 150


@pytest.mark.parametrize("fsync", ["off", "interval"])
async def test_other_modes_do_not_wait(folder: Path, disk: Disk, fsync: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without ``always`` nothing is waited for; with ``interval`` a check syncs what is new, and only that."""
    monkeypatch.setattr(event_log_module, "SLOW_SECONDS", 60)  # whatever else the machine does
    async with open_event_log(folder, build_options(fsync)) as event_log:
        await record_durably(event_log, build_event())
        assert not event_log.must_wait
        await event_log.wait_durable()
        if fsync == "interval":
            await wait_until(lambda: len(disk.synced_bytes) == 1)
        await trio.sleep(0.1)  # several checks
        assert len(disk.synced_bytes) == (1 if fsync == "interval" else 0)
    assert len(disk.synced_bytes) == (2 if fsync == "interval" else 0)  # sealing syncs, too


@pytest.mark.parametrize("fsync", ["interval", "always"])
async def test_sync_that_fails_is_said_and_a_new_segment_begun(
    folder: Path, disk: Disk, fsync: str, caplog: pytest.LogCaptureFixture
) -> None:
    """After a failed sync the kernel may have dropped data, so only a new segment ends the failure."""
    async with open_event_log(folder, build_options(fsync)) as event_log:
        (failed,) = list_segments(folder)
        disk.sync_error = OSError(errno.EIO, "")
        await record_durably(event_log, build_event("a"))
        await wait_until(lambda: "cannot be written (Input/output error)" in caplog.text)
        await wait_until(lambda: event_log.describe() is None)
        disk.sync_error = None
        await record_durably(event_log, build_event("b"))
        # By its name: it may be sealed by now.
        (failed,) = (segment for segment in list_segments(folder) if segment.name == failed.name)
        assert failed.path.read_bytes().count(b"\n") == 1
    assert sorted(read_identifiers(folder)) == ["a", "b"]
    # Whether the disk has them is not known, so that those that should have been synced are in the log, too.
    assert event_log.statistics().dropped == (1 if fsync == "always" else 0)
