"""The state of limits, and the refusal when one is used up. Plain records; no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from attrs import frozen

from cgw.durations import format_duration
from cgw.errors import CgwError
from cgw.model import LimitUnit

LimitName = Literal["quota", "concurrency", "in_flight", "provider", "free"]
"""``quota``: requests or tokens per long interval. ``concurrency``: the short-term rate, under the reference's name.
``in_flight``: requests of the actor and feature under way at once. ``provider``: requests of all actors under way to
one provider. ``free``: the actor's requests that cost nothing upstream, of all features together."""

LimitCause = LimitName
"""The limit that refused: the ``cause`` of a ``RateLimited`` event."""

# The first two complete the reference's texts (its §5 and §1.5), with the time that they count for.
_DESCRIPTIONS = {
    "quota": "rate limit of {limit} {unit} per {window}",
    "concurrency": "concurrency limit of {limit} requests per {window}",
    "in_flight": "limit of {limit} requests in flight",
    "provider": "limit of {limit} requests in flight to the provider",
    "free": "rate of {limit} requests that cost nothing per {window}",
}


@frozen
class LimitState:
    """One limit of one actor and feature at one moment, by the store's clock.

    ``limit`` times ``unit`` per ``window_ms`` milliseconds (0: at once, whenever). ``reset_ms`` is the time until it
    would be unused again, ``more_ms`` the time until at least one more is available (0 when all are).
    """

    name: LimitName
    limit: int
    remaining: int
    reset_ms: int
    window_ms: int
    more_ms: int
    unit: LimitUnit = LimitUnit.REQUESTS

    @property
    def usage(self) -> int:
        """The requests or tokens that are counted now; it falls as time passes."""
        # At most the limit: an overdraft is not visible in `remaining`, which is never negative.
        return self.limit - self.remaining

    @property
    def description(self) -> str:
        """The limit, its size and the time that it counts for, for people: ``rate limit of 50 requests per 24h``."""
        window = format_duration(self.window_ms / 1000)
        return _DESCRIPTIONS[self.name].format(limit=self.limit, unit=self.unit.value, window=window)


class LimitExceeded(CgwError):
    """A request that its actor's limits do not admit. Nothing was consumed.

    ``refused`` is the limit with the longest wait, ``cause`` its name, ``states`` all limits of the request.
    ``retry_after_ms`` is when the same request may be admitted, ``None`` when waiting is pointless. ``is_cut_off``: the
    limit means "no access" by the source's policy (:attr:`cgw.model.SourcePolicy.is_cut_off_at_one`). ``threshold`` is
    the percentage of the quota that this refusal is the first to reach, 0 for none: the caller sends the alert.
    """

    def __init__(
        self,
        refused: LimitState,
        states: Sequence[LimitState],
        retry_after_ms: int | None,
        *,
        is_cut_off: bool = False,
        threshold: int = 0,
    ) -> None:
        super().__init__(f"{refused.description} exceeded")
        self.refused = refused
        self.cause: LimitCause = refused.name
        self.states = tuple(states)
        self.retry_after_ms = retry_after_ms
        self.is_cut_off = is_cut_off
        self.threshold = threshold

    def after(self, elapsed_ms: int) -> LimitExceeded:
        """Return the same refusal ``elapsed_ms`` later, for a request that is refused without asking Redis."""
        wait_ms = self.retry_after_ms
        if wait_ms is not None:
            # At least 1 ms: 0 would have clients retry at once.
            wait_ms = max(1, wait_ms - elapsed_ms)
        # Without the threshold: its alert was sent with the first refusal.
        # The states are those of the first refusal, LONGEST_DENIAL_MS old at most.
        return LimitExceeded(self.refused, self.states, wait_ms, is_cut_off=self.is_cut_off)
