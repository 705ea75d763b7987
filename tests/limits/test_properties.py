"""Properties of any sequence of calls: the Lua, and cgw's limits without Redis, compared with a model."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from typing import Any

from attrs import evolve
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cgw.limits.offline.local import LocalLimits
from tests.support.limit_model import Model
from tests.support.limit_store import Answer, Limit, LimitStore, as_claim

EXAMPLES = int(os.environ.get("CGW_EXAMPLES", "150"))
"""Sequences per property; 3,000 take about a minute in all."""
quick = settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture])

LIMITS = [
    Limit("{t}:quota", "bucket", 7, 86_400_000),
    Limit("{t}:rate", "bucket", 3, 10_000),
    Limit("{t}:odd", "bucket", 11, 7_919),
    Limit("{t}:tokens", "bucket", 100_003, 3_600_000),
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


def _play(store: LimitStore, script: Sequence[tuple[Any, ...]]) -> None:
    """Play the steps on the Lua, on its model and on cgw's limits without Redis, and compare every answer."""
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


@quick
@given(st.lists(steps, max_size=40))
def test_scripts_and_local_limits_do_what_the_model_does(store: LimitStore, script: list[tuple[Any, ...]]) -> None:
    """Any sequence of claims, repeats, renewals, settlements and time gives exactly the model's answers."""
    store.reset()
    _play(store, script)


@quick
@given(st.lists(st.one_of(steps, st.tuples(st.just("advance"), st.integers(-5_000, -1))), max_size=30))
def test_a_clock_that_steps_back_is_no_refill(store: LimitStore, script: list[tuple[Any, ...]]) -> None:
    """The same holds when the server's clock steps back at times."""
    store.reset()
    _play(store, [step for step in script if step[0] != "settle"])


@quick
@given(
    st.integers(1, 50),
    st.integers(1, 5_000),
    st.lists(st.tuples(st.integers(0, 3_000), st.integers(1, 3)), max_size=40),
)
def test_never_above_the_limit(store: LimitStore, size: int, period: int, calls: list[tuple[int, int]]) -> None:
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
def test_refunds_are_exact(store: LimitStore, script: list[Any]) -> None:
    """While the clock stands still, remaining is the limit less what is claimed, whatever was given back in between."""
    store.reset()
    limits = [Limit("{t}:q", "bucket", 10, 86_400_000), Limit("{t}:w", "bucket", 10, 60_000)]
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
def test_order_of_limits_is_irrelevant(store: LimitStore, order: list[int], pauses: list[int]) -> None:
    """The same limits in another order give the same answers."""
    store.reset()

    def limits(name: str) -> list[Limit]:
        return [evolve(LIMITS[index], key=f"{{t}}:{name}:{index}") for index in (0, 1, 2, 4)]

    here, there = limits("a"), limits("b")
    for number, pause in enumerate(pauses):
        store.set_clock(store.now + pause)
        is_admitted, answers = store.admit(f"a{number}", [(limit, 1) for limit in here])
        is_admitted_there, shuffled = store.admit(f"b{number}", [(there[index], 1) for index in order])
        assert is_admitted == is_admitted_there
        assert [answers[index] for index in order] == shuffled
