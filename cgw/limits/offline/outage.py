"""The state of Redis as the limits see it: logged once per change, and shown in healthz's detail."""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import Literal

import trio
from redis.exceptions import ResponseError

from cgw.errors import StoreUnavailable

WhenDown = Literal["local", "open", "closed"]
"""The treatment of requests while Redis is away: counted in this process, admitted uncounted, or refused."""

CALM_SECONDS = 0.5
"""The time without a failure after which Redis counts as back, so that a half-broken cluster does not flap."""

MAX_COMPLAINTS = 1_000
"""Broken limits that are remembered, so as to log each once."""

_CONSEQUENCES = {
    "local": "limits are held in this process alone",
    "open": "no limits are held",
    "closed": "requests are refused",
}

_logger = logging.getLogger("cgw.limits")


class BrokenLimit(StoreUnavailable):
    """Redis answers, but cannot count this limit: for example because its key holds another type."""


def build_broken_limit(error: ResponseError) -> BrokenLimit:
    """Build the error for a script's error reply; its text is the same for all scripts, so that it is logged once."""
    return BrokenLimit(f"a limit can't be counted: {describe_script_error(error)}")


def describe_script_error(error: ResponseError) -> str:
    """Return a script's own message, without the position in the script that Redis adds."""
    return str(error).partition(" script: ")[0].removeprefix("ERR ")


class Outage:
    """The present outage of Redis, if there is one. Times are Trio's clock.

    ::

                failed                  succeeded, nothing failed for CALM_SECONDS
        up ───────────────► away ──────────────────────────────────────────────► up
            (logs an error)  ↺ failed, succeeded                    (logs a warning)

    ``attention`` is set when :class:`~cgw.limits.upkeep.Upkeep` has something to do: Redis is away, or there is a
    backlog. Upkeep replaces it by a new event afterwards.
    """

    def __init__(self, when_down: WhenDown) -> None:
        self._consequence = _CONSEQUENCES[when_down]
        self._since: float | None = None
        self.is_on = False
        """True while Redis is away. To be read only; no property, because each request looks."""
        self._failed_at = 0.0
        self._logged: OrderedDict[str, None] = OrderedDict()
        self.attention = trio.Event()
        self._is_over = trio.Event()

    async def wait_over(self) -> None:
        """Wait until no outage is on. Cancel-safe."""
        while self._since is not None:
            await self._is_over.wait()

    def failed(self, reason: StoreUnavailable) -> None:
        """Note that a call of Redis failed. A :exc:`BrokenLimit` is only logged, once: it is not an outage."""
        if isinstance(reason, BrokenLimit):
            self._log_once(str(reason))
            return
        self.attention.set()  # Upkeep finds out when Redis is back, also if no request comes
        # Also when the outage has begun already: CALM_SECONDS count from the last failure.
        self._failed_at = trio.current_time()
        if self._since is None:
            self._since, self.is_on = self._failed_at, True
            _logger.error("Redis is unavailable, so %s until it is back: %s", self._consequence, reason)

    def succeeded(self) -> None:
        """Note that a call of Redis succeeded."""
        # One success is not enough: with one failed node of a cluster, successes and failures alternate.
        if self._since is not None and trio.current_time() - self._failed_at >= CALM_SECONDS:
            seconds = trio.current_time() - self._since
            # The backlog may still hold settlements: `attention` stays set until it is empty (see Upkeep).
            self._since, self.is_on = None, False
            is_over, self._is_over = self._is_over, trio.Event()
            is_over.set()
            _logger.warning("Redis is back after %.1f s: limits are held by all replicas together again", seconds)

    def describe(self) -> str | None:
        """Return one sentence for operators while the outage lasts, otherwise ``None``."""
        if self._since is None:
            return None
        seconds = trio.current_time() - self._since
        return f"Redis has been unavailable for {seconds:.0f} s: {self._consequence}"

    def _log_once(self, text: str) -> None:
        if text not in self._logged:
            _logger.error("%s", text)
            self._logged[text] = None
            # The oldest one is forgotten, and logged again if it comes back.
            if len(self._logged) > MAX_COMPLAINTS:
                self._logged.popitem(last=False)
