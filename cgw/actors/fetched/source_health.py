"""The health of a source: after some failures in a row it is left alone for a while, and that is logged once."""

from __future__ import annotations

import logging
from collections import OrderedDict

import trio

from cgw.actors.source import SourceUnavailable

FAILURES = 3
"""Failures in a row after which the source is left alone. One may be about a single token."""

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 15.0
"""The pauses double from the first to the longest; at the end of each, a single caller tries."""

MAX_PROBLEMS = 1000
"""Problems that are remembered as logged."""

logger = logging.getLogger("cgw.actors")


class SourceHealth:
    """The state of one source.

    ::

        answering ──three failures──► paused ──pause over──► one trial ──► answering
                                         ▲───────────fails────────┘
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._failures = 0
        self._pause_seconds = FIRST_PAUSE_SECONDS
        self._paused_until = 0.0
        self._is_trying = False
        self._last_text: str | None = None
        self._problems: OrderedDict[str, None] = OrderedDict()

    @property
    def is_down(self) -> bool:
        """True while the source is left alone."""
        return self._failures >= FAILURES

    def begin_call(self) -> None:
        """Note that the source will be asked. Raises :exc:`~cgw.actors.source.SourceUnavailable` during a pause.

        Each call must be ended by :meth:`failed`, :meth:`answered` or :meth:`gave_up`.
        """
        if not self.is_down:
            return
        left = self._paused_until - trio.current_time()
        if self._is_trying or left > 0:
            raise SourceUnavailable(self._last_text or self._name, retry_after_seconds=max(1.0, left))
        self._is_trying = True

    def failed(self, error: SourceUnavailable, *, is_listing: bool = False) -> None:
        """Note that the source could not be asked, and log it, once for each reason.

        ``is_listing``: a listing failed, which says little about the small question for one token.
        """
        text = str(error)
        if text != self._last_text:
            self._last_text = text
            logger.warning(
                "actor source %s: %s; actors that are known go on with what it said last, others get 503",
                self._name,
                text,
            )
        if is_listing:
            return
        self._failures += 1
        # Calls that fail together count as one: they began before the pause.
        if self.is_down and trio.current_time() >= self._paused_until:
            self._paused_until = trio.current_time() + self._pause_seconds
            self._pause_seconds = min(2 * self._pause_seconds, LONGEST_PAUSE_SECONDS)
        self._is_trying = False

    def answered(self) -> None:
        """Note that the source gave a usable answer, be it a denial."""
        if self._last_text is not None:
            logger.info("actor source %s answers again", self._name)
        self._failures, self._last_text = 0, None
        self._pause_seconds, self._is_trying = FIRST_PAUSE_SECONDS, False

    def gave_up(self) -> None:
        """Note that a call ended without telling anything about the source."""
        self._is_trying = False

    def log_problem(self, problem: str) -> None:
        """Log a problem with one actor, once while it is the same."""
        if problem in self._problems:
            return
        self._problems[problem] = None
        if len(self._problems) > MAX_PROBLEMS:
            self._problems.popitem(last=False)
        logger.warning("actor source %s: %s", self._name, problem)
