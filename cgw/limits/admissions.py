"""Admitted requests. Plain records; no I/O."""

from __future__ import annotations

from attrs import define

from cgw.errors import Headers
from cgw.limits.headers import build_limit_headers
from cgw.limits.plans import LimitPlan
from cgw.limits.reservations import Reservation
from cgw.limits.states import LimitState
from cgw.model import Actor, Feature


@define(eq=False)
class Admission:
    """An admitted request and its reservations, to be settled once.

    ``is_local``: it was admitted while Redis was away, so Redis has no record of it.
    """

    actor: Actor
    feature: Feature
    plan: LimitPlan
    reservations: tuple[Reservation, ...]
    is_local: bool = False
    # The only field that changes: Limiter.settle sets it before its first checkpoint.
    is_settled: bool = False

    @property
    def states(self) -> tuple[LimitState, ...]:
        """The state of all its limits after the claim."""
        return tuple(state for reservation in self.reservations for state in reservation.states)

    def is_charge_final(self, tokens: int | None) -> bool:
        """Return whether Redis counts the same before and after a charge with ``tokens``, which then is not urgent."""
        return all(reservation.can_settle_late(is_charged=True, tokens=tokens) for reservation in self.reservations)

    def build_headers(self) -> Headers:
        """Build the rate-limit fields of the response: those of :func:`~cgw.limits.headers.build_limit_headers`."""
        prepared = self.plan.prepared
        # Without Redis there may be no answer, or one about other claims.
        if prepared is None or self.is_local:
            return build_limit_headers(self.states)
        return prepared.build_headers(self.reservations[0])
