"""Reports of exchanges in batches: when they are made, in which order, and that none is lost."""

from __future__ import annotations

import io
import json
import logging
import threading
from collections.abc import Sequence

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from cgw.lifetime import open_background_task
from cgw.telemetry.exchange_log import log_exchanges
from cgw.telemetry.exchange_record import ExchangeRecord, Outcome, RequestKind
from cgw.telemetry.log_level import LogLevel
from cgw.telemetry.logs import open_logging
from cgw.telemetry.readers import BATCH, GATHER_SECONDS, Readers
from tests.support.records import build_record

logger = logging.getLogger("cgw.test")


def build_records(count: int) -> list[ExchangeRecord]:
    """Return records whose paths are their numbers."""
    return [build_record(path=f"/{number}", response_bytes=number) for number in range(count)]


def read_messages(stream: io.StringIO) -> list[str]:
    """Return the path of each exchange in a log, and the text of each other line."""
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    return [line["httpRequest"]["requestUrl"] if "httpRequest" in line else line["message"] for line in lines]


class Batches:
    """A reader that keeps what it gets."""

    def __init__(self) -> None:
        self.got: list[list[ExchangeRecord]] = []

    def __call__(self, records: Sequence[ExchangeRecord]) -> None:
        """Keep a batch."""
        self.got.append(list(records))

    @property
    def sizes(self) -> list[int]:
        """The sizes of the batches so far."""
        return [len(batch) for batch in self.got]


async def test_records_wait_for_a_batch_or_a_tick(mock_clock: MockClock) -> None:
    """The first after a quiet time is reported at once, then many at a time, the rest within a tenth of a second."""
    batches = Batches()
    readers = Readers([batches])
    records = build_records(2 * BATCH + 4)
    async with open_background_task(readers.run):
        await trio.testing.wait_all_tasks_blocked()
        for record in records:
            readers(record)
        assert batches.sizes == [1, BATCH, BATCH]
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(GATHER_SECONDS)
        await trio.testing.wait_all_tasks_blocked()
        assert batches.sizes == [1, BATCH, BATCH, 3]
        readers(records[0])  # within the pause of a busy time
        assert batches.sizes == [1, BATCH, BATCH, 3]
        mock_clock.jump(GATHER_SECONDS)
        await trio.testing.wait_all_tasks_blocked()
        assert batches.sizes == [1, BATCH, BATCH, 3, 1]
        mock_clock.jump(GATHER_SECONDS)  # quiet again: nothing wakes up any more
        await trio.testing.wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().seconds_to_next_deadline == float("inf")
        readers(records[0])
        assert batches.sizes == [1, BATCH, BATCH, 3, 1, 1]
    assert [record for batch in batches.got for record in batch][: len(records)] == records


async def test_nothing_is_lost_at_the_end() -> None:
    """What has gathered is reported when the task is cancelled; after it, as before it, each record at once."""
    batches = Batches()
    readers = Readers([batches])
    records = build_records(6)
    readers(records[0])
    assert batches.sizes == [1]
    async with open_background_task(readers.run):
        await trio.testing.wait_all_tasks_blocked()
        for record in records[1:5]:
            readers(record)
        assert batches.sizes == [1, 1]
    assert batches.sizes == [1, 1, 3]
    readers(records[5])
    assert batches.sizes == [1, 1, 3, 1]


async def test_a_bug_is_reported_at_once() -> None:
    """Its line is wanted now, after those before it; its traceback must not keep a request's body alive."""
    batches = Batches()
    readers = Readers([batches])
    async with open_background_task(readers.run):
        await trio.testing.wait_all_tasks_blocked()
        for record in build_records(3):
            readers(record)
        readers(build_record(Outcome.INTERNAL_ERROR, bug=ValueError("odd")))
        assert batches.sizes == [1, 3]


async def test_other_lines_come_after_the_exchanges_before_them() -> None:
    """A line of any level flushes what has gathered, so that the log is in the order in which things happened."""
    stream = io.StringIO()
    readers = Readers()
    with open_logging(stream, level="DEBUG"), readers.precede_log():
        async with open_background_task(readers.run):
            await trio.testing.wait_all_tasks_blocked()
            first, second, third, fourth, fifth = build_records(5)
            readers(first)
            readers(second)
            logger.debug("a line")
            readers(third)
            readers(fourth)
            logger.warning("a warning")
            readers(fifth)
    assert read_messages(stream) == ["/0", "/1", "a line", "/2", "/3", "a warning", "/4"]


