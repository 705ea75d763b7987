"""The thread that exports in batches: what it delivers, what it drops, and how it ends."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence

import pytest

from cgw.telemetry.export_thread import ExportFailed, ExportStatistics, ExportThread


class Collector:
    """Takes batches; blocks while ``gate`` is closed, and fails while ``failure`` is set."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.failure: Exception | None = None

    def __call__(self, batch: Sequence[int], deadline: float) -> None:
        self.entered.set()
        self.gate.wait()
        if self.failure is not None:
            raise self.failure
        self.batches.append(list(batch))


def wait_until_pending(thread: ExportThread[int], count: int) -> None:
    """Wait until ``count`` items are left."""
    deadline = time.monotonic() + 20
    while thread.statistics().pending != count:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_items_are_exported_in_order_and_in_batches() -> None:
    """Full batches go at once, in order; what is left goes at the end, however long it may gather."""
    collector = Collector()
    thread: ExportThread[int] = ExportThread("test", collector, max_batch=10, gather_seconds=1000)
    for number in range(25):
        thread.put(number)
    thread.close(20)
    assert [number for batch in collector.batches for number in batch] == list(range(25))
    assert max(map(len, collector.batches)) <= 10
    assert thread.statistics() == ExportStatistics(exported=25, dropped=0, failed=0, pending=0)


def test_a_few_items_are_exported_after_they_have_gathered() -> None:
    """One item alone is exported without a full batch, and so is the next."""
    collector = Collector()
    thread: ExportThread[int] = ExportThread("test", collector, gather_seconds=0.01)
    for number in range(3):
        thread.put(number)
        wait_until_pending(thread, 0)
    assert len(collector.batches) == 3
    thread.close(20)


def test_what_finds_no_room_is_dropped_and_counted() -> None:
    """While the collector hangs, a bounded number waits, and the thread is one."""
    collector = Collector()
    collector.gate.clear()
    threads = threading.active_count()
    thread: ExportThread[int] = ExportThread("test", collector, max_batch=10, max_pending=20, gather_seconds=0.01)
    thread.put(0)
    assert collector.entered.wait(20)
    for number in range(1, 1001):
        thread.put(number)
    assert threading.active_count() == threads + 1
    assert thread.statistics() == ExportStatistics(exported=0, dropped=980, failed=0, pending=21)
    collector.gate.set()
    thread.close(20)
    assert thread.statistics() == ExportStatistics(exported=21, dropped=980, failed=0, pending=0)


def test_a_stuck_collector_does_not_keep_the_process(caplog: pytest.LogCaptureFixture) -> None:
    """Closing waits for its timeout and no longer, and says what was not exported."""
    collector = Collector()
    collector.gate.clear()
    thread: ExportThread[int] = ExportThread("test", collector, gather_seconds=0.01)
    thread.put(1)
    assert collector.entered.wait(20)
    thread.put(2)
    thread.close(0.05)
    assert "test: 2 items were not exported before the end" in caplog.text
    collector.gate.set()


def test_nothing_waits_longer_than_a_batch_gathers() -> None:
    """However quickly items come, full batches go without waiting for the end of the gathering."""
    collector, count = Collector(), 20_000
    thread: ExportThread[int] = ExportThread("test", collector, max_batch=100, max_pending=count, gather_seconds=1000)
    for number in range(count):
        thread.put(number)
    wait_until_pending(thread, 0)
    assert thread.statistics().exported == count
    thread.close(20)


def test_failures_are_told_once_and_so_is_their_end(caplog: pytest.LogCaptureFixture) -> None:
    """One line when batches begin to fail, and one when they are accepted again."""
    caplog.set_level(logging.WARNING)
    collector = Collector()
    collector.failure = ExportFailed("answered 503")
    thread: ExportThread[int] = ExportThread("test", collector, gather_seconds=0.001)
    for number in range(5):
        if number == 4:
            collector.failure = None
        thread.put(number)
        wait_until_pending(thread, 0)
    thread.close(20)
    assert [record.getMessage() for record in caplog.records] == [
        "test: answered 503: what cannot be exported is dropped and counted",
        "test: accepts again; 3 more items were lost after the first batch",
    ]
    assert thread.statistics() == ExportStatistics(exported=1, dropped=0, failed=4, pending=0)


def test_a_bug_in_exporting_costs_its_batch(caplog: pytest.LogCaptureFixture) -> None:
    """The thread goes on after an exception that is no failure of the collector's, and logs it."""
    collector = Collector()
    collector.failure = ZeroDivisionError()
    thread: ExportThread[int] = ExportThread("test", collector, gather_seconds=0.001)
    thread.put(1)
    wait_until_pending(thread, 0)
    collector.failure = None
    thread.put(2)
    thread.close(20)
    assert collector.batches == [[2]]
    assert "a bug in exporting costs items; it is reported once" in caplog.text
