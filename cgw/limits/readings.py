"""Reading, and on request deleting, everything that the store counts for one actor. Used by operators' commands.

All keys of an actor share a slot, so it is one call of ``examine.lua``. The times are the store's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Literal

from attrs import evolve, field, frozen
from redis.exceptions import ResponseError

from cgw.limits.claims import Claim, build_actor_group
from cgw.limits.offline.outage import BrokenLimit, describe_script_error
from cgw.limits.scripts import load_script
from cgw.limits.states import LimitName
from cgw.model import Actor, Feature, LimitUnit, RateLimit
from cgw.redis.opening import Store

_UNKNOWN = RateLimit(0, 0, (), 0, 0, max_in_flight=0)
"""Stands for the limits of an actor that is not known here: ``examine.lua`` then uses the buckets' own numbers."""

_FIGURES_PER_KEY = 4
"""used, limit, period, ms until unused again."""


@frozen
class LimitReading:
    """The state of one limit of an actor, by the store's clock. ``None`` is unknown, or does not apply.

    ``limit`` times ``unit`` per ``interval_ms`` (``None`` for requests in flight: at once). ``used`` may exceed
    ``limit`` where more tokens were used than reserved. A quota also has its last alert: for which percentage
    (``alert_percent``), since when alerts were sent in this interval, and until when each is not sent again.
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
    alert_percent: int | None = None
    alert_since: datetime | None = None
    alert_until: datetime | None = None

    @property
    def is_used(self) -> bool:
        """True if the store holds anything for the limit, even if that can't be read."""
        return self.used != 0 or self.alert_percent is not None


@frozen
class _Key:
    """The arguments of ``examine.lua`` for one key."""

    kind: str
    key: str
    limit: int
    period_ms: int


@frozen
class _FeatureKeys:
    """The keys of one feature of an actor: those of its claims, in their order, then that of its alerts."""

    feature: Feature
    claims: Sequence[Claim]
    alert_key: str
    is_known: bool
    keys: Sequence[_Key] = field(init=False)

    @keys.default
    def _list_keys(self) -> Sequence[_Key]:
        limits = [_Key(claim.kind, claim.key, claim.limit, claim.period_ms) for claim in self.claims]
        return (*limits, _Key("alert", self.alert_key, 0, 0))


async def examine_limits(
    store: Store, actor: Actor, features: Sequence[Feature], mode: Literal["show", "reset"], *, has_in_flight: bool
) -> list[LimitReading]:
    """Read the limits of ``actor``; with ``reset`` also delete them, in the same step.

    ``actor.rate_limits`` are those that are known; other features are read with the numbers that they were counted
    with. ``has_in_flight`` includes the slots. Raises :exc:`BrokenLimit` for a key that can't be read (not with
    ``reset``), and :exc:`~cgw.errors.StoreUnavailable` without an answer.
    """
    groups = [_list_feature_keys(actor, feature, has_in_flight) for feature in features]
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
    return [reading for group in groups for reading in _read_group(actor, group, now_ms, figures)]


def _read_group(actor: Actor, group: _FeatureKeys, now_ms: int, figures: Iterator[int]) -> list[LimitReading]:
    """Take the figures of one feature's keys from ``figures``."""
    by_key = [tuple(next(figures) for _ in range(_FIGURES_PER_KEY)) for _ in group.keys]
    *of_claims, (percent, _, _, ttl_ms) = by_key
    readings = [
        _build_reading(actor, group, claim, now_ms, *found)
        for claim, found in zip(group.claims, of_claims, strict=True)
    ]
    readings[0] = _add_alert(readings[0], now_ms, percent, ttl_ms)  # the quota comes first
    return readings


def _list_feature_keys(actor: Actor, feature: Feature, has_in_flight: bool) -> _FeatureKeys:
    rate_limit = actor.rate_limits.get(feature)
    asked = rate_limit or _UNKNOWN
    # The claims of a request give the keys, so that they are those that the limiter counts under.
    # Leases may be left of a bound that was removed, so their key is always looked at.
    asked = evolve(asked, max_in_flight=asked.max_in_flight or 0)
    group = build_actor_group(actor, feature, asked, lease_ms=0, thresholds="")
    claims = [claim for claim in group.claims if has_in_flight or claim.kind != "lease"]
    # Slots are left out by their keys, so that a reset does not delete them.
    return _FeatureKeys(feature, claims, group.alert_key, rate_limit is not None)


def _build_reading(
    actor: Actor, group: _FeatureKeys, claim: Claim, now_ms: int, used: int, limit: int, period_ms: int, reset_ms: int
) -> LimitReading:
    is_lease = claim.kind == "lease"
    has_end = used >= 0 and not is_lease  # a slot is held for as long as its request takes, which is unknown
    return LimitReading(
        actor=actor.id,
        source=actor.source,
        feature=group.feature,
        name=claim.name,
        # A bucket does not say what it counts.
        unit=None if claim.name == "quota" and not group.is_known else claim.unit,
        limit=limit or None,
        interval_ms=None if is_lease else period_ms or None,
        used=used if used >= 0 else None,
        remaining=max(0, limit - used) if used >= 0 and limit else None,
        unused_in_ms=reset_ms if has_end else None,
        unused_at=_build_moment(now_ms + reset_ms) if has_end else None,
    )


def _add_alert(quota: LimitReading, now_ms: int, percent: int, ttl_ms: int) -> LimitReading:
    """Return the quota's reading with its last alert."""
    if percent <= 0 or ttl_ms < 0:
        return quota
    # The key lives for one interval of the quota from the interval's first alert, so its end gives its beginning.
    until_ms = now_ms + ttl_ms
    since_ms = until_ms - (quota.interval_ms or 0)
    since = _build_moment(since_ms) if since_ms <= now_ms else None  # the quota's interval has been shortened since
    return evolve(quota, alert_percent=percent, alert_since=since, alert_until=_build_moment(until_ms))


def _build_moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
