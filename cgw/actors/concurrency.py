"""The short-term rate of actors whose source sets none."""

from __future__ import annotations

from cgw.model import MAX_TOKEN_MS

DAY_MS = 24 * 3600 * 1000


def derive_concurrent_requests(limit: int, interval_ms: int, percentage: int, concurrent_interval_ms: int) -> int:
    """Return requests per ``concurrent_interval_ms``: ``percentage`` of what ``limit`` comes to in a day, at least 1.

    The reference's formula (its §1.2). The result does not depend on ``concurrent_interval_ms``, except that it stays
    within what a bucket can count exactly (:data:`~cgw.model.MAX_TOKEN_MS`).
    """
    # In whole numbers: the reference's 32-bit floats lose the last digits of large limits.
    share = limit * DAY_MS * percentage // (interval_ms * 100)
    return max(1, min(share, MAX_TOKEN_MS // concurrent_interval_ms))
