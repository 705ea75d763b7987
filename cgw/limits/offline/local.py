"""The same limits, counted in this process: for while Redis is away.

The arithmetic is that of the Lua, in exact integers; a property test plays both through the same sequences. Only this
process counts here, so each replica lets up to a whole limit through.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from copy import copy

from attrs import define, field

from cgw.limits.claims import Claim

MAX_LIMITS = 20_000
"""How many limits are remembered; those that were used longest ago are forgotten first."""

_LONGEST_LEASE_WAIT_MS = 1000


def _ceil(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)


@define
class Bucket:
    """A token bucket; see ``state.lua``. ``debt`` in tokens × milliseconds."""

    debt: int
    at: int
    limit: int
    period: int
    empty_at: int = 0

    def advance(self, now: int) -> None:
        """Refill up to ``now``. A clock that steps back gives no refill, and counts on from there."""
        self.debt = max(0, self.debt - max(0, now - self.at) * self.limit)
        self.at = now

    def convert(self, limit: int, period: int) -> None:
        """The same bucket under other numbers."""
        if (self.limit, self.period) != (limit, period):
            self.debt = min(_ceil(self.debt, self.period), limit) * period
            self.limit, self.period = limit, period

    def measure(self, debt: int) -> tuple[int, int, int]:
        """Remaining, ms until unused, ms until one more."""
        full = self.limit * self.period
        remaining = max(0, (full - debt) // self.period)
        if debt <= 0:
            return remaining, 0, 0
        return remaining, _ceil(debt, self.limit), _ceil(debt - (full - (remaining + 1) * self.period), self.limit)


@define
class _Window:
    """An aligned window."""

    id: int
    used: int
    period: int


@define
class _Decision:
    """What one claim would do: whether it has to wait, how its limit stands, and how it is written."""

    wait: int
    measure: Callable[[bool], tuple[int, int, int]]
    claim: Callable[[], None]


@define
class LocalLimits:
    """Limits of one process. Times are milliseconds of whichever clock the caller keeps to. Nothing here waits."""

    _buckets: OrderedDict[str, Bucket] = field(factory=OrderedDict)
    _windows: OrderedDict[str, _Window] = field(factory=OrderedDict)
    _leases: dict[str, dict[str, int]] = field(factory=dict)
    _records: dict[str, tuple[int, list[int]]] = field(factory=dict)

    def admit(self, reservation_id: str, claims: Sequence[Claim], now: int) -> list[int]:
        """As ``admit.lua``, its answer included; there are no notices."""
        record = self._records.get(reservation_id)
        if record is not None:
            return list(record[1])
        checks = {"bucket": self._check_bucket, "window": self._check_window, "lease": self._check_lease}
        plans = [checks[claim.kind](claim, reservation_id, now) for claim in claims]
        is_admitted = all(plan.wait == 0 for plan in plans)
        answer = [int(is_admitted), now, 0]
        for plan in plans:
            answer += (*plan.measure(is_admitted), plan.wait)
        if is_admitted:
            for plan in plans:
                plan.claim()
            self._records[reservation_id] = now, list(answer)
        return answer

    def settle(self, reservation_id: str, used: Iterable[tuple[Claim, int]], now: int) -> bool:
        """As ``settle.lua``: put what was used in place of what was reserved, once."""
        record = self._records.pop(reservation_id, None)
        for claim, amount in used:
            if claim.kind == "lease":
                self.free(claim.key, reservation_id)
            elif record is not None and amount != claim.cost:
                settle = self._settle_bucket if claim.kind == "bucket" else self._settle_window
                settle(claim, amount - claim.cost, record[0], now)
        return record is not None

    def peek(self, claims: Iterable[Claim], now: int) -> list[int]:
        """As ``peek.lua``."""
        answer = [now]
        for claim in claims:
            if claim.kind == "bucket":
                bucket = self._load_bucket(claim, now)
                answer += bucket.measure(bucket.debt)
            elif claim.kind == "window":
                answer += self._check_window(claim, "", now).measure(False)
            else:
                answer += (max(0, claim.limit - len(self._held(claim.key, now))), 0, 0)
        return answer

    def hold(self, key: str, reservation_id: str, ends_at: int) -> None:
        """Note a lease that was taken elsewhere, or that is kept on."""
        self._leases.setdefault(key, {})[reservation_id] = ends_at

    def free(self, key: str, reservation_id: str) -> None:
        """End a lease; nothing happens when there is none."""
        held = self._leases.get(key)
        if held is not None:
            held.pop(reservation_id, None)
            if not held:
                del self._leases[key]

    def seed(self, claim: Claim, debt: int, now: int) -> None:
        """Let a bucket have at least this debt: what was known of it elsewhere."""
        bucket = self._load_bucket(claim, now)
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
        found = self._buckets.get(claim.key)
        if found is None:
            return Bucket(0, now, claim.limit, claim.period_ms)
        bucket = copy(found)
        bucket.advance(now)
        bucket.convert(claim.limit, claim.period_ms)
        return bucket

    def _save_bucket(self, key: str, bucket: Bucket) -> None:
        """An unused limit needs no memory."""
        self._buckets.pop(key, None)
        if bucket.debt > 0:
            self._buckets[key] = bucket
            while len(self._buckets) > MAX_LIMITS:
                self._buckets.popitem(last=False)

    def _save_window(self, key: str, window: _Window) -> None:
        self._windows.pop(key, None)
        if window.used > 0:
            self._windows[key] = window
            while len(self._windows) > MAX_LIMITS:
                self._windows.popitem(last=False)

    def _check_bucket(self, claim: Claim, _: str, now: int) -> _Decision:
        bucket = self._load_bucket(claim, now)
        found = self._buckets.get(claim.key)
        if found is not None and found.at > now:
            # The clock stepped back behind the last write: count from here, or nothing would refill until it is there.
            self._save_bucket(claim.key, copy(bucket))
        limit, period, cost = claim.limit, claim.period_ms, claim.cost
        excess = bucket.debt + (cost - limit) * period
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
            bucket = copy(found)
            bucket.advance(now)
        if difference > 0 or admitted_at >= bucket.empty_at:
            most = 2 * bucket.limit * bucket.period
            bucket.debt = max(0, min(bucket.debt + difference * bucket.period, most))
            self._save_bucket(claim.key, bucket)

    def _load_window(self, claim: Claim, now: int) -> _Window:
        id_ = now // claim.period_ms
        old = self._windows.get(claim.key)
        if old is None:
            return _Window(id_, 0, claim.period_ms)
        if old.period != claim.period_ms:
            return _Window(id_, old.used, claim.period_ms)
        return _Window(old.id, old.used, old.period) if old.id in (id_, id_ + 1) else _Window(id_, 0, old.period)

    def _check_window(self, claim: Claim, _: str, now: int) -> _Decision:
        window = self._load_window(claim, now)
        reset = (window.id + 1) * claim.period_ms - now
        fits = window.used + claim.cost <= claim.limit
        wait = 0 if fits else -1 if claim.cost > claim.limit else reset

        def measure(is_admitted: bool) -> tuple[int, int, int]:
            used = window.used + claim.cost if is_admitted else window.used
            return (max(0, claim.limit - used), reset, reset) if used else (claim.limit, 0, 0)

        def claim_it() -> None:
            window.used += claim.cost
            self._save_window(claim.key, window)

        return _Decision(wait, measure, claim_it)

    def _settle_window(self, claim: Claim, difference: int, admitted_at: int, now: int) -> None:
        window = self._load_window(claim, now)
        if difference > 0 or admitted_at // claim.period_ms >= window.id:
            window.used = max(0, window.used + difference)
            self._save_window(claim.key, window)

    def _held(self, key: str, now: int) -> dict[str, int]:
        return {name: end for name, end in self._leases.get(key, {}).items() if end > now}

    def _check_lease(self, claim: Claim, reservation_id: str, now: int) -> _Decision:
        held = self._held(claim.key, now)
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