def test_a_batch_is_logged_in_order_whatever_is_in_it() -> None:
    """Usual exchanges, errors, control requests and what cannot be rendered keep their places."""
    stream = io.StringIO()
    records = [
        build_record(path="/0", response_bytes=1),
        build_record(path="/1", kind=RequestKind.CONTROL, outcome=Outcome.REFUSED, status=404),
        build_record(Outcome.REFUSED, path="/2", response_bytes=1, status=401, error="invalid access token"),
        build_record(Outcome.INTERNAL_ERROR, path="/3", status=500, bug=ValueError()),
        build_record(path=b"bytes", response_bytes=1),
        build_record(path="/5", response_bytes=1),
    ]
    with open_logging(stream):
        log_exchanges(records)
    messages = read_messages(stream)
    assert "cannot be written" in messages.pop(4)
    assert messages == ["/0", "/1", "/2", "/3", "/5"]


def test_lines_tell_when_the_exchange_ended() -> None:
    """However long a record waited for others, and in both ways into the log."""
    stream = io.StringIO()
    records = [build_record(duration_ms=2500, started_at=10.0, response_bytes=size) for size in (None, 1, None)]
    records[2] = build_record(Outcome.INTERNAL_ERROR, duration_ms=2500, started_at=10.0, bug=ValueError())
    with open_logging(stream):
        log_exchanges(records)
    times = {json.loads(line)["time"] for line in stream.getvalue().splitlines()}
    assert times == {"1970-01-01T00:00:12.500000+00:00"}


async def test_a_change_of_level_is_between_exchanges() -> None:
    """Exchanges that ended before the change are logged as the level was then, even where no line tells of it."""
    stream = io.StringIO()
    readers = Readers()
    with open_logging(stream, level="ERROR"), readers.precede_log():
        level = LogLevel()
        async with open_background_task(readers.run):
            await trio.testing.wait_all_tasks_blocked()
            first, second, third, fourth, fifth = build_records(5)
            readers(first)
            readers(second)
            level.set("INFO")
            readers(third)
            readers(fourth)
            level.set("ERROR")
            readers(fifth)
    assert [message for message in read_messages(stream) if message.startswith("/")] == ["/2", "/3"]


async def test_lines_of_other_threads_do_not_touch_what_has_gathered() -> None:
    """Records belong to the thread that serves; a line of another one is written at once."""
    stream = io.StringIO()
    readers = Readers()
    with open_logging(stream), readers.precede_log():
        async with open_background_task(readers.run):
            await trio.testing.wait_all_tasks_blocked()
            for record in build_records(3):
                readers(record)
            thread = threading.Thread(target=logger.warning, args=("from a thread",))
            thread.start()
            thread.join()
    assert read_messages(stream) == ["/0", "from a thread", "/1", "/2"]


async def test_a_reader_may_log() -> None:
    """Its line does not begin the batch again, and the readers after it get the batch once."""
    batches = Batches()

    def warn(records: Sequence[ExchangeRecord]) -> None:
        logger.warning("%d exchanges", len(records))

    readers = Readers([warn, batches])
    with readers.precede_log():
        async with open_background_task(readers.run):
            await trio.testing.wait_all_tasks_blocked()
            for record in build_records(1 + BATCH):
                readers(record)
            assert batches.sizes == [1, BATCH]


async def test_a_crash_comes_after_the_exchanges_before_it() -> None:
    """An exception that ends the service does not lose the reports that wait."""
    stream = io.StringIO()
    readers = Readers()

    async def crash() -> None:
        with readers.precede_log():
            async with open_background_task(readers.run):
                await trio.testing.wait_all_tasks_blocked()
                for record in build_records(4):
                    readers(record)
                raise ValueError("odd")

    with open_logging(stream):
        with pytest.raises(ValueError, match="odd"):
            await crash()
        logger.error("the service crashed")
    assert read_messages(stream) == ["/0", "/1", "/2", "/3", "the service crashed"]


def test_the_log_is_as_it_was_after_the_block(caplog: pytest.LogCaptureFixture) -> None:
    """No handler is left."""
    before = logging.root.handlers[:]
    with Readers().precede_log():
        assert len(logging.root.handlers) == len(before) + 1
    assert logging.root.handlers == before


def test_an_interrupt_in_a_reader_does_not_stop_reports() -> None:
    """What is no bug, such as Ctrl-C, passes; later records are reported, and none gathers for ever."""
    batches, errors = Batches(), [KeyboardInterrupt()]

    def read(records: Sequence[ExchangeRecord]) -> None:
        if errors:
            raise errors.pop()

    readers = Readers([read, batches])
    first, *later = build_records(3)
    with pytest.raises(KeyboardInterrupt):
        readers(first)
    for record in later:
        readers(record)
    assert batches.got == [[record] for record in later]
