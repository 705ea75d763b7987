"""Reading and resetting the limits of one actor, for operators: what ``cgw limits`` does to the store.

Keys are derived from the actor's source and id, never searched for. The times are the store's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

from attrs import evolve, field, frozen
from redis.exceptions import ResponseError

from cgw.errors import CgwError
from cgw.limits.claims import Claim, build_actor_group
from cgw.limits.offline.outage import BrokenLimit, describe_script_error
from cgw.limits.scripts import load_script
from cgw.limits.states import LimitName
from cgw.model import Actor, Feature, LimitUnit, RateLimit
from cgw.redis.opening import Store

KNOWN_SOURCES = ("static", "anonymous", "dotcom-user", "dotcom-product-subscriptions")
"""The names of all sources that there are, under which an id may be counted."""

_UNKNOWN = RateLimit(0, 0, (), 0, 0, max_in_flight=0)
"""Stands in for limits that only the actor's source knows: the buckets' own numbers are used."""

_FIGURES_PER_KEY = 4


class UnknownActor(CgwError):
    """No local source knows the actor, and nothing is counted under its id."""


class AmbiguousActor(CgwError):
    """Several sources have an actor with this id, and it must be said which is meant."""


@frozen
class LimitReading:
    """How one limit of an actor stands, by the store's clock. ``None`` is unknown, or does not apply.

    ``limit`` times ``unit`` per ``interval_ms`` (``None`` for places in flight: at once). ``used`` may exceed
    ``limit`` where more tokens were used than reserved. A quota also says which percentage somebody was told of last
    (``notice_percent``), since when notices were told in this interval, and until when they are not told again.
    """

    actor: str
    source: str
    feature: Feature
    name: LimitName
    unit: LimitUnit | None
    limit: int | None
    interval_ms: int | None
    used: int | None
    remaining: int | None
    unused_in_ms: int | None
    unused_at: datetime | None
    notice_percent: int | None = None
    notice_since: datetime | None = None
    notice_until: datetime | None = None

    @property
    def is_used(self) -> bool:
        """Whether anything is counted or noted; also when that can't be read."""
        return self.used != 0 or self.notice_percent is not None


@frozen
class _Found:
    """A source that has the actor, and how its limits stand there."""

    source: str
    readings: Sequence[LimitReading]


async def read_limits(
    store: Store, known: Iterable[Actor], actor_id: str, *, feature: Feature | None = None, source: str | None = None
) -> list[LimitReading]:
    """How the limits of ``actor_id`` stand, in every source that has it; writes nothing.

    ``known`` are the actors of local sources, with their limits (``max_in_flight`` filled in). Of other actors only
    what is counted now is shown, with the numbers it was counted with. Raises :exc:`UnknownActor` when there is
    nothing to show, :exc:`~cgw.errors.StoreUnavailable` without an answer, and for a key that holds no limit.
    Cancel-safe.
    """
    found = await _find(store, list(known), actor_id, feature, source)
    readings = [reading for limits in found for reading in limits.readings]
    if not readings:
        raise UnknownActor(_explain_nothing(found, actor_id, feature, source))
    return readings


async def reset_limits(
    store: Store,
    known: Iterable[Actor],
    actor_id: str,
    *,
    feature: Feature | None = None,
    source: str | None = None,
    has_in_flight: bool = False,
) -> list[LimitReading]:
    """Make the limits of ``actor_id`` unused; how those stood that were used.

    Quotas, short-term rates and the notes of notices are deleted in one step, the places in flight only with
    ``has_in_flight``: what is under way is under way, and gateways count it again with their next heartbeat. A key
    that holds something else is deleted too. Raises :exc:`AmbiguousActor` when several sources have the id, and
    else as :func:`read_limits`. When cancelled, the reset may still happen.
    """
    known = list(known)
    if source is None:
        found = await _find(store, known, actor_id, feature, None, has_in_flight=has_in_flight, is_lenient=True)
        if len(found) > 1:
            names = ", ".join(limits.source for limits in found)
            raise AmbiguousActor(f"{actor_id!r} is an actor of several sources ({names}): name one with --source")
        if not found:
            raise UnknownActor(f"0 limits reset: {_explain_nothing(found, actor_id, feature, source)}")
        source = found[0].source
    actor = _find_known(known, actor_id, source)
    readings = await _examine(store, source, actor, actor_id, _list_features(feature), "reset", has_in_flight)
    used = [reading for reading in readings if reading.is_used]
    if not used and actor is None:
        raise UnknownActor(f"0 limits reset: {_explain_nothing([], actor_id, feature, source)}")
    return used


async def _find(
    store: Store,
    known: Sequence[Actor],
    actor_id: str,
    feature: Feature | None,
    source: str | None,
    *,
    has_in_flight: bool = True,
    is_lenient: bool = False,
) -> list[_Found]:
    """The actors with this id: those of local sources, and those under whose keys something is counted.

    ``is_lenient``: keys that can't be read count as used, instead of being an error.
    """
    found = []
    for name in KNOWN_SOURCES if source is None else (source,):
        actor = _find_known(known, actor_id, name)
        try:
            readings = await _examine(store, name, actor, actor_id, _list_features(feature), "show", has_in_flight)
        except BrokenLimit:
            if not is_lenient:
                raise
            found.append(_Found(name, ()))
            continue
        limits = {} if actor is None else actor.rate_limits
        readings = [reading for reading in readings if reading.is_used or _has_limit(limits, reading)]
        if readings or actor is not None:
            found.append(_Found(name, readings))
    return found


