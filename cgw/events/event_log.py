"""The event log: each usage event is one line, appended with one write before the end of its response is released.

How a line gets to the disk::

    inline   ── a write took longer than 20 ms ──▶  deferred (queued; a thread writes; callers wait)
       ▲                                               │
       └── a second of quick writes, empty queue ──────┘

and, independent of that, whether it gets there at all::

    writing  ── a write or a sync failed ──▶  failing (lines go to the log; with ``refuse``, no new requests)
       ▲                                               │
       └── a new segment could be written to ──────────┘    tried every second

Every change of state is logged once. All methods belong to the Trio thread.
"""

from __future__ import annotations

import errno
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import trio

from cgw.errors import ConfigError, explain_os_error
from cgw.events.backlog import Backlog
from cgw.events.imports import LOG_MARK, import_sqlite
from cgw.events.lines import render_for_log, render_line
from cgw.events.options import EventLogOptions, EventLogStatistics
from cgw.events.retention import delete_old_segments
from cgw.events.segments import OpenSegment, WriteResult, adopt_segments, create_segment
from cgw.events.settings import EventSettings
from cgw.lifetime import open_background_task
from cgw.model import UsageEvent

T = TypeVar("T")

FULL_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
"""With these a service starts nevertheless: they may pass while it runs."""

SLOW_SECONDS = 0.020
"""A write that takes longer would be felt as a gap in every stream."""

QUICK_AGAIN_SECONDS = 1.0
HOUSEKEEPING_SECONDS = 60.0

logger = logging.getLogger("cgw.events")


