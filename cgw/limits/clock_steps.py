"""Steps of the server's wall clock, by which leases end although their requests are in flight."""

from __future__ import annotations

import trio


class ClockSteps:
    """Compares the server's time in its answers with Trio's clock, which makes no steps.

    Leases are timed by the wall clock of the server, because its scripts have no other. When it is set forward, all
    leases have ended at once; whoever holds some must renew them before their slots are given to others.
    ``least_seconds`` is the smallest difference that counts as a step.
    """

    def __init__(self, least_seconds: float) -> None:
        self._least_ms = least_seconds * 1000
        self._offset_ms: float | None = None
        self._stepped = trio.Event()

    def note(self, server_ms: int) -> None:
        """Compare the server's time in an answer that has just come. It may be late, as answers are: by a timeout."""
        offset_ms = server_ms - trio.current_time() * 1000
        if self._offset_ms is None:
            self._offset_ms = offset_ms
        elif abs(offset_ms - self._offset_ms) >= self._least_ms:
            self._offset_ms = offset_ms
            self._stepped.set()

    async def wait_step(self) -> None:
        """Wait for the next step, or return at once if there was one since the last call. Cancel-safe."""
        await self._stepped.wait()
        self._stepped = trio.Event()
