"""The clock of a Trio run, for objects that read it often."""

from __future__ import annotations

from collections.abc import Callable

import trio


def read_clock() -> Callable[[], float]:
    """Return the function that reads this run's clock: what :func:`trio.current_time` does, in one frame, not three.

    Seconds, comparable with deadlines. It belongs to the run that it was taken in, a test's ``MockClock`` included: so
    objects that are made inside a run take it once and keep it. Raises :exc:`RuntimeError` outside of a run.
    """
    return trio.lowlevel.current_clock().current_time
