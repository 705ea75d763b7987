"""The shipper of one sink: it reads batches from the segments, several are sent at once, and the cursor follows.

::

    segments of others that died ─┐             ┌─ sender ─┐
    retries of `cgw events retry` ┼─▶ reader ─▶─┼─ sender ─┼─▶ progress of each segment ─▶ cursor writer ─▶ file
    own open segment ─────────────┘             └─ sender ─┘            └─ rejected ones ─▶ failed.jsonl

The reader goes through the segments from the earliest to this process's open one, whose growth wakes it. It hands a
batch over only when a sender is free: memory is bounded by the batches in flight, and the rest waits on the disk. A
segment is claimed before its offset is read from the cursor file, and released after its last offset is written there.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial

import trio

from cgw.errors import explain_os_error
from cgw.events.event_log import EventLog
from cgw.events.reading import report_damage
from cgw.events.segments import SEALED_SUFFIX, Segment, adopt_segments
from cgw.events.shipping.batches import Batch, SegmentReader
from cgw.events.shipping.claims import ClaimedFile, Claims
from cgw.events.shipping.cursor import CursorFile, get_sink_folder
from cgw.events.shipping.delivery import Delivery
from cgw.events.shipping.failed import set_aside
from cgw.events.shipping.options import ShipperOptions, SinkStatistics
from cgw.events.shipping.progress import Progress, Sent
from cgw.events.shipping.scan import Listed, is_shipped, list_sized
from cgw.events.shipping.threads import run_in_thread
from cgw.events.sinks.sink import RejectedEvent, Sink

CURSOR_RETRY_SECONDS = 5.0

SEALING_SECONDS = 0.02
"""The pause between two looks at whether the last segments are sealed, at the end."""

MAX_HELD = 64
"""Segments whose end could not be written to the cursor and are held nevertheless, a descriptor each."""

logger = logging.getLogger("cgw.events")


class SinkShipper:
    """Ships the events of a log to one sink while :meth:`run` runs. All methods belong to the Trio thread."""

    def __init__(self, event_log: EventLog, sink: Sink, claims: Claims, options: ShipperOptions) -> None:
        self.name = sink.name
        self._event_log = event_log
        self._folder = event_log.folder
        self._cursor = CursorFile(get_sink_folder(event_log.folder, sink.name))
        self._claims = claims
        self._options = options
        self._batch_events = max(1, min(options.batch_events, sink.max_batch_events))
        self._batch_bytes = min(options.batch_bytes, sink.max_batch_bytes)
        self._delivery = Delivery(sink, options, lambda: self._has_news.set())
        self._sender, self._receiver = trio.open_memory_channel[tuple[Progress, Sent]](0)
        self._progresses: dict[str, Progress] = {}  # of claimed segments, in the order of their beginning
        self._own: Progress | None = None
        self._unshipped: dict[str, int] = {}  # sizes of the segments that were not shipped at the last scan
        self._offsets: dict[str, int] = {}  # as far as known, for when the cursor file can be neither read nor written
        self._written: dict[str, int] = {}  # what the cursor file has of claimed segments
        self._gone: set[str] = set()  # entries of the cursor file without a segment, at the last scan
        self._complaints: set[str] = set()  # what was said already
        self._next_scan = 0.0
        self._wake = trio.Event()  # a scan is due, or the end
        self._is_draining = False
        self._has_news = trio.Event()  # the cursor is to be written
        self._has_news.set()
        self._noted_trouble: str | None = ""  # not known: an earlier process may have left something
        self._shipped = self._batches = self._failed = self._shipped_bytes = 0

    # --- for others --------------------------------------------------------------------------------------------------

    def scan_soon(self) -> None:
        """Look for segments that nobody ships."""
        self._next_scan = 0.0
        self._wake.set()

    def drain(self) -> None:
        """Ship what is recorded now without waiting for more, and let :meth:`run` end."""
        self._is_draining = True
        self.scan_soon()

    def statistics(self) -> SinkStatistics:
        """Return the figures of this sink."""
        own = self._event_log.open_segment
        sizes = dict(self._unshipped)
        if own is not None:
            sizes[own.segment.name] = own.length
        unshipped = 0
        for name, size in sizes.items():
            progress = self._progresses.get(name)
            unshipped += max(0, size - (self._offsets.get(name, 0) if progress is None else progress.acknowledged))
        mean = self._shipped_bytes / self._shipped if self._shipped else 600.0
        return SinkStatistics(
            self.name, self._shipped, self._batches, self._failed, self._delivery.retries, round(unshipped / mean),
            unshipped, self._measure_lag(), self._delivery.trouble,
        )  # fmt: skip

    def _measure_lag(self) -> float:
        first = (progress.first_waiting for progress in self._progresses.values())
        times = [batch.first_created_at for batch in first if batch is not None and batch.first_created_at]
        try:
            oldest = datetime.fromisoformat(min(times))
        except ValueError:  # none, or an event with a damaged time
            return 0.0
        return max(0.0, (datetime.now(UTC) - oldest).total_seconds())

    # --- the tasks ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Ship until drained or cancelled; in either case the cursor is written at the end by :meth:`close`."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write_cursor_when_due)
            async with trio.open_nursery() as shipping_nursery:
                for _ in range(self._options.max_in_flight):
                    shipping_nursery.start_soon(self._send_batches)
                async with self._sender:
                    await self._read_until_drained()
            nursery.cancel_scope.cancel()

    async def close(self) -> None:
        """Write the cursor, and release all segments."""
        try:
            await self._write_cursor()
        finally:
            for name in self._progresses:
                self._claims.release(name)
            self._progresses.clear()

    # --- reading -----------------------------------------------------------------------------------------------------

    async def _read_until_drained(self) -> None:
        while True:
            # Read first: all that it covers was recorded before. A segment that is being sealed cannot be found yet.
            is_last = self._is_draining and not self._event_log.is_sealing
            open_segment = self._event_log.open_segment
            grown = self._event_log.watch()  # likewise
            if self._next_scan <= trio.current_time():
                self._next_scan = trio.current_time() + self._options.scan_seconds
                await self._report(self._ship_found, "event segments cannot be read")
            await self._report(self._ship_own, "the open event segment cannot be read")
            # One that was replaced in this turn may be neither found, as it is being sealed, nor this process's own.
            if is_last and self._event_log.open_segment is open_segment:
                return
            if self._is_draining:
                await trio.sleep(SEALING_SECONDS)
                self._next_scan = 0.0
            else:
                await self._wait_for_more(grown)

    async def _wait_for_more(self, grown: trio.Event) -> None:
        """Wait until there are events of the age to be sent, a scan is due, or the end."""
        async with trio.open_nursery() as nursery:
            nursery.cancel_scope.deadline = self._next_scan

            async def wait_aged() -> None:
                await grown.wait()
                await trio.sleep(self._options.age_seconds)
                nursery.cancel_scope.cancel()

            nursery.start_soon(wait_aged)
            await self._wake.wait()
            nursery.cancel_scope.cancel()
        self._wake = trio.Event()

    async def _report(self, work: Callable[[], Awaitable[None]], what: str) -> None:
        """Do ``work``, and log once that it fails, and once that it succeeds again."""
        try:
            await work()
        except OSError as error:
            if what not in self._complaints:
                self._complaints.add(what)
                logger.error("%s, so they are not shipped to %s: %s", what, self.name, explain_os_error(error))
        else:
            if what in self._complaints:
                self._complaints.remove(what)
                logger.warning("events are read again to be shipped to %s", self.name)

    async def _ship_found(self) -> None:
        """Ship the sealed segments that no process ships, the earliest first."""
        found, offsets = await run_in_thread(self._scan)
        self._report_deleted({listed.segment.name for listed in found}, offsets)
        self._offsets = {
            listed.segment.name: max(offsets.get(listed.segment.name, 0), self._offsets.get(listed.segment.name, 0))
            for listed in found
        }
        self._unshipped = {
            listed.segment.name: listed.size for listed in found if not is_shipped(listed, self._offsets)
        }
        for listed in found:
            name = listed.segment.name
            if name in self._unshipped and not listed.segment.is_open and name not in self._progresses:
                # One that cannot be read must not hold up the others.
                await self._report(partial(self._ship_sealed, listed.segment), f"event segment {name} cannot be read")

    def _scan(self) -> tuple[list[Listed], Mapping[str, int]]:
        """Return all segments, also those of `cgw events retry`, and the offsets in the cursor file."""
        found = [*list_sized(self._folder), *list_sized(self._cursor.folder)]
        if any(listed.segment.is_open and listed.segment.folder != self._folder for listed in found):
            adopt_segments(self._cursor.folder)  # a `cgw events retry` was killed
        offsets = self._cursor.read().segments
        gone = offsets.keys() - {listed.segment.name for listed in found}
        # Only what was gone at the last scan, too: a segment may have been created since the listing, and the other
        # processes are to see that a deleted one was shipped.
        with suppress(OSError):  # reported where the cursor is written
            self._cursor.forget(gone & self._gone)
        self._gone = gone
        return found, offsets

    def _report_deleted(self, names: Collection[str], offsets: Mapping[str, int]) -> None:
        for name, size in self._unshipped.items():
            if name not in names and name not in self._progresses and offsets.get(name, 0) < size:
                logger.error(
                    "event segment %s is gone from %s before all of it was shipped to %s; its events are not sent",
                    name,
                    self._folder,
                    self.name,
                )

    async def _ship_sealed(self, segment: Segment) -> None:
        file = await self._claims.claim(segment)
        if file is None:
            return
        progress = await self._begin(segment, file)
        try:
            await self._read_to_end(progress)
            if (rest := progress.reader.skip_rest()) is not None:
                self._end(progress, progress.begin(rest))
        finally:
            progress.is_read = True
            self._has_news.set()
        if progress.reader.damaged and self._claims.note_damage(segment.name):
            report_damage(segment, progress.reader.damaged)

    async def _ship_own(self) -> None:
        """Ship what is new in this process's open segment; after a new one was started, the rest of the last."""
        current, own = self._event_log.open_segment, self._own
        if own is not None and (current is None or current.segment.name != own.segment.name):
            await self._read_to_end(own)
            own.is_read = True
            self._own = None
            self._has_news.set()
            self.scan_soon()  # there may have been others in between
        current = self._event_log.open_segment
        if current is not None and current.length and self._own is None:
            # Without an await in between: a segment that is replaced is closed by a thread.
            file = self._claims.share(current.segment.name, current.descriptor)
            self._own = await self._begin(current.segment, file)
        if self._own is not None:
            await self._read_to_end(self._own)

    async def _begin(self, segment: Segment, file: ClaimedFile) -> Progress:
        # Read after the segment was claimed: whoever had it before has written its offset, if it could.
        try:
            state = await run_in_thread(self._cursor.read)
        except BaseException:  # also when cancelled: nothing else knows of this claim yet
            self._claims.release(segment.name)
            raise
        offset = max(state.segments.get(segment.name, 0), self._offsets.get(segment.name, 0))
        progress = Progress(segment, SegmentReader(segment.name, file, offset), offset)
        self._progresses[segment.name] = progress
        return progress

    async def _read_to_end(self, progress: Progress) -> None:
        read = partial(progress.reader.read_batch, self._batch_events, self._batch_bytes)
        while (batch := await run_in_thread(read)) is not None:
            sent = progress.begin(batch)
            if batch.lines:
                await self._sender.send((progress, sent))
            else:
                self._end(progress, sent)

    # --- sending -----------------------------------------------------------------------------------------------------

    async def _send_batches(self) -> None:
        async for progress, sent in self._receiver:
            rejected = await self._delivery.deliver(sent.batch)
            if rejected:
                await self._set_aside(sent.batch, rejected)
            self._batches += 1
            self._failed += len(rejected)
            self._shipped += len(sent.batch.lines) - len(rejected)
            self._shipped_bytes += sent.batch.end - sent.batch.start
            self._end(progress, sent)

    def _end(self, progress: Progress, sent: Sent) -> None:
        if progress.end(sent):
            self._has_news.set()

    async def _set_aside(self, batch: Batch, rejected: Sequence[RejectedEvent]) -> None:
        logger.error(
            "%s rejected %d events, the first because: %s; see `cgw events failed`",
            self.name,
            len(rejected),
            rejected[0].reason,
        )
        lines = [(batch.lines[event.index], event.reason) for event in rejected]
        try:
            await run_in_thread(partial(set_aside, self._cursor.folder, lines))
        except OSError as error:
            logger.error(
                "these events cannot be set aside in %s, and stay in the event segment %s only: %s",
                self._cursor.folder,
                batch.segment_name,
                explain_os_error(error),
            )

    # --- the cursor --------------------------------------------------------------------------------------------------

    async def _write_cursor_when_due(self) -> None:
        while True:
            await self._has_news.wait()
            await trio.sleep(self._options.cursor_seconds)
            self._has_news = trio.Event()
            if not await self._write_cursor():
                self._has_news.set()
                await trio.sleep(CURSOR_RETRY_SECONDS)

    async def _write_cursor(self) -> bool:
        """Write what changed to the cursor file; release the segments that are done. Return whether that succeeded."""
        offsets = {name: progress.acknowledged for name, progress in self._progresses.items()}
        done = [progress for progress in self._progresses.values() if progress.is_done]
        changed = {name: offset for name, offset in offsets.items() if offset != self._written.get(name)}
        is_written = True
        trouble = self._delivery.trouble
        if changed or trouble != self._noted_trouble:
            try:
                await run_in_thread(partial(self._cursor.advance, changed, trouble))
                self._written.update(changed)
                self._noted_trouble = trouble
            except OSError as error:
                is_written = False
                self._complain_of_cursor(explain_os_error(error))
            else:
                self._complain_of_cursor(None)
        self._offsets.update(offsets)
        for progress in done:
            if is_written or len(self._progresses) > MAX_HELD:
                await self._release(progress, is_written=is_written)
        return is_written

    def _complain_of_cursor(self, reason: str | None) -> None:
        path = self._cursor.path
        if reason is not None and "cursor" not in self._complaints:
            self._complaints.add("cursor")
            logger.error(
                "the cursor %s cannot be written, so events may be sent again after a restart: %s", path, reason
            )
        elif reason is None and "cursor" in self._complaints:
            self._complaints.remove("cursor")
            logger.warning("the cursor %s is written again", path)

    async def _release(self, progress: Progress, *, is_written: bool) -> None:
        segment = progress.segment
        if is_written and segment.folder == self._cursor.folder:
            # A segment of `cgw events retry`, which is the sink's alone.
            with suppress(OSError):
                await run_in_thread(partial(segment.beside(SEALED_SUFFIX).unlink, missing_ok=True))
        del self._progresses[segment.name]
        self._written.pop(segment.name, None)
        self._unshipped.pop(segment.name, None)
        self._claims.release(segment.name)
