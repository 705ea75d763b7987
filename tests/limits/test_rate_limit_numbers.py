"""The numbers that a limit may have."""

from __future__ import annotations

import pytest

from cgw.model import MAX_TOKEN_MS, rate_limit_problems

DAY_MS = 86_400_000


@pytest.mark.parametrize("limit", [1, 100, 1_000_000, MAX_TOKEN_MS // DAY_MS])
def test_usual_limits_are_fine(limit: int) -> None:
    """Limits from one a day to the largest that can be counted exactly are accepted."""
    assert rate_limit_problems(limit, DAY_MS, 50, 10_000) == []


def test_every_problem_is_named() -> None:
    """Each wrong number is a sentence of its own, by its key in the actors file."""
    assert rate_limit_problems(0, -5, 0, 0) == [
        "limit must be at least 1, not 0",
        "interval must be at least 1 ms, not -5 ms",
        "concurrent_requests must be at least 1, not 0",
        "concurrent_requests_interval must be at least 1 ms, not 0 ms",
    ]


def test_limits_that_cannot_be_counted_exactly_are_refused() -> None:
    """One more than the largest exact limit is refused, and the error names the largest."""
    largest = MAX_TOKEN_MS // DAY_MS
    assert rate_limit_problems(largest + 1, DAY_MS, 1, 1) == [
        f"limit {largest + 1} is too large to be counted exactly over interval 86400000 ms (at most {largest})"
    ]
    (problem,) = rate_limit_problems(1, 1, 1, MAX_TOKEN_MS + 1)
    assert problem.startswith("concurrent_requests 1 is too large")
