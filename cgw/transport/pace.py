"""Telling a busy process from a quiet one."""

from __future__ import annotations

import math

import trio

CLOSE_SECONDS = 0.001


class Pace:
    """Tells whether requests follow each other closely, over all connections of a process."""

    __slots__ = ("_ended_at",)

    def __init__(self) -> None:
        self._ended_at = -math.inf

    def note_end(self) -> bool:
        """Note that a request has ended; return whether another one did less than :data:`CLOSE_SECONDS` before."""
        before, self._ended_at = self._ended_at, trio.current_time()
        return self._ended_at - before < CLOSE_SECONDS
