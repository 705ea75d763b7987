"""The level of the log while the process runs: the configured one, or another one for a while.

::

    configured ──POST /-/log-level, SIGUSR1──► another level ──SIGHUP, SIGUSR1, or its seconds are over──► configured
"""

from __future__ import annotations

import logging
import math

import trio

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
"""The levels that can be chosen, as in ``CODY_GATEWAY_LOG_LEVEL``."""

MAX_SECONDS = 7 * 24 * 3600.0
"""The longest time for which another level can be asked for."""

logger = logging.getLogger("cgw.log")


class LogLevel:
    """The root logger's level. The configured one is that at construction.

    :meth:`run` must run for a level with an end to be left in time. All methods are for the Trio thread.
    """

    def __init__(self) -> None:
        self._configured = logging.getLogger().level
        self._ends_at = math.inf
        self._has_changed = trio.Event()

    @property
    def name(self) -> str:
        """The level that is in force."""
        return logging.getLevelName(logging.getLogger().level)

    @property
    def configured_name(self) -> str:
        """The level of the settings."""
        return logging.getLevelName(self._configured)

    @property
    def seconds_left(self) -> float | None:
        """The seconds until the configured level is back; ``None`` where nothing ends the present one."""
        return None if self._ends_at == math.inf else max(0.0, self._ends_at - trio.current_time())

    def set(self, name: str, seconds: float | None = None) -> None:
        """Log from level ``name`` on, one of :data:`LEVELS`; after ``seconds`` the configured level is back."""
        self._apply(logging.getLevelNamesMapping()[name])
        self._end_at(math.inf if seconds is None else trio.current_time() + seconds)

    def toggle_debug(self) -> None:
        """Switch to DEBUG, or back to the configured level."""
        if logging.getLogger().level == logging.DEBUG != self._configured:
            self.restore()
        else:
            self.set("DEBUG")

    def restore(self) -> None:
        """Return to the configured level."""
        self._apply(self._configured)
        self._end_at(math.inf)

    async def run(self) -> None:
        """Return to the configured level when the time of another one is over, until cancelled."""
        while True:
            with trio.move_on_at(self._ends_at):
                await self._has_changed.wait()
            if self._ends_at <= trio.current_time():
                self.restore()

    def _end_at(self, time: float) -> None:
        self._ends_at = time
        self._has_changed.set()
        self._has_changed = trio.Event()

    def _apply(self, level: int) -> None:
        root = logging.getLogger()
        if root.level != level:
            # Logged as a warning, so that the change is seen whichever level holds before and after.
            logger.warning("the log level is %s now", logging.getLevelName(level))
            for handler in root.handlers:
                handler.flush()  # what has gathered is of before the change
            root.setLevel(level)
