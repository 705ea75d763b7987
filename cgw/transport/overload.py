"""Shedding load: when too much work is in front of new requests, they are refused at once.

The Trio thread does nearly all of a request's work, so what waits for its turn waits for Trio's loop. A pass of the
loop first asks the kernel which sockets are ready, then runs every task that can go on::

     poll      pass n−1      poll       pass n
    ──┤├──────────────────────┤├───────────┬───────────
             ^ a request may have arrived  │ its head is read: served or refused?
        └────────── its backlog ───────────┘

The backlog of a request is the work that was done before its turn came: at most the pass before, and this one up to
now. It is known for each request without any sampling, and each further step of the request waits for about as much
again. It is measured as CPU time of this thread: on the clock of the wall, a machine that does other work, or a
container that is throttled, would look like a backlog that refusals could shorten. :class:`OverloadControl`::

               every pass of an interval had a backlog above 4 × target
    CALM ─────────────────────────────────────────────────────────────────> SHEDDING
      every request is served           a pass serves some, then only requests with a backlog up to target
    CALM <───────────────────────────────────────────────────────────────── SHEDDING
         passes have a backlog below that, and no request was refused for an interval

The interval lets bursts through, as CoDel's does (RFC 8289 §4.2): they end by themselves. Two thresholds, because a
loop that is only well used must not refuse anything, while the queue of an overloaded one costs time and wins nothing.

The first few requests of a pass are served whatever the backlog is. Their work makes the next passes longer, so passes
settle at about the time that these few take, and a loop that is busy with other things than requests serves some too.

There is no share of refused requests to adapt: each decision rests on the backlog of this moment, one pass after the
decisions before it showed their effect. A controller of the share (PIE, RFC 8033) adapted every 100 ms to a queue that
fills within 10 ms, and at three times the capacity requests waited for seconds. A bound on exchanges under way would
depend on how long upstreams take, which the backlog does not.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import trio

from cgw.errors import Refusal

RETRY_AFTER_SECONDS = 1

IDLE_SECONDS = 0.002
"""A poll that was allowed to wait and takes longer has waited for something to happen: nothing waited for the poll."""

ENTRY_FACTOR = 4
"""Shedding begins at so many times the target."""

SERVED_PER_PASS = 4
"""While shedding, so many requests of each pass are served whatever their delay: some 3 ms of work."""

SUMMARY_SECONDS = 1.0
"""Refused requests get one line of log in so much time, all together."""

REFUSAL = Refusal(
    503,
    "the gateway is overloaded, please retry",
    code="overloaded",
    headers=[(b"retry-after", b"%d" % RETRY_AFTER_SECONDS)],
)

logger = logging.getLogger("cgw.server")


class OverloadControl(trio.abc.Instrument):
    """Decides which new requests to refuse. :meth:`run` must run beside it.

    ``target_seconds`` is the backlog above which requests are refused while the process is overloaded (0: never
    refuse). ``interval_seconds`` is how long the backlog must be four times as large before it counts as overloaded,
    and how long no request must have been refused before it no longer does. ``read_work`` returns the CPU time of the
    Trio thread.
    """

    def __init__(
        self,
        *,
        target_seconds: float = 0.005,
        interval_seconds: float = 0.1,
        read_work: Callable[[], float] = time.thread_time,
    ) -> None:
        self._target = target_seconds
        self._interval = interval_seconds
        self._read_work = read_work
        self._poll_began = trio.current_time()
        self._work_at_start = read_work()  # of the pass
        self._work_before = 0.0  # that requests of this pass may have waited for before its poll
        self._served = 0  # in this pass, while shedding
        self._above_since: float | None = None
        self._refused_at = 0.0
        self._unreported = 0
        self._has_refused = trio.Event()
        self.is_shedding = False

    def before_io_wait(self, timeout: float) -> None:
        """Note the end of a pass; called by Trio."""
        self._poll_began = now = trio.current_time()
        if self._measure() <= ENTRY_FACTOR * self._target:
            self._above_since = None
            if self.is_shedding and now - self._refused_at >= self._interval:
                self.is_shedding = False
        elif self._above_since is None:
            self._above_since = now
        elif not self.is_shedding and now - self._above_since >= self._interval:
            self.is_shedding = True
            self._refused_at = now

    def after_io_wait(self, timeout: float) -> None:
        """Note the start of a pass; called by Trio."""
        # With tasks left to run, ``timeout`` is 0 and the poll does not wait. Any poll may take up to ``IDLE_SECONDS``:
        # for the kernel to list hundreds of sockets, and for other threads to release the interpreter.
        is_idle = timeout > 0 and trio.current_time() - self._poll_began > IDLE_SECONDS
        work = self._read_work()
        self._work_before = 0.0 if is_idle else work - self._work_at_start
        self._work_at_start = work
        self._served = 0

    def _measure(self) -> float:
        """Return the backlog, in seconds of work, of a request that is looked at now."""
        return self._read_work() - self._work_at_start + self._work_before

    def must_shed(self) -> bool:
        """Return true for a new request that must be refused."""
        if not self.is_shedding:
            return False
        if self._served < SERVED_PER_PASS or self._measure() <= self._target:
            self._served += 1
            return False
        self._refused_at = trio.current_time()
        return True

    def note_refused(self) -> None:
        """Count a refused request for the log: all of a second get one line, as there may be thousands."""
        self._unreported += 1
        self._has_refused.set()

    async def run(self) -> None:
        """Measure, and log what was refused, until cancelled."""
        if self._target:
            trio.lowlevel.add_instrument(self)
        try:
            while True:
                await self._has_refused.wait()
                await trio.sleep(SUMMARY_SECONDS)
                self._report()
        finally:
            if self._target:
                trio.lowlevel.remove_instrument(self)

    def _report(self) -> None:
        count, self._unreported, self._has_refused = self._unreported, 0, trio.Event()
        logger.warning(
            "overloaded: refused %d requests within %g s with status 503; add processes or machines, or see "
            "CODY_GATEWAY_MAX_EXCHANGES and CODY_GATEWAY_SHED_TARGET",
            count,
            SUMMARY_SECONDS,
        )
