"""Log-linear histograms like HdrHistogram: a fixed relative error over the whole range.

Values are whole nanoseconds. Below 128 each value has a bucket of its own; above, each power of two is split into 128
buckets, so a bucket is at most 1/128 of its values wide. ``tools/wire.h`` computes the same indices.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from msgspec import Struct, field

__all__ = ["RELATIVE_ERROR", "Histogram", "bucket_bounds", "bucket_index"]

SUB_BITS = 7
SUB = 1 << SUB_BITS
LARGEST = (1 << 40) - 1
RELATIVE_ERROR = 1 / SUB
"""A percentile is above the exact one by at most this share of it."""


def bucket_index(value: int) -> int:
    """Return the bucket of ``value``. Negative values count as 0, values from 2^40 (18 minutes) on as the largest."""
    value = min(max(value, 0), LARGEST)
    if value < SUB:
        return value
    # The highest bit gives the power of two, the 7 bits below it the bucket within.
    shift = value.bit_length() - 1 - SUB_BITS
    return (shift + 1) * SUB + (value >> shift) - SUB


def bucket_bounds(index: int) -> tuple[int, int]:
    """Return the smallest and the largest value of a bucket."""
    if index < SUB:
        return index, index
    shift = index // SUB - 1
    low = (SUB + index % SUB) << shift
    return low, low + (1 << shift) - 1


class Histogram(Struct, omit_defaults=True):
    """Counts of values by bucket, sparse and in order of the values; ``maximum`` and ``total`` are exact."""

    count: int = 0
    total: int = field(default=0, name="sum")
    maximum: int = field(default=0, name="max")
    buckets: list[tuple[int, int]] = []

    @classmethod
    def of(cls, values: Iterable[int]) -> Histogram:
        counts: dict[int, int] = {}
        count = total = maximum = 0
        for value in values:
            index = bucket_index(value)
            counts[index] = counts.get(index, 0) + 1
            count, total, maximum = count + 1, total + max(value, 0), max(maximum, value)
        return cls(count, total, maximum, sorted(counts.items()))

    @classmethod
    def merged(cls, histograms: Iterable[Histogram]) -> Histogram:
        counts: dict[int, int] = {}
        made = cls(buckets=[])
        for histogram in histograms:
            made.count += histogram.count
            made.total += histogram.total
            made.maximum = max(made.maximum, histogram.maximum)
            for index, count in histogram.buckets:
                counts[index] = counts.get(index, 0) + count
        made.buckets = sorted(counts.items())
        return made

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else 0.0

    def percentile(self, percent: float) -> int:
        """Return the upper bound of the bucket with the nearest-rank percentile, at most the maximum.

        Raises :exc:`ValueError` when the histogram is empty, or ``percent`` is not in 0 to 100.
        """
        if not self.count or not 0 <= percent <= 100:
            raise ValueError(
                f"percentile {percent:g} of {self.count} values: it needs 0 to 100, and at least one value"
            )
        # The subtraction keeps a rounding error from pushing an exact rank up to the next one.
        rank = max(1, math.ceil(self.count * percent / 100 - 1e-9))
        seen = 0
        for index, count in self.buckets:
            seen += count
            if seen >= rank:
                # The last bucket also holds all values beyond the range: only the maximum bounds them.
                return min(bucket_bounds(index)[1], self.maximum) if index < bucket_index(LARGEST) else self.maximum
        return self.maximum
