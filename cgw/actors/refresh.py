"""Fetching actors again from their sources, when a quota refuses them or they ask for it (the reference's §1.6)."""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from datetime import UTC, datetime
from itertools import islice

import trio
from attrs import define, field, frozen

from cgw.actors.source import ActorRecentlyUpdated, Sources, Updater
from cgw.errors import CgwError, locate_bug
from cgw.model import Actor

MAX_AT_ONCE = 8
"""Refreshes under way at once; more wait for their turn."""

MAX_WAITING = 1000
"""Refreshes that wait for their turn; more are refused."""

MAX_COOLING = 10_000
"""Actors whose cool-down is remembered, some 300 bytes each; of more, the oldest are forgotten early."""

UPDATE_SECONDS = 30.0
"""The deadline of one update."""

logger = logging.getLogger("cgw.actors")


class RefreshFailed(CgwError):
    """The actor could not be fetched again, because the gateway is stopping, is busy, or gave up on a slow source."""


@frozen
class RefreshStatistics:
    """Counts since the start, and the present state.

    ``updated`` and ``failed`` refreshes have ended; ``joined`` requests found one under way; ``cooling`` ones came
    too soon; ``dropped`` ones found the queue full, or the service ended. ``waiting`` and ``under_way`` are refreshes
    now, ``remembered`` the actors whose cool-down is kept.
    """

    updated: int
    failed: int
    joined: int
    cooling: int
    dropped: int
    waiting: int
    under_way: int
    remembered: int


_Key = tuple[str, str]


@define(eq=False)
class _Refresh:
    """One update of one actor, and its outcome."""

    key: _Key
    actor: Actor
    token: str = field(repr=False)
    updater: Updater
    is_done: trio.Event = field(factory=trio.Event)
    error: CgwError | None = None

    def finish(self, error: CgwError | None) -> None:
        self.error = error
        self.is_done.set()


