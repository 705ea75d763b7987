"""The event log: each usage event is one line, appended with one write before the end of its response is released.

How a line gets to the disk::

    inline   ── a write took longer than 20 ms ──▶  deferred (queued; a thread writes; callers wait)
       ▲                                               │
       └── a second of quick writes, empty queue ──────┘      with ``fsync=always`` it is deferred all the time

and, independent of that, whether it gets there at all::

    writing  ── a write or a sync failed ──▶  failing (lines go to the log; with ``refuse``, no new requests)
       ▲                                               │
       └── a new segment could be written to ──────────┘    tried every second

Every change of state is logged once. All methods belong to the Trio thread. One task (:meth:`EventLog._run`) does what
blocks: it hands one piece of work after the other to a thread, so that no two threads use a segment.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import trio

from cgw.errors import explain_os_error
from cgw.events.backlog import Backlog
from cgw.events.housekeeping import open_folder, serve_housekeeping
from cgw.events.imports import LOG_MARK
from cgw.events.lines import render_for_log, render_line
from cgw.events.options import EventLogOptions, EventLogStatistics
from cgw.events.retention import Deleted
from cgw.events.segments import OpenSegment, create_segment
from cgw.lifetime import open_background_task
from cgw.model import UsageEvent

T = TypeVar("T")

SLOW_SECONDS = 0.020
"""A write that takes longer would be felt as a gap in every stream."""

BATCH_BYTES = 2**20
QUICK_AGAIN_SECONDS = 1.0

logger = logging.getLogger("cgw.events")


class EventLog:
    """The log that usage events are recorded in. Made by :func:`open_event_log`.

    ``must_wait`` says that :meth:`wait_durable` has to follow :meth:`record`. ``is_accepting`` is false while events
    cannot be written and the operator wants requests refused meanwhile, before they cost anything.
    """

    def __init__(self, folder: Path, options: EventLogOptions, segment: OpenSegment | None) -> None:
        self.folder = folder
        self._options = options
        self._syncs_each = options.settings.fsync == "always"
        self.must_wait = self._syncs_each
        self.is_accepting = True
        self._create_segment = partial(create_segment, folder, has_sync=options.settings.fsync != "off")
        self._segment = segment  # none while failing
        self._retired: list[OpenSegment] = []  # to be sealed at the next check
        self.is_sealing = False
        """True if there are segments that nothing is appended to any more, and that are not sealed yet."""
        self._failure = ""
        self._is_over = False  # beyond the bound with events that sinks do not have, and the policy is to refuse
        self._deleted_unshipped = 0
        self._backlog = Backlog()
        self._last_slow = -math.inf
        self._is_late = self._cannot_replace = False  # said already
        self._is_closing = False
        self._closed = trio.Event()
        self._recorded = self._dropped = self._blank = 0
        self._grown: trio.Event | None = None  # while somebody watches: setting one for nobody costs each event

    @property
    def open_segment(self) -> OpenSegment | None:
        """The segment that events are appended to; ``None`` while there is none."""
        return self._segment

    def watch(self) -> trio.Event:
        """Return an event that is set when something was written after this call. Any number of callers may wait."""
        if self._grown is None:
            self._grown = trio.Event()
        return self._grown

    def _note_grown(self) -> None:
        if self._grown is not None:
            self._grown.set()
            self._grown = None

    def record(self, event: UsageEvent) -> None:
        """Append ``event``; never raises, whatever the disk does. One system call in the normal case.

        When it returns, the event survives the death of the process, unless :attr:`must_wait` is true: then it does
        once :meth:`wait_durable` has returned. An event that cannot be written is logged at error level as a line
        that ``cgw events import`` reads. One with a blank identifier is discarded and counted, as in the reference.
        """
        if event.identifier.strip():
            self._write(render_line(event))
        else:
            self._blank += 1

    def _write(self, line: bytes) -> None:
        if self._segment is None:
            self._give_up([line], self._failure)
            return
        if self.must_wait:
            if not self._backlog.add(line):
                self._give_up([line], f"{len(self._backlog)} events wait for the disk already")
            return
        try:
            seconds = self._segment.append(line)
        except OSError as error:
            self._give_up([line], explain_os_error(error))
            return
        self._recorded += 1
        if self._grown is not None:
            self._note_grown()
        if seconds > SLOW_SECONDS:
            self.must_wait = True
            self._last_slow = trio.current_time()
            logger.warning(
                "writing a usage event took %.0f ms: a thread writes them until the disk of %s is quick again",
                seconds * 1000,
                self.folder,
            )

    async def wait_durable(self, deadline: float = math.inf) -> None:
        """Wait until every event recorded so far is as durable as the settings ask for, or has gone to the log.

        Gives up at ``deadline`` (Trio's clock): the events stay queued, and are written when the disk takes them.
        Cancelling ends the waiting only.
        """
        await trio.lowlevel.checkpoint()
        with trio.move_on_at(deadline) as deadline_scope:
            await self._backlog.wait_removed()
        if deadline_scope.cancelled_caught and not self._is_late:
            self._is_late = True
            logger.error("responses are released before their events are on the disk: %s is too slow", self.folder)

    def statistics(self) -> EventLogStatistics:
        """Return counts since opening."""
        counts = self._recorded, len(self._backlog), self._dropped, self._blank, self._deleted_unshipped
        return EventLogStatistics(*counts)

    def describe(self) -> str | None:
        """Return one sentence for operators while events are not written as they should be, otherwise ``None``."""
        if self._is_over:
            return (
                "usage events that were not shipped yet take CODY_GATEWAY_EVENTS_MAX_BYTES, so new requests are "
                "refused: see `cgw events status`"
            )
        if self._failure:
            policy = "they are written to the log instead" if self.is_accepting else "new requests are refused"
            return f"usage events cannot be written ({self._failure}), so {policy}; {self._dropped} went to the log"
        if self.must_wait and not self._syncs_each:
            return f"the disk of the usage events is slow; {len(self._backlog)} events wait for it"
        return None

    def _fail(self, reason: str) -> None:
        """Leave the segment: nothing is appended to it any more, and only a new one ends the failing state.

        After a failed sync the kernel may have discarded what it could not write and report success next time; after
        a short write the end of the segment may be a piece of a line.
        """
        if self._failure:
            return
        self._replace(None)
        self._failure = reason
        self._update_accepting()
        logger.error("%s; make room or mend %s, then `cgw events import` the log", self.describe(), self.folder)

    def _update_accepting(self) -> None:
        refuses = self._options.settings.when_full == "refuse"
        self.is_accepting = not (refuses and (self._failure or self._is_over))

    def _note_deleted(self, deleted: Deleted) -> None:
        self._deleted_unshipped += deleted.unshipped
        if deleted.is_over != self._is_over:
            self._is_over = deleted.is_over
            self._update_accepting()
            if self._is_over:
                logger.error("%s", self.describe())
            else:
                logger.warning("the usage events take less than CODY_GATEWAY_EVENTS_MAX_BYTES again")

    def _give_up(self, lines: list[bytes], reason: str) -> None:
        self._fail(reason)
        self._dropped += len(lines)
        for line in lines:
            logger.error("%s%s", LOG_MARK, render_for_log(line))

    async def _run(self) -> None:
        """Write what is deferred, and look after the segment, until closing; then seal it."""
        next_check = trio.current_time() + self._options.check_seconds
        while not self._is_closing or self._backlog:
            with trio.move_on_at(next_check):
                await self._backlog.wake.wait()
            self._backlog.wake = trio.Event()  # set again by whoever comes while this turn is under way
            if self._backlog:
                await self._write_batch()
            if trio.current_time() >= next_check:
                try:
                    await self._check()
                except OSError as error:
                    self._fail(explain_os_error(error))
                await self._seal_retired()
                next_check = trio.current_time() + self._options.check_seconds
        self._replace(None)
        self._failure = "the event log is closed"
        await self._seal_retired()
        self._closed.set()

    async def _write_batch(self) -> None:
        """Write, and if each event is to be synced, sync a batch of the queue; wake those who wait for that."""
        lines = self._backlog.list_first(BATCH_BYTES)
        if self._segment is None:  # it failed since these were queued
            await self._start_segment()
        seconds: float | None = None
        if self._segment is not None:
            append = self._segment.append_and_sync if self._syncs_each else self._segment.append
            try:
                seconds = await _in_thread(partial(append, b"".join(lines)))
            except OSError as error:
                self._fail(explain_os_error(error))
        self._backlog.remove_first(len(lines))
        self._is_late = False
        if seconds is None:
            self._give_up(lines, self._failure)
            return
        self._recorded += len(lines)
        self._note_grown()
        now = trio.current_time()
        if seconds > SLOW_SECONDS:
            self._last_slow = now
        elif now - self._last_slow >= QUICK_AGAIN_SECONDS and not self._backlog and not self._syncs_each:
            # Only a batch that was written proves that the disk is quick, and only an empty queue keeps the order.
            self.must_wait = False
            logger.warning("the disk of %s is quick again: usage events are written directly", self.folder)

    async def _check(self) -> None:
        """Start a new segment where the present one is missing, lost or full, and sync it where that is due."""
        segment, options = self._segment, self._options
        if segment is None:
            await self._start_segment()
        elif not await _in_thread(segment.is_in_place):
            logger.error("event segment %s was removed or renamed; starting a new one", segment.segment.path)
            await self._start_segment()
            for line in segment.read_lost():
                self._recorded -= 1
                self._write(line)
        elif segment.length >= options.segment_bytes or (
            segment.length and time.monotonic() - segment.started >= options.segment_seconds
        ):
            await self._start_segment(is_optional=True)
        elif options.settings.fsync == "interval" and segment.synced_length < segment.length:
            await _in_thread(segment.sync)

    async def _start_segment(self, *, is_optional: bool = False) -> None:
        """Go on in a new segment. If there can be none, fail; with ``is_optional``, go on in the present one."""
        try:
            new = await _in_thread(self._create_segment)
        except OSError as error:
            reason = f"a new segment cannot be started: {explain_os_error(error)}"
            if not is_optional:
                self._fail(reason)
            elif not self._cannot_replace:
                logger.error("%s: %s; the present one goes on", self.folder, reason)
                self._cannot_replace = True
            return
        self._replace(new)
        self._cannot_replace = False
        if self._failure:
            self._failure = ""
            self._update_accepting()
            logger.warning(
                "usage events are written again; %d went to the log since the start, `cgw events import` reads them",
                self._dropped,
            )

    def _replace(self, segment: OpenSegment | None) -> None:
        # Without an await, so that each line is in one of the two. Sealing the old one has time.
        if self._segment is not None:
            self._retired.append(self._segment)
            self.is_sealing = True
        self._segment = segment

    async def _seal_retired(self) -> None:
        while self._retired:
            segment = self._retired.pop()
            try:
                await _in_thread(segment.seal)
            except OSError as error:
                logger.error("event segment %s cannot be sealed: %s", segment.segment.path, explain_os_error(error))
        self.is_sealing = False

    async def _close(self) -> None:
        """Write what is queued and seal the segment, for a bounded time; what is left goes to the log."""
        self._is_closing = True
        self._backlog.wake.set()
        with trio.move_on_after(self._options.close_seconds, shield=True):
            await self._closed.wait()
            return
        # The file stays open: a thread may be writing to it. The next start adopts it.
        reason = f"the disk hangs; closing was given up after {self._options.close_seconds:g} s"
        self._give_up(self._backlog.list_first(), reason)


async def _in_thread(function: Callable[[], T]) -> T:
    # Abandoned when cancelled: a disk that hangs must not keep the process from ending.
    return await trio.to_thread.run_sync(function, abandon_on_cancel=True)


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
    segment, failure = await trio.to_thread.run_sync(open_folder, folder, options)
    event_log = EventLog(folder, options, segment)
    if failure:
        event_log._fail(failure)
    async with (
        open_background_task(partial(serve_housekeeping, folder, options, event_log._note_deleted)),
        open_background_task(event_log._run),
    ):
        try:
            yield event_log
        finally:
            await event_log._close()
