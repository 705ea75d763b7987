"""The plans of all kinds of requests, by a limiter's options: what each kind claims, worked out once."""

from __future__ import annotations

from cgw.limits.claims import (
    MINUTE_MS,
    ClaimGroup,
    bound_in_flight,
    build_actor_group,
    build_free_group,
    build_provider_claim,
    group_claims,
)
from cgw.limits.options import LimiterOptions
from cgw.limits.plans import LimitPlan, PlanCache, is_cut_off
from cgw.limits.prepared import PreparedGroup
from cgw.limits.reservations import ReservationIds
from cgw.limits.scripts import LimitScripts
from cgw.model import Actor, Feature, LimitUnit, RateLimit
from cgw.redis.opening import Store


class Planner:
    """Builds the plans of requests when they are needed first, and keeps them."""

    def __init__(self, redis: Store, options: LimiterOptions, scripts: LimitScripts, ids: ReservationIds) -> None:
        self._redis = redis
        self._options = options
        self._scripts = scripts
        self._ids = ids
        self._is_cluster = redis.is_cluster
        # As the scripts take them: ARGV[3] of admit.lua and settle.lua.
        self._thresholds = " ".join(map(str, options.notify_thresholds))
        # In the form of a rate limit, which all plans have; only its short-term rate is claimed.
        self._free_rate = RateLimit(options.free_per_minute, MINUTE_MS, (), options.free_per_minute, MINUTE_MS)
        self._plans = PlanCache(self._build_plan)
        self._free_plans = PlanCache(self._build_free_plan)
        self.find = self._plans.find
        """Return the plan for an actor's requests with some limits. The cache's own method: each request calls it."""

    def find_free(self, actor: Actor, feature: Feature, provider: str) -> LimitPlan:
        """Return the plan for requests that cost nothing upstream."""
        return self._free_plans.find(actor, feature, self._free_rate, provider)

    def follow_cluster(self) -> None:
        """Plan again if Redis, away at start, has turned out to be a single server: all claims fit into one call then.

        It matters to plans of several groups only, which are never prepared.
        """
        if self._redis.is_cluster != self._is_cluster:
            self._is_cluster = self._redis.is_cluster
            self._plans.clear()
            self._free_plans.clear()

    def _build_plan(self, actor: Actor, feature: Feature, rate_limit: RateLimit, provider: str) -> LimitPlan:
        options = self._options
        bounded = bound_in_flight(rate_limit, options.max_in_flight)
        thresholds = self._thresholds if actor.policy.has_usage_alerts else ""
        group = build_actor_group(actor, feature, bounded, lease_ms=options.lease_ms, thresholds=thresholds)
        plan = self._plan_groups(rate_limit, group, provider)
        if is_cut_off(actor, rate_limit):
            plan.prepared = None  # so that the fast path need not look
        return plan

    def _build_free_plan(self, actor: Actor, _: Feature, rate_limit: RateLimit, provider: str) -> LimitPlan:
        return self._plan_groups(rate_limit, build_free_group(actor, rate_limit.concurrent_requests), provider)

    def _plan_groups(self, rate_limit: RateLimit, group: ClaimGroup, provider: str) -> LimitPlan:
        """Return the plan of an actor's claims and, where the provider's slots are bounded, of one of those."""
        most = self._options.provider_max_in_flight.get(provider)
        claim = None if most is None else build_provider_claim(provider, most, self._options.lease_ms)
        groups = group_claims(group, provider, claim, is_cluster=self._redis.is_cluster)
        is_usual = len(groups) == 1 and rate_limit.unit is LimitUnit.REQUESTS
        return LimitPlan(rate_limit, groups, PreparedGroup(groups[0], self._scripts, self._ids) if is_usual else None)
