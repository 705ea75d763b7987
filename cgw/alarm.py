"""A time at which one task wakes up, and that others can set without waking the task."""

from __future__ import annotations

import math

import trio


class Alarm:
    """A wake-up time for one waiting task.

    Setting it costs a few microseconds, and nothing if an earlier time is set already; a task that is woken so as to
    sleep until that time would cost two task switches.
    """

    def __init__(self) -> None:
        self.at = math.inf
        """The time that is set, by Trio's clock; ``inf`` for none."""
        self._scope = trio.CancelScope()

    def set(self, at: float) -> None:
        """Wake the task at ``at``, unless it is to be woken earlier."""
        if at < self.at:
            self.at = at
            # If no task waits now, the next wait() takes the time from `self.at`.
            self._scope.deadline = at

    async def wait(self) -> float:
        """Wait for the time that is set or will be set; clear it, and return it. Cancel-safe."""
        with trio.CancelScope(deadline=self.at) as self._scope:
            await trio.sleep_forever()
        at, self.at = self.at, math.inf
        return at
