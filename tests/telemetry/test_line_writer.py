"""The log's thread: when it wakes up, and how much waits for it."""

from __future__ import annotations

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
    writer = LineWriter(stream, 100, 1000, lambda count: b"")
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
        writer = LineWriter(stream, 10_000, 500_000, lambda count: b"%d dropped\n" % count)
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
    assert data.endswith(b"%d dropped\n" % statistics.dropped)
    assert statistics.pending == 0
