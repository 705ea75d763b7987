"""The log's thread: when it wakes up, and how much waits for it."""

from __future__ import annotations

import errno
import io
import logging
import os
import threading
import time
from pathlib import Path

import pytest

from cgw.telemetry import line_writer
from cgw.telemetry.line_writer import LineWriter
from cgw.telemetry.logs import open_logging
from tests.support.disk import install_disk

logger = logging.getLogger("cgw.test")


class CountingStream(io.StringIO):
    """A stream without a file that notes the text of each write."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[str] = []

    def write(self, text: str) -> int:
        """Note ``text``."""
        self.writes.append(text)
        return len(text)


def wait_until_written(stream: CountingStream, text: str) -> None:
    deadline = time.monotonic() + 10
    while not any(text in write for write in stream.writes):
        assert time.monotonic() < deadline, f"{text} was not written; there is {stream.writes}"
        time.sleep(0.001)


def count_switches(thread: threading.Thread) -> int:
    """Return how often ``thread`` has waited for anything since its start."""
    status = Path(f"/proc/self/task/{thread.native_id}/status").read_text()
    return int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])


def test_lines_are_written_together() -> None:
    """While lines come, all lines of a pause are one write, not one each."""
    stream = CountingStream()
    with open_logging(stream) as logs:
        started = time.monotonic()
        for number in range(200):
            logger.info("line %d", number)
            time.sleep(0.002)
        seconds = time.monotonic() - started
    assert logs.statistics().written == 200
    # The first line is written at once, the last ones when the log is closed.
    assert len(stream.writes) <= seconds / line_writer.GATHER_SECONDS + 2


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="needs Linux's /proc")
def test_no_lines_no_wake_ups() -> None:
    """The thread wakes up once after the last line, and then no more until the next."""
    stream = CountingStream()
    writer = LineWriter(stream, 100, 1000, lambda text: b"")
    try:
        writer.put(b"first\n")
        wait_until_written(stream, "first")
        time.sleep(3 * line_writer.GATHER_SECONDS)
        before = count_switches(writer._thread)
        time.sleep(3 * line_writer.GATHER_SECONDS)
        assert count_switches(writer._thread) == before
    finally:
        writer.close(5)


def test_first_line_and_errors_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line after a quiet time, and an error at any time, are written at once; others wait for the pause's end."""
    monkeypatch.setattr(line_writer, "GATHER_SECONDS", 60)
    stream = CountingStream()
    with open_logging(stream):
        logger.info("first")
        wait_until_written(stream, "first")
        logger.info("second")
        time.sleep(0.05)
        assert len(stream.writes) == 1
        logger.error("third")
        wait_until_written(stream, "third")
        assert "second" in stream.writes[1]
        logger.warning("last")
        started = time.monotonic()
    assert time.monotonic() - started < 5
    assert "last" in stream.writes[2]


