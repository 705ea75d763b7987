"""The Lua, case by case, on a real server with a clock that the test sets."""

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
from tests.support.limit_store import ALERT, RECORD, START_MS, Answer, Limit, LimitStore

DRIFT_OPERATIONS = int(os.environ.get("CGW_DRIFT_OPERATIONS", "10_000"))
"""The number of claims and settlements in the drift test; a million take about half a minute."""


def test_a_refusal_changes_nothing(store: LimitStore) -> None:
    """If one limit refuses, no key of any other limit is written."""
    store.reset()
    narrow, wide = Limit("{t}:n", "bucket", 1, 1_000), Limit("{t}:x", "bucket", 9, 1_000)
    lease = Limit("{t}:l", "lease", 3, 1_000)
    assert store.admit("one", [(narrow, 1)])[0]
    before = store.dump()
    assert not store.admit("two", [(wide, 1), (lease, 1), (narrow, 1)])[0]
    assert store.dump() == before


def test_a_claim_larger_than_its_limit_never_fits(store: LimitStore) -> None:
    """A claim that never fits has a wait of -1: pointless."""
    store.reset()
    is_admitted, (answer,) = store.admit("big", [(Limit("{t}:bucket", "bucket", 3, 1_000), 4)])
    assert (is_admitted, answer.wait) == (False, -1)


def test_settling_counts_once(store: LimitStore) -> None:
    """The second settlement of a reservation, and one without a reservation, do nothing."""
    store.reset()
    limit = Limit("{t}:o", "bucket", 5, 60_000)
    for rid in ("one", "two"):
        store.admit(rid, [(limit, 1)])
    assert store.settle("one", [(limit, 1, 0)])
    assert not store.settle("one", [(limit, 1, 0)])
    assert not store.settle("never", [(limit, 1, 0)])
    assert store.peek([limit])[0][0] == 4


def test_more_than_reserved_is_charged(store: LimitStore) -> None:
    """Usage beyond the reservation is charged, up to a debt of two full buckets."""
    store.reset()
    limit = Limit("{t}:t", "bucket", 100, 1_000)
    store.admit("one", [(limit, 10)])
    store.settle("one", [(limit, 10, 150)])
    assert store.peek([limit]) == [(0, 1_500, 510)]
    store.set_clock(START_MS + 1_000)
    store.admit("two", [(limit, 10)])
    store.settle("two", [(limit, 10, 2**50)])
    assert store.peek([limit]) == [(0, 2_000, 1_010)]


def test_nothing_is_given_back_to_a_bucket_that_was_empty_since(store: LimitStore) -> None:
    """Time has paid off the claim already: giving it back too would admit more than the limit."""
    store.reset()
    limit = Limit("{t}:e", "bucket", 2, 1_000)
    store.admit("old", [(limit, 1)])
    store.set_clock(START_MS + 1_000)
    store.admit("new", [(limit, 1)])
    assert store.settle("old", [(limit, 1, 0)])
    assert store.peek([limit])[0][0] == 1


def test_a_lease_ends_by_itself_or_is_freed(store: LimitStore) -> None:
    """Slots are freed by settling, and when their lease ends."""
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


def test_a_slot_is_freed_before_other_limits_fail(store: LimitStore) -> None:
    """A key with a foreign value ends the settlement, but only after the slot was freed."""
    store.reset()
    quota, lease = Limit("{t}:q", "bucket", 5, 60_000), Limit("{t}:l", "lease", 2, 1_000)
    store.admit("one", [(quota, 1), (lease, 1)])
    store.client.set(quota.key, "something else")
    with pytest.raises(redis.ResponseError, match="holds no bucket"):
        store.settle("one", [(quota, 1, 0), (lease, 1, 1)])
    assert store.peek([lease]) == [(2, 0, 0)]


def test_a_lease_is_kept_and_taken_again(store: LimitStore) -> None:
    """A heartbeat renews a lease, and reports and takes again a lost one; a lease without heartbeat ends."""
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


