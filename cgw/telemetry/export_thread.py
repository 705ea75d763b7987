"""A thread that exports telemetry in batches, so that nothing else waits for a collector.

::

    any thread: put() ──▶ gathered items, bounded ──▶ export thread: export(batch), in its time

    idle: blocked, no wake-ups ── first item ──▶ gathers for GATHER_SECONDS, or until a batch is full ──▶ exports

A collector that is slow, away or refuses costs the items that find no room, which are counted; never time or memory.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

from attrs import frozen

T = TypeVar("T")

GATHER_SECONDS = 5.0
"""The time that a batch gathers (as the default of ``OTEL_BSP_SCHEDULE_DELAY``)."""

MAX_BATCH = 512
MAX_PENDING = 2048
"""Both as the defaults of ``OTEL_BSP_MAX_EXPORT_BATCH_SIZE`` and ``OTEL_BSP_MAX_QUEUE_SIZE``."""

logger = logging.getLogger("cgw.telemetry")


class ExportFailed(Exception):
    """A batch was not accepted. The text follows the collector's name, and contains no secret."""


@frozen
class ExportStatistics:
    """Counts since the start, and the items that are ``pending`` now.

    ``dropped`` items found no room; ``failed`` ones were not accepted by the collector.
    """

    exported: int
    dropped: int
    failed: int
    pending: int


class ExportThread(Generic[T]):
    """Calls ``export`` with batches of what was put, from a thread of its own.

    ``export(batch, deadline)`` raises :exc:`ExportFailed`; ``deadline`` is of :func:`time.monotonic`, and infinite but
    for the last batches. ``name`` is the receiver's in log lines. At most ``max_pending`` items wait, besides a batch
    that is being exported. Counts are exact as long as one thread calls :meth:`put`.
    """

    def __init__(
        self,
        name: str,
        export: Callable[[Sequence[T], float], None],
        *,
        max_batch: int = MAX_BATCH,
        max_pending: int = MAX_PENDING,
        gather_seconds: float = GATHER_SECONDS,
    ) -> None:
        self._name = name
        self._export = export
        self._max_batch = max_batch
        self._max_pending = max_pending
        self._gather_seconds = gather_seconds
        self._gathered: deque[T] = deque()
        self._dropped = 0
        # By the thread alone.
        self._exported = self._failed = self._in_hand = 0
        self._failure: str | None = None
        self._has_bug = False
        self._lost_since = 0
        self._deadline = float("inf")
        self._is_closing = False
        self._is_idle = False
        # A SimpleQueue, because its put() may interrupt itself (a finalizer), unlike that of a threading.Event.
        self._bell: SimpleQueue[None] = SimpleQueue()
        # A daemon: the interpreter must be able to exit while the thread waits for a collector.
        self._thread = threading.Thread(target=self._run, name=f"cgw-export {name}", daemon=True)
        self._thread.start()

    def put(self, item: T) -> None:
        """Have ``item`` exported; drop and count it if too many wait. Never blocks; takes about 0.2 µs."""
        gathered = self._gathered
        count = len(gathered)
        if count >= self._max_pending:
            self._dropped += 1
            return
        gathered.append(item)
        if self._is_idle or count + 1 == self._max_batch:
            self._is_idle = False
            self._bell.put(None)

    def put_all(self, items: Sequence[T]) -> None:
        """Have ``items`` exported, as :meth:`put` does; wakes the thread once."""
        gathered = self._gathered
        before = len(gathered)
        room = max(0, self._max_pending - before)
        self._dropped += max(0, len(items) - room)
        gathered += items[:room]
        if (self._is_idle and gathered) or before < self._max_batch <= len(gathered):
            self._is_idle = False
            self._bell.put(None)

    def statistics(self) -> ExportStatistics:
        """Return the counts since the start."""
        return ExportStatistics(self._exported, self._dropped, self._failed, self._count_pending())

    def close(self, timeout_seconds: float) -> None:
        """Export what waits, for up to ``timeout_seconds``; then leave a stuck thread behind. Blocks."""
        self._deadline = time.monotonic() + timeout_seconds
        self._is_closing = True
        self._bell.put(None)
        self._thread.join(timeout_seconds)
        lost = self._count_pending()
        if lost:
            logger.warning("%s: %d items were not exported before the end", self._name, lost)

    def _count_pending(self) -> int:
        return len(self._gathered) + self._in_hand

    def _run(self) -> None:
        while not self._is_closing:
            self._wait_for_items()
            self._gather()
            if not self._is_closing:
                self._export_batch()
        while self._gathered and time.monotonic() < self._deadline:
            self._export_batch()

    def _wait_for_items(self) -> None:
        # In this order: an item that came before is seen here, and one that comes after rings.
        self._is_idle = True
        if not self._gathered:
            self._bell.get()
        self._is_idle = False

    def _gather(self) -> None:
        """Wait until a batch is full, or old enough."""
        ends_at = time.monotonic() + self._gather_seconds
        while len(self._gathered) < self._max_batch and not self._is_closing:
            remaining = ends_at - time.monotonic()
            if remaining <= 0:
                return
            with suppress(Empty):
                self._bell.get(timeout=remaining)  # a full batch rings, and so does the end

    def _export_batch(self) -> None:
        gathered = self._gathered
        # First, so that what is pending is never counted as less than it is.
        self._in_hand = min(len(gathered), self._max_batch)
        batch = [gathered.popleft() for _ in range(self._in_hand)]
        try:
            self._export(batch, self._deadline)
        except ExportFailed as error:
            self._failed += len(batch)
            self._note_failure(str(error))
        except Exception as bug:  # noqa: BLE001 - the thread must go on
            self._failed += len(batch)
            self._note_bug(bug)
        else:
            self._exported += len(batch)
            self._note_success()
        self._in_hand = 0

    def _note_bug(self, bug: Exception) -> None:
        if not self._has_bug:  # it may cost every item
            self._has_bug = True
            logger.error("%s: a bug in exporting costs items; it is reported once", self._name, exc_info=bug)

    def _note_failure(self, reason: str) -> None:
        # Once per change of state, not for each batch.
        if self._failure is None:
            logger.warning("%s: %s: what cannot be exported is dropped and counted", self._name, reason)
            self._lost_since = self._failed + self._dropped
        self._failure = reason

    def _note_success(self) -> None:
        if self._failure is not None:
            lost = self._failed + self._dropped - self._lost_since
            logger.warning("%s: accepts again; %d more items were lost after the first batch", self._name, lost)
            self._failure = None
