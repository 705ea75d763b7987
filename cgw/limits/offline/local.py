"""The same limits, counted in this process while Redis is away.

The arithmetic is that of the Lua, in exact integers; a property test plays the same sequences on both. Each replica
counts alone, so each admits up to a whole limit.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from copy import copy

from attrs import define, field

from cgw.limits.claims import Claim

MAX_BUCKETS = 20_000
"""Buckets in memory; of more, those that were used longest ago are forgotten."""

_LONGEST_LEASE_WAIT_MS = 1000
"""Most leases are freed long before they end, so retrying within a second is worthwhile."""


def _ceil(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)


@define
class Bucket:
    """A token bucket, as described in ``state.lua``. ``debt`` is in tokens × milliseconds."""

    debt: int
    at: int
    limit: int
    period: int
    empty_at: int = 0
    """The time at which a claim last found no debt; claims before that are not given back."""

    def advance(self, now: int) -> None:
        """Refill up to ``now``."""
        # A clock that steps back gives no refill, and the bucket counts on from there.
        self.debt = max(0, self.debt - max(0, now - self.at) * self.limit)
        self.at = now

    def convert(self, limit: int, period: int) -> None:
        """Change the bucket's numbers: used tokens stay used (rounded up), but at most one full bucket of them."""
        if (self.limit, self.period) != (limit, period):
            self.debt = min(_ceil(self.debt, self.period), limit) * period
            self.limit, self.period = limit, period

    def measure(self, debt: int) -> tuple[int, int, int]:
        """Return what ``debt`` leaves: remaining tokens, ms until unused, ms until one more token is there."""
        full = self.limit * self.period
        # Negative when overdrawn.
        remaining = max(0, (full - debt) // self.period)
        if debt <= 0:
            return remaining, 0, 0
        return remaining, _ceil(debt, self.limit), _ceil(debt - (full - (remaining + 1) * self.period), self.limit)


@define
class _Decision:
    """The effect of one claim, if it were made.

    ``wait`` is in ms (0: it fits, −1: it never will). ``measure`` returns how the limit stands with the claim
    (``True``) or without it; ``claim`` writes it.
    """

    wait: int
    measure: Callable[[bool], tuple[int, int, int]]
    claim: Callable[[], None]


@define
class LocalLimits:
    """The limits of one process. Times are milliseconds of a clock of the caller's choice. Never blocks."""

    _buckets: OrderedDict[str, Bucket] = field(factory=OrderedDict)
    _leases: dict[str, dict[str, int]] = field(factory=dict)
    _records: dict[str, tuple[int, list[int]]] = field(factory=dict)

    def admit(self, reservation_id: str, claims: Sequence[Claim], now: int) -> list[int]:
        """Claim all of ``claims`` or none, and return the answer that ``admit.lua`` would; there are no alerts."""
        record = self._records.get(reservation_id)
        if record is not None:
            return list(record[1])
        # Decide about all claims before any is written: a refusal consumes nothing.
        checks = {"bucket": self._check_bucket, "lease": self._check_lease}
        decisions = [checks[claim.kind](claim, reservation_id, now) for claim in claims]
        is_admitted = all(decision.wait == 0 for decision in decisions)
        answer = [int(is_admitted), now, 0]
        for decision in decisions:
            answer += (*decision.measure(is_admitted), decision.wait)
        if is_admitted:
            for decision in decisions:
                decision.claim()
            self._records[reservation_id] = now, list(answer)
        return answer

    def settle(self, reservation_id: str, used: Iterable[tuple[Claim, int]], now: int) -> bool:
        """Replace what was reserved by what was used, once, as ``settle.lua``; returns whether it was this call."""
        record = self._records.pop(reservation_id, None)
        for claim, amount in used:
            if claim.kind == "lease":
                self.free(claim.key, reservation_id)
            elif record is not None and amount != claim.cost:
                self._settle_bucket(claim, amount - claim.cost, record[0], now)
        return record is not None

    def peek(self, claims: Iterable[Claim], now: int) -> list[int]:
        """Return how limits stand, as ``peek.lua`` would."""
        answer = [now]
        for claim in claims:
            if claim.kind == "bucket":
                bucket = self._load_bucket(claim, now)
                answer += bucket.measure(bucket.debt)
            else:
                answer += (max(0, claim.limit - len(self._held(claim.key, now))), 0, 0)
        return answer

    def hold(self, key: str, reservation_id: str, ends_at: int) -> None:
        """Note a lease that was taken in Redis, or that is renewed."""
        self._leases.setdefault(key, {})[reservation_id] = ends_at

    def free(self, key: str, reservation_id: str) -> None:
        """End a lease; nothing happens when there is none."""
        held = self._leases.get(key)
        if held is not None:
            held.pop(reservation_id, None)
            if not held:
                del self._leases[key]

    def seed(self, claim: Claim, debt: int, now: int) -> None:
        """Raise a bucket's debt to ``debt``, which is what Redis last said of it."""
        bucket = self._load_bucket(claim, now)
        # Only raise it: what was used here since must not be forgotten.
        if debt > bucket.debt:
            if bucket.debt == 0:
                bucket.empty_at = now
            bucket.debt = min(debt, 2 * claim.limit * claim.period_ms)
            self._save_bucket(claim.key, bucket)

    @property
    def leases(self) -> dict[str, dict[str, int]]:
        """All leases: by key, the reservations and when their leases end. Not to be changed."""
        return self._leases

    def _load_bucket(self, claim: Claim, now: int) -> Bucket:
        """Return a copy of the bucket as of now, which has no effect until it is saved."""
        found = self._buckets.get(claim.key)
        if found is None:
            return Bucket(0, now, claim.limit, claim.period_ms)
        bucket = copy(found)
        bucket.advance(now)
        bucket.convert(claim.limit, claim.period_ms)
        return bucket

    def _save_bucket(self, key: str, bucket: Bucket) -> None:
        self._buckets.pop(key, None)  # to the end: the order is that of the last use
        if bucket.debt > 0:  # an absent bucket is an unused one
            self._buckets[key] = bucket
            while len(self._buckets) > MAX_BUCKETS:
                self._buckets.popitem(last=False)

    def _check_bucket(self, claim: Claim, _: str, now: int) -> _Decision:
        bucket = self._load_bucket(claim, now)
        found = self._buckets.get(claim.key)
        if found is not None and found.at > now:
            # The clock stepped back to before the last write. Write the bucket as of now: otherwise it would not refill
            # before the clock has caught up.
            self._save_bucket(claim.key, copy(bucket))
        limit, period, cost = claim.limit, claim.period_ms, claim.cost
        excess = bucket.debt + (cost - limit) * period  # what the claim would exceed a full bucket by
        wait = 0 if excess <= 0 else -1 if cost > limit else _ceil(excess, limit)

        def measure(is_admitted: bool) -> tuple[int, int, int]:
            return bucket.measure(bucket.debt + cost * period if is_admitted else bucket.debt)

        def claim_it() -> None:
            if bucket.debt == 0:
                bucket.empty_at = now
            bucket.debt += cost * period
            self._save_bucket(claim.key, bucket)

        return _Decision(wait, measure, claim_it)

    def _settle_bucket(self, claim: Claim, difference: int, admitted_at: int, now: int) -> None:
        found = self._buckets.get(claim.key)
        if found is None:
            if difference < 0:
                return
            bucket = Bucket(0, now, claim.limit, claim.period_ms, now)
        else:
            # Not converted to the claim's numbers: limits that changed since the admission keep their new ones.
            bucket = copy(found)
            bucket.advance(now)
        # A claim before empty_at has been paid off by time; giving it back too would admit more than the limit.
        if difference > 0 or admitted_at >= bucket.empty_at:
            most = 2 * bucket.limit * bucket.period
            bucket.debt = max(0, min(bucket.debt + difference * bucket.period, most))
            self._save_bucket(claim.key, bucket)

    def _held(self, key: str, now: int) -> dict[str, int]:
        return {name: end for name, end in self._leases.get(key, {}).items() if end > now}

    def _check_lease(self, claim: Claim, reservation_id: str, now: int) -> _Decision:
        held = self._held(claim.key, now)  # without those that ended; saved so by a claim
        wait = 0
        if claim.cost > claim.limit:
            wait = -1
        elif len(held) + claim.cost > claim.limit:
            wait = max(1, min(min(held.values()) - now, _LONGEST_LEASE_WAIT_MS))

        def measure(is_admitted: bool) -> tuple[int, int, int]:
            return max(0, claim.limit - len(held) - (claim.cost if is_admitted else 0)), 0, 0

        def claim_it() -> None:
            held[reservation_id] = now + claim.period_ms
            self._leases[claim.key] = held

        return _Decision(wait, measure, claim_it)
