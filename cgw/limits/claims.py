"""What one request claims of which limits, and under which keys they are counted. Plain records; no I/O."""

from __future__ import annotations

from typing import Literal
from urllib.parse import quote

from attrs import evolve, field, frozen

from cgw.limits.states import LimitName
from cgw.model import Actor, Feature, LimitUnit, RateLimit

LimitKind = Literal["bucket", "window", "lease"]


@frozen
class Claim:
    """What one request asks of one limit: ``cost`` of ``limit`` per ``period_ms`` (of a lease: how long it is held)."""

    name: LimitName
    kind: LimitKind
    key: str
    limit: int
    period_ms: int
    cost: int = 1
    unit: LimitUnit = LimitUnit.REQUESTS

    def count_used(self, *, is_charged: bool, tokens: int | None) -> int:
        """How much of the limit an exchange came to: ``tokens`` where they count, ``None`` being what was reserved."""
        if not is_charged:
            return 0
        return self.cost if self.unit is LimitUnit.REQUESTS or tokens is None else tokens


@frozen(eq=False)
class ClaimGroup:
    """Claims whose keys are in one slot: what one call of a script is about.

    ``record_prefix`` is what reservation ids are put behind. The notices of the first claim are noted under
    ``notice_key`` when ``thresholds`` (percentages, ``"90 95 100"``) has any.
    """

    record_prefix: str
    claims: tuple[Claim, ...]
    thresholds: str = ""
    notice_key: str = ""
    keys: tuple[str, ...] = field(init=False)
    """All keys but the record's, in the scripts' order."""
    admit_arguments: tuple[str | int, ...] = field(init=False)
    """What ``admit`` is told after the reservation's id and lifetime."""

    refund_arguments: tuple[str | int, ...] = field(init=False)
    """What ``settle`` is told after the reservation's id and origin, to give everything back."""
    charge_arguments: tuple[str | int, ...] = field(init=False)
    """The same, to charge what was reserved."""

    @keys.default
    def _list_keys(self) -> tuple[str, ...]:
        keys = tuple(claim.key for claim in self.claims)
        return (*keys, self.notice_key) if self.thresholds else keys

    @admit_arguments.default
    def _list_admit_arguments(self) -> tuple[str | int, ...]:
        arguments: list[str | int] = [self.thresholds]
        for claim in self.claims:
            arguments += (claim.kind, claim.limit, claim.period_ms, claim.cost)
        return tuple(arguments)

    @refund_arguments.default
    def _list_refund_arguments(self) -> tuple[str | int, ...]:
        return self._list_settle_arguments(is_charged=False, tokens=None)

    @charge_arguments.default
    def _list_charge_arguments(self) -> tuple[str | int, ...]:
        return self._list_settle_arguments(is_charged=True, tokens=None)

    def settle_arguments(self, *, is_charged: bool, tokens: int | None) -> tuple[str | int, ...]:
        """What ``settle`` is told after the reservation's id and origin; ``tokens`` is what was really used."""
        if not is_charged:
            return self.refund_arguments
        if tokens is None or self.claims[0].unit is LimitUnit.REQUESTS:
            return self.charge_arguments  # only quotas count tokens, and they come first
        return self._list_settle_arguments(is_charged=True, tokens=tokens)

    def _list_settle_arguments(self, *, is_charged: bool, tokens: int | None) -> tuple[str | int, ...]:
        arguments: list[str | int] = [self.thresholds]
        for claim in self.claims:
            used = claim.count_used(is_charged=is_charged, tokens=tokens)
            arguments += (claim.kind, claim.limit, claim.period_ms, claim.cost, used)
        return tuple(arguments)

    def price(self, tokens: int) -> ClaimGroup:
        """The same claims, with ``tokens`` as the cost of those that count tokens; at most the whole limit.

        A request that may use more than the limit gets through when nothing else was used: waiting is never pointless.
        """
        claims = tuple(
            evolve(claim, cost=max(1, min(tokens, claim.limit))) if claim.unit is LimitUnit.TOKENS else claim
            for claim in self.claims
        )
        return ClaimGroup(self.record_prefix, claims, self.thresholds, self.notice_key)


def build_key_prefix(source: str, actor_id: str) -> str:
    """``cgw:{<source>:<actor id>}:``: one hash tag per actor, so that all limits of a call share a slot.

    Characters with a meaning in keys (``{``, ``}``, ``:``) and all unusual ones are percent-encoded.
    """
    return f"cgw:{{{quote(source, safe='')}:{quote(actor_id, safe='')}}}:"


def bound_in_flight(rate_limit: RateLimit, max_in_flight: int | None) -> RateLimit:
    """The same limits, with the operator's bound on requests in flight where they bring none of their own."""
    return rate_limit if rate_limit.max_in_flight is not None else evolve(rate_limit, max_in_flight=max_in_flight)


def build_claims(prefix: str, feature: Feature, rate_limit: RateLimit, lease_ms: int) -> tuple[Claim, ...]:
    """What one request of ``feature`` claims: of the quota, of the short-term rate, and a place in flight."""
    quota = Claim(
        "quota",
        "bucket",
        f"{prefix}{feature}:quota",
        rate_limit.limit,
        rate_limit.interval_ms,
        unit=rate_limit.unit,
    )
    rate = Claim(
        "concurrency",
        "bucket",
        f"{prefix}{feature}:rate",
        rate_limit.concurrent_requests,
        rate_limit.concurrent_interval_ms,
    )
    if rate_limit.max_in_flight is None:
        return quota, rate
    return quota, rate, Claim("in_flight", "lease", f"{prefix}{feature}:in_flight", rate_limit.max_in_flight, lease_ms)


def build_actor_group(
    actor: Actor, feature: Feature, rate_limit: RateLimit, *, lease_ms: int, thresholds: str
) -> ClaimGroup:
    """The claims of one request of ``actor``, with the cost of one request each."""
    prefix = build_key_prefix(actor.source, actor.id)
    claims = build_claims(prefix, feature, rate_limit, lease_ms)
    return ClaimGroup(f"{prefix}reservation:", claims, thresholds, f"{prefix}{feature}:notice")


def build_provider_claim(provider: str, max_in_flight: int, lease_ms: int) -> Claim:
    """One place among the requests that may be under way to ``provider``."""
    return Claim("provider", "lease", f"{_provider_prefix(provider)}in_flight", max_in_flight, lease_ms)


def group_claims(actor_group: ClaimGroup, provider: str, claim: Claim | None, *, is_cluster: bool) -> list[ClaimGroup]:
    """All claims of an exchange in as few groups as the store allows: one, unless a cluster has them in two slots."""
    if claim is None:
        return [actor_group]
    if is_cluster:
        return [actor_group, ClaimGroup(f"{_provider_prefix(provider)}reservation:", (claim,))]
    claims = (*actor_group.claims, claim)
    return [ClaimGroup(actor_group.record_prefix, claims, actor_group.thresholds, actor_group.notice_key)]


def _provider_prefix(provider: str) -> str:
    return f"cgw:{{provider:{quote(provider, safe='')}}}:"
