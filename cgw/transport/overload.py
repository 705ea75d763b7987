"""Shedding load: when requests have to wait too long inside the process, new ones are refused at once.

The Trio thread does nearly all of a request's work, so what waits for its turn waits for Trio's loop. A pass of the
loop first asks the kernel which sockets are ready, then runs every task that can go on::

      poll        pass n−1             poll       pass n
    ───┤├──────────────────────────────┤├────────────┬───────────
                     ^ a request arrives, at any time │ its head is read: served or refused?
        └─────────────────── delay ──────────────────┘

The longest time that a request may have waited when its head is read is the length of the pass before, plus the time
since the last poll. That is known for each request without any sampling, and it is the time that each further step of
the request will wait too, whatever the load consists of. So :class:`OverloadControl` decides for each request::

    CALM ──── every pass for an interval had a delay above the target ────> SHEDDING
      all is served                                     a request is refused when its own delay is above the target
    CALM <──── no request was refused for an interval ──────────────────── SHEDDING

The interval lets bursts through, as CoDel's does (RFC 8289 §4.2): they end by themselves, and a short queue does not
harm. While shedding there is no share of requests to adapt, and nothing to tune: each decision rests on the delay of
this very moment, one pass after the last decision showed its effect. A controller of the refused share, as in PIE
(RFC 8033), was tried first. It adapted every 100 ms to a queue that fills within 10 ms, and requests waited for
seconds while it searched.
"""

from __future__ import annotations

import logging

import trio

from cgw.errors import Refusal

RETRY_AFTER_SECONDS = 1

IDLE_SECONDS = 0.0002
"""A poll that was allowed to wait and takes longer has waited for something to happen: nothing waited for the poll."""

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

    ``target_seconds`` is the delay that is let be (0: never refuse), ``interval_seconds`` how long it may be exceeded
    before requests are refused, and how long none must have been refused before that ends.
    """

    def __init__(self, *, target_seconds: float = 0.01, interval_seconds: float = 0.1) -> None:
        self._target = target_seconds
        self._interval = interval_seconds
        self._poll_began = self._poll_ended = trio.current_time()
        self._last_pass = 0.0  # what the requests of this pass may have waited before its poll
        self._above_since: float | None = None
        self._refused_at = 0.0
        self._unreported = 0
        self._has_refused = trio.Event()
        self._longest_delay = 0.0  # since the last line of log
        self.is_shedding = False

    def before_io_wait(self, timeout: float) -> None:
        """Note the end of a pass; called by Trio."""
        self._poll_began = now = trio.current_time()
        delay = now - self._poll_ended + self._last_pass
        if delay <= self._target:
            self._above_since = None
        elif self._above_since is None:
            self._above_since = now
        elif not self.is_shedding and now - self._above_since >= self._interval:
            self.is_shedding = True
            self._refused_at = now
        if self.is_shedding and now - self._refused_at >= self._interval:
            self.is_shedding = False

    def after_io_wait(self, timeout: float) -> None:
        """Note the start of a pass; called by Trio."""
        now = trio.current_time()
        # With tasks left to run, Trio does not let it wait (``timeout`` is 0), and yet it may take long: for the kernel to
        # list hundreds of sockets, or for other threads to release the interpreter.
        is_idle = timeout > 0 and now - self._poll_began > IDLE_SECONDS
        self._last_pass = 0.0 if is_idle else self._poll_began - self._poll_ended
        self._poll_ended = now

    def must_shed(self) -> bool:
        """Return true for a new request that must be refused."""
        if not self.is_shedding:
            return False
        now = trio.current_time()
        delay = now - self._poll_ended + self._last_pass
        if delay <= self._target:
            return False
        self._refused_at = now
        self._longest_delay = max(self._longest_delay, delay)
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
        count, delay = self._unreported, self._longest_delay
        self._has_refused, self._unreported, self._longest_delay = trio.Event(), 0, 0.0
        logger.warning(
            "overloaded: refused %d requests within %g s with status 503; requests waited up to %.0f ms inside "
            "(CODY_GATEWAY_SHED_TARGET, CODY_GATEWAY_MAX_EXCHANGES)",
            count,
            SUMMARY_SECONDS,
            delay * 1000,
        )
