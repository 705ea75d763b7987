"""Shedding load: when requests have to wait too long inside the process, new ones are refused at once.

The Trio thread does nearly all of a request's work, so what waits for its turn waits for Trio's loop. A pass of the
loop first asks the kernel which sockets are ready, then runs every task that can go on::

     poll      pass n−1      poll       pass n
    ──┤├──────────────────────┤├───────────┬───────────
             ^ a request may have arrived  │ its head is read: served or refused?
        └──────────── its delay ───────────┘

The longest time that a request may have waited when its head is read is the length of the pass before, plus the time
since the last poll. That is known for each request without any sampling, and each further step of the request will
wait about as long again. :class:`OverloadControl` decides by it::

               every pass of an interval had a delay above 4 × target
    CALM ─────────────────────────────────────────────────────────────────> SHEDDING
      every request is served           a pass serves some, then only requests with a delay up to target
    CALM <───────────────────────────────────────────────────────────────── SHEDDING
                        no request was refused for an interval

The interval lets bursts through, as CoDel's does (RFC 8289 §4.2): they end by themselves. Two thresholds, because a
loop that is only well used must not refuse anything, while the queue of an overloaded one costs time and wins nothing.

The first few requests of a pass are served whatever their delay is. Their work makes the next passes longer, so passes
settle at about the time that these few take. And where something else made the pass long, as when other processes take
the processor, refusing everything would only leave it idle afterwards.

There is no share of refused requests to adapt: each decision rests on the delay of this moment, one pass after the
decisions before it showed their effect. A controller of the share (PIE, RFC 8033) adapted every 100 ms to a queue that
fills within 10 ms, and at three times the capacity requests waited for seconds. A bound on exchanges under way would
depend on how long upstreams take, which the delay does not.
"""

from __future__ import annotations

import logging

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

    ``target_seconds`` is the delay above which requests are refused while the process is overloaded (0: never refuse).
    ``interval_seconds`` is how long the delay must be four times as large before it counts as overloaded, and how long
    no request must have been refused before it no longer does.
    """

    def __init__(self, *, target_seconds: float = 0.005, interval_seconds: float = 0.1) -> None:
        self._target = target_seconds
        self._interval = interval_seconds
        self._poll_began = self._poll_ended = trio.current_time()
        self._last_pass = 0.0  # what the requests of this pass may have waited before its poll
        self._served = 0  # in this pass, while shedding
        self._above_since: float | None = None
        self._refused_at = 0.0
        self._unreported = 0
        self._has_refused = trio.Event()
        self._longest_delay = 0.0  # of a refused request, since the last line of log
        self.is_shedding = False

    def before_io_wait(self, timeout: float) -> None:
        """Note the end of a pass; called by Trio."""
        self._poll_began = now = trio.current_time()
        delay = now - self._poll_ended + self._last_pass
        if delay <= ENTRY_FACTOR * self._target:
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
        now = trio.current_time()
        # With tasks left to run, ``timeout`` is 0 and the poll does not wait. Any poll may take up to ``IDLE_SECONDS``:
        # for the kernel to list hundreds of sockets, and for other threads to release the interpreter.
        is_idle = timeout > 0 and now - self._poll_began > IDLE_SECONDS
        self._last_pass = 0.0 if is_idle else self._poll_began - self._poll_ended
        self._poll_ended = now
        self._served = 0

    def must_shed(self) -> bool:
        """Return true for a new request that must be refused."""
        if not self.is_shedding:
            return False
        now = trio.current_time()
        delay = now - self._poll_ended + self._last_pass
        if delay <= self._target or self._served < SERVED_PER_PASS:
            self._served += 1
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