def _has_limit(limits: Mapping[Feature, RateLimit], reading: LimitReading) -> bool:
    return reading.feature in limits and reading.limit is not None


def _find_known(known: Iterable[Actor], actor_id: str, source: str) -> Actor | None:
    return next((actor for actor in known if actor.id == actor_id and actor.source == source), None)


def _list_features(feature: Feature | None) -> Sequence[Feature]:
    return tuple(Feature) if feature is None else (feature,)


def _explain_nothing(found: Sequence[_Found], actor_id: str, feature: Feature | None, source: str | None) -> str:
    where = "" if feature is None else f" for {feature}"
    if found:
        return f"actor {actor_id!r} of source {found[0].source} has no limits{where}"
    sources = "no local source knows" if source is None else f"source {source} has no local"
    return f"{sources} actor {actor_id!r}, and nothing is counted under its id{where}"


# --- the script -------------------------------------------------------------------------------------------------------


@frozen
class _Key:
    """One key to look at: a limit, or the notices of a quota."""

    kind: str
    key: str
    limit: int
    period_ms: int


@frozen
class _FeatureKeys:
    """What is counted for one feature of an actor."""

    feature: Feature
    claims: Sequence[Claim]
    notice_key: str
    is_known: bool
    keys: Sequence[_Key] = field(init=False)

    @keys.default
    def _list_keys(self) -> Sequence[_Key]:
        limits = [_Key(claim.kind, claim.key, claim.limit, claim.period_ms) for claim in self.claims]
        return (*limits, _Key("notice", self.notice_key, 0, 0))


async def _examine(
    store: Store,
    source: str,
    actor: Actor | None,
    actor_id: str,
    features: Sequence[Feature],
    mode: str,
    has_in_flight: bool,
) -> list[LimitReading]:
    """One call about all keys of one actor: they share a slot."""
    asked = actor or Actor(actor_id, "", source, True)
    groups = [_list_feature_keys(asked, feature, has_in_flight) for feature in features]
    keys = [key for group in groups for key in group.keys]
    arguments: list[str | int] = [mode]
    for key in keys:
        arguments += (key.kind, key.limit, key.period_ms)
    try:
        answer: Sequence[int] = await store.run_script(load_script("examine.lua"), [key.key for key in keys], arguments)
    except ResponseError as error:
        reason = describe_script_error(error)
        raise BrokenLimit(f"a limit can't be read: {reason}; `cgw limits reset` deletes it") from error
    now_ms, figures = answer[0], iter(answer[1:])
    readings = []
    for group in groups:
        looked = [tuple(next(figures) for _ in range(_FIGURES_PER_KEY)) for _ in group.keys]
        group_readings = [
            _build_reading(asked, group, claim, now_ms, *found)
            for claim, found in zip(group.claims, looked, strict=False)
        ]
        percent, _, _, ttl_ms = looked[-1]
        readings += [_add_notice(group_readings[0], now_ms, percent, ttl_ms), *group_readings[1:]]
    return readings


def _list_feature_keys(actor: Actor, feature: Feature, has_in_flight: bool) -> _FeatureKeys:
    rate_limit = actor.rate_limits.get(feature)
    asked = rate_limit or _UNKNOWN
    asked = evolve(asked, max_in_flight=asked.max_in_flight or 0)  # leases may be left of a bound that is no more
    group = build_actor_group(actor, feature, asked, lease_ms=0, thresholds="")
    claims = [claim for claim in group.claims if has_in_flight or claim.kind != "lease"]
    return _FeatureKeys(feature, claims, group.notice_key, rate_limit is not None)


def _build_reading(
    actor: Actor, group: _FeatureKeys, claim: Claim, now_ms: int, used: int, limit: int, period_ms: int, reset_ms: int
) -> LimitReading:
    is_lease = claim.kind == "lease"
    has_end = used >= 0 and not is_lease  # a place is held for as long as its request takes, which nobody knows
    return LimitReading(
        actor=actor.id,
        source=actor.source,
        feature=group.feature,
        name=claim.name,
        unit=None if claim.name == "quota" and not group.is_known else claim.unit,
        limit=limit or None,
        interval_ms=None if is_lease else period_ms or None,
        used=used if used >= 0 else None,
        remaining=max(0, limit - used) if used >= 0 and limit else None,
        unused_in_ms=reset_ms if has_end else None,
        unused_at=_build_moment(now_ms + reset_ms) if has_end else None,
    )


def _add_notice(quota: LimitReading, now_ms: int, percent: int, ttl_ms: int) -> LimitReading:
    """The quota's reading, with what was told of it. The first notice of an interval begins it."""
    if percent <= 0 or ttl_ms < 0:
        return quota
    until_ms = now_ms + ttl_ms
    since_ms = until_ms - (quota.interval_ms or 0)
    since = _build_moment(since_ms) if since_ms <= now_ms else None  # the quota has a shorter interval by now
    return evolve(quota, notice_percent=percent, notice_since=since, notice_until=_build_moment(until_ms))


def _build_moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
