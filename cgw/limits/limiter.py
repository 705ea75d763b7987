"""Admitting and settling requests against their limits: one call to Redis each, whatever the number of limits.

The counting happens in Lua, atomically and by the server's clock (``lua/``). This module decides what is claimed, what
follows from the answers, and what happens without them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

from attrs import frozen
from redis.exceptions import ResponseError

from cgw.clock import read_clock
from cgw.errors import StoreUnavailable
from cgw.limits.admissions import Admission, GeneralAdmission, PreparedAdmission
from cgw.limits.alert_messages import UsageAlert
from cgw.limits.claims import Claim, ClaimGroup
from cgw.limits.clock_steps import ClockSteps
from cgw.limits.offline.backlog import Backlog
from cgw.limits.offline.fallback import Fallback
from cgw.limits.offline.outage import BrokenLimit, Outage, build_broken_limit
from cgw.limits.options import LimiterOptions
from cgw.limits.planner import Planner
from cgw.limits.plans import LimitPlan, check_cut_off
from cgw.limits.posted import PostedSettlements
from cgw.limits.prepared import PreparedGroup
from cgw.limits.reservations import Reservation, ReservationIds
from cgw.limits.scripts import FIRST_LIMIT, PEEKED_PER_LIMIT, build_exceeded, build_state, load_scripts
from cgw.limits.states import LimitCause, LimitExceeded, LimitState
from cgw.limits.upkeep import Upkeep
from cgw.model import Actor, Feature, LimitUnit, RateLimit
from cgw.redis.opening import ScriptCall, Store


@frozen
class LimiterStatistics:
    """The limiter's state, and counts since the start.

    ``backlog`` settlements and charges are kept until Redis takes them; ``dropped`` ones found the backlog full.
    ``admitted`` requests include those that were ``admitted_locally``, without Redis; ``refused`` ones are counted by
    the limit that refused.
    """

    is_redis_away: bool
    backlog: int
    dropped: int
    admitted: int
    admitted_locally: int
    refused: Mapping[LimitCause, int]


def _ignore(alert: UsageAlert) -> None:
    pass


class Limiter:
    """The limits of all actors, counted in one Redis that every replica shares.

    :meth:`run` must run beside it: it keeps the leases of requests in flight, and sends Redis what it missed.
    ``on_alert`` must not block.
    """

    def __init__(
        self,
        redis: Store,
        options: LimiterOptions | None = None,
        *,
        on_alert: Callable[[UsageAlert], None] = _ignore,
    ) -> None:
        self._redis = redis
        self._options = options or LimiterOptions()
        self._on_alert = on_alert
        self._scripts = load_scripts()
        redis.preload(self._scripts.list_all())
        self._ids = ReservationIds()
        self._planner = Planner(redis, self._options, self._scripts, self._ids)
        self._read_clock = read_clock()
        self.outage = Outage(self._options.when_down)
        self._backlog = Backlog(redis, self._scripts, self.outage)
        self._fallback = Fallback(self._options.when_down, self._backlog)
        # Leases are renewed each heartbeat for three of them: a smaller step ends none of them.
        self._steps = ClockSteps(self._options.heartbeat_seconds)
        self._posted = PostedSettlements(redis, self._scripts, self._backlog, self.outage, self._alert_settled)
        self._admitted = self._admitted_locally = 0
        self._refused: Counter[LimitCause] = Counter()

    @property
    def serves_without_redis(self) -> bool:
        """True if requests are admitted while Redis is away."""
        return self._options.when_down != "closed"

    def statistics(self) -> LimiterStatistics:
        """Return the state of the limiter, and counts since the start."""
        return LimiterStatistics(
            is_redis_away=self.outage.is_on,
            backlog=len(self._backlog),
            dropped=self._backlog.dropped_in_all,
            admitted=self._admitted,
            admitted_locally=self._admitted_locally,
            refused=dict(self._refused),
        )

    async def run(self) -> None:
        """Send heartbeats and the backlog until cancelled; then send and await what is left, for at most 1 s."""
        options = self._options
        await Upkeep(
            self._redis,
            self._scripts,
            self._backlog,
            self._fallback,
            self._posted,
            self.outage,
            self._steps,
            options.heartbeat_seconds,
            options.lease_ms,
        ).run()

    def admit(
        self, actor: Actor, feature: Feature, rate_limit: RateLimit, *, provider: str = "", tokens: int = 1
    ) -> Coroutine[Any, Any, Admission]:
        """Claim a request from all limits of ``feature`` and ``provider``, or from none. To be awaited at once.

        ``tokens`` is the estimate to reserve where tokens are counted. Raises :exc:`LimitExceeded`, or
        :exc:`~cgw.errors.StoreUnavailable` when Redis gave no answer and requests are to be refused then. Cancel-safe:
        a reservation whose answer is not waited for any more is given back.
        """
        plan = self._planner.find(actor, feature, rate_limit, provider)
        # Not a coroutine around the one that waits, which would cost a frame whenever it waits.
        if plan.prepared is not None and plan.refusal is None:
            return self._admit_prepared(actor, feature, plan, plan.prepared, tokens)
        return self._admit(actor, feature, rate_limit, provider, tokens)

    async def _admit_prepared(
        self, actor: Actor, feature: Feature, plan: LimitPlan, prepared: PreparedGroup, tokens: int
    ) -> Admission:
        """Admit a request of the usual kind: the fast path, with the outcomes of :meth:`_admit_plan`."""
        number = self._ids.next_number()
        admission = PreparedAdmission(actor, feature, plan, prepared, number)
        try:
            # See _claim_group.
            answer = await self._redis.run_packed(
                prepared.admit_format % (number, number),
                prepared.first_key,
                admission.build_admit,
                admission.build_undo,
            )
        except ResponseError as error:
            return self._admit_locally(actor, feature, plan, plan.groups, build_broken_limit(error))
        except StoreUnavailable as error:
            return self._admit_locally(actor, feature, plan, plan.groups, error)
        # No checkpoint from here on: a cancellation between the answer and the Admission would leak the reservation.
        if answer[0] != 1:
            exceeded = build_exceeded(prepared.group.claims, answer)
            self._note_refusal(actor, feature, plan, tokens, exceeded)
            raise exceeded
        admission.answer = answer
        plan.answer = self._read_clock(), answer
        if self.outage.is_on:
            self.outage.succeeded()
        if prepared.group.has_lease:
            self._hold(admission.reservations[0])
        self._admitted += 1
        return admission

    async def admit_free(self, actor: Actor, feature: Feature, *, provider: str = "") -> Admission:
        """Claim a request that costs nothing upstream: from the actor's rate of such requests, not from any quota.

        It also takes one of the slots of ``provider``, if it goes there and they are bounded. Settle it as any other.
        Raises as :meth:`admit` does; cancel-safe in the same way.
        """
        self._planner.follow_cluster()
        plan = self._planner.find_free(actor, feature, provider)
        if plan.prepared is not None and plan.refusal is None:
            return await self._admit_prepared(actor, feature, plan, plan.prepared, 1)
        return await self._admit_plan(actor, feature, plan, 1)

    async def _admit(
        self, actor: Actor, feature: Feature, rate_limit: RateLimit, provider: str, tokens: int
    ) -> Admission:
        try:
            check_cut_off(actor, rate_limit)  # before the claims: nothing is counted for an actor that is cut off
        except LimitExceeded as exceeded:
            self._refused[exceeded.cause] += 1
            raise
        self._planner.follow_cluster()
        return await self._admit_plan(actor, feature, self._planner.find(actor, feature, rate_limit, provider), tokens)

    async def _admit_plan(self, actor: Actor, feature: Feature, plan: LimitPlan, tokens: int) -> Admission:
        """Admit a request of any kind."""
        try:
            # Answered without Redis, so that an actor that hammers does not load the store that all others need.
            plan.check_recent_refusal(tokens)
        except LimitExceeded as exceeded:
            self._refused[exceeded.cause] += 1
            raise
        groups = plan.price(tokens)
        try:
            reservations = await self._claim(groups)
        except LimitExceeded as exceeded:
            self._note_refusal(actor, feature, plan, tokens, exceeded)
            raise
        except StoreUnavailable as error:
            return self._admit_locally(actor, feature, plan, groups, error)
        # No checkpoint from here on, as in _admit_prepared.
        self.outage.succeeded()
        plan.answer = self._read_clock(), reservations[0].answer
        for reservation in reservations:
            if reservation.group.has_lease:
                self._hold(reservation)
        self._admitted += 1
        return GeneralAdmission(actor, feature, plan, reservations)

    def _note_refusal(
        self, actor: Actor, feature: Feature, plan: LimitPlan, tokens: int, exceeded: LimitExceeded
    ) -> None:
        self._refused[exceeded.cause] += 1
        plan.note_refusal(exceeded, tokens)
        if exceeded.threshold:
            self._alert(actor, feature, exceeded.threshold, exceeded.states)

    def _admit_locally(
        self, actor: Actor, feature: Feature, plan: LimitPlan, groups: Sequence[ClaimGroup], error: StoreUnavailable
    ) -> Admission:
        # Not known whether Redis admitted it: the undo that went along gives that back, so it counts only locally.
        self.outage.failed(error)
        try:
            admission = self._fallback.admit(actor, feature, plan, groups, error)
        except LimitExceeded as exceeded:
            self._refused[exceeded.cause] += 1
            raise
        self._admitted += 1
        self._admitted_locally += 1
        return admission

    def _hold(self, reservation: Reservation) -> None:
        self._fallback.hold(reservation)
        self._steps.note(reservation.answer[1])

    async def settle(self, admission: Admission, *, is_charged: bool, tokens: int | None = None) -> None:
        """Charge what ``admission`` reserved, or give it back. Only responses with status 2xx are charged.

        ``tokens`` is what was really used where tokens are counted; ``None`` leaves it at what was reserved. The first
        call counts, further ones do nothing. Raises nothing: what Redis does not take now is kept in memory and sent
        later. Cancel-safe in the same way.

        When it returns, all replicas count what was given back: use it before the client is told that its request has
        failed. Otherwise :meth:`settle_later` is enough.
        """
        calls = [
            reservation.build_settle(self._scripts, is_charged=is_charged, tokens=tokens)
            for reservation in self._begin_settling(admission, is_charged=is_charged, tokens=tokens)
        ]
        try:
            while calls:
                threshold = await self._settle_one(calls[0])
                del calls[0]
                if threshold:
                    self._alert_settled(admission, threshold)
        finally:
            # Cancelled: whether the first call reached Redis is unknown, but a repeated settlement changes nothing.
            for call in calls:
                self._backlog.add_settlement(call)

    def settle_later(self, admission: Admission, *, is_charged: bool, tokens: int | None = None) -> None:
        """Settle as :meth:`settle` does, without waiting for Redis. Never blocks, raises nothing.

        A charge of what was reserved leaves with a later admission, at most 100 ms later: it changes no count. Refunds,
        freed slots and token usage leave at once, before this replica's next admission, but another replica's may come
        first, and so may any admission if the server has to be sent the script's text. What Redis does not take is
        retried; :meth:`run` waits at its end for what is under way.
        """
        if is_charged and self.charge_later(admission, tokens):
            return
        for reservation in self._begin_settling(admission, is_charged=is_charged, tokens=tokens):
            self._posted.post(admission, reservation, is_charged=is_charged, tokens=tokens)

    def charge_later(self, admission: Admission, tokens: int | None) -> bool:
        """Charge as :meth:`settle_later` does, if Redis counts the same before and after; return whether that is so.

        Otherwise nothing is done.
        """
        if isinstance(admission, PreparedAdmission) and (
            admission.answer[FIRST_LIMIT] >= admission.prepared.least_forgotten
        ):
            # The fast path: without slots, tokens and thresholds there is nothing to settle but the record.
            if not admission.is_settled:
                admission.is_settled = True
                self._posted.forget(admission)
            return True
        if not admission.is_charge_final(tokens):
            return False
        for reservation in self._begin_settling(admission, is_charged=True, tokens=tokens):
            self._posted.post(admission, reservation, is_charged=True, tokens=tokens)
        return True

    def _begin_settling(self, admission: Admission, *, is_charged: bool, tokens: int | None) -> Sequence[Reservation]:
        """Return the reservations that are to be settled in Redis; none if ``admission`` was settled before."""
        if admission.is_settled:
            return ()
        # Set before the first checkpoint: a second call, also by another task, must find it.
        admission.is_settled = True
        if not is_charged or admission.plan.rate_limit.unit is LimitUnit.TOKENS:
            admission.plan.forget_refusal()  # something may have been given back
        if admission.is_local:
            # Also if Redis is back by now: it has no record to settle. The charge goes through the backlog.
            self._fallback.settle(admission, is_charged=is_charged, tokens=tokens)
            return ()
        for reservation in admission.reservations:
            # Before the call: from here on a heartbeat must not take this slot again (see Upkeep._renew).
            if reservation.group.has_lease:
                self._fallback.free(reservation)
        return admission.reservations

    async def peek(self, actor: Actor) -> Mapping[Feature, LimitState]:
        """Return how the quotas of ``actor`` stand, by feature, in the order code, chat, embeddings; consumes nothing.

        A feature without a limit is left out. While Redis is away, the answer is what this process knows, or
        :exc:`~cgw.errors.StoreUnavailable`, by the same rule as for :meth:`admit`.
        """
        quotas = {
            # Without a provider: only the quota, the first claim, is read.
            feature: self._planner.find(actor, feature, actor.rate_limits[feature], "").groups[0].claims[0]
            for feature in Feature
            if feature in actor.rate_limits
        }
        if not quotas:
            return {}
        answer = await self._peek(list(quotas.values()))
        return {
            # answer[0] is the server's time, so the limits begin at 1.
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
            # With `open` and `closed`, this process counts nothing that it could show.
            if self._options.when_down != "local":
                raise
            return self._fallback.peek(claims)
        # The outage is not over with this answer: a server that is full or read-only answers reads, too.
        return answer

    async def _claim(self, groups: Sequence[ClaimGroup]) -> tuple[Reservation, ...]:
        """Claim all groups, or none: what the first ones gave is given back when a later one refuses."""
        reservations: list[Reservation] = []
        try:
            # One after the other, the actor's first: its refusals are the usual ones, and need no undo then.
            for group in groups:
                reservations += [await self._claim_group(group)]
        except BaseException:
            # Also when cancelled, so these must not wait: they are sent over the links' own tasks.
            for reservation in reservations:
                self._redis.send_later(reservation.build_settle(self._scripts, is_charged=False))
            raise
        return tuple(reservations)

    async def _claim_group(self, group: ClaimGroup) -> Reservation:
        reservation = Reservation(group, (), self._ids.next())
        build_admit = partial(reservation.build_admit, self._scripts)
        # The link sends this if the answer does not reach us (cancelled, timed out, connection lost). It may arrive
        # before the admission, over another connection: then it leaves a `void` record, and admit fails on that.
        build_undo = partial(reservation.build_undo, self._scripts)
        try:
            answer = await self._redis.run_packed(build_admit().pack_evalsha(), group.keys[0], build_admit, build_undo)
        except ResponseError as error:
            raise build_broken_limit(error) from error
        if answer[0] != 1:
            raise build_exceeded(group.claims, answer)
        reservation.answer = answer
        return reservation

    async def _settle_one(self, call: ScriptCall) -> int:
        """Return the threshold that was reached; 0 also if Redis did not take the settlement."""
        try:
            _, threshold = await self._run(call)
        except BrokenLimit as error:
            self.outage.failed(error)
            return 0  # not kept: the key would be as broken for every retry
        except StoreUnavailable as error:
            # Perhaps it was executed, but a repeated settlement changes nothing. An alert may be lost with the answer.
            self.outage.failed(error)
            self._backlog.add_settlement(call)
            return 0
        self.outage.succeeded()
        return int(threshold)

    async def _run(self, call: ScriptCall) -> Any:
        try:
            return await self._redis.run_script(call.script, call.keys, call.args)
        except ResponseError as error:
            raise build_broken_limit(error) from error

    def _alert_settled(self, admission: Admission, threshold: int) -> None:
        # Settle returns no states, so the alert shows the quota as it was after the admission. Only the actor's group,
        # the first one, has thresholds.
        self._alert(admission.actor, admission.feature, threshold, admission.reservations[0].states)

    def _alert(self, actor: Actor, feature: Feature, threshold: int, states: Sequence[LimitState]) -> None:
        quota, now = states[0], datetime.now(UTC)  # the quota is the first claim of an actor
        self._on_alert(UsageAlert(actor, feature, threshold, quota.limit, quota.unit, quota.reset_ms, now))