class Refresher:
    """Owns all refreshes: at most one for an actor at a time, and none while the actor cools down.

    ::

        requested ──► waiting ──► under way ──► done ──► cooling down ──► forgotten
                      (queue)     (a worker)    (callers get the outcome)

    :meth:`run` does the work; refreshes that are requested before it starts wait for it.
    """

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        # Waiting or under way. A caller who finds its actor here joins that refresh.
        self._refreshes: dict[_Key, _Refresh] = {}
        self._sender, self._receiver = trio.open_memory_channel[_Refresh](MAX_WAITING)
        # In the order of the updates, so the oldest come first.
        self._cooldown_ends: OrderedDict[_Key, float] = OrderedDict()
        # By source: the last failure that was logged.
        self._last_failures: dict[str, str] = {}
        self._updated = self._failed = self._joined = self._cooling = self._dropped = 0

    async def run(self) -> None:
        """Work until cancelled. An update that fails is logged, and the others go on.

        Callers that still wait at the end get :exc:`RefreshFailed`.
        """
        try:
            async with self._receiver, trio.open_nursery() as refresh_nursery:
                for _ in range(MAX_AT_ONCE):
                    refresh_nursery.start_soon(self._work)
        finally:
            # The receiver is closed, so no refresh can be added any more: the list of those to finish is complete.
            for refresh in self._refreshes.values():
                # Also those that were under way: cancelling their workers left them without an outcome.
                refresh.finish(RefreshFailed("the actor was not refreshed: the gateway is stopping"))
            self._refreshes.clear()

    def request(self, actor: Actor, token: str) -> None:
        """Have ``actor``, who presented ``token``, refreshed soon, unless that is happening, or happened lately.

        Never blocks or raises.
        """
        try:
            self._find_or_add(actor, token)
        except (ActorRecentlyUpdated, RefreshFailed) as error:
            logger.debug("actor %s is not refreshed: %s", actor.id, error)
            return  # counted in the statistics; the request that was refused for its quota does not depend on it

    async def refresh(self, actor: Actor, token: str) -> None:
        """Have ``actor``, who presented ``token``, fetched again from its source, and wait for the outcome.

        A no-op if its source cannot update. Several callers for one actor share one update. Raises
        :exc:`~cgw.actors.source.ActorRecentlyUpdated` within the source's cool-down, :exc:`RefreshFailed` when too many
        refreshes are waiting, when the update takes longer than :data:`UPDATE_SECONDS` or when the service ends, and
        any :exc:`~cgw.errors.CgwError` of the source. Cancelling only ends the waiting.
        """
        refresh = self._find_or_add(actor, token)
        if refresh is None:
            await trio.lowlevel.checkpoint()
            return
        await refresh.is_done.wait()
        if refresh.error is not None:
            # All callers raise the same object, which would collect the traceback of each of them.
            raise refresh.error.with_traceback(None)

    def statistics(self) -> RefreshStatistics:
        """Return counts since the start, and the present state."""
        waiting = self._receiver.statistics().current_buffer_used  # 0 once the receiver is closed
        return RefreshStatistics(
            updated=self._updated,
            failed=self._failed,
            joined=self._joined,
            cooling=self._cooling,
            dropped=self._dropped,
            waiting=waiting,
            under_way=len(self._refreshes) - waiting,
            remembered=len(self._cooldown_ends),
        )

    def _find_or_add(self, actor: Actor, token: str) -> _Refresh | None:
        key = (actor.source, actor.id)
        refresh = self._refreshes.get(key)
        if refresh is not None:
            self._joined += 1
            return refresh
        updater = self._sources.find_updater(actor)
        if updater is None:
            return None
        # Successful or not: a source that fails must not be asked by each refused request.
        seconds_left = self._cooldown_ends.get(key, -math.inf) - trio.current_time()
        if actor.last_updated is not None:  # by whichever replica
            age = (datetime.now(UTC) - actor.last_updated).total_seconds()
            seconds_left = max(seconds_left, min(updater.cooldown_seconds, updater.cooldown_seconds - age))
        if seconds_left > 0:
            self._cooling += 1
            raise ActorRecentlyUpdated(seconds_left)
        refresh = _Refresh(key, actor, token, updater)
        try:
            self._sender.send_nowait(refresh)
        except trio.BrokenResourceError:  # `run` has ended
            self._dropped += 1
            raise RefreshFailed("the actor was not refreshed: the gateway is stopping") from None
        except trio.WouldBlock:
            self._dropped += 1
            raise RefreshFailed(
                "the actor was not refreshed: too many others are waiting for that - try again later"
            ) from None
        # No checkpoint since send_nowait, so no worker has begun or ended this refresh yet.
        self._refreshes[key] = refresh
        return refresh

    async def _work(self) -> None:
        async for refresh in self._receiver:
            # From its end on there is no checkpoint: other tasks see the actor as under way or as cooling down, never
            # in between.
            began_at = trio.current_time()
            error = await self._update(refresh)
            logger.debug(
                "actor %s was refreshed from source %s in %.1f ms: %s",
                refresh.actor.id,
                refresh.actor.source,
                (trio.current_time() - began_at) * 1000,
                error or "updated",
            )
            self._cool_down(refresh)
            if error is None:
                self._updated += 1
            else:
                self._failed += 1
            del self._refreshes[refresh.key]
            refresh.finish(error)

    async def _update(self, refresh: _Refresh) -> CgwError | None:
        source = refresh.actor.source
        failure: CgwError
        try:
            # A source that hangs would occupy one of the MAX_AT_ONCE workers for good.
            with trio.fail_after(UPDATE_SECONDS):
                await refresh.updater.update(refresh.actor, refresh.token)
        except CgwError as error:
            failure = error
        except trio.TooSlowError:
            failure = RefreshFailed(f"the actor was not refreshed: its source took more than {UPDATE_SECONDS:g} s")
        except Exception as bug:  # noqa: BLE001 - a boundary: a bug in one source must not end the others' refreshes
            logger.error("unexpected error updating actor from source %s: %s", source, locate_bug(bug))
            return RefreshFailed("the actor was not refreshed: its source failed")
        else:
            if self._last_failures.pop(source, None) is not None:
                logger.info("updating actors from source %s works again", source)
            return None
        # Once, and not for each actor of the same wrong file or the same server that is down.
        text = str(failure)
        if self._last_failures.get(source) != text:
            self._last_failures[source] = text
            logger.warning("unexpected error updating actor %s from source %s: %s", refresh.actor.id, source, text)
        return failure

    def _cool_down(self, refresh: _Refresh) -> None:
        """Remember the actor's cool-down; forget those that are over, and the oldest if there are too many."""
        now = trio.current_time()
        self._cooldown_ends[refresh.key] = now + refresh.updater.cooldown_seconds
        # A key that was there already keeps its old place otherwise.
        self._cooldown_ends.move_to_end(refresh.key)
        # One was added, so removing up to two makes it shrink over time, at a constant cost per update.
        for key, ends_at in list(islice(self._cooldown_ends.items(), 2)):
            if ends_at <= now or len(self._cooldown_ends) > MAX_COOLING:
                del self._cooldown_ends[key]