class EventLog:
    """The log that usage events are recorded in. Made by :func:`open_event_log`.

    ``must_wait`` says that :meth:`wait_durable` has to follow :meth:`record`. ``is_accepting`` is false while events
    cannot be written and the operator wants requests refused meanwhile, before they cost anything.
    """

    def __init__(self, folder: Path, options: EventLogOptions, segment: OpenSegment | None) -> None:
        self.folder = folder
        self._options = options
        self._has_sync = options.settings.fsync != "off"
        self._has_sync_always = options.settings.fsync == "always"
        self._segment = segment
        self.must_wait = self._has_sync_always
        self.is_accepting = True
        self._failure: str | None = None
        self._is_closed = False
        self._cannot_replace = False  # said already
        # The deferred state. Sequence numbers count the lines that were written or queued.
        self._is_deferred = False
        self._backlog = Backlog()
        self._last_slow = -math.inf
        self._is_late = False  # said already
        self._sequence = self._durable_sequence = self._synced_sequence = 0
        self._wake = trio.Event()
        self._progress = trio.Event()
        # Threads use the segment one at a time. Inline writes need no lock: while a line can be written inline,
        # threads only sync and replace the segment.
        self._disk = trio.Lock()
        self._recorded = self._dropped = self._dropped_blank = 0
        self._failures = self._slow_spells = self._syncs = 0

    def record(self, event: UsageEvent) -> None:
        """Append ``event``; never raises, whatever the disk does. One system call in the normal case.

        When it returns, the event survives the death of the process, unless :attr:`must_wait` is true: then it does
        once :meth:`wait_durable` has returned. An event that cannot be written is logged at error level as a line
        that ``cgw events import`` reads. One with a blank identifier is discarded and counted, as in the reference.
        """
        if not event.identifier.strip():
            self._dropped_blank += 1
            return
        line = render_line(event)
        if self._is_deferred:
            self._defer(line)
            return
        if self._segment is None:
            self._give_up([line], "the event log is closed" if self._is_closed else "there is no segment")
            return
        started = time.perf_counter()
        try:
            self._segment.append(line)
        except OSError as error:
            self._give_up([line], explain_os_error(error))
        else:
            self._recorded += 1
            self._sequence += 1
        seconds = time.perf_counter() - started
        if seconds > SLOW_SECONDS:
            self._begin_deferring(seconds)

    async def wait_durable(self, deadline: float = math.inf) -> None:
        """Wait until every event recorded so far is as durable as the settings ask for, or has gone to the log.

        Gives up at ``deadline`` (Trio's clock): the events stay queued, and are written when the disk takes them.
        Cancelling ends the waiting only.
        """
        if not self.must_wait:
            await trio.lowlevel.checkpoint()
            return
        ticket = self._sequence
        with trio.move_on_at(deadline) as deadline_scope:
            while self._durable_sequence < ticket:
                self._wake.set()
                await self._progress.wait()
        if deadline_scope.cancelled_caught and not self._is_late:
            self._is_late = True
            logger.error(
                "usage events are not on the disk yet, and their responses are released: %s is too slow", self.folder
            )

    def statistics(self) -> EventLogStatistics:
        """Return counts since opening."""
        return EventLogStatistics(
            recorded=self._recorded,
            waiting=len(self._backlog) + len(self._backlog.batch),
            dropped=self._dropped,
            dropped_blank=self._dropped_blank,
            failures=self._failures,
            slow_spells=self._slow_spells,
            syncs=self._syncs,
        )

    def describe(self) -> str | None:
        """Return one sentence for operators while events are not written as they should be, otherwise ``None``."""
        if self._failure is not None:
            policy = "written to the log instead" if self.is_accepting else "refused"
            what = "they are" if self.is_accepting else "new requests are"
            return (
                f"usage events cannot be written ({self._failure}), so {what} {policy}; "
                f"{self._dropped} went to the log since the start"
            )
        if self._is_deferred:
            return f"the disk of the usage events is slow; {self.statistics().waiting} events wait for it"
        return None

    # --- failing -----------------------------------------------------------------------------------------------------

    def _give_up(self, lines: Sequence[bytes], reason: str) -> None:
        self._fail(reason)
        self._dropped += len(lines)
        for line in lines:
            logger.error("%s%s", LOG_MARK, render_for_log(line))

    def _fail(self, reason: str) -> None:
        if self._failure is not None or self._is_closed:
            return
        self._failure = reason
        self._failures += 1
        self.is_accepting = self._options.settings.when_full != "refuse"
        logger.error(
            "usage events cannot be written to %s: %s; %s. Make room or mend the folder; until then events are "
            "logged as lines that `cgw events import` reads",
            self.folder,
            reason,
            "requests are served" if self.is_accepting else "new requests get 503",
        )

    def _recover(self) -> None:
        if self._failure is not None:
            self._failure = None
            self.is_accepting = True
            logger.warning(
                "usage events are written again; %d went to the log since the start, `cgw events import` reads them",
                self._dropped,
            )

    # --- deferred writing and syncing --------------------------------------------------------------------------------

    def _begin_deferring(self, seconds: float) -> None:
        self._is_deferred = self.must_wait = True
        if not self._has_sync_always:
            self._durable_sequence = self._sequence  # what was written inline needs no waiting for
        self._last_slow = trio.current_time()
        self._slow_spells += 1
        logger.warning(
            "writing a usage event took %.0f ms: a thread writes them until the disk of %s is quick again",
            seconds * 1000,
            self.folder,
        )

    def _end_deferring(self) -> None:
        self._is_deferred = False
        self.must_wait = self._has_sync_always
        logger.warning("the disk of %s is quick again: usage events are written directly", self.folder)

    def _defer(self, line: bytes) -> None:
        if self._backlog.add(line):
            self._sequence += 1
            self._wake.set()
        else:
            self._give_up([line], f"{len(self._backlog)} events wait for the disk already")

    async def _run_writer(self) -> None:
        while True:
            await self._wake.wait()
            async with self._disk:
                self._wake = trio.Event()  # set again by whoever comes while this round is under way
                await self._write_round()

    async def _write_round(self) -> None:
        """Write a batch of the queue, sync if each event is to be synced, and wake those who wait for that."""
        segment = self._segment
        data = self._backlog.take_batch()
        if self._backlog:
            self._wake.set()
        reached = self._sequence - len(self._backlog)
        if segment is None:
            result = WriteResult(OSError("there is no segment"), None, 0)
        else:
            result = await _in_thread(partial(segment.append_and_sync, data, has_sync=self._has_sync_always))
        batch = self._backlog.end_batch()
        if result.write_error is not None:
            self._give_up(batch, explain_os_error(result.write_error))
        else:
            self._recorded += len(batch)
        self._note_sync(result.sync_error, reached)
        self._durable_sequence = reached
        self._is_late = False
        progress, self._progress = self._progress, trio.Event()
        progress.set()
        if result.write_seconds > SLOW_SECONDS:
            self._last_slow = trio.current_time()
            return
        # Only a batch that was written proves that the disk is quick, and only an empty queue keeps the order.
        is_quick = bool(batch) and trio.current_time() - self._last_slow >= QUICK_AGAIN_SECONDS
        if is_quick and self._is_deferred and not self._backlog:
            self._end_deferring()

    def _note_sync(self, error: OSError | None, reached: int) -> None:
        if error is not None:
            # The kernel may have discarded what it could not write and report success next time: only a new segment
            # can be trusted again, which is what ends the failing state.
            self._fail(f"syncing failed: {explain_os_error(error)}")
        elif self._has_sync_always:
            self._synced_sequence = reached
            self._syncs += 1

    # --- the segment in its place ------------------------------------------------------------------------------------

    async def _run(self) -> None:
        """Write what is deferred, sync, check and replace the segment, adopt and delete old ones, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run_writer)
            nursery.start_soon(self._run_checks)
            nursery.start_soon(self._run_housekeeping)

    async def _run_checks(self) -> None:
        while True:
            await trio.sleep(self._options.check_seconds)
            async with self._disk:
                if self._is_closed:
                    continue
                try:
                    await self._check()
                except OSError as error:
                    self._fail(f"the segment cannot be looked after: {explain_os_error(error)}")

    async def _check(self) -> None:
        segment, options = self._segment, self._options
        if segment is None:
            await self._replace(is_needed=True)
            return
        if options.settings.fsync == "interval" and self._synced_sequence < self._sequence and not self._failure:
            reached = self._sequence
            try:
                await _in_thread(segment.sync)
            except OSError as error:
                self._fail(f"syncing failed: {explain_os_error(error)}")
            else:
                self._synced_sequence = reached
                self._syncs += 1
        if not await _in_thread(segment.is_in_place):
            logger.error("event segment %s was removed or renamed; starting a new one", segment.segment.path)
            await self._replace(is_needed=True)
        elif self._failure is not None:
            await self._replace(is_needed=True)
        elif segment.length >= options.segment_bytes or (
            segment.length and time.monotonic() - segment.started >= options.segment_seconds
        ):
            await self._replace(is_needed=False)

    async def _replace(self, *, is_needed: bool) -> None:
        """Go on in a new segment and seal the present one; if there can be none, go on as before."""
        try:
            segment = await _in_thread(partial(create_segment, self.folder, has_sync=self._has_sync))
        except OSError as error:
            reason = f"a new segment cannot be started: {explain_os_error(error)}"
            if is_needed:
                self._fail(reason)
                self._leave_deleted()
            elif not self._cannot_replace:
                self._cannot_replace = True
                logger.error("%s: %s; the present one goes on", self.folder, reason)
            return
        self._cannot_replace = False
        # From here to the next await nothing else runs: each line is in one of the two segments.
        old, self._segment = self._segment, segment
        self._recover()
        if old is None:
            return
        if old.is_deleted():
            self._rescue(old)
        try:
            await _in_thread(partial(old.seal, has_sync=self._has_sync))
        except OSError as error:
            logger.error("event segment %s cannot be sealed: %s", old.segment.path, explain_os_error(error))

    def _leave_deleted(self) -> None:
        """Stop writing to a segment that was deleted: nobody could read it."""
        segment = self._segment
        if segment is not None and segment.is_deleted():
            self._segment = None
            self._rescue(segment)
            segment.close()

    def _rescue(self, deleted: OpenSegment) -> None:
        """Write what a deleted segment took since the last check to the present one, or to the log."""
        data = deleted.read_unchecked()
        reason = "the segment was deleted"
        if self._segment is not None:
            try:
                self._segment.append(data)
            except OSError as error:
                reason = explain_os_error(error)
            else:
                return
        lines = data.splitlines()
        self._recorded -= len(lines)
        if lines:
            self._give_up(lines, reason)

    async def _run_housekeeping(self) -> None:
        settings = self._options.settings
        while True:
            await trio.sleep(HOUSEKEEPING_SECONDS)
            try:
                await _in_thread(partial(_keep_house, self.folder, settings))
            except OSError as error:
                logger.error("event segments in %s cannot be listed: %s", self.folder, explain_os_error(error))

    async def _close(self) -> None:
        """Write what is queued and seal the segment, for a bounded time; what is left goes to the log."""
        with trio.move_on_after(self._options.close_seconds, shield=True):
            while self._backlog.list_all():
                self._wake.set()
                await self._progress.wait()
            async with self._disk:
                self._is_closed = True
                segment, self._segment = self._segment, None
                self._is_deferred = False
                if segment is not None:
                    try:
                        await _in_thread(partial(segment.seal, has_sync=self._has_sync))
                    except OSError as error:
                        logger.error("event segment %s cannot be sealed: %s", segment.segment.path, error.strerror)
            return
        # The file stays open: a thread may be writing to it. The next start adopts it.
        self._is_closed = True
        self._segment = None
        self._is_deferred = False
        left = self._backlog.list_all()
        logger.error(
            "the disk of %s hangs: its segment is left open, and %d usage events follow", self.folder, len(left)
        )
        self._give_up(left, "closing")


async def _in_thread(function: Callable[[], T]) -> T:
    # Abandoned when cancelled: a disk that hangs must not keep the process from ending.
    return await trio.to_thread.run_sync(function, abandon_on_cancel=True)


def _keep_house(folder: Path, settings: EventSettings) -> None:
    adopt_segments(folder)
    delete_old_segments(folder, retention_seconds=settings.retention_seconds, max_bytes=settings.max_bytes)


@asynccontextmanager
async def open_event_log(folder: Path, options: EventLogOptions | None = None) -> AsyncIterator[EventLog]:
    """Open the event log in ``folder`` for the length of the block; any number of processes may share it.

    Segments of processes that died are adopted first, and an ``events.sqlite`` of earlier versions beside the folder
    is imported and set aside. A disk that is full does not keep it from opening. Raises
    :exc:`~cgw.errors.ConfigError` when the folder cannot be created or written to for another reason.

    On leaving, also by cancellation, what is queued is written and the segment sealed, shielded, for
    ``close_seconds`` at most.
    """
    options = options or EventLogOptions()
    segment, failure = await trio.to_thread.run_sync(_prepare, folder, options.settings)
    event_log = EventLog(folder, options, segment)
    if failure is not None:
        event_log._fail(failure)
    async with open_background_task(event_log._run):
        try:
            yield event_log
        finally:
            await event_log._close()


def _prepare(folder: Path, settings: EventSettings) -> tuple[OpenSegment | None, str | None]:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _keep_house(folder, settings)
        import_sqlite(folder.parent / "events.sqlite", folder)
        return create_segment(folder, has_sync=settings.fsync != "off"), None
    except OSError as error:
        if error.errno in FULL_ERRORS:
            return None, explain_os_error(error)
        raise ConfigError([f"usage events cannot be kept in {folder}: {explain_os_error(error)}"]) from None
