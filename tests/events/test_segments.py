"""Segments: adopted once, torn ends set aside, deleted when they are too old or too many."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cgw.events import housekeeping
from cgw.events.event_log import open_event_log
from cgw.events.lines import render_line
from cgw.events.options import EventLogOptions
from cgw.events.reading import read_chunks
from cgw.events.retention import Deleted, Retention, delete_old_segments
from cgw.events.segments import (
    OPEN_SUFFIX,
    SEALED_SUFFIX,
    SUMMARY_SUFFIX,
    TORN_SUFFIX,
    adopt_segments,
    create_segment,
    list_segments,
)
from cgw.events.settings import EventSettings
from cgw.events.shipping.cursor import CursorFile, get_sink_folder
from tests.events.conftest import build_event, read_identifiers
from tests.support.waiting import wait_until

LINE = render_line(build_event())


def leave_open(folder: Path, content: bytes) -> str:
    """Leave an open segment as a process does that is killed; return its name."""
    segment = create_segment(folder)
    os.write(segment.descriptor, content)
    os.close(segment.descriptor)
    return segment.segment.name


def list_names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_segment_of_a_living_process_is_left_alone(folder: Path) -> None:
    """Its lock is held, also against other descriptors of the same process."""
    segment = create_segment(folder, has_sync=True)
    segment.append(LINE)
    assert adopt_segments(folder) == 0
    assert list_names(folder) == {segment.segment.name + OPEN_SUFFIX}
    segment.seal()
    assert list_names(folder) == {segment.segment.name + SEALED_SUFFIX}


def test_torn_line_is_set_aside(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What follows the last newline goes to a file of its own, with a line in the log; the rest is sealed."""
    name = leave_open(folder, LINE + LINE[:50])
    assert adopt_segments(folder) == 1
    assert (folder / (name + SEALED_SUFFIX)).read_bytes() == LINE
    assert (folder / (name + TORN_SUFFIX)).read_bytes() == LINE[:50]
    assert "ends in an unfinished line of 50 bytes" in caplog.text
    assert adopt_segments(folder) == 0


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b" " * 5000], ids=["empty", "zeros", "probe"])
def test_segment_without_events_is_deleted(folder: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """A process that was killed before its first event, or a power cut, leaves nothing behind."""
    leave_open(folder, content)
    assert adopt_segments(folder) == 0
    assert list_names(folder) == set()
    assert caplog.text == ""


def test_segment_is_adopted_once(folder: Path) -> None:
    """Of many who try at the same time, one adopts a segment."""
    for _ in range(20):
        leave_open(folder, LINE)
    adopted = []
    start = threading.Barrier(8)

    def adopt() -> None:
        start.wait()
        adopted.append(adopt_segments(folder))

    threads = [threading.Thread(target=adopt) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(adopted) == 20
    assert len(read_identifiers(folder)) == 20


async def test_segment_of_a_process_that_dies_later_is_adopted_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adoption does not wait for the next start: whoever runs looks around once a minute."""
    monkeypatch.setattr(housekeeping, "PERIOD_SECONDS", 0.02)
    async with open_event_log(folder):
        name = leave_open(folder, LINE)
        await wait_until(lambda: name + SEALED_SUFFIX in list_names(folder))
    assert read_identifiers(folder) == ["acme"]


@settings(max_examples=100)
@given(count=st.integers(0, 5), torn=st.binary(max_size=300))
def test_whatever_a_segment_ends_in_no_whole_line_is_lost(
    tmp_path_factory: pytest.TempPathFactory, count: int, torn: bytes
) -> None:
    """After adoption every whole line is read once, and each byte is in the segment or in what was set aside."""
    folder = tmp_path_factory.mktemp("data") / "events"
    content = LINE * count + torn
    name = leave_open(folder, content)
    adopt_segments(folder)
    assert read_identifiers(folder) == ["acme"] * count
    kept = b"".join(
        path.read_bytes() for suffix in (SEALED_SUFFIX, TORN_SUFFIX) if (path := folder / (name + suffix)).exists()
    )
    assert kept == content or (content.startswith(kept) and not content[len(kept) :].strip(b" \0\n\r\t\v\f"))


def test_reader_goes_on_in_a_segment_that_was_sealed(folder: Path) -> None:
    """A cursor stays valid when its segment is sealed, also between listing and opening it."""
    segment = create_segment(folder)
    segment.append(LINE)
    (listed,) = list_segments(folder)
    (chunk,) = read_chunks(listed)
    assert (chunk.lines, chunk.offset) == (LINE, len(LINE))
    segment.append(LINE * 2)
    segment.seal()
    (chunk,) = read_chunks(listed, chunk.offset)
    assert (chunk.lines, chunk.offset) == (LINE * 2, len(LINE) * 3)


def seal(folder: Path, age_seconds: float, size: int) -> str:
    """Leave a sealed segment of this age and size, with what belongs to it."""
    segment = create_segment(folder)
    segment.append(b"x" * (size - 1) + b"\n")
    segment.seal()
    moment = time.time() - age_seconds
    os.utime(segment.segment.beside(SEALED_SUFFIX), (moment, moment))
    segment.segment.beside(SUMMARY_SUFFIX).write_text("{}")
    return segment.segment.name


def test_old_segments_are_deleted(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Sealed segments beyond their retention go with all that belongs to them; open ones stay."""
    caplog.set_level("INFO")
    seal(folder, 100, 10)
    young = seal(folder, 10, 10)
    segment = create_segment(folder)
    os.utime(segment.segment.path, (0, 0))
    assert delete_old_segments(folder, Retention(50, 1000)) == Deleted(1, 0, is_over=False)
    assert list_names(folder) == {young + SEALED_SUFFIX, young + SUMMARY_SUFFIX, segment.segment.path.name}
    assert "deleted 1 event segments" in caplog.text
    caplog.clear()
    assert delete_old_segments(folder, Retention(50, 1000)) == Deleted(0, 0, is_over=False)
    assert caplog.text == ""


def test_oldest_segments_are_deleted_above_the_bound(folder: Path) -> None:
    """While segments take too much space, the oldest go first; open ones count and stay."""
    names = [seal(folder, age, 100) for age in (10, 30, 20)]
    segment = create_segment(folder)
    segment.append(b"x" * 99 + b"\n")
    assert delete_old_segments(folder, Retention(1000, 350)).shipped == 1
    assert names[1] + SEALED_SUFFIX not in list_names(folder)
    assert delete_old_segments(folder, Retention(1000, 50)).shipped == 2
    assert list_names(folder) == {segment.segment.path.name}


def note_shipped(folder: Path, sink_name: str, *names: str) -> None:
    CursorFile(get_sink_folder(folder, sink_name)).advance(dict.fromkeys(names, 100))


def test_what_a_sink_does_not_have_is_not_deleted_for_its_age(folder: Path) -> None:
    """A segment that one of the sinks lacks stays; one that all have goes."""
    names = [seal(folder, age, 100) for age in (100, 90, 80)]
    note_shipped(folder, "http", *names)
    note_shipped(folder, "stdout", names[1])
    retention = Retention(50, 1000, ("http", "stdout"))
    assert delete_old_segments(folder, retention) == Deleted(1, 0, is_over=False)
    assert names[1] + SEALED_SUFFIX not in list_names(folder)


def test_above_the_bound_shipped_segments_go_first(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever their age; then, if the policy lets it, the oldest that were not shipped, with an error."""
    names = [seal(folder, age, 100) for age in (40, 30, 20, 10)]
    note_shipped(folder, "http", names[2], names[3])
    sinks = ("http",)
    assert delete_old_segments(folder, Retention(1000, 300, sinks)) == Deleted(1, 0, is_over=False)
    assert names[2] + SEALED_SUFFIX not in list_names(folder)
    assert delete_old_segments(folder, Retention(1000, 150, sinks, drops_unshipped=False)) == Deleted(
        1, 0, is_over=True
    )
    assert caplog.text == ""
    assert delete_old_segments(folder, Retention(1000, 150, sinks)) == Deleted(0, 1, is_over=False)
    assert "deleted 1 event segments" in caplog.text
    assert "that were not shipped yet: CODY_GATEWAY_EVENTS_MAX_BYTES is reached" in caplog.text
    assert {name for name in names if name + SEALED_SUFFIX in list_names(folder)} == {names[1]}


async def test_above_the_bound_requests_are_refused_if_so_set(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Until the sink has taken some: then the log accepts requests again."""
    monkeypatch.setattr(housekeeping, "PERIOD_SECONDS", 0.01)
    monkeypatch.setattr(housekeeping, "OVER_SECONDS", 0.01)
    settings = EventSettings(when_full="refuse", max_bytes=150)
    async with open_event_log(folder, EventLogOptions(settings, ("http",))) as event_log:
        names = [seal(folder, 10, 100), seal(folder, 5, 100)]
        await wait_until(lambda: not event_log.is_accepting)
        assert "new requests are refused" in (event_log.describe() or "")
        note_shipped(folder, "http", names[0])
        await wait_until(lambda: event_log.is_accepting)
        assert event_log.describe() is None
        assert event_log.statistics().deleted_segments == 0
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
