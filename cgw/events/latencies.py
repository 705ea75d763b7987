"""Latencies counted in buckets, so that those of many segments can be added up and their quantiles told. Pure.

The bounds of the buckets grow by 4 %: a quantile is within 2 % of a latency that was really there. They go from 0.1 ms
to an hour, so that there are at most 444 buckets, and only those that were hit are kept. The method is that of
DDSketch (https://www.vldb.org/pvldb/vol12/p2195-masson.pdf), with fixed bounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, log

GROWTH = 1.04
RELATIVE_ERROR = (GROWTH - 1) / (GROWTH + 1)

SHORTEST_MS = 0.1
LONGEST_MS = 3_600_000.0
"""Times that are shorter or longer count in the first or the last bucket."""

_SCALE = 1 / log(GROWTH)
FIRST_BUCKET = ceil(log(SHORTEST_MS) * _SCALE)
LAST_BUCKET = ceil(log(LONGEST_MS) * _SCALE)


def find_bucket(milliseconds: float) -> int:
    """Return the number of the bucket that ``milliseconds`` counts in."""
    if SHORTEST_MS < milliseconds < LONGEST_MS:
        return ceil(log(milliseconds) * _SCALE)
    return FIRST_BUCKET if milliseconds <= SHORTEST_MS else LAST_BUCKET


def add_buckets(sums: dict[int, int], part: Mapping[int, int]) -> None:
    """Add the counts of ``part`` to ``sums``."""
    for bucket, count in part.items():
        sums[bucket] = sums.get(bucket, 0) + count


def find_quantile(buckets: Mapping[int, int], quantile: float) -> float | None:
    """Return the latency that the share ``quantile`` of all does not exceed, in ms; ``None`` without any."""
    rank = ceil(quantile * sum(buckets.values()))
    for bucket, count in sorted(buckets.items()):
        rank -= count
        if rank <= 0:
            return 2 * GROWTH**bucket / (GROWTH + 1)  # as far, in percent, from the lower bound as from the upper
    return None
