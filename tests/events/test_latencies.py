"""Latencies in buckets: quantiles within 2 %, whatever the latencies, and the same when parts are added up."""

from __future__ import annotations

import math
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from cgw.events.latencies import (
    FIRST_BUCKET,
    LAST_BUCKET,
    LONGEST_MS,
    RELATIVE_ERROR,
    SHORTEST_MS,
    add_buckets,
    find_bucket,
    find_quantile,
)

latencies_ms = st.lists(st.floats(SHORTEST_MS, LONGEST_MS), min_size=1)


@given(latencies_ms, st.floats(0.001, 1))
def test_quantiles_are_within_two_percent(latencies: list[float], quantile: float) -> None:
    """A quantile differs by 2 % at most from the latency at its rank."""
    exact = sorted(latencies)[math.ceil(quantile * len(latencies)) - 1]
    found = find_quantile(Counter(map(find_bucket, latencies)), quantile)
    assert found is not None
    # The first bucket's lower bound is a little below the shortest latency, and the last one's upper bound above.
    assert abs(found - exact) <= exact * (RELATIVE_ERROR + 1e-9)
    assert RELATIVE_ERROR < 0.02


@given(st.lists(latencies_ms, max_size=4))
def test_parts_add_up(parts: list[list[float]]) -> None:
    """The buckets of parts, added up, are those of all latencies together."""
    sums: dict[int, int] = {}
    for part in parts:
        add_buckets(sums, Counter(map(find_bucket, part)))
    assert sums == Counter(find_bucket(latency) for part in parts for latency in part)


@given(st.floats(allow_nan=False) | st.integers(-(10**30), 10**30))
def test_buckets_are_bounded(milliseconds: float) -> None:
    """Any number counts in one of the buckets, zero, negative and infinite ones too."""
    assert FIRST_BUCKET <= find_bucket(milliseconds) <= LAST_BUCKET


def test_there_is_no_quantile_of_nothing() -> None:
    """Without a latency, quantiles are unknown."""
    assert find_quantile({}, 0.5) is None
