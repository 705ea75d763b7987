"""A model of the limits' Lua for property tests, in exact integers, written independently of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from attrs import define, evolve, field

from tests.support.limit_store import Answer, Limit

Check = tuple[int, Callable[[], None], Callable[[], tuple[int, int, int]]]
"""The wait of one limit, a function that claims from it, and one that measures it."""


def _ceil(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)


@define
class ModelBucket:
    """A token bucket; ``debt`` in tokens × milliseconds."""

    debt: int
    at: int
    limit: int
    period: int
    empty_at: int

    def refill(self, now: int) -> None:
        self.debt = max(0, self.debt - max(0, now - self.at) * self.limit)
        self.at = now

    def convert(self, limit: int, period: int) -> None:
        if (self.limit, self.period) != (limit, period):
            self.debt = min(_ceil(self.debt, self.period), limit) * period
            self.limit, self.period = limit, period

    def measure(self) -> tuple[int, int, int]:
        full = self.limit * self.period
        remaining = max(0, (full - self.debt) // self.period)
        if self.debt == 0:
            return remaining, 0, 0
        missing = self.debt - (full - (remaining + 1) * self.period)
        return remaining, _ceil(self.debt, self.limit), _ceil(missing, self.limit)


@define
class Model:
    """The expected behaviour of the scripts."""

    buckets: dict[str, ModelBucket] = field(factory=dict)
    leases: dict[str, dict[str, int]] = field(factory=dict)
    records: dict[str, tuple[int, list[Answer]]] = field(factory=dict)

    def admit(self, now: int, rid: str, claims: Sequence[tuple[Limit, int]]) -> tuple[bool, list[Answer]]:
        if rid in self.records:
            return True, self.records[rid][1]
        plans = [getattr(self, f"_check_{limit.kind}")(now, rid, limit, cost) for limit, cost in claims]
        admitted = all(wait == 0 for wait, _, _ in plans)
        answers = []
        for wait, claim, measure in plans:
            if admitted:
                claim()
            remaining, reset, more = measure()
            answers.append(Answer(remaining, reset, more, wait))
        if admitted:
            self.records[rid] = (now, answers)
        return admitted, answers

    def _check_bucket(self, now: int, _: str, limit: Limit, cost: int) -> Check:
        bucket = self.buckets.get(limit.key, ModelBucket(0, now, limit.limit, limit.period, 0))
        was_ahead = bucket.at > now
        looked_at = evolve(bucket)
        looked_at.refill(now)
        looked_at.convert(limit.limit, limit.period)
        if was_ahead:
            bucket = self.buckets[limit.key] = evolve(looked_at)
        excess = looked_at.debt + cost * limit.period - limit.limit * limit.period
        wait = 0 if excess <= 0 else -1 if cost > limit.limit else _ceil(excess, limit.limit)

        def claim() -> None:
            if looked_at.debt == 0:
                looked_at.empty_at = now
            looked_at.debt += cost * limit.period
            self.buckets[limit.key] = looked_at

        return wait, claim, looked_at.measure

    def _check_lease(self, now: int, rid: str, limit: Limit, cost: int) -> Check:
        held = {name: end for name, end in self.leases.get(limit.key, {}).items() if end > now}
        wait = 0
        if len(held) + cost > limit.limit:
            wait = -1 if cost > limit.limit else max(1, min(min(held.values()) - now, 1000))

        def claim() -> None:
            # Leases that ended are dropped only if none is held: a late heartbeat may still renew them.
            if not held:
                self.leases[limit.key] = {}
            self.leases[limit.key][rid] = held[rid] = now + limit.period

        return wait, claim, lambda: (max(0, limit.limit - len(held)), 0, 0)

    def renew(self, now: int, rid: str, limit: Limit) -> int:
        held = self.leases.setdefault(limit.key, {})
        is_lost = int(rid not in held)
        held[rid] = now + limit.period
        self.leases[limit.key] = {name: end for name, end in held.items() if end > now}
        return is_lost

    def settle(self, now: int, rid: str, claims: Sequence[tuple[Limit, int, int]]) -> bool:
        record = self.records.pop(rid, None)
        for limit, reserved, used in claims:
            if limit.kind == "lease":
                self.leases.get(limit.key, {}).pop(rid, None)
            elif record is not None and used != reserved:
                self._settle_bucket(now, record[0], limit, used - reserved)
        return record is not None

    def _settle_bucket(self, now: int, admitted_at: int, limit: Limit, difference: int) -> None:
        bucket = self.buckets.get(limit.key)
        if bucket is None or bucket.debt == 0:
            bucket = self.buckets[limit.key] = ModelBucket(0, now, limit.limit, limit.period, now)
        bucket.refill(now)
        if difference > 0 or admitted_at >= bucket.empty_at:
            change = difference * bucket.period
            bucket.debt = max(0, min(bucket.debt + change, 2 * bucket.limit * bucket.period))
