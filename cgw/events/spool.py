"""Recording usage events: many tasks, one writer thread, few transactions.

Events that arrive while a transaction commits go into the next one (group commit), so 200 callers at once cost a
handful of transactions. The thread wakes all callers of a transaction with a single call into Trio.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC
from pathlib import Path
from queue import SimpleQueue

import msgspec
import trio
from attrs import define, frozen

from cgw.errors import SpoolError
from cgw.events.database import Row, SpoolDatabase, describe
from cgw.model import UsageEvent

logger = logging.getLogger("cgw.events")

MAX_BATCH = 1000
"""Events in one transaction at most, so that the first of them does not wait for a whole flood (about 15 ms)."""

MAX_METADATA_BYTES = 2**20


@define(eq=False)
class _Pending:
    """An event on its way to the disk, and the task that waits for it, if one still does."""

    row: Row
    task: trio.lowlevel.Task | None = None
    error: str | None = None


@frozen
class SpoolStatistics:
    """What a spool has seen since it was opened. All but ``pending`` and ``largest_batch`` only grow.

    ``recorded`` events are durable (``duplicates`` of them were there already); ``pending`` are handed over and not
    yet committed; ``failed`` could not be committed, or not even be written as JSON; ``dropped_when_full`` were
    turned away because ``pending`` was at its bound; ``dropped_blank`` had no identifier.
    """

    recorded: int
    duplicates: int
    commits: int
    largest_batch: int
    pending: int
    failed: int
    dropped_when_full: int
    dropped_blank: int


class Spool:
    """Where usage events become durable. Made by :func:`open_spool`; all methods belong to the Trio thread."""

    def __init__(self, database: SpoolDatabase, max_pending: int) -> None:
        self._database = database
        self._max_pending = max_pending
        self._queue: SimpleQueue[_Pending | None] = SimpleQueue()
        self._token = trio.lowlevel.current_trio_token()
        self._is_closed = False
        self._has_drained = trio.Event()
        self._pending = self._recorded = self._duplicates = self._commits = self._largest_batch = 0
        self._failed = self._dropped_when_full = self._dropped_blank = 0
        self._is_failing = self._is_shedding = False

    async def record(self, event: UsageEvent) -> None:
        """Hand ``event`` over and return once it is committed. Recording an id twice leaves one row.

        Raises :exc:`~cgw.errors.SpoolError` when it could not be: disk full or read-only, metadata that is no JSON
        or over 1 MiB, ``max_pending`` events ahead, spool closed. The next call starts afresh: nothing has to be
        reset after a failure. An event with a blank identifier is dropped and counted, as in the reference.

        Cancelling only ends the waiting: an event that was handed over is recorded nevertheless, also when the
        caller's scope was cancelled before. How long a stuck disk may hold the caller is for the caller's deadline.
        """
        pending = self._hand_over(event, self._max_pending)
        if pending is None:
            await trio.lowlevel.checkpoint()
            return
        pending.task = trio.lowlevel.current_task()

        def abort(_: object) -> trio.lowlevel.Abort:
            pending.task = None
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)
        if pending.error is not None:
            raise SpoolError(f"the usage event could not be recorded: {pending.error}")

    def submit(self, event: UsageEvent) -> None:
        """Hand ``event`` over without waiting; for refusals, whose callers should not pay for the disk.

        Never blocks or raises for the disk's sake. It uses at most half of the queue's bound: a flood of refusals
        is dropped and counted (with one warning), and does not keep completions from being recorded.
        """
        try:
            self._hand_over(event, self._max_pending // 2)
        except SpoolError as error:
            if not self._is_shedding:
                self._is_shedding = True
                logger.warning("Usage events of refusals are being dropped: %s", error)

    def _hand_over(self, event: UsageEvent, max_pending: int) -> _Pending | None:
        if not event.identifier.strip():
            self._dropped_blank += 1
            return None
        if self._is_closed:
            self._failed += 1
            raise SpoolError("the event spool is closed")
        if self._pending >= max_pending:
            self._dropped_when_full += 1
            raise SpoolError(f"{self._pending} usage events are waiting for the disk already")
        try:
            pending = _Pending(build_row(event))
        except SpoolError:
            self._failed += 1
            raise
        self._pending += 1
        self._queue.put(pending)
        return pending

    def statistics(self) -> SpoolStatistics:
        """Counts since opening."""
        return SpoolStatistics(
            recorded=self._recorded,
            duplicates=self._duplicates,
            commits=self._commits,
            largest_batch=self._largest_batch,
            pending=self._pending,
            failed=self._failed,
            dropped_when_full=self._dropped_when_full,
            dropped_blank=self._dropped_blank,
        )

    # The writer's side. Only `_database`, `_queue` and `_token` are touched from its thread.

    def _write(self) -> None:
        is_open = True
        while is_open:
            taken = [self._queue.get()]
            taken += [self._queue.get() for _ in range(min(self._queue.qsize(), MAX_BATCH - 1))]
            batch = [pending for pending in taken if pending is not None]
            is_open = len(batch) == len(taken)  # None comes last, when the spool is closed
            if batch:
                self._commit(batch)
        try:
            self._database.close()
        finally:
            self._call_trio(self._has_drained.set)

    def _commit(self, batch: list[_Pending]) -> None:
        try:
            inserted = self._database.insert([pending.row for pending in batch])
        except Exception as error:  # noqa: BLE001 - whatever it was: the callers are told, and must not wait for ever
            reason = describe(error)
            self._call_trio(lambda: self._fail(batch, reason))
            return
        self._call_trio(lambda: self._succeed(batch, inserted))
        if self._queue.empty():
            try:
                self._database.checkpoint_if_due()
            except Exception as error:  # noqa: BLE001 - nothing is lost: the WAL grows until a later one works
                logger.warning("The event spool's checkpoint failed: %s", describe(error))

    def _call_trio(self, function: Callable[[], object]) -> None:
        try:
            self._token.run_sync_soon(function)
        except trio.RunFinishedError:
            return  # closing took longer than its deadline; nobody is left to be told

    # Back in Trio.

    def _succeed(self, batch: list[_Pending], inserted: int) -> None:
        self._pending -= len(batch)
        self._recorded += len(batch)
        self._duplicates += len(batch) - inserted
        self._commits += 1
        self._largest_batch = max(self._largest_batch, len(batch))
        if not self._pending:
            self._is_shedding = False
        if self._is_failing:
            self._is_failing = False
            logger.warning("The event spool works again; %d events were lost since it was opened", self._failed)
        for pending in batch:
            if pending.task is not None:
                trio.lowlevel.reschedule(pending.task)

    def _fail(self, batch: list[_Pending], reason: str) -> None:
        self._pending -= len(batch)
        self._failed += len(batch)
        if not self._is_failing:
            self._is_failing = True
            logger.error("Usage events cannot be recorded: %s", reason)
        for pending in batch:
            if pending.task is not None:
                pending.error = reason
                trio.lowlevel.reschedule(pending.task)

    async def _close(self, timeout_seconds: float) -> None:
        self._is_closed = True
        self._queue.put(None)
        with trio.move_on_after(timeout_seconds, shield=True) as deadline_scope:
            await self._has_drained.wait()
        if deadline_scope.cancelled_caught:
            logger.error("%d usage events were not recorded within %g s of closing", self._pending, timeout_seconds)


@asynccontextmanager
async def open_spool(
    path: Path,
    *,
    max_pending: int = 20_000,
    busy_timeout_seconds: float = 5.0,
    close_timeout_seconds: float = 10.0,
) -> AsyncIterator[Spool]:
    """The spool at ``path``, for as long as the block runs; several processes may have it open.

    Raises :exc:`~cgw.errors.ConfigError` when there can be no spool (see :class:`~cgw.events.database.SpoolDatabase`).
    ``max_pending`` bounds the events in memory (about 1 KiB each) when the disk is slower than the load; above it
    :meth:`Spool.record` fails at once. A commit waits ``busy_timeout_seconds`` for other processes' commits.

    On leaving, also by cancellation, what was handed over is committed first, shielded, for
    ``close_timeout_seconds`` at most; then the writer thread is left to itself (it cannot be stopped in a system
    call, and does not keep the process alive).
    """
    database = await trio.to_thread.run_sync(SpoolDatabase, path, busy_timeout_seconds)
    spool = Spool(database, max_pending)
    threading.Thread(target=spool._write, name="cgw-spool", daemon=True).start()
    try:
        yield spool
    finally:
        await spool._close(close_timeout_seconds)


def build_row(event: UsageEvent) -> Row:
    """``event`` as it is stored. Raises :exc:`~cgw.errors.SpoolError` when its metadata is no JSON or too large."""
    created_at = event.created_at if event.created_at.tzinfo is UTC else event.created_at.astimezone(UTC)
    metadata = _encode_metadata(event)
    if len(metadata) > MAX_METADATA_BYTES:
        raise SpoolError(f"the usage event's metadata has {len(metadata)} bytes; {MAX_METADATA_BYTES} is the limit")
    return (
        event.id,
        event.name.value,
        _clean(event.source),
        _clean(event.identifier),
        created_at.isoformat(timespec="microseconds")[:-6] + "Z",
        metadata.decode("utf-8"),
    )


def _encode_metadata(event: UsageEvent) -> bytes:
    # Here and not in the thread: it takes 1 µs, the caller may change its mapping later, and the error is his.
    try:
        return msgspec.json.encode(event.metadata)
    except UnicodeEncodeError:  # half a surrogate pair, from a client's JSON
        return json.dumps(dict(event.metadata), ensure_ascii=False).encode("utf-8", "replace")
    except (TypeError, ValueError, RecursionError) as error:
        raise SpoolError(f"the usage event's metadata cannot be written as JSON: {error}") from error


def _clean(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
