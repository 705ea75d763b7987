"""The Lua, on a real server with a clock of the test's own, against a model in exact integers."""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest
import redis
from attrs import define, evolve, field, frozen
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cgw.limits.claims import Claim, LimitKind
from cgw.limits.local import LocalLimits
from cgw.limits.scripts import load_scripts
from cgw.model import MAX_TOKEN_MS
from cgw.transport.redis_links import Script

START_MS = 1_800_000_000_000
CLOCK = "test:clock"
RECORD = "{t}:record:"
NOTICE = "{t}:notice"
DRIFT_OPERATIONS = int(os.environ.get("CGW_DRIFT_OPERATIONS", "10_000"))
"""Claims and settlements of the test of drift; a million take about a minute."""
Check = tuple[int, Callable[[], None], Callable[[], tuple[int, int, int]]]
"""The wait of one limit, what claims from it, and what measures it."""
EXAMPLES = int(os.environ.get("CGW_EXAMPLES", "150"))
quick = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@frozen
class Limit:
    """One limit as the scripts take it."""

    key: str
    kind: str
    limit: int
    period: int


@frozen
class Answer:
    """What one limit says: remaining, reset, more, wait."""

    remaining: int
    reset: int
    more: int
    wait: int


class Store:
    """The shipped scripts, but for two words: the clock is a key, and keys live long enough for a slow machine."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        scripts = load_scripts()
        shipped = (scripts.admit, scripts.settle, scripts.renew, scripts.peek)
        self._admit, self._settle, self._renew, self._peek = (
            client.register_script(with_test_clock(script)) for script in shipped
        )
        self.reset()

    def reset(self) -> None:
        """An empty server at the first moment."""
        self.client.flushall()
        self.set_clock(START_MS)

    def set_clock(self, milliseconds: int) -> None:
        self.now = milliseconds
        self.client.delete(CLOCK)
        self.client.rpush(CLOCK, milliseconds // 1000, milliseconds % 1000 * 1000 + 999)

    def dump(self) -> dict[bytes, bytes | None]:
        """All keys and what they hold."""
        return {key: self.client.dump(key) for key in self.client.scan_iter()}

    def admit(self, rid: str, claims: Sequence[tuple[Limit, int]]) -> tuple[bool, list[Answer]]:
        return self.admit_noting(rid, claims, "")[1:]

    def admit_noting(
        self, rid: str, claims: Sequence[tuple[Limit, int]], thresholds: str
    ) -> tuple[int, bool, list[Answer]]:
        keys = [RECORD + rid, *(limit.key for limit, _ in claims), *([NOTICE] if thresholds else [])]
        args: list[Any] = [rid, 3_600_000, thresholds]
        for limit, cost in claims:
            args += [limit.kind, limit.limit, limit.period, cost]
        reply = self._admit(keys, args)
        assert len(reply) == 3 + 4 * len(claims)
        return reply[2], reply[0] == 1, [Answer(*reply[at : at + 4]) for at in range(3, len(reply), 4)]

    def settle(self, rid: str, claims: Sequence[tuple[Limit, int, int]]) -> bool:
        return self.settle_noting(rid, claims, "")[1]

    def settle_noting(
        self, rid: str, claims: Sequence[tuple[Limit, int, int]], thresholds: str, mark_ms: int = 0
    ) -> tuple[int, bool]:
        keys = [RECORD + rid, *(limit.key for limit, _, _ in claims), *([NOTICE] if thresholds else [])]
        args: list[Any] = [rid, mark_ms, thresholds]
        for limit, reserved, used in claims:
            args += [limit.kind, limit.limit, limit.period, reserved, used]
        is_settled, threshold = self._settle(keys, args)
        return threshold, is_settled == 1

    def renew(self, limit: Limit, rids: Sequence[str]) -> int:
        """Keep leases, and take again those that were lost; returns how many those were."""
        lost = self._renew([limit.key], [limit.period, "keep", *rids])
        if lost:
            assert self._renew([limit.key], [limit.period, "take", *lost]) == []
        return len(lost)

    def keep(self, limit: Limit, rids: Sequence[str]) -> list[bytes]:
        kept: list[bytes] = self._renew([limit.key], [limit.period, "keep", *rids])
        return kept

    def queue(self, pipeline: Any, rid: str, limit: Limit, *, reserved: int, used: int) -> None:
        """Put an admission and its settlement into a pipeline."""
        keys = [RECORD + rid, limit.key]
        claim: list[Any] = [limit.kind, limit.limit, limit.period, reserved]
        self._admit(keys, [rid, 3_600_000, "", *claim], client=pipeline)
        self._settle(keys, [rid, 0, "", *claim, used], client=pipeline)

    def peek(self, limits: Sequence[Limit]) -> list[tuple[int, int, int]]:
        args = [part for limit in limits for part in (limit.kind, limit.limit, limit.period)]
        reply = self._peek([limit.key for limit in limits], args)
        return [tuple(reply[at : at + 3]) for at in range(1, len(reply), 3)]


def with_test_clock(script: Script) -> str:
    for old, new in (
        ("call('TIME')", f"call('LRANGE', '{CLOCK}', 0, 1)"),
        ("SLACK_MS = 1000", "SLACK_MS = 3600000"),
    ):
        assert script.text.count(old) == 1
        script = Script.from_text(script.text.replace(old, new))
    return script.text


def as_claim(limit: Limit, cost: int) -> Claim:
    """The same, as cgw's own."""
    return Claim("quota", cast(LimitKind, limit.kind), limit.key, limit.limit, limit.period, cost)


