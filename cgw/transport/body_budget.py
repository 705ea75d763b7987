"""A bound on the memory of all request bodies together."""

from __future__ import annotations

from collections import deque

import trio
from attrs import define, field

FREE_BYTES = 64 * 1024
"""Bodies up to this size are not counted: connections and exchanges have bounds of their own."""


@define(eq=False)
class _Waiter:
    body_bytes: int
    is_admitted: trio.Event = field(factory=trio.Event)


class BodyBudget:
    """Memory for request bodies, given out in the order of asking.

    A body that finds no room waits for its turn before it is read, so that its bytes stay in the client's hands.
    """

    def __init__(self, max_bytes: int) -> None:
        self._free = self._max_bytes = max_bytes
        self._waiters: deque[_Waiter] = deque()

    @property
    def used_bytes(self) -> int:
        """The bytes that are given out now."""
        return self._max_bytes - self._free

    async def acquire(self, body_bytes: int) -> None:
        """Take ``body_bytes``, as soon as there is room. One body always fits when there is no other. Cancel-safe."""
        if body_bytes <= FREE_BYTES:
            return
        if self.acquire_nowait(body_bytes):
            return
        waiter = _Waiter(min(body_bytes, self._max_bytes))
        self._waiters.append(waiter)
        try:
            await waiter.is_admitted.wait()
        except BaseException:
            if waiter.is_admitted.is_set():
                self.release(body_bytes)  # the room came together with the cancellation
            else:
                self._waiters.remove(waiter)
                self._admit_waiters()  # it may have kept smaller ones behind it waiting
            raise

    def acquire_nowait(self, body_bytes: int) -> bool:
        """Take ``body_bytes`` if there is room and nobody waits for it; return whether it was taken."""
        if body_bytes <= FREE_BYTES:
            return True
        wanted = min(body_bytes, self._max_bytes)
        if self._waiters or wanted > self._free:  # in the order of asking: small bodies could starve a large one
            return False
        self._free -= wanted
        return True

    def release(self, body_bytes: int) -> None:
        """Give back what :meth:`acquire` or :meth:`acquire_nowait` took, with the same argument."""
        if body_bytes <= FREE_BYTES:
            return
        self._free += min(body_bytes, self._max_bytes)
        self._admit_waiters()

    def _admit_waiters(self) -> None:
        while self._waiters and self._waiters[0].body_bytes <= self._free:
            waiter = self._waiters.popleft()
            self._free -= waiter.body_bytes
            waiter.is_admitted.set()
