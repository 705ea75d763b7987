"""Admitted requests. Plain records; no I/O."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from cgw.errors import Headers
from cgw.limits.headers import build_limit_headers
from cgw.limits.plans import LimitPlan
from cgw.limits.prepared import PreparedGroup
from cgw.limits.reservations import Reservation
from cgw.limits.states import LimitState
from cgw.model import Actor, Feature
from cgw.redis.opening import ScriptCall


class Admission(ABC):
    """An admitted request and its reservations, to be settled once.

    ``is_local``: it was admitted while Redis was away, so Redis has no record of it.
    """

    __slots__ = ("actor", "feature", "is_settled", "plan")

    is_local = False

    def __init__(self, actor: Actor, feature: Feature, plan: LimitPlan) -> None:
        self.actor = actor
        self.feature = feature
        self.plan = plan
        # The only field that changes: Limiter sets it before the first checkpoint of a settlement.
        self.is_settled = False

    @property
    @abstractmethod
    def reservations(self) -> tuple[Reservation, ...]:
        """Its reservations, one for each group of limits."""

    @property
    def states(self) -> tuple[LimitState, ...]:
        """The state of all its limits after the claim."""
        return tuple(state for reservation in self.reservations for state in reservation.states)

    def is_charge_final(self, tokens: int | None) -> bool:
        """Return whether Redis counts the same before and after a charge with ``tokens``, which then is not urgent."""
        return all(reservation.can_settle_late(is_charged=True, tokens=tokens) for reservation in self.reservations)

    def build_headers(self) -> Headers:
        """Build the rate-limit fields of the response: those of :func:`~cgw.limits.headers.build_limit_headers`."""
        return build_limit_headers(self.states)


class GeneralAdmission(Admission):
    """An admission with any reservations, each of which has its group."""

    __slots__ = ("_reservations", "is_local")

    def __init__(
        self,
        actor: Actor,
        feature: Feature,
        plan: LimitPlan,
        reservations: tuple[Reservation, ...],
        *,
        is_local: bool = False,
    ) -> None:
        super().__init__(actor, feature, plan)
        self._reservations = reservations
        self.is_local = is_local

    @property
    def reservations(self) -> tuple[Reservation, ...]:
        """See :attr:`Admission.reservations`."""
        return self._reservations


class PreparedAdmission(Admission):
    """The admission of the fast path, by the prepared calls of its plan: one object, whose parts are built if needed.

    ``number`` tells it from all others of its process, ``answer`` is that of ``admit``: empty while Redis is asked.
    """

    __slots__ = ("answer", "number", "prepared")

    def __init__(self, actor: Actor, feature: Feature, plan: LimitPlan, prepared: PreparedGroup, number: int) -> None:
        # Not by super(): each exchange makes one.
        self.actor = actor
        self.feature = feature
        self.plan = plan
        self.prepared = prepared
        self.number = number
        self.answer: Sequence[int] = ()
        self.is_settled = False

    @property
    def reservations(self) -> tuple[Reservation]:
        """The only reservation. See :attr:`Admission.reservations`."""
        return (self.prepared.build_reservation(self.number, self.answer),)

    def build_admit(self) -> ScriptCall:
        """Build the call that reserves, in its general form."""
        return self.reservations[0].build_admit(self.prepared.scripts)

    def build_undo(self) -> ScriptCall:
        """Build the call that gives up an admission whose answer did not arrive."""
        return self.reservations[0].build_undo(self.prepared.scripts)

    def build_charge(self) -> ScriptCall:
        """Build the call that charges what was reserved, in its general form."""
        return self.reservations[0].build_settle(self.prepared.scripts, is_charged=True)

    def is_charge_final(self, tokens: int | None) -> bool:
        """See :meth:`Admission.is_charge_final`."""
        return not self.prepared.group.has_lease  # and a prepared group counts no tokens

    def build_headers(self) -> Headers:
        """See :meth:`Admission.build_headers`."""
        template = self.prepared.header_template
        return build_limit_headers(self.states) if template is None else template.fill(self.answer)
