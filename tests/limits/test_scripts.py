"""The Lua, case by case, on a real server with a clock of the test's own."""

from __future__ import annotations

import itertools
import os
import struct
from typing import cast

import pytest
import redis
from attrs import evolve

from cgw.limits.scripts import load_scripts
from cgw.model import MAX_TOKEN_MS
from tests.support.limit_store import NOTICE, RECORD, START_MS, Answer, Limit, Store

DRIFT_OPERATIONS = int(os.environ.get("CGW_DRIFT_OPERATIONS", "10_000"))
"""Claims and settlements of the test of drift; a million take about half a minute."""


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
