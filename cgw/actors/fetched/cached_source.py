"""A source whose actors are fetched over the network, behind a cache in this process and one in Redis.

A token that this process has seen within seconds costs one hash and one look-up. Any other one is looked up by a task
of the source (:meth:`CachedSource.run`), which all callers with this token wait for::

    known and fresh here ──► its actor
    malformed ─────────────► denied        denied lately ──► denied        address spent its look-ups ──► 429
    otherwise: one look-up   Redis, if fresh ──► its actor
                             address spent its fetches ──► 429
                             the source:  an actor ──► kept in Redis and here
                                          a denial ──► marked there, remembered here
                                          no usable answer ──► what was known before, if anything; otherwise 503

So a caller that leaves does not end the fetch that others wait for, and a source that is down changes nothing for
actors who are known: not until Redis forgets them (``CODY_GATEWAY_SOURCES_CACHE_TTL``).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing

import trio
from attrs import define, field, frozen

from cgw.actors.fetched.address_budget import AddressBudget
from cgw.actors.fetched.backend import Backend
from cgw.actors.fetched.fetched_actor import ActorBuilder, FetchedActor
from cgw.actors.fetched.memory import Memory, Remembered
from cgw.actors.fetched.redis_records import KeptActor, RedisRecords, TokenRemoved
from cgw.actors.fetched.source_health import SourceHealth
from cgw.actors.fetched.token_shape import TokenShape
from cgw.actors.source import AccessTokenDenied, ActorList, NotFromSource, SourceUnavailable, TooManyUnknownTokens
from cgw.actors.tokens import hash_token
from cgw.errors import CgwError, StoreUnavailable, locate_bug
from cgw.model import Actor, Feature

MEMORY_SECONDS = 5.0
"""How long an actor is used without asking Redis: the time for which a removed token still works in a process."""

PATIENCE_SECONDS = 1.0
"""How long a caller whose actor is known waits for its refresh; the look-up goes on without it."""

LOOKUP_SECONDS = 30.0
"""The deadline of one look-up."""

MAX_LOOKUPS = 2_000
"""Look-ups of unknown tokens under way; callers with more of them get 503. Known ones are as many as the memory."""

MAX_FETCHES = 16
"""Fetches from the source at once."""

MAX_WAITING_FETCHES = 1_000
"""Look-ups that wait for their fetch; further ones fail. Less than :data:`MAX_LOOKUPS`: while a flood of unknown tokens
waits for a slow source, tokens that Redis knows are still found there."""

LOOKUPS_PER_FETCH = 20
"""Unknown tokens of one address that are looked up in Redis for each one that may be fetched: Redis is quicker."""

CLOCK_SLACK_MS = 300_000
"""How far in the future a record of another replica may be, whose clock is ahead."""

logger = logging.getLogger("cgw.actors")

IntervalChange = Callable[[Actor, Sequence[Feature]], Awaitable[None]]


@frozen
class CacheOptions:
    """``fresh_seconds``: how long an actor is used without asking the source; ``ttl_seconds``: how long while that is
    down. ``cooldown_seconds`` is the least time between updates of an actor; ``fetches_per_minute`` is what unknown
    tokens of one client address may cost."""

    fresh_seconds: float
    ttl_seconds: float
    cooldown_seconds: float
    fetches_per_minute: int


@frozen
class SourceParts:
    """The parts of a cached source besides its backend.

    ``on_interval_change`` makes the usage of some features of an actor unused: their quota's interval changed.
    """

    shape: TokenShape
    builder: ActorBuilder
    records: RedisRecords
    options: CacheOptions
    on_interval_change: IntervalChange


@define(eq=False)
class _Lookup:
    """One look-up, and its outcome: ``remembered`` or ``error``. The token lives as long as it.

    ``known`` is what was known of the token, here or in Redis, whether fresh or not.
    """

    key: str
    token: str = field(repr=False)
    client: str
    known: Remembered | None
    is_update: bool = False
    is_asked: bool = False
    """Whether the source was asked, or is being asked."""
    has_news: trio.Event = field(factory=trio.Event)
    """Set when Redis knows the token, and when the look-up is done."""
    is_done: trio.Event = field(factory=trio.Event)
    remembered: Remembered | None = None
    error: CgwError | None = None


@frozen
class CacheStatistics:
    """``remembered`` tokens and denials, ``addresses`` with a spent budget, ``lookups`` under way; since the start
    ``fetches``, ``refused`` callers (429) and ``hits``, which are tokens that were known and fresh."""

    remembered: int
    addresses: int
    lookups: int
    fetches: int
    refused: int
    hits: int


class CachedSource:
    """A :class:`~cgw.actors.source.Source`, an ``Updater`` and a ``Runner``."""

    def __init__(self, backend: Backend, parts: SourceParts) -> None:
        self.name = parts.builder.source
        self.cooldown_seconds = parts.options.cooldown_seconds
        self._backend = backend
        self._shape = parts.shape
        self._builder = parts.builder
        self._records = parts.records
        self._options = parts.options
        self._on_interval_change = parts.on_interval_change
        self._memory = Memory()
        self._health = SourceHealth(self.name)
        self._lookups: dict[tuple[str, bool], _Lookup] = {}
        self._lookup_budget = AddressBudget(parts.options.fetches_per_minute * LOOKUPS_PER_FETCH)
        self._fetch_budget = AddressBudget(parts.options.fetches_per_minute)
        self._fetch_slots = trio.Semaphore(MAX_FETCHES)
        self._nursery: trio.Nursery | None = None
        self._fetches = self._refused = self._hits = 0

    def statistics(self) -> CacheStatistics:
        """Return counts since the start, and the present state."""
        addresses = len(self._lookup_budget) + len(self._fetch_budget)
        return CacheStatistics(
            len(self._memory), addresses, len(self._lookups), self._fetches, self._refused, self._hits
        )

    async def run(self) -> None:
        """Look tokens up until cancelled; callers that still wait then get ``SourceUnavailable``."""
        try:
            async with trio.open_nursery() as lookup_nursery:
                self._nursery = lookup_nursery
                await trio.sleep_forever()
        finally:
            self._nursery = None

    def recall(self, token_hash: str) -> Actor | None:
        """See :class:`~cgw.actors.source.Recaller`."""
        known = self._memory.find(token_hash)
        if known is None or trio.current_time() >= known.fresh_until:
            return None
        self._hits += 1
        return known.actor

    async def get(self, token: str, client: str = "") -> Actor:
        """See :class:`~cgw.actors.source.Source`. Cancel-safe: the look-up goes on for others."""
        recognised = self._shape.recognise(token)
        if recognised is None:
            raise NotFromSource("unknown token prefix" if token else "")
        key = hash_token(recognised)
        return self.recall(key) or await self._get_unfresh(key, recognised, client)

    def describe(self) -> str | None:
        """Return a sentence for operators while the source cannot be asked; it holds no host or token."""
        return f"actor source {self.name} cannot be asked (see the log)" if self._health.is_down else None

    def forget_freshness(self) -> None:
        """Have the next caller of each token ask Redis, and the source if what Redis has is no longer fresh."""
        self._memory.expire()

    async def _get_unfresh(self, key: str, token: str, client: str) -> Actor:
        if not self._shape.is_whole(token):
            raise AccessTokenDenied("invalid token format", self.name)
        reason = self._memory.find_denial(key)
        if reason is not None:
            raise AccessTokenDenied(reason, self.name)
        known = self._memory.find(key)
        lookup = self._lookups.get((key, False)) or self._begin(_Lookup(key, token, client, known))
        if lookup.known is None:
            await lookup.has_news.wait()
        with trio.move_on_after(PATIENCE_SECONDS):
            await lookup.is_done.wait()
        # Looked at only now: Redis may have told meanwhile that the token was denied or removed.
        if not lookup.is_done.is_set() and lookup.known is not None and not self._is_too_old(lookup.known):
            return lookup.known.actor
        await lookup.is_done.wait()
        return self._conclude(lookup)

    async def update(self, actor: Actor, token: str) -> None:
        """See :class:`~cgw.actors.source.Updater`."""
        recognised = self._shape.recognise(token)
        if recognised is None or not self._shape.is_whole(recognised):
            raise SourceUnavailable(f"actor source {self.name}: the token is not one of its own", is_down=False)
        key = hash_token(recognised)
        known = self._memory.find(key)
        lookup = self._lookups.get((key, True)) or self._begin(_Lookup(key, recognised, "", known, is_update=True))
        await lookup.is_done.wait()
        self._conclude(lookup)

    async def list_actors(self, *, max_actors: int, seconds: float) -> ActorList:
        """See :class:`~cgw.actors.source.Lister`: the actors that Redis keeps."""
        found: dict[str, Actor] = {}
        with trio.move_on_after(seconds) as time_scope:
            async with aclosing(self._records.scan_actors()) as pages:
                async for page in pages:
                    found |= {fetched.id: self._builder.build(fetched) for fetched in page}
                    # One more than the bound tells that there are more.
                    if len(found) > max_actors:
                        break
        is_complete = len(found) <= max_actors and not time_scope.cancelled_caught
        return ActorList(tuple(found.values())[:max_actors], is_complete)

    def _conclude(self, lookup: _Lookup) -> Actor:
        if lookup.error is not None:
            # All callers raise the same object, which would collect the traceback of each of them.
            raise lookup.error.with_traceback(None)
        if lookup.remembered is None:
            raise SourceUnavailable(f"actor source {self.name}: the gateway is stopping", is_down=False)
        return lookup.remembered.actor

    def _begin(self, lookup: _Lookup) -> _Lookup:
        if self._nursery is None:
            raise SourceUnavailable(f"actor source {self.name}: is not running", is_down=False)
        if lookup.known is None and not lookup.is_update:
            if len(self._lookups) >= MAX_LOOKUPS:
                raise SourceUnavailable(f"actor source {self.name}: too many tokens are being looked up", is_down=False)
            self._spend(self._lookup_budget, lookup.client)
        self._lookups[lookup.key, lookup.is_update] = lookup
        self._nursery.start_soon(self._run_lookup, lookup)
        return lookup

    async def _run_lookup(self, lookup: _Lookup) -> None:
        began_at = trio.current_time()
        try:
            with trio.fail_after(LOOKUP_SECONDS):
                lookup.remembered = await self._look_up(lookup)
        except CgwError as error:
            lookup.error = error
        except trio.TooSlowError:
            text = f"actor source {self.name}: no decision within {LOOKUP_SECONDS:g} s"
            lookup.error = SourceUnavailable(text)
        except Exception as bug:  # noqa: BLE001 - a bug costs one look-up, not the source
            logger.error("actor source %s: unexpected %s", self.name, locate_bug(bug))
            lookup.error = SourceUnavailable(f"actor source {self.name}: failed", is_down=False)
        finally:
            logger.debug(
                "actor source %s: a token was looked up in %.1f ms (source asked: %s): %s",
                self.name,
                (trio.current_time() - began_at) * 1000,
                lookup.is_asked,
                lookup.error or ("known" if lookup.remembered is not None else "not decided"),
            )
            del self._lookups[lookup.key, lookup.is_update]
            lookup.has_news.set()
            lookup.is_done.set()

    async def _look_up(self, lookup: _Lookup) -> Remembered:
        """Return the token's actor, from Redis or the source, and remember it."""
        is_unknown = lookup.known is None and not lookup.is_update
        checked_at_ms = await self._find_in_redis(lookup)
        known = lookup.known
        if known is not None and not lookup.is_update and self._is_fresh(checked_at_ms):
            if is_unknown:
                self._lookup_budget.give_back(lookup.client)
            return self._remember(lookup, known.fetched, known.checked_at_ms)
        is_charged = known is None and is_unknown
        if is_charged:
            self._spend(self._fetch_budget, lookup.client)
        try:
            remembered = await self._fetch(lookup)
        except SourceUnavailable:
            if is_charged and not lookup.is_asked:
                # Nothing was asked, so nothing turned out unknown: an outage must not use up the budgets of its users.
                self._fetch_budget.give_back(lookup.client)
            if known is None or lookup.is_update or self._is_too_old(known):
                raise
            return self._remember(lookup, known.fetched, known.checked_at_ms, is_stale=True)
        if is_charged:
            self._fetch_budget.give_back(lookup.client)
        if is_unknown:
            self._lookup_budget.give_back(lookup.client)
        return remembered

    async def _find_in_redis(self, lookup: _Lookup) -> int:
        """Set ``lookup.known`` to what Redis has; return when the token was last checked, 0 if Redis does not know it.

        While Redis is away, or has lost its records, what this process knows counts. Raises
        :exc:`~cgw.actors.source.AccessTokenDenied` for a token that a sync has just removed.
        """
        try:
            found = await self._records.find(lookup.key)
        except TokenRemoved as removed:
            # What this process remembers must not outlive that: it would be used as soon as the source is down.
            lookup.known = None
            self._memory.forget(lookup.key)
            if not removed.is_recent:
                return 0  # denied some time ago: it may be valid again
            reason = "the token is no longer listed"
            self._memory.remember_denial(lookup.key, reason)
            raise AccessTokenDenied(reason, self.name) from None
        except StoreUnavailable:
            return 0 if lookup.known is None else lookup.known.checked_at_ms
        if found is None:
            return 0
        # Callers need not wait for the source to be served with this.
        lookup.known = self._remember(lookup, found.actor, found.checked_at_ms)
        lookup.has_news.set()
        return found.checked_at_ms

    def _spend(self, budget: AddressBudget, client: str) -> None:
        try:
            budget.spend(client)
        except TooManyUnknownTokens:
            self._refused += 1
            raise

    async def _fetch(self, lookup: _Lookup) -> Remembered:
        if self._fetch_slots.statistics().tasks_waiting >= MAX_WAITING_FETCHES:
            raise SourceUnavailable(f"actor source {self.name}: too many tokens wait to be asked about", is_down=False)
        async with self._fetch_slots:
            self._health.begin_call()
            self._fetches += 1
            lookup.is_asked = True
            try:
                fetched = await self._backend.fetch(lookup.token, self._health.log_problem)
            except AccessTokenDenied as denial:
                self._health.answered()
                self._memory.remember_denial(lookup.key, denial.reason)
                await self._forget(lookup.key)
                raise
            except SourceUnavailable as error:
                if error.is_down:
                    self._health.failed(error)
                else:
                    self._health.log_problem(str(error))
                raise
            finally:
                self._health.gave_up()
            self._health.answered()
        await self._keep([KeptActor(fetched, [lookup.key])])
        return self._remember(lookup, fetched, fetched.fetched_at_ms)

    async def _forget(self, key: str) -> None:
        try:
            await self._records.forget(key)
        except StoreUnavailable:
            # The record is used again by other replicas until it is no longer fresh; then they are told the same.
            logger.warning("actor source %s: a denied token could not be removed from Redis", self.name)

    async def _keep(self, kept: Sequence[KeptActor]) -> None:
        try:
            earlier = await self._records.keep(kept)
        except StoreUnavailable:
            return  # Redis is said to be away elsewhere; this process knows the actor
        await self._apply_interval_changes(kept, earlier)

    async def _apply_interval_changes(self, kept: Sequence[KeptActor], earlier: Sequence[FetchedActor | None]) -> None:
        """Make quotas unused whose interval changed (the reference's §2.5).

        Redis returns the earlier record to whoever replaces it, so this happens once. Unlike in the reference, an actor
        who was not known before keeps its usage: otherwise forgetting a record would be a free quota.
        """
        for entry, before in zip(kept, earlier, strict=True):
            if entry.actor is None or before is None:
                continue
            changed = find_changed_intervals(before, entry.actor)
            if not changed:
                continue
            try:
                await self._on_interval_change(self._builder.build(entry.actor), changed)
            except StoreUnavailable:
                logger.warning("actor %s of source %s: usage was not reset", entry.actor.id, self.name)

    def _remember(
        self, lookup: _Lookup, fetched: FetchedActor, checked_at_ms: int, *, is_stale: bool = False
    ) -> Remembered:
        known = lookup.known
        if known is not None and known.fetched == fetched and known.actor.is_stale == is_stale:
            actor = known.actor  # the same object, which limits recognise quickly
        else:
            actor = self._builder.build(fetched, is_stale=is_stale)
        remembered = Remembered(actor, fetched, checked_at_ms, trio.current_time() + MEMORY_SECONDS)
        self._memory.remember(lookup.key, remembered)
        return remembered

    def _is_fresh(self, checked_at_ms: int) -> bool:
        return -CLOCK_SLACK_MS <= self._get_age_ms(checked_at_ms) < self._options.fresh_seconds * 1000

    def _is_too_old(self, known: Remembered) -> bool:
        return self._get_age_ms(known.checked_at_ms) >= self._options.ttl_seconds * 1000

    @staticmethod
    def _get_age_ms(checked_at_ms: int) -> float:
        return time.time() * 1000 - checked_at_ms


def find_changed_intervals(before: FetchedActor, after: FetchedActor) -> list[Feature]:
    """Return the features that have a limit before and after, with another interval."""
    return [
        feature
        for feature in Feature
        if (old := before.limits.get(feature.value)) is not None
        and (new := after.limits.get(feature.value)) is not None
        and old.interval_ms != new.interval_ms
    ]
