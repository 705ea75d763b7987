"""The claims of one kind of request, built once, and a short memory of Redis's answers to them; limits that forbid."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

import trio
from attrs import define, field

from cgw.limits.claims import Claim, ClaimGroup
from cgw.limits.prepared import PreparedGroup
from cgw.limits.scripts import FIELDS_PER_LIMIT, FIRST_LIMIT
from cgw.limits.states import LimitExceeded, LimitState
from cgw.model import Actor, Feature, LimitUnit, RateLimit

LONGEST_DENIAL_MS = 250
"""The time for which a refusal is repeated without asking Redis. An actor that hammers costs it four calls a second."""

MAX_PLANS = 20_000
"""Plans in memory; of more, the oldest is dropped, and built again when it is needed."""


@define(eq=False)
class LimitPlan:
    """The claims of requests of one actor, feature and provider. Times are Trio's clock.

    ``groups`` is one, or in a cluster one for each slot that the keys are in.
    """

    rate_limit: RateLimit
    groups: Sequence[ClaimGroup]
    prepared: PreparedGroup | None = None
    """The only group, if its costs are always the same."""
    refusal: tuple[float, int, LimitExceeded] | None = field(default=None, init=False)
    """The last refusal: its time, the tokens that the request asked for, and the error."""
    answer: tuple[float, Sequence[int]] | None = field(default=None, init=False)
    """The last answer of ``admit`` for the first group, with its time. Only that group has buckets: a second one, in a
    cluster, holds the provider's lease."""

    def price(self, tokens: int) -> Sequence[ClaimGroup]:
        """Return the groups for a request that reserves ``tokens``, if its quota counts tokens."""
        if self.rate_limit.unit is LimitUnit.REQUESTS:
            return self.groups
        return [group.price(tokens) for group in self.groups]

    def check_recent_refusal(self, tokens: int) -> None:
        """Raise the last refusal again if it is recent and holds for a request of ``tokens`` too."""
        if self.refusal is None:
            return
        refused_at, refused_tokens, exceeded = self.refusal
        elapsed_ms = (trio.current_time() - refused_at) * 1000
        # Not longer than the wait itself: after it the request may fit.
        if elapsed_ms >= min(LONGEST_DENIAL_MS, exceeded.retry_after_ms or LONGEST_DENIAL_MS):
            self.refusal = None
        elif tokens >= refused_tokens or self.rate_limit.unit is LimitUnit.REQUESTS:
            # A request for fewer tokens than the refused one may still fit, so that one goes to Redis.
            raise exceeded.after(int(elapsed_ms))

    def note_refusal(self, exceeded: LimitExceeded, tokens: int) -> None:
        """Remember a refusal that only time can lift."""
        # Not one of an in-flight limit: a slot may be freed at any moment, by any replica.
        if exceeded.cause in ("quota", "concurrency", "free"):
            self.refusal = trio.current_time(), tokens, exceeded

    def forget_refusal(self) -> None:
        """Ask Redis again for the next request: something was given back."""
        # Other replicas' refunds are not known here; they are noticed when the refusal is too old to be repeated.
        self.refusal = None

    def recall_debts(self) -> Iterator[tuple[Claim, int]]:
        """Yield each bucket of the first group with its debt now, in tokens × ms, by Redis's last answer.

        For counting on without Redis. Never too low, and too high by the refill of 2 ms at most: times are whole
        milliseconds, rounded so.
        """
        if self.answer is None:
            return
        answered_at, answer = self.answer
        elapsed_ms = int((trio.current_time() - answered_at) * 1000)
        for claim, at in zip(self.groups[0].claims, range(FIRST_LIMIT, len(answer), FIELDS_PER_LIMIT), strict=True):
            # The second field of a limit is the time until it is unused, which is its debt in milliseconds of refill.
            reset_ms = answer[at + 1] - elapsed_ms
            if claim.kind == "bucket" and reset_ms > 0:
                yield claim, reset_ms * claim.limit  # a bucket of `limit` tokens pays off `limit` of debt per ms


class PlanCache:
    """The plans of all actors, which ``build`` builds when they are needed first."""

    def __init__(self, build: Callable[[Actor, Feature, RateLimit, str], LimitPlan]) -> None:
        self._build = build
        self._plans: OrderedDict[tuple[str, str, Feature, str], LimitPlan] = OrderedDict()

    def clear(self) -> None:
        """Build all plans again when they are needed."""
        self._plans.clear()

    def find(self, actor: Actor, feature: Feature, rate_limit: RateLimit, provider: str) -> LimitPlan:
        """Return the plan for requests with these limits."""
        # Not by the actor object: a refresh makes a new one, and the memory of refusals and debts must survive that.
        key = (actor.source, actor.id, feature, provider)
        plan = self._plans.get(key)
        # Limits that changed make a new plan. Usually it is the same object, which is faster to find out.
        if plan is None or (plan.rate_limit is not rate_limit and plan.rate_limit != rate_limit):
            plan = self._plans[key] = self._build(actor, feature, rate_limit, provider)
            # Only the memory of the last refusal and the last answer is lost with a plan.
            if len(self._plans) > MAX_PLANS:
                self._plans.popitem(last=False)
        return plan


def check_cut_off(actor: Actor, rate_limit: RateLimit) -> None:
    """Raise :exc:`LimitExceeded` for limits that mean "no access" by the policy of the actor's source."""
    if is_cut_off(actor, rate_limit):
        raise _build_cut_off(rate_limit)


def is_cut_off(actor: Actor, rate_limit: RateLimit) -> bool:
    """Return whether these limits mean "no access"."""
    return rate_limit.limit <= 1 and actor.policy.is_cut_off_at_one


def _build_cut_off(rate_limit: RateLimit) -> LimitExceeded:
    interval_ms = rate_limit.interval_ms
    # Shown as used up, although nothing is counted.
    state = LimitState("quota", rate_limit.limit, 0, interval_ms, interval_ms, 0, rate_limit.unit)
    return LimitExceeded(state, [state], None, is_cut_off=True)
