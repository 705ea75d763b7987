"""Syncing the sources: listing all their tokens now and then, on one replica, so that revoked tokens stop working.

The replica that holds the lock syncs; the others try for it again when it would expire (the reference's §2.3)::

              taken                          every interval, or on request
    waiting ────────► holding the lock ◄──────────────────────────────────► syncing all sources, side by side
       ▲ │ on request: seized                                                  │ fence lost (another holder)
       └─┴───────────── lock lost, Redis away ◄────────────────────────────────┘
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence

import trio
from attrs import define, field, frozen

from cgw.actors.source import FenceLost, SourceUnavailable, Syncer, SyncResult
from cgw.errors import CgwError, StoreUnavailable, locate_bug
from cgw.redis.lock import Held, LockLost, RedisLock
from cgw.redis.store import Store

LOCK_NAME = "source-syncer-worker"
"""The reference's name of it."""

EXPIRY_SHARE = 0.75
"""The expiry of the lock as a share of the interval, so that another replica syncs within two intervals of a crash."""

LEAST_PAUSE_SHARE = 0.8
"""Pauses are shortened by up to a fifth, so that replicas and restarts do not fall into step; they are never longer."""

RETRY_SECONDS = 5.0
"""How soon the lock is tried again after a failure of Redis, if the interval is not shorter."""

LONGEST_REQUEST_SECONDS = 300.0
"""How long a caller of :meth:`SyncWorker.sync_now` waits at most; the sync goes on without it."""

MAX_REQUESTS = 100
"""Callers of :meth:`SyncWorker.sync_now` that wait at once."""

logger = logging.getLogger("cgw.actors")


class SyncFailed(CgwError):
    """The sources were not synced: the service is stopping, Redis is away, or another replica took the lock."""


@frozen
class SourceSync:
    """The sync of one source. ``result`` is ``None`` if it failed; ``problem`` then says why, without any token."""

    source: str
    seconds: float
    result: SyncResult | None
    problem: str = ""
    has_lost_fence: bool = False


@frozen
class SyncStatistics:
    """Counts since the start, and the present state: syncs of one source that succeeded and failed."""

    is_holding_lock: bool
    succeeded: int
    failed: int


@define(eq=False)
class _Request:
    """A caller who waits for a sync that has not begun when it asks."""

    is_done: trio.Event = field(factory=trio.Event)
    outcome: Sequence[SourceSync] | CgwError | None = None

    def finish(self, outcome: Sequence[SourceSync] | CgwError) -> None:
        self.outcome = outcome
        self.is_done.set()


