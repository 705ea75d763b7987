"""Shipping: everything recorded arrives once, whatever the sink, the disk and other processes do meanwhile."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
from attrs import evolve

from cgw.events.event_log import open_event_log
from cgw.events.lines import render_line
from cgw.events.options import EventLogOptions
from cgw.events.segments import OPEN_SUFFIX, SEALED_SUFFIX, adopt_segments, create_segment, list_segments
from cgw.events.shipping.cursor import CursorFile, get_sink_folder
from cgw.events.shipping.failed import read_failed, retry_failed
from cgw.events.sinks.sink import RejectedEvent, SinkUnavailable
from tests.events.conftest import StartPython, build_event
from tests.events.shipping.conftest import QUICK, MemorySink, open_shipped_log
from tests.support.waiting import wait_until


def name_events(count: int, start: int = 0) -> list[str]:
    return [f"e{number}" for number in range(start, start + count)]


def list_records(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Return what was logged, but for the disk of a busy machine."""
    return [record for record in caplog.records if "the disk of" not in record.getMessage()]


def read_offsets(folder: Path, sink: str = "memory") -> dict[str, int]:
    return CursorFile(get_sink_folder(folder, sink)).read().segments


async def test_events_arrive_in_order_and_once(folder: Path) -> None:
    """Those recorded before and while shipping; the cursor stands at the end afterwards."""
    names = name_events(35)
    async with open_event_log(folder) as event_log:
        for name in names[:15]:
            event_log.record(build_event(name))
    sink = MemorySink()
    async with open_shipped_log(folder, sink, options=evolve(QUICK, max_in_flight=1)) as (event_log, shipping):
        for name in names[15:25]:
            event_log.record(build_event(name))
        await wait_until(lambda: len(sink.identifiers) == 25)
        for name in names[25:]:
            event_log.record(build_event(name))
        await wait_until(lambda: len(sink.identifiers) == 35)
        (figures,) = shipping.statistics()
        assert (figures.shipped, figures.failed, figures.retries) == (35, 0, 0)
        assert figures.trouble is None
    assert sink.identifiers == names
    assert max(sink.sizes) == 10
    sizes = {segment.name: segment.path.stat().st_size for segment in list_segments(folder)}
    assert read_offsets(folder) == sizes
    async with open_shipped_log(folder, sink):
        await trio.sleep(0.05)
    assert sink.identifiers == names


class Steps(trio.abc.Instrument):
    """Counts the steps of the shipper's tasks."""

    def __init__(self) -> None:
        self.count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += task.name.startswith("cgw.events.shipping")


async def test_nothing_wakes_up_when_nothing_comes(folder: Path) -> None:
    """Between two scans of the folder, no task of a shipper takes a step."""
    sink, steps = MemorySink(), Steps()
    async with open_shipped_log(folder, sink, options=evolve(QUICK, scan_seconds=3600)) as (event_log, _):
        event_log.record(build_event())
        await wait_until(lambda: bool(read_offsets(folder)))
        await trio.sleep(0.2)
        trio.lowlevel.add_instrument(steps)
        await trio.sleep(0.3)
        assert steps.count == 0
        event_log.record(build_event())
        await wait_until(lambda: len(sink.identifiers) == 2)
        assert steps.count > 0
        trio.lowlevel.remove_instrument(steps)


async def test_batches_are_in_flight_at_once_and_bounded(folder: Path) -> None:
    """So many as set, however many events wait; they are answered in any order, and the cursor has no gap."""
    release = trio.Event()

    async def decide(identifiers: Sequence[str]) -> Sequence[RejectedEvent]:
        await trio.lowlevel.checkpoint()
        if "e0" in identifiers:
            await release.wait()
        elif not release.is_set():
            await trio.sleep(0.01)
        return ()

    sink = MemorySink(decide=decide)
    async with open_shipped_log(folder, sink, options=evolve(QUICK, max_in_flight=3)) as (event_log, shipping):
        for name in name_events(100):
            event_log.record(build_event(name))
        await wait_until(lambda: len(sink.identifiers) == 90)
        assert sink.most_in_flight == 3
        await trio.sleep(0.05)
        assert list(read_offsets(folder).values()) in ([], [0])
        assert shipping.statistics()[0].unshipped_bytes > 0
        assert shipping.statistics()[0].lag_seconds > 0
        release.set()
        await wait_until(lambda: len(sink.identifiers) == 100)
        await wait_until(lambda: shipping.statistics()[0].unshipped_bytes == 0)
        assert shipping.statistics()[0].lag_seconds == 0


