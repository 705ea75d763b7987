"""Deadlines that are moved far more often than they pass, kept by one task per process.

A deadline of Trio's costs a hundred bytecodes whenever it is moved. Those of requests move three times per exchange,
and hardly any of them ever passes, so here a move to a later time only stores that time::

    set_deadline ──── later than the next look ────> stored
          └───────── earlier ────> the look is moved to an earlier tick

    run: at the end of a tick, look at those in it ──── passed ────> on_late
                                        └──────────── not yet ────> looked at again when it is due
"""

from __future__ import annotations

import abc
import heapq
import math

import trio
from attrs import frozen

from cgw.alarm import Alarm
from cgw.clock import read_clock

TICK_SECONDS = 1 / 32
"""The time between two looks, and so the longest time by which a deadline is noticed late, besides the loop's own lag.
A power of two, so that ticks are exact numbers."""

TICKS_PER_SECOND = round(1 / TICK_SECONDS)

NEAR_SECONDS = 2.0
"""Deadlines that are further away are looked at in the whole second before they pass. As a rule they have been moved by
then: so thousands of them wake the process up once a second, and not in every tick."""

MAX_AHEAD_SECONDS = 60.0
"""How far ahead the next look at a deadline may be. It bounds the ticks that exist, to about 130."""

LOOKS_PER_PASS = 256
"""Deadlines that are looked at before other tasks get their turn: half a millisecond's work, when all have passed."""


class KeptDeadline(abc.ABC):
    """A deadline that a :class:`DeadlineKeeper` keeps.

    ``deadline`` is by Trio's clock, ``inf`` for none, and stays as it is when it has passed. Moving it to a later time,
    or to none, needs no more than an assignment; :meth:`set_deadline` moves it to any time.
    """

    __slots__ = ("_keeper", "deadline", "looked_at", "tick")

    def __init__(self, keeper: DeadlineKeeper) -> None:
        self._keeper = keeper
        self.deadline = math.inf
        # The keeper's own: when it will look at this deadline next, and the others that it looks at then.
        self.looked_at = math.inf
        self.tick: set[KeptDeadline] | None = None

    def set_deadline(self, deadline: float) -> None:
        """Have :meth:`on_late` called at ``deadline``, or up to :data:`TICK_SECONDS` later, instead of before."""
        self.deadline = deadline
        if deadline < self.looked_at:
            self._keeper.look_earlier(self)

    def close(self) -> None:
        """Have the keeper forget this deadline. To be called by the owner at the end."""
        self.deadline = math.inf
        self._keeper.forget(self)

    @abc.abstractmethod
    def on_late(self) -> None:
        """Act on a deadline that has passed: called by the keeper's task, once for each deadline that was set.

        It must not raise or take long.
        """


@frozen
class DeadlineStatistics:
    """Deadlines that are ``planned`` to be looked at; and ``ticks`` for that, including those of which none is left."""

    planned: int
    ticks: int


class DeadlineKeeper:
    """Keeps the deadlines of one process, while :meth:`run` runs.

    A deadline is in one tick at most, so that one which is closed leaves nothing behind. It costs a look about once per
    :data:`MAX_AHEAD_SECONDS`, or per timeout where that is shorter, however often it moves.
    """

    def __init__(self) -> None:
        self._ticks: dict[int, set[KeptDeadline]] = {}  # by number: those to look at when that many ticks have passed
        self._due: list[int] = []  # a heap of the numbers
        self._alarm = Alarm()

    def statistics(self) -> DeadlineStatistics:
        """Return a snapshot of the counters."""
        return DeadlineStatistics(sum(map(len, self._ticks.values())), len(self._due))

    def look_earlier(self, kept: KeptDeadline) -> None:
        """Look at ``kept`` when its deadline passes, which is earlier than planned. Called by ``kept`` alone."""
        self.forget(kept)
        self._plan(kept, trio.current_time())

    def forget(self, kept: KeptDeadline) -> None:
        """Look at ``kept`` no more. Does nothing where that was not planned."""
        if kept.tick is not None:
            kept.tick.discard(kept)
            kept.tick, kept.looked_at = None, math.inf

    def _plan(self, kept: KeptDeadline, now: float) -> None:
        at = min(kept.deadline, now + MAX_AHEAD_SECONDS)
        is_near = at <= now + NEAR_SECONDS
        number = math.ceil(at * TICKS_PER_SECOND) if is_near else math.floor(at) * TICKS_PER_SECOND
        tick = self._ticks.get(number)
        if tick is None:
            tick = self._ticks[number] = set()
            heapq.heappush(self._due, number)
            self._alarm.set(number * TICK_SECONDS)
        tick.add(kept)
        kept.tick, kept.looked_at = tick, number * TICK_SECONDS

    async def run(self) -> None:
        """Look at deadlines when they are due, until cancelled."""
        read_time = read_clock()
        while True:
            if self._due:
                self._alarm.set(self._due[0] * TICK_SECONDS)
            await self._alarm.wait()
            now, looks = read_time(), 0
            while self._due and self._due[0] * TICK_SECONDS <= now:
                # Taken out first: while other tasks have their turn, this tick or an earlier one may be planned.
                tick = self._ticks.pop(heapq.heappop(self._due))
                while tick:
                    self._look(tick.pop(), now)
                    looks += 1
                    if looks % LOOKS_PER_PASS == 0:
                        await trio.lowlevel.checkpoint()

    def _look(self, kept: KeptDeadline, now: float) -> None:
        kept.tick, kept.looked_at = None, math.inf
        if kept.deadline <= now:
            kept.on_late()
        elif kept.deadline != math.inf:
            self._plan(kept, now)