class SyncWorker:
    """Syncs ``syncers`` about every ``interval_seconds``, on the one replica that holds the lock in ``store``."""

    def __init__(self, syncers: Sequence[Syncer], store: Store, *, interval_seconds: float) -> None:
        self._syncers = tuple(syncers)
        self._interval_seconds = interval_seconds
        self._lock = RedisLock(store, LOCK_NAME, expiry_seconds=interval_seconds * EXPIRY_SHARE)
        self._requests: list[_Request] = []
        self._has_requests = trio.Event()
        # By Trio's clock. At once after the start; later than that after a lock that was lost and taken again.
        self._next_sync_at = -1.0
        self._has_ended = False
        self._is_holding = False
        self._succeeded = self._failed = 0
        # By source, and for the lock (""): the last failure that was logged.
        self._last_problems: dict[str, str] = {}

    async def run(self) -> None:
        """Work until cancelled; the lock is given back then. No failure of a source or of Redis ends it."""
        try:
            while True:
                await self._wait(await self._try_to_hold())
        finally:
            self._has_ended = True
            self._finish_requests(SyncFailed("the sources were not synced: the gateway is stopping"))

    async def sync_now(self) -> Sequence[SourceSync]:
        """Have this replica sync all sources, taking the lock from another one if need be; return how that went.

        Several callers share a sync that begins after the last of them has asked. Raises :exc:`SyncFailed` when it is
        given up, or has not ended after two intervals or five minutes. Cancelling only ends the waiting.
        """
        if self._has_ended:
            raise SyncFailed("the sources were not synced: the gateway is stopping")
        if len(self._requests) >= MAX_REQUESTS:
            raise SyncFailed(
                f"the sources were not synced for you: {MAX_REQUESTS} callers are waiting for that already"
            )
        request = _Request()
        self._requests.append(request)
        self._has_requests.set()
        patience_seconds = min(2 * self._interval_seconds, LONGEST_REQUEST_SECONDS)
        with trio.move_on_after(patience_seconds):
            await request.is_done.wait()
        if request.outcome is None:
            raise SyncFailed(f"the sources were not synced within {patience_seconds:g} s; they still may be")
        if isinstance(request.outcome, CgwError):
            raise SyncFailed(str(request.outcome))
        return request.outcome

    def statistics(self) -> SyncStatistics:
        """Return counts since the start, and the present state."""
        return SyncStatistics(self._is_holding, self._succeeded, self._failed)

    # --- the lock -----------------------------------------------------------------------------------------------------

    async def _try_to_hold(self) -> float:
        """Hold the lock and sync for as long as possible; return for how long not to try again, in seconds."""
        try:
            # Whoever asks this replica for a sync wants an answer from it, wherever the lock is.
            async with self._lock.open_lease(is_seized=bool(self._requests)) as lease:
                self._note_success("", "syncing the sources is possible again")
                if isinstance(lease, Held):
                    # A little later than the lock may expire, and than another replica tries.
                    left_seconds = lease.seconds_left * random.uniform(1.0, 1.1) or self._interval_seconds
                    return min(left_seconds, self._choose_pause())
                self._is_holding = True
                logger.info("this replica syncs the sources now")
                await self._sync_repeatedly(lease.token)
        except (LockLost, FenceLost):
            logger.info("this replica does not sync the sources any more: another one may do that")
            self._finish_requests(SyncFailed("the sources were not synced: another replica has taken that over"))
        except StoreUnavailable as error:
            self._note_failure("", f"the sources cannot be synced: {error}")
            self._finish_requests(SyncFailed(f"the sources were not synced: {error}"))
            return min(RETRY_SECONDS, self._choose_pause())
        finally:
            self._is_holding = False
        return self._choose_pause()

    async def _sync_repeatedly(self, token: int) -> None:
        """Sync now and then, until cancelled. Raises :exc:`FenceLost` when another replica has begun to."""
        while True:
            await self._wait(self._next_sync_at - trio.current_time())
            self._next_sync_at = trio.current_time() + self._choose_pause()
            # Those that come during this sync wait for the next one: it may have passed what they want to see.
            requests, self._requests = self._requests, []
            self._has_requests = trio.Event()
            syncs = None
            try:
                syncs = await self._sync_all(token)
            finally:
                if syncs is None:
                    # The lock is lost, or the service is stopping: who handles that finishes the requests too.
                    self._requests = [*requests, *self._requests]
            for request in requests:
                request.finish(syncs)
            if any(sync.has_lost_fence for sync in syncs):
                raise FenceLost("another replica syncs the sources")

    async def _wait(self, seconds: float) -> None:
        """Wait so long, or until someone requests a sync."""
        with trio.move_on_after(max(0.0, seconds)):
            await self._has_requests.wait()

    def _choose_pause(self) -> float:
        return self._interval_seconds * random.uniform(LEAST_PAUSE_SHARE, 1.0)

    def _finish_requests(self, error: CgwError) -> None:
        requests, self._requests = self._requests, []
        self._has_requests = trio.Event()
        for request in requests:
            request.finish(error)

    # --- one sync -----------------------------------------------------------------------------------------------------

    async def _sync_all(self, token: int) -> Sequence[SourceSync]:
        """Sync all sources side by side; what fails costs only its own source."""
        syncs: dict[str, SourceSync] = {}

        async def sync(syncer: Syncer) -> None:
            syncs[syncer.name] = await self._sync_one(syncer, token)

        async with trio.open_nursery() as source_nursery:
            for syncer in self._syncers:
                source_nursery.start_soon(sync, syncer)
        return [syncs[syncer.name] for syncer in self._syncers]

    async def _sync_one(self, syncer: Syncer, token: int) -> SourceSync:
        name, began_at = syncer.name, trio.current_time()
        result, problem, has_lost_fence = None, "", False
        logger.debug("syncing source %s", name)
        try:
            # As in the reference: a sync that takes longer than the interval is cut off.
            with trio.fail_after(self._interval_seconds):
                result = await syncer.sync(token)
        except FenceLost as error:
            # Not a failure of the source; what it means is logged for all sources together.
            problem, has_lost_fence = str(error), True
        except SourceUnavailable as error:
            problem = str(error)
            # The source has logged the reason itself: it is the same for its look-ups.
            self._note_failure(name, f"source {name} could not be synced: tokens that are revoked go on working")
        except CgwError as error:
            problem = str(error)
            self._note_failure(name, f"source {name} could not be synced: {problem}")
        except trio.TooSlowError:
            problem = f"took more than the interval of {self._interval_seconds:g} s"
            self._note_failure(name, f"source {name} could not be synced: {problem}")
        except Exception as bug:  # noqa: BLE001 - a boundary: a bug in one source must not end the others' syncs
            problem = "unexpected error"
            logger.error("unexpected error syncing source %s: %s", name, locate_bug(bug))
        sync = SourceSync(name, trio.current_time() - began_at, result, problem, has_lost_fence)
        if result is None:
            self._failed += 1
        else:
            self._succeeded += 1
            self._note_success(name, f"source {name} can be synced again")
            figures = (sync.seconds, result.seen, result.removed)
            logger.info("source %s synced in %.2f s: %d tokens seen, %d removed", name, *figures)
        return sync

    # Once per change: a source that is down for a day would log the same line every two minutes.

    def _note_failure(self, about: str, text: str) -> None:
        if self._last_problems.get(about) != text:
            self._last_problems[about] = text
            logger.error("%s", text)

    def _note_success(self, about: str, text: str) -> None:
        if self._last_problems.pop(about, None) is not None:
            logger.info("%s", text)
