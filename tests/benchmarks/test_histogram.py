"""Histograms: percentiles are within the documented error for all values."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.histogram import LARGEST, RELATIVE_ERROR, Histogram, bucket_bounds, bucket_index

VALUES = st.one_of(st.integers(0, 300), st.integers(0, 10**7), st.integers(0, LARGEST))


@given(st.lists(VALUES, min_size=1, max_size=200), st.sampled_from([0, 1, 50, 90, 99, 99.9, 100]))
def test_percentile_is_within_one_bucket_of_the_exact_one(values: list[int], percent: float) -> None:
    """A percentile is the exact nearest-rank one, or above it by at most the relative error."""
    rank = max(1, math.ceil(len(values) * percent / 100 - 1e-9))
    exact = sorted(values)[rank - 1]

    found = Histogram.of(values).percentile(percent)

    assert exact <= found <= exact * (1 + RELATIVE_ERROR)
    assert found <= max(values)


@given(VALUES)
def test_a_value_lies_within_the_bounds_of_its_bucket(value: int) -> None:
    """Each value is in exactly one bucket, whose bounds enclose it within the relative error."""
    low, high = bucket_bounds(bucket_index(value))

    assert low <= value <= high
    assert high - low <= low * RELATIVE_ERROR
    assert bucket_index(high) + 1 == bucket_index(high + 1) or high == LARGEST


@given(st.lists(st.lists(VALUES, max_size=50), max_size=5))
def test_merged_histograms_are_those_of_all_values(parts: list[list[int]]) -> None:
    """Merged rounds equal one long round."""
    merged = Histogram.merged(Histogram.of(part) for part in parts)

    assert merged == Histogram.of([value for part in parts for value in part])


def test_values_out_of_range_are_counted_at_its_ends() -> None:
    """A negative value counts as 0, and one beyond the range as the largest, with an exact maximum."""
    histogram = Histogram.of([-5, LARGEST + 1000])

    assert histogram.percentile(50) == 0
    assert histogram.percentile(100) == LARGEST + 1000


@pytest.mark.parametrize("percent", [-1, 101])
def test_a_percentile_outside_of_0_to_100_is_refused(percent: float) -> None:
    """A percentile outside of 0 to 100 is an error, as is one of an empty histogram."""
    with pytest.raises(ValueError, match="percentile"):
        Histogram.of([1]).percentile(percent)
    with pytest.raises(ValueError, match="percentile"):
        Histogram().percentile(50)
