"""How limits stand, and the refusal when one is used up. Plain records; no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from attrs import frozen

from cgw.errors import CgwError

LimitName = Literal["quota", "concurrency"]
"""``quota``: requests per long interval. ``concurrency``: the short-term rate, under the reference's name."""

LimitCause = LimitName
"""Which limit refused: the ``cause`` of a ``RateLimited`` event."""


@frozen
class LimitState:
    """One limit of one actor and feature at one moment, by the store's clock.

    ``limit`` requests per ``window_ms`` milliseconds. ``reset_ms`` is the time until it would be unused again,
    ``more_ms`` the time until at least one request more is available (0 when all are).
    """

    name: LimitName
    limit: int
    remaining: int
    reset_ms: int
    window_ms: int
    more_ms: int

    @property
    def usage(self) -> int:
        """Requests counted now; falls again as time passes."""
        return self.limit - self.remaining


class LimitExceeded(CgwError):
    """A request that its actor's limits don't admit. Nothing was consumed.

    ``refused`` is the limit that keeps the caller waiting longest, ``cause`` its name, ``states`` all limits of
    the request. ``retry_after_ms`` is when the same request may be admitted, or ``None`` when waiting is pointless.
    ``is_cut_off``: the actor's source set a limit that means "no access" (see :data:`~.limiter.CUT_OFF_SOURCES`).
    """

    def __init__(
        self,
        refused: LimitState,
        states: Sequence[LimitState],
        retry_after_ms: int | None,
        *,
        is_cut_off: bool = False,
    ) -> None:
        kind = "rate" if refused.name == "quota" else "concurrency"
        super().__init__(f"{kind} limit of {refused.limit} requests exceeded")
        self.refused = refused
        self.cause: LimitCause = refused.name
        self.states = tuple(states)
        self.retry_after_ms = retry_after_ms
        self.is_cut_off = is_cut_off