def test_a_late_heartbeat_takes_nothing(store: LimitStore) -> None:
    """A freed lease stays free when a heartbeat arrives late, over a connection that was lost."""
    store.reset()
    limit = Limit("{t}:l", "lease", 2, 1_000)
    store.admit("one", [(limit, 1)])
    store.settle("one", [(limit, 1, 1)])
    assert store.keep(limit, ["one"]) == [b"one"]
    assert store.peek([limit])[0][0] == 2


def test_an_admission_that_was_given_up_before_it_arrived_is_void(store: LimitStore) -> None:
    """The undo may overtake its admission over another connection: the admission then consumes nothing."""
    store.reset()
    quota, lease = Limit("{t}:q", "bucket", 2, 86_400_000), Limit("{t}:l", "lease", 2, 1_000)
    spent = [(quota, 1, 0), (lease, 1, 0)]
    for _ in range(2):
        assert store.settle_with_alerts("late", spent, "", mark_ms=-60_000) == (0, False)
    for _ in range(2):
        with pytest.raises(redis.ResponseError, match="late was given up"):
            store.admit("late", [(quota, 1), (lease, 1)])
    assert [left for left, _, _ in store.peek([quota, lease])] == [2, 2]
    assert 50_000 < store.client.pttl(RECORD + "late") <= 60_000
    store.admit("early", [(quota, 1), (lease, 1)])
    for is_first in (True, False):
        assert store.settle_with_alerts("early", spent, "", mark_ms=-60_000) == (0, is_first)
    assert [left for left, _, _ in store.peek([quota, lease])] == [2, 2]


def test_thresholds_are_returned_once_per_interval(store: LimitStore) -> None:
    """Charges reach 90, 95 and 100 % once each, a refusal 100 %; after the interval they are returned again."""
    store.reset()
    quota, all_of_it = Limit("{t}:q", "bucket", 20, 86_400_000), "90 95 100"
    reached = []
    for number in range(20):
        rid = f"n{number}"
        assert store.admit_with_alerts(rid, [(quota, 1)], all_of_it)[:2] == (0, True)
        reached.append(store.settle_with_alerts(rid, [(quota, 1, 1)], all_of_it)[0])
        assert store.settle_with_alerts(rid, [(quota, 1, 1)], all_of_it) == (0, False)
    assert reached == [0] * 17 + [90, 95, 100]
    assert store.admit_with_alerts("over", [(quota, 1)], all_of_it)[:2] == (0, False)
    assert 86_000_000 < store.client.pttl(ALERT) <= 86_400_000
    store.client.delete(ALERT)  # as when it expires
    assert store.admit_with_alerts("over", [(quota, 1)], all_of_it)[:2] == (100, False)
    assert store.admit_with_alerts("over", [(quota, 1)], all_of_it)[:2] == (0, False)


def test_refunds_reach_no_threshold(store: LimitStore) -> None:
    """Requests that are not charged reach no threshold, and neither do refusals by the short-term rate."""
    store.reset()
    quota, rate = Limit("{t}:q", "bucket", 10, 86_400_000), Limit("{t}:r", "bucket", 10, 1_000)
    for number in range(10):
        assert store.admit_with_alerts(f"n{number}", [(quota, 1), (rate, 1)], "50")[1]
    for number in range(10):
        assert store.settle_with_alerts(f"n{number}", [(quota, 1, 0), (rate, 1, 1)], "50") == (0, True)
    assert store.admit_with_alerts("refused", [(quota, 1), (rate, 1)], "50")[:2] == (0, False)


def test_thresholds_of_tokens_go_by_usage(store: LimitStore) -> None:
    """A large reservation with a small settlement reaches none; a settlement above its reservation does."""
    store.reset()
    quota = Limit("{t}:q", "bucket", 1_000, 86_400_000)
    store.admit_with_alerts("one", [(quota, 1_000)], "90 100")
    assert store.settle_with_alerts("one", [(quota, 1_000, 10)], "90 100")[0] == 0
    store.admit_with_alerts("two", [(quota, 500)], "90 100")
    assert store.settle_with_alerts("two", [(quota, 500, 950)], "90 100")[0] == 90


