"""Delivering one batch to a sink, however long the sink is down.

While a sink takes batches, several are sent at once. After a failure only one is tried at a time, with pauses that
grow; the others wait for it, so that a sink that comes back is not met by all of them, nor asked more often than it
wants::

    up ──failure──► down: one attempt after each pause ──taken──► up
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import trio

from cgw.events.shipping.batches import Batch
from cgw.events.shipping.options import ShipperOptions
from cgw.events.sinks.sink import RejectedEvent, Sink, SinkUnavailable

SEND_SECONDS = 600.0
"""A sink bounds its attempts itself; this is for one that does not return."""

MAX_RETRY_AFTER_SECONDS = 900.0
"""The longest pause that a sink can ask for."""

LOG_SECONDS = 60.0
"""A sink that comes and goes is reported at most this often."""

logger = logging.getLogger("cgw.events")


class Delivery:
    """Sends batches to one sink.

    ``trouble`` says why it takes none, ``None`` while it does; ``on_change`` is called after it went down or came up.
    """

    def __init__(self, sink: Sink, options: ShipperOptions, on_change: Callable[[], None]) -> None:
        self._sink = sink
        self._options = options
        self._on_change = on_change
        self.trouble: str | None = None
        self.retries = 0
        self._failures = 0  # since the last batch that was taken
        self._down_since = self._logged_at = -math.inf
        self._is_logged = False
        self._since = ""
        self._resume_at = 0.0
        self._probe = trio.Lock()

    async def deliver(self, batch: Batch) -> Sequence[RejectedEvent]:
        """Send a batch until the sink has answered it; return the events that it rejected. Cancel-safe."""
        failed_attempts = 0
        while True:
            if not self._failures:
                if failed_attempts:  # others were taken meanwhile: this one may be what the sink cannot digest
                    await trio.sleep(self._choose_pause(failed_attempts))
                self.retries += failed_attempts > 0
                rejected = await self._attempt(batch)
            else:
                async with self._probe:
                    if not self._failures:
                        continue
                    await trio.sleep_until(self._resume_at)
                    self.retries += 1
                    rejected = await self._attempt(batch, is_probe=True)
            if rejected is not None:
                return rejected
            failed_attempts += 1

    async def _attempt(self, batch: Batch, *, is_probe: bool = False) -> Sequence[RejectedEvent] | None:
        reason, retry_after_seconds = "", 0.0
        try:
            with trio.fail_after(SEND_SECONDS):
                rejected = await self._sink.send(batch.lines, batch.id)
        except SinkUnavailable as error:
            reason, retry_after_seconds = str(error), min(error.retry_after_seconds, MAX_RETRY_AFTER_SECONDS)
        except trio.TooSlowError:
            reason = f"no answer within {SEND_SECONDS:g} s"
        except Exception as error:  # the boundary between a sink, or the SDK that it uses, and the service
            if not self._failures:
                logger.exception("a bug in the sink %s", self._sink.name)
            reason = f"{type(error).__name__} in the sink, a bug"
        else:
            self._succeed()
            return rejected
        self._fail(reason, retry_after_seconds, is_probe=is_probe)
        return None

    def _choose_pause(self, failures: int) -> float:
        seconds = self._options.first_backoff_seconds * 2.0 ** min(failures - 1, 30)
        # The jitter keeps processes that failed together from coming back together.
        return min(seconds, self._options.max_backoff_seconds) * random.uniform(0.5, 1.0)

    def _fail(self, reason: str, retry_after_seconds: float, *, is_probe: bool) -> None:
        now = trio.current_time()
        if not self._failures:
            self._since = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%SZ}"
        self.trouble = f"since {self._since}: {reason}"
        # Of the batches that were under way when the sink went down, the first failure counts.
        if is_probe or not self._failures:
            self._failures += 1
            self._on_change()
            self._resume_at = now + self._choose_pause(self._failures)
        self._resume_at = max(self._resume_at, now + retry_after_seconds)
        if self._failures == 1 and not is_probe and now - self._logged_at >= LOG_SECONDS:
            self._down_since = self._logged_at = now
            self._is_logged = True
            logger.error(
                "events are not shipped to %s: %s; they stay in the event log and are sent again until it takes them",
                self._sink.name,
                reason,
            )

    def _succeed(self) -> None:
        if self._failures and self._is_logged:
            self._is_logged = False
            logger.warning(
                "events are shipped to %s again, after %.0f s",
                self._sink.name,
                trio.current_time() - self._down_since,
            )
        if self._failures:
            self._failures = 0
            self.trouble = None
            self._on_change()
