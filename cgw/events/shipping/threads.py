"""Calls of the shipper that block on the disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import trio

T = TypeVar("T")


async def run_in_thread(function: Callable[[], T]) -> T:
    """Run ``function`` in a thread, which is left behind on cancellation: a disk that hangs must not hold up the end.

    A sink has one or two such calls at a time, so that the number of threads is bounded by that of the sinks.
    """
    return await trio.to_thread.run_sync(function, abandon_on_cancel=True)
