"""Log-linear histograms, as HdrHistogram's: a fixed relative error over the whole range.

Values are whole nanoseconds. Below 128 each value has a bucket of its own; above, each power of two is cut into 128
buckets, so that a bucket is at most 1/128 of its values wide. ``tools/wire.h`` computes the same indices.
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
"""The most by which a percentile may be above the exact one, as a share of it."""


def bucket_index(value: int) -> int:
    """The bucket of ``value``; negative values count as 0, those from 2^40 (18 minutes) on as the largest."""
    value = min(max(value, 0), LARGEST)
    if value < SUB:
        return value
    shift = value.bit_length() - 1 - SUB_BITS
    return (shift + 1) * SUB + (value >> shift) - SUB


def bucket_bounds(index: int) -> tuple[int, int]:
    """The smallest and the largest value of a bucket."""
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
        """The largest value that the bucket of the nearest-rank percentile holds, never above the maximum.

        Raises :exc:`ValueError` when nothing was recorded, or ``percent`` is not in 0 to 100.
        """
        if not self.count or not 0 <= percent <= 100:
            raise ValueError("a percentile is a share of at least one value, from 0 to 100")
        rank = max(1, math.ceil(self.count * percent / 100 - 1e-9))
        seen = 0
        for index, count in self.buckets:
            seen += count
            if seen >= rank:
                return min(bucket_bounds(index)[1], self.maximum) if index < bucket_index(LARGEST) else self.maximum
        return self.maximum
