"""Telling a busy process from a quiet one."""

from __future__ import annotations

import math

from cgw.clock import read_clock

CLOSE_SECONDS = 0.001


class Pace:
    """Tells whether requests follow each other closely, over all connections of a process. Made inside its Trio run."""

    __slots__ = ("_ended_at", "_read_time")

    def __init__(self) -> None:
        self._ended_at = -math.inf
        self._read_time = read_clock()

    def note_end(self) -> bool:
        """Note that a request has ended; return whether another one did less than :data:`CLOSE_SECONDS` before."""
        before, self._ended_at = self._ended_at, self._read_time()
        return self._ended_at - before < CLOSE_SECONDS