def test_burst_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of what may wait is written at once, so that a burst is not dropped for the sake of the pause."""
    monkeypatch.setattr(line_writer, "GATHER_SECONDS", 60)
    stream = CountingStream()
    with open_logging(stream, max_pending=100) as logs:
        logger.info("first")
        wait_until_written(stream, "first")
        for number in range(60):
            logger.info("line %d,", number)
        wait_until_written(stream, "line 49,")
        assert logs.statistics().dropped == 0


def test_lines_that_wait_are_bounded_in_bytes() -> None:
    """With a stuck reader, few long lines are dropped as many short ones are; what is written meanwhile counts."""
    reader, writing_end = os.pipe()
    with os.fdopen(writing_end, "w") as stream:
        writer = LineWriter(stream, 10_000, 500_000, lambda text: f"{text}\n".encode())
        for _ in range(100):
            writer.put(b"x" * 9_999 + b"\n")
        statistics = writer.statistics()
        assert 50 <= statistics.dropped <= 100 - 500_000 // 10_000 + 1
        assert statistics.pending <= 50
        data = b""
        while b"dropped" not in data:
            data += os.read(reader, 1_000_000)
        writer.close(5)
    os.close(reader)
    statistics = writer.statistics()
    assert data.count(b"x\n") == 100 - statistics.dropped
    assert b"\n%d log lines were dropped: " % statistics.dropped in data
    assert statistics.pending == 0


def render(text: str) -> bytes:
    return f"{text}\n".encode()


def wait_until_lost(writer: LineWriter, count: int) -> None:
    deadline = time.monotonic() + 10
    while writer.statistics().lost < count:
        assert time.monotonic() < deadline, writer.statistics()
        time.sleep(0.001)


def test_a_full_disk_costs_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines wait for room, within their bounds; then they are written, whole and in order, and it is said."""
    disk = install_disk(monkeypatch)
    monkeypatch.setattr(line_writer, "ROOM_SECONDS", 0.001)
    path = tmp_path / "log"
    with path.open("w") as stream:
        writer = LineWriter(stream, 4, 1_000_000, render)
        writer.put(b"first\n")
        disk.room_bytes = 3  # in the middle of a line
        for number in range(10):
            writer.put(b"line %d\n" % number, is_urgent=True)
        deadline = time.monotonic() + 10
        while writer.statistics().write_errors == 0:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(0.05)  # some attempts that find no room
        assert writer.statistics().write_errors == 1
        dropped = writer.statistics().dropped
        assert dropped >= 6
        disk.room_bytes = None
        writer.close(5)
    lines = path.read_text().splitlines()
    kept = [line for line in lines if line.startswith("line ")]
    assert kept == [f"line {number}" for number in range(10 - dropped)]
    (notice,) = (line for line in lines if line.startswith("the log could not be written for "))
    assert notice.endswith(" s (No space left on device): 0 lines are lost")
    assert f"{dropped} log lines were dropped: the log cannot be written fast enough" in lines
    assert writer.statistics().lost == 0


def test_a_full_disk_does_not_hold_up_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing tries once more, and counts what is lost."""
    disk = install_disk(monkeypatch)
    disk.room_bytes = 0
    with (tmp_path / "log").open("w") as stream:
        writer = LineWriter(stream, 100, 1_000_000, render)
        writer.put(b"lost\n")
        writer.close(30)
    assert not writer._thread.is_alive()
    assert (writer.statistics().written, writer.statistics().lost) == (0, 1)


def test_a_pipe_that_gets_another_reader_says_what_was_lost(tmp_path: Path) -> None:
    """Without a reader (EPIPE) lines are lost and counted; the next reader is told how many, and gets whole lines."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with path.open("w") as stream:
        writer = LineWriter(stream, 100, 1_000_000, render)
        os.close(reader)
        writer.put(b"lost 1\n", is_urgent=True)
        wait_until_lost(writer, 1)
        writer.put(b"lost 2\n", is_urgent=True)
        wait_until_lost(writer, 2)
        reader = os.open(path, os.O_RDONLY)
        writer.put(b"kept\n")
        writer.close(5)
        line, notice = os.read(reader, 1000).decode().splitlines()
        assert line == "kept"
        assert notice.startswith("the log could not be written for ")
        assert notice.endswith(" s (Broken pipe): 2 lines are lost")
        os.close(reader)
    assert writer.statistics().write_errors == 1


def test_half_a_line_costs_itself_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a write that broke off in mid-line, the next line begins on a line of its own."""
    disk = install_disk(monkeypatch)
    disk.room_bytes = 9
    disk.room_error = errno.EIO
    path = tmp_path / "log"
    with path.open("w") as stream:
        writer = LineWriter(stream, 100, 1_000_000, render)
        writer.put(b"first\nsecond\n")  # counted as one
        wait_until_lost(writer, 1)
        disk.room_bytes = None
        writer.put(b"third\n")
        writer.close(5)
    assert path.read_text().splitlines()[:3] == ["first", "sec", "third"]
