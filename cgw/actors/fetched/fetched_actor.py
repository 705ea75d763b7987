"""An actor as its source tells it, and the :class:`~cgw.model.Actor` that is built of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated

import msgspec

from cgw.actors.actors_file import default_unit
from cgw.actors.concurrency import derive_concurrent_requests
from cgw.actors.policies import POLICIES
from cgw.actors.tokens import ACTOR_ID
from cgw.model import MAX_TOKEN_MS, Actor, Feature, RateLimit

MAX_NUMBER = 2**53
"""The largest limit, and interval in seconds, that is believed: beyond it, JSON's numbers are no longer exact."""

MAX_MODELS = 1000
"""The longest list of models that is believed."""

UnixMs = Annotated[int, msgspec.Meta(ge=0, le=253_402_300_799_999)]
"""Unix time in milliseconds, up to the last year that a :class:`~datetime.datetime` can have."""


class FetchedLimit(msgspec.Struct, frozen=True, array_like=True):
    """A limit of ``limit`` per ``interval_ms``, before it is fitted to what can be counted.

    The bounds, those of :func:`check_limit`, are for records: one with other numbers is as none.
    """

    limit: Annotated[int, msgspec.Meta(ge=1, le=MAX_NUMBER)]
    interval_ms: Annotated[int, msgspec.Meta(ge=1, le=MAX_NUMBER * 1000)]
    allowed_models: tuple[str, ...]


class FetchedActor(msgspec.Struct, frozen=True):
    """An actor as a source describes it. ``fetched_at_ms`` is Unix time."""

    id: str
    name: str
    access_enabled: bool
    fetched_at_ms: UnixMs
    limits: Mapping[str, FetchedLimit] = {}
    endpoint_access: Mapping[str, bool] = {}


class LimitProblem(ValueError):
    """A limit that cannot be used. The text is a sentence without its subject."""


def check_limit(limit: int, interval_seconds: float, allowed_models: tuple[str, ...]) -> FetchedLimit | None:
    """Return a source's numbers as a limit; ``None`` for a zero, which is the sources' way to say "no limit here".

    Raises :exc:`LimitProblem` for numbers that no limit can have. Either way the feature is not available: a wrong
    number never grants anything (the reference's §1.2).
    """
    if limit < 0 or limit > MAX_NUMBER:
        raise LimitProblem(f"has the limit {_shorten(limit)}, which is not from 0 to 2^53")
    if not 0 <= interval_seconds <= MAX_NUMBER:  # also for a NaN
        raise LimitProblem(f"has an interval of {_shorten(interval_seconds)} s, which is not from 0 to 2^53")
    if limit == 0 or interval_seconds == 0:
        return None
    if len(allowed_models) > MAX_MODELS:
        raise LimitProblem(f"allows {len(allowed_models)} models, more than {MAX_MODELS}")
    if not allowed_models:
        return None
    return FetchedLimit(limit, max(1, round(interval_seconds * 1000)), allowed_models)


def _shorten(number: float) -> str:
    text = str(number)
    return text if len(text) <= 24 else f"{text[:20]}… ({len(text)} digits)"


def check_actor_id(actor_id: str) -> bool:
    """Return whether ``actor_id`` can be an id: it becomes a part of keys, log lines and URLs."""
    return ACTOR_ID.fullmatch(actor_id) is not None


def fit_quota(limit: int, interval_ms: int) -> tuple[int, int]:
    """Return a quota of the same rate that can be counted exactly (``limit × interval`` at most ``MAX_TOKEN_MS``).

    Both are divided by the same power of two. So an actor never gets more than its source says: the same in the long
    run, and a smaller part of it at once. Token quotas of embeddings need that: 6.7 billion a day for 1000 users.
    """
    # A power of two, so that a limit that is raised a little keeps its interval (a changed interval resets usage).
    shift = max(0, math.ceil(math.log2(limit * interval_ms / MAX_TOKEN_MS) / 2)) if limit and interval_ms else 0
    fitted_limit, fitted_ms = limit >> shift, interval_ms >> shift
    if fitted_limit == 0:  # a slow rate: one per so long, as long as can be counted
        return 1, min(-(-interval_ms // limit), MAX_TOKEN_MS)
    if fitted_ms == 0:  # a fast one: what comes in a millisecond
        return min(limit // interval_ms, MAX_TOKEN_MS), 1
    # The interval was rounded down, which would make the rate higher: round the limit down with it.
    fitted_limit = min(fitted_limit, limit * fitted_ms // interval_ms)
    return max(1, fitted_limit), fitted_ms


class ActorBuilder:
    """Builds the actors of one source, with the operator's settings of the short-term rate."""

    def __init__(self, source: str, *, percentage: int, interval_ms: int) -> None:
        self.source = source
        self._percentage = percentage
        self._interval_ms = interval_ms

    def build(self, fetched: FetchedActor, *, is_stale: bool = False) -> Actor:
        """Return the actor. Features that the gateway does not know are left out."""
        limits = {
            feature: self._build_limit(feature, fetched.limits[feature.value])
            for feature in Feature
            if feature.value in fetched.limits
        }
        return Actor(
            id=fetched.id,
            name=fetched.name,
            source=self.source,
            access_enabled=fetched.access_enabled,
            rate_limits=limits,
            endpoint_access=fetched.endpoint_access,
            last_updated=datetime.fromtimestamp(fetched.fetched_at_ms / 1000, UTC),
            policy=POLICIES[self.source],
            is_stale=is_stale,
        )

    def _build_limit(self, feature: Feature, fetched: FetchedLimit) -> RateLimit:
        limit, interval_ms = fit_quota(fetched.limit, fetched.interval_ms)
        # From the source's own numbers: those that were fitted come to the same in a day, but for rounding.
        concurrent = derive_concurrent_requests(fetched.limit, fetched.interval_ms, self._percentage, self._interval_ms)
        return RateLimit(
            limit, interval_ms, fetched.allowed_models, concurrent, self._interval_ms, default_unit(feature)
        )
