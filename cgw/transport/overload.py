"""Shedding load: when requests have to wait too long inside the process, some of the new ones are refused at once.

The process is one thread of Python, so everything that waits for its turn waits for Trio's loop, and the length of one
pass of the loop tells how long. :class:`OverloadControl` measures it, and refuses a share of new requests that a
controller keeps just large enough for the delay to stay near its target, as the queue managers PIE (RFC 8033) and CoDel
(RFC 8289) do for packets: delay is what clients feel, whatever the load consists of.
"""

from __future__ import annotations

import trio

from cgw.errors import Refusal

RETRY_AFTER_SECONDS = 1

SAMPLE_SECONDS = 0.01
"""How often the delay is sampled. Each sample is a sleep whose lateness is the loop's delay."""

MAX_SHARE = 0.98
"""The largest share that is refused: some requests must get through to show that there is room again."""

_PROPORTIONAL, _DERIVATIVE = 0.06, 0.5
"""Per interval, the share grows by so much per target's worth of excess delay, and of its change (RFC 8033 §4.2)."""

_RECOVERY = 0.5
"""Per interval without excess the share falls to this part of itself: a second after a burst nothing is refused."""


class OverloadControl:
    """Decides which new requests to refuse. :meth:`run` must run beside it.

    ``target_seconds`` is the delay that is let be (0: never refuse); ``interval_seconds`` is how often the share is
    adapted. Decisions spread the refusals evenly, and draw no random numbers.
    """

    def __init__(self, *, target_seconds: float = 0.025, interval_seconds: float = 0.1) -> None:
        self._target = target_seconds
        self._interval = interval_seconds
        self._share = 0.0
        self._credit = 0.0
        self._last_delay = 0.0
        self.delay_seconds = 0.0
        """The delay of the last interval: the smallest of its samples, so that a single long step does not count."""

    @property
    def share(self) -> float:
        """The share of new requests that is refused now."""
        return self._share

    def must_shed(self) -> bool:
        """Return true for a new request that must be refused."""
        if not self._share:
            return False
        self._credit += self._share
        if self._credit < 1:
            return False
        self._credit -= 1
        return True

    def build_refusal(self) -> Refusal:
        """Return the refusal: 503, to be retried in a second."""
        retry_after = (b"retry-after", b"%d" % RETRY_AFTER_SECONDS)
        return Refusal(503, "the gateway is overloaded, please retry", code="overloaded", headers=[retry_after])

    async def run(self) -> None:
        """Measure and adapt until cancelled."""
        if not self._target:
            await trio.sleep_forever()
        samples: list[float] = []
        adapt_at = trio.current_time() + self._interval
        while True:
            due = trio.current_time() + SAMPLE_SECONDS
            await trio.sleep_until(due)
            now = trio.current_time()
            samples.append(now - due)
            if now >= adapt_at:
                self._adapt(min(samples))
                samples.clear()
                adapt_at = now + self._interval

    def _adapt(self, delay: float) -> None:
        self.delay_seconds = delay
        excess = (delay - self._target) / self._target
        change = (delay - self._last_delay) / self._target
        self._last_delay = delay
        if delay < self._target / 2 and change <= 0:
            share = self._share * _RECOVERY
            self._share = share if share > 0.01 else 0.0
            return
        share = self._share + _PROPORTIONAL * excess + _DERIVATIVE * max(-0.2, min(0.2, change))
        self._share = min(MAX_SHARE, max(0.0, share))
