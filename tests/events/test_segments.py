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
from cgw.events.housekeeping import delete_old_segments
from cgw.events.lines import render_line
from cgw.events.reading import read_chunks
from cgw.events.segments import (
    OPEN_SUFFIX,
    SEALED_SUFFIX,
    SUMMARY_SUFFIX,
    TORN_SUFFIX,
    adopt_segments,
    create_segment,
    list_segments,
)
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


@settings(max_examples=100, deadline=None)
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
    assert delete_old_segments(folder, retention_seconds=50, max_bytes=1000) == 1
    assert list_names(folder) == {young + SEALED_SUFFIX, young + SUMMARY_SUFFIX, segment.segment.path.name}
    assert "deleted 1 event segments (10 bytes)" in caplog.text
    caplog.clear()
    assert delete_old_segments(folder, retention_seconds=50, max_bytes=1000) == 0
    assert caplog.text == ""


def test_oldest_segments_are_deleted_above_the_bound(folder: Path) -> None:
    """While segments take too much space, the oldest go first; open ones count and stay."""
    names = [seal(folder, age, 100) for age in (10, 30, 20)]
    segment = create_segment(folder)
    segment.append(b"x" * 99 + b"\n")
    assert delete_old_segments(folder, retention_seconds=1000, max_bytes=350) == 1
    assert names[1] + SEALED_SUFFIX not in list_names(folder)
    assert delete_old_segments(folder, retention_seconds=1000, max_bytes=50) == 2
    assert list_names(folder) == {segment.segment.path.name}
