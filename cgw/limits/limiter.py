"""Admitting and settling requests against their limits: one call to Redis each, whatever the number of limits.

The counting happens in the Lua of this room, atomically and by the server's clock; this module says what is claimed,
what follows from the answers, and what happens while there are none.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from attrs import field, frozen
from redis.exceptions import ResponseError

from cgw.errors import StoreUnavailable
from cgw.limits.admissions import Admission, Reservation, ReservationIds
from cgw.limits.alerts import NOTIFIED_SOURCES, Notice
from cgw.limits.claims import (
    Claim,
    ClaimGroup,
    bound_in_flight,
    build_actor_group,
    build_provider_claim,
    group_claims,
)
from cgw.limits.offline.backlog import Backlog
from cgw.limits.offline.fallback import Fallback
from cgw.limits.offline.outage import BrokenLimit, Outage, WhenDown, build_broken_limit
from cgw.limits.plans import Plan
from cgw.limits.scripts import PEEKED_PER_LIMIT, build_exceeded, build_state, load_scripts
from cgw.limits.states import LimitExceeded, LimitState
from cgw.limits.upkeep import Upkeep
from cgw.model import Actor, Feature, LimitUnit, RateLimit
from cgw.redis.opening import ScriptCall, Store

CUT_OFF_SOURCES = frozenset({"dotcom-product-subscriptions", "dotcom-user"})
"""Sources whose abuse handling sets a limit of 1 to mean "cut off" (reference §5). Elsewhere 1 means 1."""

HEARTBEATS_PER_LEASE = 3
MAX_PLANS = 20_000


@frozen
class LimiterOptions:
    """How limits are held, besides what actors bring along.

    ``max_in_flight`` bounds actors that bring no bound; ``provider_max_in_flight`` bounds what is under way to a
    provider, by all replicas together. ``notify_thresholds`` are percentages of a quota, in ascending order.
    """

    when_down: WhenDown = "local"
    max_in_flight: int | None = None
    provider_max_in_flight: Mapping[str, int] = field(factory=dict)
    heartbeat_seconds: float = 10.0
    notify_thresholds: tuple[int, ...] = ()

    @property
    def lease_ms(self) -> int:
        """How long a place in flight is held without a heartbeat."""
        return round(self.heartbeat_seconds * 1000) * HEARTBEATS_PER_LEASE


def _ignore(notice: Notice) -> None:
    """Nobody is told."""


class Limiter:
    """The limits of all actors, counted in one Redis that every replica shares.

    :meth:`run` must run beside it: it keeps the leases of requests under way, and tells Redis what it missed.
    ``on_notice`` must not block.
    """

    def __init__(
        self,
        redis: Store,
        options: LimiterOptions | None = None,
        *,
        on_notice: Callable[[Notice], None] = _ignore,
    ) -> None:
        self._redis = redis
        self._options = options or LimiterOptions()
        self._on_notice = on_notice
        self._scripts = load_scripts()
        self._thresholds = " ".join(map(str, self._options.notify_thresholds))
        self._plans: OrderedDict[tuple[str, str, Feature, str], Plan] = OrderedDict()
        self._ids = ReservationIds()
        self.outage = Outage(self._options.when_down)
        self._backlog = Backlog(redis, self._scripts, self.outage)
        self._fallback = Fallback(self._options.when_down, self._backlog)

    @property
    def serves_without_redis(self) -> bool:
        """Whether requests are admitted while Redis is away."""
        return self._options.when_down != "closed"

    @property
    def untold(self) -> int:
        """How many settlements and charges Redis has still to be told."""
        return len(self._backlog)

    async def run(self) -> None:
        """Keep up what is held, and tell Redis what it missed, until cancelled; then once more, for at most 1 s."""
        options = self._options
        await Upkeep(
            self._redis,
            self._scripts,
            self._backlog,
            self._fallback,
            self.outage,
            options.heartbeat_seconds,
            options.lease_ms,
        ).run()

    async def admit(
        self, actor: Actor, feature: Feature, rate_limit: RateLimit, *, provider: str = "", tokens: int = 1
    ) -> Admission:
        """Claim a request from all limits of ``feature`` and ``provider``, or from none.

        ``tokens`` is the estimate that is reserved where tokens are counted. Raises :exc:`LimitExceeded`, or
        :exc:`~cgw.errors.StoreUnavailable` when Redis gave no answer and requests are to be refused then. Cancel-safe:
        a reservation whose answer nobody waits for any more is given back.
        """
        if rate_limit.limit <= 1 and actor.source in CUT_OFF_SOURCES:
            raise _build_cut_off(rate_limit)
        plan = self._find_plan(actor, feature, rate_limit, provider)
        plan.check_recent_refusal(tokens)
        groups = plan.price(tokens)
        try:
            reservations = await self._claim(groups)
        except LimitExceeded as exceeded:
            plan.note_refusal(exceeded, tokens)
            if exceeded.threshold:
                self._notify(actor, feature, exceeded.threshold, exceeded.states)
            raise
        except StoreUnavailable as error:
            self.outage.failed(error)
            return self._fallback.admit(actor, feature, plan, groups, error)
        self.outage.succeeded()
        plan.note_answer(reservations[0].answer)
        for reservation in reservations:
            self._fallback.hold(reservation)
        return Admission(actor, feature, plan, reservations)

    async def settle(self, admission: Admission, *, is_charged: bool, tokens: int | None = None) -> None:
        """Charge what ``admission`` reserved, or give it back. Only answers with status 2xx are charged.

        ``tokens`` is what was really used where tokens are counted; ``None`` leaves it at what was reserved. The first
        call counts, further ones do nothing. Raises nothing: what Redis does not take now it is told later (kept in
        memory). Cancel-safe in the same way.
        """
        if admission.is_settled:
            return
        admission.is_settled = True
        if not is_charged or admission.plan.rate_limit.unit is LimitUnit.TOKENS:
            admission.plan.forget_refusal()  # something may have come back
        if admission.is_local:
            self._fallback.settle(admission, is_charged=is_charged, tokens=tokens)
            return
        calls = []
        for reservation in admission.reservations:
            self._fallback.free(reservation)
            calls.append(reservation.build_settle(self._scripts, is_charged=is_charged, tokens=tokens))
        try:
            while calls:
                threshold = await self._settle_one(calls[0])
                del calls[0]
                if threshold:
                    self._notify(admission.actor, admission.feature, threshold, admission.reservations[0].states)
        finally:
            for call in calls:
                self._backlog.add_settlement(call)

    async def peek(self, actor: Actor) -> Mapping[Feature, LimitState]:
        """How the quotas of ``actor`` stand, by feature, in the order code, chat, embeddings; consumes nothing.

        A feature without a limit is left out. While Redis is away, it is what this process knows, or
        :exc:`~cgw.errors.StoreUnavailable`, by the same rule as for :meth:`admit`.
        """
        quotas = {
            feature: self._find_plan(actor, feature, actor.rate_limits[feature], "").groups[0].claims[0]
            for feature in Feature
            if feature in actor.rate_limits
        }
        if not quotas:
            return {}
        answer = await self._peek(list(quotas.values()))
        return {
            feature: build_state(claim, *answer[at : at + PEEKED_PER_LIMIT])
            for (feature, claim), at in zip(quotas.items(), range(1, len(answer), PEEKED_PER_LIMIT), strict=True)
        }

    async def _peek(self, claims: Sequence[Claim]) -> Sequence[int]:
        arguments: list[str | int] = []
        for claim in claims:
            arguments += (claim.kind, claim.limit, claim.period_ms)
        try:
            answer: Sequence[int] = await self._run(
                ScriptCall(self._scripts.peek, [claim.key for claim in claims], arguments)
            )
        except StoreUnavailable as error:
            self.outage.failed(error)
            if self._options.when_down != "local":
                raise
            return self._fallback.peek(claims)
        return answer

    def _find_plan(self, actor: Actor, feature: Feature, rate_limit: RateLimit, provider: str) -> Plan:
        key = (actor.source, actor.id, feature, provider)
        plan = self._plans.get(key)
        if plan is None or (plan.rate_limit is not rate_limit and plan.rate_limit != rate_limit):
            plan = self._plans[key] = self._build_plan(actor, feature, rate_limit, provider)
            if len(self._plans) > MAX_PLANS:
                self._plans.popitem(last=False)
        return plan

    def _build_plan(self, actor: Actor, feature: Feature, rate_limit: RateLimit, provider: str) -> Plan:
        options = self._options
        bounded = bound_in_flight(rate_limit, options.max_in_flight)
        thresholds = self._thresholds if actor.source in NOTIFIED_SOURCES else ""
        group = build_actor_group(actor, feature, bounded, lease_ms=options.lease_ms, thresholds=thresholds)
        most = options.provider_max_in_flight.get(provider)
        claim = None if most is None else build_provider_claim(provider, most, options.lease_ms)
        return Plan(rate_limit, group_claims(group, provider, claim, is_cluster=self._redis.is_cluster))

    async def _claim(self, groups: Sequence[ClaimGroup]) -> tuple[Reservation, ...]:
        """Claim all groups, or none: what the first ones gave is given back when a later one refuses."""
        reservations: list[Reservation] = []
        try:
            for group in groups:
                reservations += [await self._claim_group(group)]
        except BaseException:
            for reservation in reservations:
                self._redis.send_later(reservation.build_settle(self._scripts, is_charged=False))
            raise
        return tuple(reservations)

    async def _claim_group(self, group: ClaimGroup) -> Reservation:
        asked = Reservation(group, (), self._ids.next())
        undo = asked.build_undo(self._scripts)
        answer = await self._run(asked.build_admit(self._scripts), undo)
        if answer[0] != 1:
            raise build_exceeded(group.claims, answer)
        return Reservation(group, answer, asked.id)

    async def _settle_one(self, call: ScriptCall) -> int:
        """The threshold that was reached; 0 also where Redis did not take it, and will be told later or not at all."""
        try:
            _, threshold = await self._run(call)
        except BrokenLimit as error:
            self.outage.failed(error)
            return 0
        except StoreUnavailable as error:
            self.outage.failed(error)
            self._backlog.add_settlement(call)
            return 0
        self.outage.succeeded()
        return int(threshold)

    async def _run(self, call: ScriptCall, undo: ScriptCall | None = None) -> Any:
        try:
            return await self._redis.run_script(call.script, call.keys, call.args, undo=undo)
        except ResponseError as error:
            raise build_broken_limit(error) from error

    def _notify(self, actor: Actor, feature: Feature, threshold: int, states: Sequence[LimitState]) -> None:
        quota, now = states[0], datetime.now(UTC)
        self._on_notice(Notice(actor, feature, threshold, quota.limit, quota.unit, quota.reset_ms, now))


def _build_cut_off(rate_limit: RateLimit) -> LimitExceeded:
    interval_ms = rate_limit.interval_ms
    state = LimitState("quota", rate_limit.limit, 0, interval_ms, interval_ms, 0, rate_limit.unit)
    return LimitExceeded(state, [state], None, is_cut_off=True)