def test_usage_from_elsewhere_is_charged_once(store: LimitStore) -> None:
    """A settlement without a reservation counts once by its id, also for a limit that was unused."""
    store.reset()
    quota, rate = Limit("{t}:q", "bucket", 10, 86_400_000), Limit("{t}:r", "bucket", 10, 1_000)
    for is_first in (True, False):
        assert store.settle_with_alerts("w", [(quota, 0, 4), (rate, 0, 3)], "", mark_ms=60_000) == (0, is_first)
    assert [remaining for remaining, _, _ in store.peek([quota, rate])] == [6, 7]
    assert 50_000 < store.client.pttl(RECORD + "w") <= 60_000


def test_many_operations_do_not_drift(store: LimitStore) -> None:
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


def test_changed_limits_act_at_once(store: LimitStore) -> None:
    """Under new numbers used tokens stay used, and no wait is longer than one full bucket."""
    store.reset()
    limit = Limit("{t}:c", "bucket", 10, 86_400_000)
    for number in range(6):
        store.admit(f"c{number}", [(limit, 1)])
    assert store.peek([evolve(limit, limit=20)])[0][0] == 14
    assert store.peek([evolve(limit, limit=5)]) == [(0, 86_400_000, 17_280_000)]
    assert store.peek([evolve(limit, period=60_000)])[0] == (4, 36_000, 6_000)
    assert store.admit("more", [(evolve(limit, limit=20), 14)])[0]
    assert not store.admit("less", [(evolve(limit, limit=20), 1)])[0]


def test_a_far_step_back_does_not_freeze_a_bucket(store: LimitStore) -> None:
    """After the clock was set back by a day, an empty bucket fills at its pace from there."""
    store.reset()
    limit = Limit("{t}:b", "bucket", 1, 1_000)
    assert store.admit("one", [(limit, 1)])[0]
    store.set_clock(START_MS - 86_400_000)
    assert store.admit("two", [(limit, 1)]) == (False, [Answer(0, 1_000, 1_000, 1_000)])
    store.set_clock(START_MS - 86_400_000 + 1_000)
    assert store.admit("two", [(limit, 1)])[0]


@pytest.mark.parametrize("period", [1, 1_000, 86_400_000, 2_592_000_000])
def test_the_largest_limits_are_exact(store: LimitStore, period: int) -> None:
    """At the largest allowed numbers no token is lost or gained, also in the answer to a repeat."""
    store.reset()
    limit = Limit("{t}:h", "bucket", MAX_TOKEN_MS // period, period)
    whole = store.admit("whole", [(limit, limit.limit - 1)])
    assert whole[1][0].remaining == 1
    assert store.admit("whole", [(limit, limit.limit - 1)]) == whole
    assert store.admit("last", [(limit, 1)])[1][0].remaining == 0
    assert not store.admit("over", [(limit, 1)])[0]
    store.settle("whole", [(limit, limit.limit - 1, 0)])
    assert store.peek([limit])[0][0] == limit.limit - 1


def test_keys_expire_when_the_limit_is_unused(client: redis.Redis) -> None:
    """With the shipped text, a bucket's key lives until it is full again and a second more."""
    client.flushall()
    admit = client.register_script(load_scripts().admit.text)
    admit(["r", "k"], ["r", 60_000, "", "bucket", 10, 100_000, 1])
    assert 10_000 < client.pttl("k") <= 11_000
    assert 59_000 < client.pttl("r") <= 60_000
    admit(["r2", "l"], ["r2", 60_000, "", "lease", 10, 5_000, 1])
    assert 5_000 < client.pttl("l") <= 6_000


@pytest.mark.parametrize("kind", ["bucket", "lease"])
@pytest.mark.parametrize("content", ["text", "list"])
def test_foreign_content_is_an_error(client: redis.Redis, kind: str, content: str) -> None:
    """A key with a foreign value is an error that names it, and is not overwritten."""
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