def _ceil(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)


@define
class Bucket:
    """A token bucket in exact integers."""

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
class Window:
    """An aligned window."""

    id: int
    used: int
    period: int


@define
class Model:
    """What the scripts should do, written without them."""

    buckets: dict[str, Bucket] = field(factory=dict)
    windows: dict[str, Window] = field(factory=dict)
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
        bucket = self.buckets.get(limit.key, Bucket(0, now, limit.limit, limit.period, 0))
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

    def _check_window(self, now: int, _: str, limit: Limit, cost: int) -> Check:
        window = self._window(now, limit)
        reset = (window.id + 1) * limit.period - now
        wait = 0 if window.used + cost <= limit.limit else -1 if cost > limit.limit else reset

        def claim() -> None:
            window.used += cost
            self.windows[limit.key] = window

        def measure() -> tuple[int, int, int]:
            left = max(0, limit.limit - window.used)
            return (left, reset, reset) if window.used else (left, 0, 0)

        return wait, claim, measure

    def _window(self, now: int, limit: Limit) -> Window:
        id_ = now // limit.period
        old = self.windows.get(limit.key)
        if old is None or (old.period == limit.period and old.id not in {id_, id_ + 1}):
            return Window(id_, 0, limit.period)
        return evolve(old) if old.period == limit.period else Window(id_, old.used, limit.period)

    def _check_lease(self, now: int, rid: str, limit: Limit, cost: int) -> Check:
        held = {name: end for name, end in self.leases.get(limit.key, {}).items() if end > now}
        wait = 0
        if len(held) + cost > limit.limit:
            wait = -1 if cost > limit.limit else max(1, min(min(held.values()) - now, 1000))

        def claim() -> None:
            # The lapsed are dropped only where nobody is left, as a heartbeat may still come for them.
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
                getattr(self, f"_settle_{limit.kind}")(now, record[0], limit, used - reserved)
        return record is not None

    def _settle_bucket(self, now: int, admitted_at: int, limit: Limit, difference: int) -> None:
        bucket = self.buckets.get(limit.key)
        if bucket is None or bucket.debt == 0:
            bucket = self.buckets[limit.key] = Bucket(0, now, limit.limit, limit.period, now)
        bucket.refill(now)
        if difference > 0 or admitted_at >= bucket.empty_at:
            change = difference * bucket.period
            bucket.debt = max(0, min(bucket.debt + change, 2 * bucket.limit * bucket.period))

    def _settle_window(self, now: int, admitted_at: int, limit: Limit, difference: int) -> None:
        window = self._window(now, limit)
        if difference > 0 or admitted_at // limit.period >= window.id:
            window.used = max(0, window.used + difference)
            self.windows[limit.key] = window


LIMITS = [
    Limit("{t}:quota", "bucket", 7, 86_400_000),
    Limit("{t}:rate", "bucket", 3, 10_000),
    Limit("{t}:odd", "bucket", 11, 7_919),
    Limit("{t}:tokens", "bucket", 100_003, 3_600_000),
    Limit("{t}:window", "window", 4, 60_000),
    Limit("{t}:inflight", "lease", 2, 30_000),
]


