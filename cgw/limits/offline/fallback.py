"""Admitting and settling while Redis is away, as the operator decided: locally, without limits, or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from attrs import evolve

from cgw.errors import StoreUnavailable
from cgw.limits.admissions import Admission, GeneralAdmission
from cgw.limits.claims import Claim, ClaimGroup
from cgw.limits.offline.backlog import Backlog, now_ms
from cgw.limits.offline.local import LocalLimits
from cgw.limits.offline.outage import WhenDown
from cgw.limits.plans import LimitPlan
from cgw.limits.reservations import Reservation, ReservationIds
from cgw.limits.scripts import build_exceeded
from cgw.model import Actor, Feature


class Fallback:
    """The limits without Redis, and the slots that this process holds in any case.

    Never blocks. What was used goes to ``backlog``, to be charged when Redis is back.
    """

    def __init__(self, when_down: WhenDown, backlog: Backlog) -> None:
        self._when_down = when_down
        self._backlog = backlog
        self._limits = LocalLimits()
        self._ids = ReservationIds()
        # Reservations whose lease a heartbeat has (perhaps) created in Redis: see note_taken.
        self._taken: set[str] = set()

    def admit(
        self, actor: Actor, feature: Feature, plan: LimitPlan, groups: Sequence[ClaimGroup], error: StoreUnavailable
    ) -> Admission:
        """Admit without Redis. Raises ``error`` where requests are refused then, or :exc:`LimitExceeded`."""
        if self._when_down == "closed":
            raise error
        if self._when_down == "open":
            # Without an answer and an id: nothing is counted here, but settle still puts the usage into the backlog.
            return GeneralAdmission(
                actor, feature, plan, tuple(Reservation(group, (), "") for group in groups), is_local=True
            )
        now = now_ms()
        # Count on from what Redis said last, or every outage would begin with fresh quotas.
        for claim, debt in plan.recall_debts():
            self._limits.seed(claim, debt, now)
        # One group: slots of a cluster do not matter here.
        claims = tuple(claim for group in groups for claim in group.claims)
        reservation_id = self._ids.next()
        answer = self._limits.admit(reservation_id, claims, now)
        if answer[0] != 1:
            raise build_exceeded(claims, answer)
        return GeneralAdmission(
            actor,
            feature,
            plan,
            (Reservation(evolve(groups[0], claims=claims), answer, reservation_id),),
            is_local=True,
        )

    def settle(self, admission: Admission, *, is_charged: bool, tokens: int | None) -> None:
        """Settle what was admitted here, and put what it used into the backlog."""
        # What Redis counted by its last answer: refill pays that off before the usage that is added here.
        debts = {claim.key: debt for claim, debt in admission.plan.recall_debts()}
        for reservation in admission.reservations:
            group = reservation.group
            used = [(claim, claim.count_used(is_charged=is_charged, tokens=tokens)) for claim in group.claims]
            # Without limits ("open") there is no reservation here, and this does nothing.
            self._limits.settle(reservation.id, used, now_ms())
            for claim, amount in used:
                if claim.kind != "lease" and amount:
                    self._backlog.add_charge(group.record_prefix, claim, amount, debt=debts.get(claim.key, 0))
                # A slot that was taken here is freed here; in Redis there is one only if a heartbeat created it.
                elif claim.kind == "lease" and reservation.id in self._taken:
                    self._backlog.add_free(claim, reservation.id)
            self._taken.discard(reservation.id)

    def peek(self, claims: Iterable[Claim]) -> list[int]:
        """Return how limits stand as far as this process knows, as ``peek.lua`` would."""
        return self._limits.peek(claims, now_ms())

    def hold(self, reservation: Reservation) -> None:
        """Note the slots that a reservation holds in Redis, for heartbeats and for an outage that begins later."""
        for claim in reservation.group.claims:
            if claim.kind == "lease":
                self._limits.hold(claim.key, reservation.id, now_ms() + claim.period_ms)

    def free(self, reservation: Reservation) -> None:
        """Note that the slots of a reservation are free."""
        self._taken.discard(reservation.id)
        for claim in reservation.group.claims:
            if claim.kind == "lease":
                self._limits.free(claim.key, reservation.id)

    def renew_leases(self, lease_ms: int) -> Mapping[str, tuple[str, ...]]:
        """Renew all leases of this process; returns them, for Redis: by key, the reservations' ids."""
        ends_at = now_ms() + lease_ms
        # Here all are kept, whatever Redis answers: the requests are really in flight.
        for held in self._limits.leases.values():
            held.update(dict.fromkeys(held, ends_at))
        return {key: tuple(held) for key, held in self._limits.leases.items()}

    def note_taken(self, ids: Iterable[str]) -> None:
        """Note that a heartbeat creates leases in Redis for these reservations.

        Redis may have no record of them, so that no settlement would free the leases: :meth:`settle` frees them
        through the backlog.
        """
        self._taken.update(ids)

    def select_held(self, key: str, ids: Sequence[str]) -> list[str]:
        """Return those of ``ids`` that still hold a slot."""
        held = self._limits.leases.get(key, {})
        return [reservation_id for reservation_id in ids if reservation_id in held]