async def test_a_sink_that_is_down_is_tried_until_it_is_back(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One error when it goes down, one line when it is back; nothing is lost, and one attempt is made at a time."""
    back = trio.Event()

    async def decide(identifiers: Sequence[str]) -> Sequence[RejectedEvent]:
        await trio.lowlevel.checkpoint()
        if not back.is_set():
            raise SinkUnavailable("the quota is used up", retry_after_seconds=0.01)
        return ()

    sink = MemorySink(decide=decide)
    async with open_shipped_log(folder, sink) as (event_log, shipping):
        for name in name_events(100):
            event_log.record(build_event(name))
        await wait_until(lambda: len(sink.batch_ids) > 10)
        assert "the quota is used up" in (shipping.statistics()[0].trouble or "")
        await wait_until(lambda: "quota" in (CursorFile(get_sink_folder(folder, "memory")).read().trouble or ""))
        assert len(set(sink.batch_ids)) <= 4
        back.set()
        await wait_until(lambda: len(sink.identifiers) == 100)
        assert shipping.statistics()[0].retries > 3
        await wait_until(lambda: CursorFile(get_sink_folder(folder, "memory")).read().trouble is None)
    assert sorted(sink.identifiers) == sorted(name_events(100))
    assert [record.levelname for record in list_records(caplog)] == ["ERROR", "WARNING"]
    assert "events are not shipped to memory: the quota is used up" in caplog.text


async def test_a_sink_decides_when_it_is_asked_again(folder: Path, autojump_clock: trio.testing.MockClock) -> None:
    """After the pause that it asks for, by any of the batches."""
    times: list[float] = []

    async def decide(identifiers: Sequence[str]) -> Sequence[RejectedEvent]:
        await trio.lowlevel.checkpoint()
        times.append(trio.current_time())
        if len(times) == 1:
            raise SinkUnavailable("later", retry_after_seconds=100)
        return ()

    async with open_shipped_log(folder, MemorySink(decide=decide), drain_seconds=1000) as (event_log, _):
        event_log.record(build_event())
        for _ in range(1000):  # the clock runs ahead of the threads that read the disk
            await trio.sleep(10)
            if len(times) == 2:
                break
    assert 100 <= times[1] - times[0] <= 130


async def test_a_bug_in_a_sink_is_an_outage(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What a sink raises beside SinkUnavailable is logged with its traceback, and the batch is sent again."""

    async def decide(identifiers: Sequence[str]) -> Sequence[RejectedEvent]:
        await trio.lowlevel.checkpoint()
        if len(sink.batch_ids) == 1:
            raise KeyError("x")
        return ()

    sink = MemorySink(decide=decide)
    async with open_shipped_log(folder, sink) as (event_log, _):
        event_log.record(build_event("a"))
        await wait_until(lambda: sink.identifiers == ["a"])
    assert "a bug in the sink memory" in caplog.text
    assert "KeyError" in caplog.text


async def test_a_bug_in_shipping_ends_neither_the_service_nor_shipping(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sink that rejects an event that is not in the batch: shipping begins again, with a traceback in the log."""
    monkeypatch.setattr("cgw.events.shipping.shipping.AGAIN_SECONDS", 0.05)

    async def decide(identifiers: Sequence[str]) -> Sequence[RejectedEvent]:
        await trio.lowlevel.checkpoint()
        return [RejectedEvent(7, "there is none")] if len(sink.batch_ids) == 1 else ()

    sink = MemorySink(decide=decide)
    async with open_shipped_log(folder, sink) as (event_log, _):
        event_log.record(build_event("a"))
        await wait_until(lambda: len(sink.batch_ids) == 2)
    assert "a bug in shipping events to memory" in caplog.text
    assert "IndexError" in caplog.text
    assert [read_offsets(folder)[segment.name] for segment in list_segments(folder)] == [
        segment.path.stat().st_size for segment in list_segments(folder)
    ]


async def test_a_segment_that_another_process_shipped_and_deleted_is_not_missed(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor one that was empty; the entry stays in the cursor file until each process had the time to see it."""
    segments = [create_segment(folder), create_segment(folder)]
    segments[0].append(render_line(build_event("theirs")))
    cursor = CursorFile(get_sink_folder(folder, "memory"))
    sink = MemorySink()
    async with open_shipped_log(folder, sink):
        await trio.sleep(0.15)
        cursor.advance({segments[0].segment.name: segments[0].length})
        for segment in segments:
            segment.segment.path.unlink()
            os.close(segment.descriptor)
        await wait_until(lambda: segments[0].segment.name not in cursor.read().segments)
    assert list_records(caplog) == []
    assert sink.identifiers == []


async def test_a_sink_that_hangs_holds_up_no_other(folder: Path) -> None:
    """Nor recording, nor the end, which is bounded; the next start ships what is left."""

    async def hang(identifiers: Sequence[str]) -> Sequence[RejectedEvent]:
        await trio.Event().wait()
        return ()

    hanging, good = MemorySink(name="hanging", decide=hang), MemorySink(name="good")
    names = name_events(50)
    started = trio.current_time()
    async with open_shipped_log(folder, hanging, good, drain_seconds=0.2) as (event_log, _):
        for name in names:
            event_log.record(build_event(name))
        await wait_until(lambda: len(good.identifiers) == 50)
    assert trio.current_time() - started < 3
    assert hanging.identifiers == []
    later = MemorySink(name="hanging")
    async with open_shipped_log(folder, later, good):
        await wait_until(lambda: len(later.identifiers) == 50)
    assert sorted(later.identifiers) == sorted(good.identifiers) == sorted(names)


async def test_what_is_recorded_last_is_drained(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without waiting for its age."""
    sink = MemorySink()
    options = evolve(QUICK, age_seconds=60, batch_events=500)
    async with open_shipped_log(folder, sink, options=options, drain_seconds=30) as (event_log, _):
        for name in name_events(10_000):
            event_log.record(build_event(name))
    assert len(sink.identifiers) == 10_000
    assert list_records(caplog) == []
    assert [read_offsets(folder)[segment.name] for segment in list_segments(folder)] == [
        segment.path.stat().st_size for segment in list_segments(folder)
    ]


async def test_a_rotation_loses_nothing_and_sends_nothing_twice(folder: Path) -> None:
    """Over many segments, each sealed while it is shipped."""
    sink = MemorySink()
    options = EventLogOptions(segment_bytes=1, check_seconds=0.005)
    async with open_shipped_log(folder, sink, log_options=options, drain_seconds=60) as (event_log, _):
        for name in name_events(300):
            event_log.record(build_event(name))
            await trio.sleep(0.001)
    assert len(list_segments(folder)) > 5
    assert sorted(sink.identifiers) == sorted(name_events(300))


async def test_garbage_between_events_costs_itself_only(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And is said once for the segment; a torn end is not sent, and blank lines are nothing."""
    async with open_event_log(folder) as event_log:
        for name in ("a", "b", "c"):
            event_log.record(build_event(name))
    (segment,) = list_segments(folder)
    first, second, third = segment.path.read_bytes().splitlines(keepends=True)
    overlong = b"x" * (2**21) + b"\n"
    segment.path.write_bytes(first + b"\x00\xff{}\n" + overlong + b"\n" + second + b'{"id":1}\n' + third + third[:30])
    sink = MemorySink()
    async with open_shipped_log(folder, sink, options=evolve(QUICK, max_in_flight=1)):
        await wait_until(lambda: len(sink.identifiers) == 3)
        await wait_until(lambda: bool(list_records(caplog)))
    assert sink.identifiers == ["a", "b", "c"]
    assert [record.message for record in list_records(caplog)] == [
        f"event segment {segment.path} has 4 damaged lines; they are skipped"
    ]


@pytest.mark.parametrize(
    "garbage", [b"", b"\x00" * 100, b'{"segments":{"x":-1}}', b'{"segments":{"x":"y"}}', b"[" * 10000]
)
async def test_a_garbage_cursor_is_set_aside(folder: Path, caplog: pytest.LogCaptureFixture, garbage: bytes) -> None:
    """With one error; then all events are sent again."""
    first = MemorySink()
    async with open_shipped_log(folder, first) as (event_log, _):
        for name in name_events(5):
            event_log.record(build_event(name))
    path = get_sink_folder(folder, "memory") / "cursor.json"
    path.write_bytes(garbage)
    again = MemorySink()
    async with open_shipped_log(folder, again):
        await wait_until(lambda: len(again.identifiers) == 5)
    assert again.identifiers == name_events(5)
    assert [record.levelname for record in list_records(caplog)] == ["ERROR"]
    assert "is damaged" in caplog.text
    assert [file.read_bytes() for file in path.parent.glob("cursor.json.corrupt-*")] == [garbage]
    assert set(read_offsets(folder)) >= {segment.name for segment in list_segments(folder)}


async def test_a_segment_deleted_by_hand_is_reported_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """If it was not shipped; the others are shipped."""
    async with open_event_log(folder) as event_log:
        event_log.record(build_event("a"))
    (segment,) = list_segments(folder)
    # Another process has it, so it is known and cannot be claimed.
    holder = os.open(segment.path, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    sink = MemorySink()
    async with open_shipped_log(folder, sink) as (event_log, _):
        await trio.sleep(0.3)
        segment.path.unlink()
        os.close(holder)
        event_log.record(build_event("b"))
        await wait_until(lambda: sink.identifiers == ["b"])
        await wait_until(lambda: bool(list_records(caplog)))
        await trio.sleep(0.3)
    assert caplog.text.count(f"event segment {segment.name} is gone") == 1


async def test_the_open_segment_deleted_by_hand_loses_nothing(folder: Path) -> None:
    """What was in it is shipped from the file that is still open, or from the new segment."""
    sink = MemorySink()
    async with open_shipped_log(folder, sink, options=evolve(QUICK, age_seconds=0.1)) as (event_log, _):
        event_log.record(build_event("a"))
        (segment,) = list_segments(folder)
        await wait_until(lambda: sink.identifiers == ["a"])
        segment.path.unlink()
        event_log.record(build_event("b"))
        await wait_until(lambda: "b" in sink.identifiers)
        await wait_until(lambda: bool(list_segments(folder)))
        event_log.record(build_event("c"))
        await wait_until(lambda: "c" in sink.identifiers)
    assert set(sink.identifiers) == {"a", "b", "c"}


async def test_a_cursor_that_cannot_be_written_stops_nothing(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One error, and events go on to be shipped, each once; when the disk is back the cursor is written."""
    monkeypatch.setattr("cgw.events.shipping.shipper.CURSOR_RETRY_SECONDS", 0.05)
    is_full = True
    replace = os.replace

    def replace_or_fail(source: Path, target: Path) -> None:
        if is_full and str(target).endswith("cursor.json"):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_or_fail)
    sink = MemorySink()
    options = EventLogOptions(segment_bytes=1, check_seconds=0.01)
    async with open_shipped_log(folder, sink, log_options=options) as (event_log, _):
        for name in name_events(20):
            event_log.record(build_event(name))
            await trio.sleep(0.02)
        await wait_until(lambda: len(sink.identifiers) == 20)
        assert not (get_sink_folder(folder, "memory") / "cursor.json").exists()
        await trio.sleep(0.3)
        is_full = False
        await wait_until(lambda: (get_sink_folder(folder, "memory") / "cursor.json").exists())
    assert sorted(sink.identifiers) == sorted(name_events(20))
    assert [record.levelname for record in list_records(caplog)] == ["ERROR", "WARNING"]
    assert "cannot be written, so events may be sent again after a restart: No space left on device" in caplog.text
    assert list(get_sink_folder(folder, "memory").glob(".cursor*")) == []


async def test_rejected_events_are_set_aside_and_the_rest_goes_on(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With the sink's reason; `retry` sends them again, to this sink only, and none twice."""
    mended = trio.Event()

    async def decide(identifiers: Sequence[str]) -> Sequence[RejectedEvent]:
        await trio.lowlevel.checkpoint()
        wrong = [index for index, name in enumerate(identifiers) if name in ("e3", "e17")]
        return () if mended.is_set() else [RejectedEvent(index, f"bad row {index}") for index in wrong]

    sink, other = MemorySink(decide=decide), MemorySink(name="other")
    sink_folder = get_sink_folder(folder, "memory")
    async with open_shipped_log(folder, sink, other) as (event_log, shipping):
        for name in name_events(30):
            event_log.record(build_event(name))
        await wait_until(lambda: len(sink.identifiers) == 28 and len(other.identifiers) == 30)
        await wait_until(lambda: len(list(read_failed(sink_folder))) == 2)  # each is written after its batch was taken
        failed = list(read_failed(sink_folder))
        assert sorted((event.event.identifier, event.reason) for event in failed) == [
            ("e17", "bad row 7"),
            ("e3", "bad row 3"),
        ]
        await wait_until(lambda: shipping.statistics()[0].failed == 2)
        assert "memory rejected 1 events, the first because: bad row 3; see `cgw events failed`" in caplog.text
        mended.set()
        assert await trio.to_thread.run_sync(retry_failed, sink_folder) == 2
        assert list(read_failed(sink_folder)) == []
        await wait_until(lambda: len(sink.identifiers) == 30)
        await wait_until(lambda: list_segments(sink_folder) == [])
        await trio.sleep(0.3)
    assert sorted(sink.identifiers) == sorted(other.identifiers) == sorted(name_events(30))


WRITER = """
import sys, time, trio
from pathlib import Path
from cgw.events.event_log import open_event_log
from cgw.model import EventName, UsageEvent
async def main():
    async with open_event_log(Path(sys.argv[1])) as log:
        for number in range(int(sys.argv[2])):
            log.record(UsageEvent(EventName.COMPLETIONS_FINISHED, "static", f"w{number}", {}))
        print("written", flush=True)
        await trio.sleep_forever()
trio.run(main)
"""


async def test_another_process_keeps_its_open_segment_until_it_dies(folder: Path, start_python: StartPython) -> None:
    """Its open segment is its own; once it is killed, whoever adopts the segment ships it, once."""
    writer = start_python(WRITER, str(folder), "25")
    assert writer.stdout is not None
    assert await trio.to_thread.run_sync(writer.stdout.readline) == "written\n"
    one, two = MemorySink(), MemorySink()
    async with open_shipped_log(folder, one), open_shipped_log(folder, two):
        await trio.sleep(0.3)
        assert one.identifiers == two.identifiers == []
        writer.send_signal(signal.SIGKILL)
        await trio.to_thread.run_sync(writer.wait)
        assert adopt_segments(folder) == 1
        await wait_until(lambda: len(one.identifiers) + len(two.identifiers) >= 25)
        await trio.sleep(0.3)
    assert sorted(one.identifiers + two.identifiers) == sorted(f"w{number}" for number in range(25))
    assert not one.identifiers or not two.identifiers


async def test_two_processes_share_the_left_segments(folder: Path) -> None:
    """Each sealed segment is shipped by one of them, and both cursors end in one file."""
    for turn in range(8):
        async with open_event_log(folder) as event_log:
            for name in name_events(20, start=20 * turn):
                event_log.record(build_event(name))
    one, two = MemorySink(), MemorySink()
    async with open_shipped_log(folder, one), open_shipped_log(folder, two):
        await wait_until(lambda: len(one.identifiers) + len(two.identifiers) >= 160)
        await trio.sleep(0.2)
    assert sorted(one.identifiers + two.identifiers) == sorted(name_events(160))
    offsets = read_offsets(folder)
    assert all(offsets[segment.name] == segment.path.stat().st_size for segment in list_segments(folder))


async def test_open_files_are_bounded_while_a_sink_is_down(folder: Path) -> None:
    """However many segments wait: one is read, and those of the batches in flight are held."""
    for turn in range(20):
        segment = create_segment(folder)
        segment.append(render_line(build_event(f"e{turn}")))
        segment.seal()

    async def decide(identifiers: Sequence[str]) -> Sequence[RejectedEvent]:
        await trio.lowlevel.checkpoint()
        raise SinkUnavailable("down")

    sink = MemorySink(decide=decide)
    async with open_shipped_log(folder, sink, drain_seconds=0.1) as (_, shipping):
        await wait_until(lambda: len(sink.batch_ids) > 5)
        await trio.sleep(0.2)
        assert len(shipping._shippers[0]._claims) <= QUICK.max_in_flight + 1
    assert {path.suffix for path in folder.glob("*.ndjson")} == {".ndjson"}
    assert not [path for path in folder.iterdir() if path.name.endswith(OPEN_SUFFIX)]
    assert len([path for path in folder.iterdir() if path.name.endswith(SEALED_SUFFIX)]) == 20