def _cost_of(limit: Limit) -> st.SearchStrategy[int]:
    if limit.kind == "lease":
        return st.just(1)
    return st.integers(1, limit.limit + 1) if limit.limit > 1000 else st.sampled_from([1, 1, 1, 2, limit.limit + 1])


claims_of_a_call = st.lists(st.sampled_from(LIMITS), min_size=1, max_size=5, unique_by=lambda limit: limit.key).flatmap(
    lambda chosen: st.tuples(*(st.tuples(st.just(limit), _cost_of(limit)) for limit in chosen))
)
steps = st.one_of(
    st.tuples(st.just("admit"), claims_of_a_call),
    st.tuples(st.just("admit"), claims_of_a_call),
    st.tuples(st.just("again"), st.integers(0, 30)),
    st.tuples(st.just("settle"), st.integers(0, 30), st.lists(st.integers(0, 3), min_size=5, max_size=5)),
    st.tuples(st.just("renew"), st.integers(0, 30)),
    st.tuples(st.just("advance"), st.one_of(st.integers(1, 20_000), st.sampled_from([60_000, 12_342_857, 86_400_000]))),
)


def _play(store: Store, script: Sequence[tuple[Any, ...]]) -> None:
    """Play the steps on all sides (the Lua, its model, cgw's own limits without Redis) and compare every answer."""
    model, local = Model(), LocalLimits()
    admitted: list[tuple[str, tuple[tuple[Limit, int], ...]]] = []
    names = itertools.count()

    def admit(rid: str, claims: Sequence[tuple[Limit, int]]) -> bool:
        answer = store.admit(rid, claims)
        assert answer == model.admit(store.now, rid, claims)
        said = local.admit(rid, [as_claim(*claim) for claim in claims], store.now)
        assert (said[0] == 1, [Answer(*said[at : at + 4]) for at in range(3, len(said), 4)]) == answer
        return answer[0]

    for step in script:
        if step[0] == "advance":
            store.set_clock(store.now + step[1])
        elif step[0] == "admit":
            rid = f"r{next(names)}"
            if admit(rid, step[1]):
                admitted.append((rid, step[1]))
        elif admitted:
            rid, claims = admitted[step[1] % len(admitted)]
            if step[0] == "again" and rid in model.records:
                admit(rid, claims)
            elif step[0] == "renew" and rid in model.records:
                for limit in (limit for limit, _ in claims if limit.kind == "lease"):
                    assert store.renew(limit, [rid]) == model.renew(store.now, rid, limit)
                    local.hold(limit.key, rid, store.now + limit.period)
            elif step[0] == "settle":
                used = [(limit, cost, cost * part // 2) for (limit, cost), part in zip(claims, step[2], strict=False)]
                is_first = store.settle(rid, used)
                assert is_first == model.settle(store.now, rid, used)
                spent = [(as_claim(limit, cost), amount) for limit, cost, amount in used]
                assert is_first == local.settle(rid, spent, store.now)
    limits = [limit for limit in LIMITS if limit.kind != "lease" or model.leases.get(limit.key)]
    said = local.peek([as_claim(limit, 1) for limit in limits], store.now)
    assert store.peek(limits) == [tuple(said[at : at + 3]) for at in range(1, len(said), 3)]


@pytest.fixture(scope="module")
def store(client: redis.Redis) -> Store:
    """The scripts on the server, with a clock to set."""
    return Store(client)


@quick
@given(st.lists(steps, max_size=40))
def test_scripts_and_local_limits_do_what_the_model_does(store: Store, script: list[tuple[Any, ...]]) -> None:
    """Any sequence of claims, repeats, renewals, settlements and time gives exactly the model's answers, everywhere."""
    store.reset()
    _play(store, script)


@quick
@given(st.lists(st.one_of(steps, st.tuples(st.just("advance"), st.integers(-5_000, -1))), max_size=30))
def test_a_clock_that_steps_back_is_no_refill(store: Store, script: list[tuple[Any, ...]]) -> None:
    """The same holds when the server's clock steps back now and then."""
    store.reset()
    _play(store, [step for step in script if step[0] != "settle"])


@quick
@given(
    st.integers(1, 50),
    st.integers(1, 5_000),
    st.lists(st.tuples(st.integers(0, 3_000), st.integers(1, 3)), max_size=40),
)
def test_never_above_the_limit(store: Store, size: int, period: int, calls: list[tuple[int, int]]) -> None:
    """In any span of time at most the limit and its refill is admitted, and nothing less is refused."""
    store.reset()
    limit = Limit("{t}:a", "bucket", size, period)
    admitted: list[tuple[int, int]] = []
    for number, (pause, cost) in enumerate(calls):
        store.set_clock(store.now + pause)
        is_admitted, (answer,) = store.admit(f"n{number}", [(limit, cost)])
        spans = [(at, sum(c for t, c in admitted if t >= at) + cost) for at in {t for t, _ in admitted} | {store.now}]
        fits = all(total * period <= size * period + size * (store.now - at) for at, total in spans)
        assert is_admitted == fits
        if is_admitted:
            admitted.append((store.now, cost))
        elif cost <= size:
            later = store.now + answer.wait
            assert all(total * period <= size * period + size * (later - at) for at, total in spans)


@quick
@given(st.lists(st.one_of(st.just("admit"), st.integers(0, 20)), max_size=60))
def test_refunds_are_exact(store: Store, script: list[Any]) -> None:
    """While the clock stands still, remaining is the limit less what stands, whatever was given back in between."""
    store.reset()
    limits = [Limit("{t}:q", "bucket", 10, 86_400_000), Limit("{t}:w", "window", 10, 86_400_000)]
    claims = [(limit, 1) for limit in limits]
    standing: list[str] = []
    for number, step in enumerate(script):
        if step == "admit":
            is_admitted, _ = store.admit(f"s{number}", claims)
            assert is_admitted == (len(standing) < 10)
            if is_admitted:
                standing.append(f"s{number}")
        elif standing:
            assert store.settle(standing.pop(step % len(standing)), [(limit, 1, 0) for limit in limits])
        assert [remaining for remaining, _, _ in store.peek(limits)] == [10 - len(standing)] * 2


@quick
@given(st.permutations(range(4)), st.lists(st.integers(0, 15_000), min_size=1, max_size=15))
def test_order_of_limits_is_irrelevant(store: Store, order: list[int], pauses: list[int]) -> None:
    """The same limits in another order give the same answers."""
    store.reset()

    def limits(name: str) -> list[Limit]:
        return [evolve(LIMITS[index], key=f"{{t}}:{name}:{index}") for index in (0, 1, 4, 5)]

    here, there = limits("a"), limits("b")
    for number, pause in enumerate(pauses):
        store.set_clock(store.now + pause)
        is_admitted, answers = store.admit(f"a{number}", [(limit, 1) for limit in here])
        is_admitted_there, shuffled = store.admit(f"b{number}", [(there[index], 1) for index in order])
        assert is_admitted == is_admitted_there
        assert [answers[index] for index in order] == shuffled


def test_a_refusal_changes_nothing(store: Store) -> None:
    """When one limit refuses, no key of any other limit is written."""
    store.reset()
    narrow, wide = Limit("{t}:n", "bucket", 1, 1_000), Limit("{t}:x", "bucket", 9, 1_000)
    lease, window = Limit("{t}:l", "lease", 3, 1_000), Limit("{t}:v", "window", 3, 1_000)
    assert store.admit("one", [(narrow, 1)])[0]
    before = store.dump()
    assert not store.admit("two", [(wide, 1), (lease, 1), (window, 1), (narrow, 1)])[0]
    assert store.dump() == before


def test_a_claim_larger_than_its_limit_waits_for_nothing(store: Store) -> None:
    """Waiting is pointless for what never fits."""
    store.reset()
    for kind in ("bucket", "window"):
        is_admitted, (answer,) = store.admit("big", [(Limit(f"{{t}}:{kind}", kind, 3, 1_000), 4)])
        assert (is_admitted, answer.wait) == (False, -1)


def test_settling_counts_once(store: Store) -> None:
    """The second settlement of a reservation, and that of one that never was, do nothing."""
    store.reset()
    limit = Limit("{t}:o", "bucket", 5, 60_000)
    for rid in ("one", "two"):
        store.admit(rid, [(limit, 1)])
    assert store.settle("one", [(limit, 1, 0)])
    assert not store.settle("one", [(limit, 1, 0)])
    assert not store.settle("never", [(limit, 1, 0)])
    assert store.peek([limit])[0][0] == 4


def test_more_than_reserved_is_charged(store: Store) -> None:
    """What was used beyond the reservation counts, up to two full buckets."""
    store.reset()
    limit = Limit("{t}:t", "bucket", 100, 1_000)
    store.admit("one", [(limit, 10)])
    store.settle("one", [(limit, 10, 150)])
    assert store.peek([limit]) == [(0, 1_500, 510)]
    store.set_clock(START_MS + 1_000)
    store.admit("two", [(limit, 10)])
    store.settle("two", [(limit, 10, 2**50)])
    assert store.peek([limit]) == [(0, 2_000, 1_010)]


def test_nothing_comes_back_of_a_bucket_that_was_empty_since(store: Store) -> None:
    """Time has paid the claim already: giving it back too would let more through than the limit."""
    store.reset()
    limit = Limit("{t}:e", "bucket", 2, 1_000)
    store.admit("old", [(limit, 1)])
    store.set_clock(START_MS + 1_000)
    store.admit("new", [(limit, 1)])
    assert store.settle("old", [(limit, 1, 0)])
    assert store.peek([limit])[0][0] == 1


def test_nothing_comes_back_of_a_window_that_ended(store: Store) -> None:
    """A refund belongs to the window it was claimed in."""
    store.reset()
    limit = Limit("{t}:w", "window", 2, 1_000)
    store.admit("old", [(limit, 1)])
    store.set_clock(START_MS + 1_000)
    store.admit("new", [(limit, 1)])
    store.settle("old", [(limit, 1, 0)])
    assert store.peek([limit])[0][0] == 1


def test_a_lease_ends_by_itself_or_is_freed(store: Store) -> None:
    """In-flight places come back when they are settled, and when their time is over."""
    store.reset()
    limit = Limit("{t}:l", "lease", 2, 1_000)
    assert store.admit("one", [(limit, 1)])[0]
    store.set_clock(START_MS + 400)
    assert store.admit("two", [(limit, 1)])[0]
    assert store.admit("three", [(limit, 1)]) == (False, [Answer(0, 0, 0, 600)])
    store.settle("two", [(limit, 1, 1)])
    assert store.admit("three", [(limit, 1)])[0]
    store.set_clock(START_MS + 1_000)
    assert store.peek([limit]) == [(1, 0, 0)]
    store.client.delete(RECORD + "three")
    assert not store.settle("three", [(limit, 1, 1)])
    assert store.peek([limit]) == [(2, 0, 0)]


def test_a_place_comes_free_whatever_became_of_the_other_limits(store: Store) -> None:
    """A key that came to hold something else ends the settlement, but not before the place in flight is free."""
    store.reset()
    quota, lease = Limit("{t}:q", "bucket", 5, 60_000), Limit("{t}:l", "lease", 2, 1_000)
    store.admit("one", [(quota, 1), (lease, 1)])
    store.client.set(quota.key, "something else")
    with pytest.raises(redis.ResponseError, match="holds no bucket"):
        store.settle("one", [(quota, 1, 0), (lease, 1, 1)])
    assert store.peek([lease]) == [(2, 0, 0)]


def test_a_lease_is_kept_and_taken_again(store: Store) -> None:
    """A heartbeat keeps a lease, takes a lost one again, and says so; a lease without one ends."""
    store.reset()
    limit = Limit("{t}:l", "lease", 2, 1_000)
    store.admit("one", [(limit, 1)])
    store.admit("two", [(limit, 1)])
    store.set_clock(START_MS + 900)
    assert store.renew(limit, ["one"]) == 0
    store.set_clock(START_MS + 1_800)
    assert store.peek([limit]) == [(1, 0, 0)]
    store.client.delete(limit.key)
    assert store.renew(limit, ["one", "three"]) == 2
    assert not store.admit("four", [(limit, 1)])[0]


def test_a_late_heartbeat_takes_nothing(store: Store) -> None:
    """What was freed stays free when a heartbeat comes late, over a connection that was lost."""
    store.reset()
    limit = Limit("{t}:l", "lease", 2, 1_000)
    store.admit("one", [(limit, 1)])
    store.settle("one", [(limit, 1, 1)])
    assert store.keep(limit, ["one"]) == [b"one"]
    assert store.peek([limit])[0][0] == 2


def test_an_admission_that_was_given_up_before_it_came_is_void(store: Store) -> None:
    """Over two connections the undo may overtake what it undoes: that consumes nothing then, however often it comes."""
    store.reset()
    quota, lease = Limit("{t}:q", "bucket", 2, 86_400_000), Limit("{t}:l", "lease", 2, 1_000)
    spent = [(quota, 1, 0), (lease, 1, 0)]
    for _ in range(2):
        assert store.settle_noting("late", spent, "", mark_ms=-60_000) == (0, False)
    for _ in range(2):
        with pytest.raises(redis.ResponseError, match="late was given up"):
            store.admit("late", [(quota, 1), (lease, 1)])
    assert [left for left, _, _ in store.peek([quota, lease])] == [2, 2]
    assert 50_000 < store.client.pttl(RECORD + "late") <= 60_000
    store.admit("early", [(quota, 1), (lease, 1)])
    for is_first in (True, False):
        assert store.settle_noting("early", spent, "", mark_ms=-60_000) == (0, is_first)
    assert [left for left, _, _ in store.peek([quota, lease])] == [2, 2]


def test_thresholds_are_told_once_per_interval(store: Store) -> None:
    """What was charged reaches 90, 95, 100 % once each, a refusal 100 %; after the interval it begins anew."""
    store.reset()
    quota, all_of_it = Limit("{t}:q", "bucket", 20, 86_400_000), "90 95 100"
    told = []
    for number in range(20):
        rid = f"n{number}"
        assert store.admit_noting(rid, [(quota, 1)], all_of_it)[:2] == (0, True)
        told.append(store.settle_noting(rid, [(quota, 1, 1)], all_of_it)[0])
        assert store.settle_noting(rid, [(quota, 1, 1)], all_of_it) == (0, False)
    assert told == [0] * 17 + [90, 95, 100]
    assert store.admit_noting("over", [(quota, 1)], all_of_it)[:2] == (0, False)
    assert 86_000_000 < store.client.pttl(NOTICE) <= 86_400_000
    store.client.delete(NOTICE)  # as when it expires
    assert store.admit_noting("over", [(quota, 1)], all_of_it)[:2] == (100, False)
    assert store.admit_noting("over", [(quota, 1)], all_of_it)[:2] == (0, False)


def test_what_is_given_back_reaches_no_threshold(store: Store) -> None:
    """Requests that are not charged are no usage, however many there were; nor is waiting for the short-term rate."""
    store.reset()
    quota, rate = Limit("{t}:q", "bucket", 10, 86_400_000), Limit("{t}:r", "bucket", 10, 1_000)
    for number in range(10):
        assert store.admit_noting(f"n{number}", [(quota, 1), (rate, 1)], "50")[1]
    for number in range(10):
        assert store.settle_noting(f"n{number}", [(quota, 1, 0), (rate, 1, 1)], "50") == (0, True)
    assert store.admit_noting("refused", [(quota, 1), (rate, 1)], "50")[:2] == (0, False)


def test_thresholds_of_tokens_go_by_what_was_used(store: Store) -> None:
    """A large reservation reaches nothing, its small settlement neither; a larger one than reserved does."""
    store.reset()
    quota = Limit("{t}:q", "bucket", 1_000, 86_400_000)
    store.admit_noting("one", [(quota, 1_000)], "90 100")
    assert store.settle_noting("one", [(quota, 1_000, 10)], "90 100")[0] == 0
    store.admit_noting("two", [(quota, 500)], "90 100")
    assert store.settle_noting("two", [(quota, 500, 950)], "90 100")[0] == 90


def test_what_was_used_elsewhere_is_charged_once(store: Store) -> None:
    """A settlement without a reservation here counts by its id, once, and starts a limit that was unused."""
    store.reset()
    quota, rate = Limit("{t}:q", "bucket", 10, 86_400_000), Limit("{t}:r", "window", 10, 1_000)
    for is_first in (True, False):
        assert store.settle_noting("w", [(quota, 0, 4), (rate, 0, 3)], "", mark_ms=60_000) == (0, is_first)
    assert [remaining for remaining, _, _ in store.peek([quota, rate])] == [6, 7]
    assert 50_000 < store.client.pttl(RECORD + "w") <= 60_000


def test_many_operations_do_not_drift(store: Store) -> None:
    """After a great many claims, half of them given back, the debt is exact to the token-millisecond."""
    store.reset()
    limit = Limit("{t}:d", "bucket", 5_000_003, 86_399_999)
    numbers = iter(range(DRIFT_OPERATIONS // 2))
    charged = 0
    while batch := list(itertools.islice(numbers, 500)):
        with store.client.pipeline(transaction=False) as pipeline:
            for number in batch:
                used = number % 2 * 3
                charged += used
                store.queue(pipeline, f"d{number}", limit, reserved=3, used=used)
            answers = pipeline.execute()
        assert all(
            admitted[0] == 1 and settled == [1, 0] for admitted, settled in zip(*[iter(answers)] * 2, strict=True)
        )
    debt = struct.unpack("<4sddddd", cast(bytes, store.client.get(limit.key)))[1]
    assert debt == charged * limit.period


def test_changed_limits_act_at_once(store: Store) -> None:
    """Under new numbers the used tokens stay used, and nobody waits for more than one full bucket."""
    store.reset()
    limit = Limit("{t}:c", "bucket", 10, 86_400_000)
    for number in range(6):
        store.admit(f"c{number}", [(limit, 1)])
    assert store.peek([evolve(limit, limit=20)])[0][0] == 14
    assert store.peek([evolve(limit, limit=5)]) == [(0, 86_400_000, 17_280_000)]
    assert store.peek([evolve(limit, period=60_000)])[0] == (4, 36_000, 6_000)
    assert store.admit("more", [(evolve(limit, limit=20), 14)])[0]
    assert not store.admit("less", [(evolve(limit, limit=20), 1)])[0]


def test_a_far_step_back_does_not_freeze_a_bucket(store: Store) -> None:
    """After the clock was set back by a day, an empty bucket fills at its pace from there."""
    store.reset()
    limit = Limit("{t}:b", "bucket", 1, 1_000)
    assert store.admit("one", [(limit, 1)])[0]
    store.set_clock(START_MS - 86_400_000)
    assert store.admit("two", [(limit, 1)]) == (False, [Answer(0, 1_000, 1_000, 1_000)])
    store.set_clock(START_MS - 86_400_000 + 1_000)
    assert store.admit("two", [(limit, 1)])[0]


@pytest.mark.parametrize("period", [1, 1_000, 86_400_000, 2_592_000_000])
def test_the_largest_limits_are_exact(store: Store, period: int) -> None:
    """At the edge of what is allowed no token is lost or won, also in the answer to a repeat."""
    store.reset()
    limit = Limit("{t}:h", "bucket", MAX_TOKEN_MS // period, period)
    whole = store.admit("whole", [(limit, limit.limit - 1)])
    assert whole[1][0].remaining == 1
    assert store.admit("whole", [(limit, limit.limit - 1)]) == whole
    assert store.admit("last", [(limit, 1)])[1][0].remaining == 0
    assert not store.admit("over", [(limit, 1)])[0]
    store.settle("whole", [(limit, limit.limit - 1, 0)])
    assert store.peek([limit])[0][0] == limit.limit - 1


def test_keys_expire_when_they_say_nothing_more(client: redis.Redis) -> None:
    """With the shipped text: a bucket's key lives until it is full again and a second more."""
    client.flushall()
    admit = client.register_script(load_scripts().admit.text)
    admit(["r", "k"], ["r", 60_000, "", "bucket", 10, 100_000, 1])
    assert 10_000 < client.pttl("k") <= 11_000
    assert 59_000 < client.pttl("r") <= 60_000
    admit(["r2", "l"], ["r2", 60_000, "", "lease", 10, 5_000, 1])
    assert 5_000 < client.pttl("l") <= 6_000


@pytest.mark.parametrize("kind", ["bucket", "window", "lease"])
@pytest.mark.parametrize("content", ["text", "list"])
def test_foreign_content_is_an_error(client: redis.Redis, kind: str, content: str) -> None:
    """A key that holds something else is never taken for a limit, nor overwritten, and the error names it."""
    client.flushall()
    if content == "text":
        client.set("k", "what is this")
    else:
        client.rpush("k", "what", "is", "this")
    before = client.dump("k")
    admit = client.register_script(load_scripts().admit.text)
    with pytest.raises(redis.ResponseError, match="key k holds no"):
        admit(["r", "k"], ["r", 60_000, "", kind, 10, 100_000, 1])
    assert client.dump("k") == before
