"""Finding actors' limits in the store, to show or reset them: the work of ``cgw limits``.

The keys of one actor are derived from its source and id, not searched for: a scan of a large store would take minutes.
Only the list of all active actors is found by a scan, within bounds (:mod:`cgw.limits.activity`).
"""

from __future__ import annotations

from collections.abc import Sequence

from attrs import frozen

from cgw.errors import CgwError
from cgw.limits.activity import find_active_actors
from cgw.limits.offline.outage import BrokenLimit
from cgw.limits.readings import LimitReading, examine_limits
from cgw.model import Actor, Feature
from cgw.redis.opening import Store


class UnknownActor(CgwError):
    """No local source knows the actor, and nothing is counted under its id."""


class AmbiguousActor(CgwError):
    """Several sources have an actor with this id, and none of them was named."""


@frozen
class _Found:
    """A source that has the actor, and how its limits stand there."""

    source: str
    readings: Sequence[LimitReading]


@frozen
class Activity:
    """The state of all limits that are used now, by source and actor.

    ``problems`` has a sentence for each actor whose limits could not be read. ``is_complete`` is false where there are
    more active actors than could be found (see :func:`~cgw.limits.activity.find_active_actors`).
    """

    readings: Sequence[LimitReading]
    problems: Sequence[str]
    is_complete: bool


@frozen
class LimitMaintenance:
    """Shows and resets the limits of actors in ``store``.

    ``known`` are the actors of local sources, with their limits (``max_in_flight`` filled in). ``source_names`` are the
    names of all sources under which an id may be counted. All methods are for single calls by operators: they make one
    call per source.
    """

    store: Store
    known: Sequence[Actor]
    source_names: Sequence[str]

    async def read(
        self, actor_id: str, *, feature: Feature | None = None, source: str | None = None
    ) -> list[LimitReading]:
        """Return how the limits of ``actor_id`` stand, in every source that has it; writes nothing.

        Of an actor that is not known, only what is counted now is shown, with the numbers it was counted with. Raises
        :exc:`UnknownActor` when there is nothing to show, and :exc:`~cgw.errors.StoreUnavailable` without an answer and
        for a key that holds no limit. Cancel-safe.
        """
        found = await self._find(actor_id, feature, source)
        readings = [reading for limits in found for reading in limits.readings]
        if not readings:
            raise UnknownActor(_explain_nothing(found, actor_id, feature, source))
        return readings

    async def read_active(self, *, feature: Feature | None = None, source: str | None = None) -> Activity:
        """Return the limits that are used now, of all actors; writes nothing.

        Raises :exc:`~cgw.errors.StoreUnavailable` without an answer. Cancel-safe.
        """
        active = await find_active_actors(
            self.store, self.source_names if source is None else (source,), feature=feature
        )
        known = {(actor.source, actor.id): actor for actor in self.known}
        readings: list[LimitReading] = []
        problems = []
        for name, actor_id in active.actors:
            asked = known.get((name, actor_id)) or _build_stranger(actor_id, name)
            try:
                found = await examine_limits(self.store, asked, _list_features(feature), "show", has_in_flight=True)
            except BrokenLimit as error:
                # One actor's broken key must not hide all others.
                problems.append(f"actor {actor_id!r} of source {name}: {error}")
                continue
            readings += [reading for reading in found if reading.is_used]
        return Activity(readings, problems, active.is_complete)

    async def reset(
        self,
        actor_id: str,
        *,
        feature: Feature | None = None,
        source: str | None = None,
        has_in_flight: bool = False,
    ) -> list[LimitReading]:
        """Make the limits of ``actor_id`` unused; returns how those stood that were used.

        Quotas, short-term rates and the memory of alerts are deleted in one step; the slots only with
        ``has_in_flight``, and gateways count requests that are really in flight again with their next heartbeat. A key
        that holds something else is deleted too. Raises :exc:`AmbiguousActor` when several sources have the id,
        otherwise as :meth:`read`. When cancelled, the reset may still happen.
        """
        if source is None:
            source = await self._find_only_source(actor_id, feature, has_in_flight)
        actor = self._find_known(actor_id, source)
        # Delete without comparing with what was shown: a reset in one step counts no request that came in between.
        readings = await examine_limits(
            self.store,
            actor or _build_stranger(actor_id, source),
            _list_features(feature),
            "reset",
            has_in_flight=has_in_flight,
        )
        used = [reading for reading in readings if reading.is_used]
        # An actor that is known and has used nothing is a success: a second reset must not fail.
        if not used and actor is None:
            raise UnknownActor(f"0 limits reset: {_explain_nothing([], actor_id, feature, source)}")
        return used

    async def _find_only_source(self, actor_id: str, feature: Feature | None, has_in_flight: bool) -> str:
        # Lenient: a key that can't be read is a reason to reset, and `examine.lua` deletes it.
        found = await self._find(actor_id, feature, None, has_in_flight=has_in_flight, is_lenient=True)
        if len(found) > 1:
            names = ", ".join(limits.source for limits in found)
            raise AmbiguousActor(f"{actor_id!r} is an actor of several sources ({names}): name one with --source")
        if not found:
            raise UnknownActor(f"0 limits reset: {_explain_nothing(found, actor_id, feature, None)}")
        return found[0].source

    async def _find(
        self,
        actor_id: str,
        feature: Feature | None,
        source: str | None,
        *,
        has_in_flight: bool = True,
        is_lenient: bool = False,
    ) -> list[_Found]:
        """Return the sources that know the actor, and those under whose keys something is counted for it.

        ``is_lenient``: a key that can't be read counts as used; otherwise it is an error.
        """
        found = []
        # A call for each source: its name is part of the hash tag, so in a cluster one call can't have the keys of
        # several.
        for name in self.source_names if source is None else (source,):
            actor = self._find_known(actor_id, name)
            asked = actor or _build_stranger(actor_id, name)
            try:
                readings = await examine_limits(
                    self.store, asked, _list_features(feature), "show", has_in_flight=has_in_flight
                )
            except BrokenLimit:
                if not is_lenient:
                    raise
                # Without readings: lenient callers only need to know the source.
                found.append(_Found(name, ()))
                continue
            # Of an actor that is not known, every feature has readings: show those in use. Of a known one, also its
            # unused limits.
            shown = [reading for reading in readings if reading.is_used or _is_limited(asked, reading)]
            if shown or actor is not None:
                found.append(_Found(name, shown))
        return found

    def _find_known(self, actor_id: str, source: str) -> Actor | None:
        return next((actor for actor in self.known if actor.id == actor_id and actor.source == source), None)


def _build_stranger(actor_id: str, source: str) -> Actor:
    """Build an actor that stands for one whose limits only its source knows."""
    # Only id and source matter: they give the keys.
    return Actor(actor_id, "", source, access_enabled=True)


def _is_limited(actor: Actor, reading: LimitReading) -> bool:
    return reading.feature in actor.rate_limits and reading.limit is not None


def _list_features(feature: Feature | None) -> Sequence[Feature]:
    return tuple(Feature) if feature is None else (feature,)


def _explain_nothing(found: Sequence[_Found], actor_id: str, feature: Feature | None, source: str | None) -> str:
    where = "" if feature is None else f" for {feature}"
    if found:
        return f"actor {actor_id!r} of source {found[0].source} has no limits{where}"
    sources = "no local source knows" if source is None else f"source {source} has no local"
    return f"{sources} actor {actor_id!r}, and nothing is counted under its id{where}"
