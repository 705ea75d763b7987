"""Fetching actors anew from their sources, when a quota refuses them or they ask for it (the reference's §1.6)."""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from itertools import islice

import trio
from attrs import define, field, frozen

from cgw.actors.source import ActorRecentlyUpdated, Sources, Updater
from cgw.errors import CgwError
from cgw.model import Actor

MAX_AT_ONCE = 8
"""Refreshes under way at once; more wait for their turn."""

MAX_WAITING = 1000
"""Refreshes that wait for their turn; more are turned away."""

MAX_COOLING = 10_000
"""Actors whose cool-down is remembered, some 300 bytes each; of more, the oldest are forgotten early."""

UPDATE_SECONDS = 30.0
"""How long one update may take."""

logger = logging.getLogger("cgw.actors")


class RefreshFailed(CgwError):
    """The actor could not be fetched anew, for a reason on our side: the gateway stops, or too much is asked of it."""


@frozen
class RefreshStatistics:
    """Counts since the start, and what is going on.

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
    """One update of one actor, and how it ended."""

    key: _Key
    actor: Actor
    updater: Updater
    is_done: trio.Event = field(factory=trio.Event)
    error: CgwError | None = None

    def finish(self, error: CgwError | None) -> None:
        self.error = error
        self.is_done.set()


class Refresher:
    """Owns all refreshes: at most one for an actor at a time, and none while the actor cools down.

    :meth:`run` is the service that does them; requests that come before it starts wait for it.
    """

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._refreshes: dict[_Key, _Refresh] = {}
        self._waiting: deque[_Refresh] = deque()
        self._arrivals = trio.lowlevel.ParkingLot()
        self._cooldown_ends: OrderedDict[_Key, float] = OrderedDict()
        self._last_failures: dict[str, str] = {}
        self._has_ended = False
        self._updated = self._failed = self._joined = self._cooling = self._dropped = 0

    async def run(self) -> None:
        """Do what is asked for, until cancelled. An update that fails is logged, and ends nothing else.

        Whoever still waits in the end gets :exc:`RefreshFailed`.
        """
        try:
            async with trio.open_nursery() as refresh_nursery:
                for _ in range(MAX_AT_ONCE):
                    refresh_nursery.start_soon(self._work)
        finally:
            self._has_ended = True
            self._waiting.clear()
            for refresh in self._refreshes.values():
                refresh.finish(RefreshFailed("the actor was not refreshed: the gateway is stopping"))
            self._refreshes.clear()

    def request(self, actor: Actor) -> None:
        """Have ``actor`` refreshed soon, unless that happens already, or happened lately. Never blocks or raises."""
        try:
            self._find_or_add(actor)
        except (ActorRecentlyUpdated, RefreshFailed):
            return  # counted; who was refused for his quota does not care

    async def refresh(self, actor: Actor) -> None:
        """Have ``actor`` fetched anew from its source, and wait for the outcome; at once where its source never can.

        Several callers for one actor share one update. Raises :exc:`~cgw.actors.source.ActorRecentlyUpdated` within
        the source's cool-down, :exc:`RefreshFailed` when too many refreshes are waiting, when the update takes longer
        than :data:`UPDATE_SECONDS` or when the service ends, and whatever :exc:`~cgw.errors.CgwError` the source
        raises. Cancelling only ends the waiting.
        """
        refresh = self._find_or_add(actor)
        if refresh is None:
            await trio.lowlevel.checkpoint()
            return
        await refresh.is_done.wait()
        if refresh.error is not None:
            raise refresh.error.with_traceback(None)  # one error for all callers, and no traceback of another one

    def statistics(self) -> RefreshStatistics:
        """What happened since the start, and what is going on."""
        return RefreshStatistics(
            updated=self._updated,
            failed=self._failed,
            joined=self._joined,
            cooling=self._cooling,
            dropped=self._dropped,
            waiting=len(self._waiting),
            under_way=len(self._refreshes) - len(self._waiting),
            remembered=len(self._cooldown_ends),
        )

    def _find_or_add(self, actor: Actor) -> _Refresh | None:
        key = (actor.source, actor.id)
        refresh = self._refreshes.get(key)
        if refresh is not None:
            self._joined += 1
            return refresh
        updater = self._sources.find_updater(actor)
        if updater is None:
            return None
        seconds_left = self._cooldown_ends.get(key, 0.0) - trio.current_time()
        if key in self._cooldown_ends and seconds_left > 0:
            self._cooling += 1
            raise ActorRecentlyUpdated(seconds_left)
        if self._has_ended:
            self._dropped += 1
            raise RefreshFailed("the actor was not refreshed: the gateway is stopping")
        if len(self._waiting) >= MAX_WAITING:
            self._dropped += 1
            raise RefreshFailed("the actor was not refreshed: too many others are waiting for that - try again later")
        refresh = self._refreshes[key] = _Refresh(key, actor, updater)
        self._waiting.append(refresh)
        self._arrivals.unpark()
        return refresh

    async def _work(self) -> None:
        while True:
            while not self._waiting:
                await self._arrivals.park()
            refresh = self._waiting.popleft()
            error = await self._update(refresh)
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
            with trio.fail_after(UPDATE_SECONDS):
                await refresh.updater.update(refresh.actor)
        except CgwError as error:
            failure = error
        except trio.TooSlowError:
            failure = RefreshFailed(f"the actor was not refreshed: its source took more than {UPDATE_SECONDS:g} s")
        except Exception:  # a source's fault must not end the others' refreshes
            logger.exception("unexpected error updating actor from source %s", source)
            return RefreshFailed("the actor was not refreshed: its source failed")
        else:
            if self._last_failures.pop(source, None) is not None:
                logger.info("updating actors from source %s works again", source)
            return None
        # Once, not for each of the actors that find the same file wrong or the same server down.
        text = str(failure)
        if self._last_failures.get(source) != text:
            self._last_failures[source] = text
            logger.warning("unexpected error updating actor %s from source %s: %s", refresh.actor.id, source, text)
        return failure

    def _cool_down(self, refresh: _Refresh) -> None:
        """Remember the actor; forget those that have cooled down, and the oldest of too many."""
        now = trio.current_time()
        self._cooldown_ends[refresh.key] = now + refresh.updater.cooldown_seconds
        self._cooldown_ends.move_to_end(refresh.key)
        for key, ends_at in list(islice(self._cooldown_ends.items(), 2)):  # one came, so two suffice to shrink
            if ends_at <= now or len(self._cooldown_ends) > MAX_COOLING:
                del self._cooldown_ends[key]
