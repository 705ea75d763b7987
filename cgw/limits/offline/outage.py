"""Whether Redis is away, as far as the limits can tell: said in the log once per change, and in healthz's detail."""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import Literal

import trio
from redis.exceptions import ResponseError

from cgw.errors import StoreUnavailable

WhenDown = Literal["local", "open", "closed"]
"""What happens to requests while Redis is away: counted in this process, let through, or refused."""

CALM_SECONDS = 0.5
"""How long nothing may have failed before Redis counts as back: a cluster that half works does not flap."""

MAX_COMPLAINTS = 1_000
"""How many different things are remembered to have been said."""

_CONSEQUENCES = {
    "local": "limits are held in this process alone",
    "open": "no limits are held",
    "closed": "requests are refused",
}

_logger = logging.getLogger("cgw.limits")


class BrokenLimit(StoreUnavailable):
    """Redis is there, but can't count this limit: a key of another type stands under our name, say."""


def build_broken_limit(error: ResponseError) -> BrokenLimit:
    """What follows from a script's error; the same whichever script found out, so that it is said once."""
    return BrokenLimit(f"a limit can't be counted: {describe_script_error(error)}")


def describe_script_error(error: ResponseError) -> str:
    """What a script of this room had to say, without Redis's words about where it stood."""
    return str(error).partition(" script: ")[0].removeprefix("ERR ")


class Outage:
    """The present outage of Redis, if there is one. Times are Trio's clock.

    ``attention`` is set when there is something for :class:`~cgw.limits.upkeep.Upkeep` to look after.
    """

    def __init__(self, when_down: WhenDown) -> None:
        self._consequence = _CONSEQUENCES[when_down]
        self._since: float | None = None
        self._failed_at = 0.0
        self._said: OrderedDict[str, None] = OrderedDict()
        self.attention = trio.Event()

    @property
    def is_on(self) -> bool:
        """Whether Redis is away."""
        return self._since is not None

    def failed(self, reason: StoreUnavailable) -> None:
        """A call of Redis failed. A limit that is broken is no outage; it is said once what is wrong with it."""
        if isinstance(reason, BrokenLimit):
            self._say_once(str(reason))
            return
        self.attention.set()
        self._failed_at = trio.current_time()
        if self._since is None:
            self._since = self._failed_at
            _logger.error("Redis is unavailable, so %s until it is back: %s", self._consequence, reason)

    def succeeded(self) -> None:
        """A call of Redis succeeded."""
        if self._since is not None and trio.current_time() - self._failed_at >= CALM_SECONDS:
            seconds = trio.current_time() - self._since
            self._since = None
            _logger.warning("Redis is back after %.1f s: limits are held by all replicas together again", seconds)

    def describe(self) -> str | None:
        """One sentence for operators while the outage lasts."""
        if self._since is None:
            return None
        seconds = trio.current_time() - self._since
        return f"Redis has been unavailable for {seconds:.0f} s: {self._consequence}"

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            _logger.error("%s", text)
            self._said[text] = None
            if len(self._said) > MAX_COMPLAINTS:
                self._said.popitem(last=False)
