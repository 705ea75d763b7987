"""The claims of one request on its limits, and the keys of these. Plain records; no I/O."""

from __future__ import annotations

from typing import Literal
from urllib.parse import quote

from attrs import evolve, field, frozen

from cgw.limits.states import LimitName
from cgw.model import Actor, Feature, LimitUnit, RateLimit

LimitKind = Literal["bucket", "lease"]
"""``bucket``: a token bucket, for so many per interval. ``lease``: slots, for so many at once. See ``state.lua``."""


MINUTE_MS = 60_000


@frozen
class Claim:
    """A claim of ``cost`` on a limit of ``limit`` per ``period_ms``. For a lease, ``period_ms`` is its length."""

    name: LimitName
    kind: LimitKind
    key: str
    limit: int
    period_ms: int
    cost: int = 1
    unit: LimitUnit = LimitUnit.REQUESTS

    def count_used(self, *, is_charged: bool, tokens: int | None) -> int:
        """Return what an exchange used of the limit. ``tokens`` counts for token limits; ``None``: as reserved."""
        if not is_charged:
            return 0
        return self.cost if self.unit is LimitUnit.REQUESTS or tokens is None else tokens


@frozen(eq=False)
class ClaimGroup:
    """Claims whose keys share a slot of a cluster: the subject of one script call.

    The key of a reservation's record is ``record_prefix`` and its id. If ``thresholds`` (percentages, ``"90 95 100"``)
    has any, the last alert about the first claim is remembered under ``alert_key``.

    The script arguments are worked out once, as groups of requests that cost 1 are used again and again.
    """

    record_prefix: str
    claims: tuple[Claim, ...]
    thresholds: str = ""
    alert_key: str = ""
    has_lease: bool = field(init=False)
    keys: tuple[str, ...] = field(init=False)
    """All keys but the record's, in the scripts' order."""
    admit_arguments: tuple[str | int, ...] = field(init=False)
    """The arguments of ``admit`` after the reservation's id and lifetime."""
    refund_arguments: tuple[str | int, ...] = field(init=False)
    """The arguments of ``settle`` after the reservation's id and mode, to give everything back."""
    charge_arguments: tuple[str | int, ...] = field(init=False)
    """The same, to charge what was reserved."""

    @has_lease.default
    def _find_lease(self) -> bool:
        return any(claim.kind == "lease" for claim in self.claims)

    @keys.default
    def _list_keys(self) -> tuple[str, ...]:
        keys = tuple(claim.key for claim in self.claims)
        # The alerts' key comes last: the scripts count the limits by their arguments, and expect it behind them.
        return (*keys, self.alert_key) if self.thresholds else keys

    @admit_arguments.default
    def _list_admit_arguments(self) -> tuple[str | int, ...]:
        arguments: list[str | int] = [self.thresholds]
        for claim in self.claims:
            # In the order of ARGV in admit.lua.
            arguments += (claim.kind, claim.limit, claim.period_ms, claim.cost)
        return tuple(arguments)

    @refund_arguments.default
    def _list_refund_arguments(self) -> tuple[str | int, ...]:
        return self._list_settle_arguments(is_charged=False, tokens=None)

    @charge_arguments.default
    def _list_charge_arguments(self) -> tuple[str | int, ...]:
        return self._list_settle_arguments(is_charged=True, tokens=None)

    def settle_arguments(self, *, is_charged: bool, tokens: int | None) -> tuple[str | int, ...]:
        """Return the arguments of ``settle`` after the id and mode; ``tokens`` is what was really used."""
        if not is_charged:
            return self.refund_arguments
        # Only quotas count tokens, and a group's quota comes first: for all others the tokens make no difference.
        if tokens is None or self.claims[0].unit is LimitUnit.REQUESTS:
            return self.charge_arguments
        return self._list_settle_arguments(is_charged=True, tokens=tokens)

    def _list_settle_arguments(self, *, is_charged: bool, tokens: int | None) -> tuple[str | int, ...]:
        arguments: list[str | int] = [self.thresholds]
        for claim in self.claims:
            used = claim.count_used(is_charged=is_charged, tokens=tokens)
            # In the order of ARGV in settle.lua.
            arguments += (claim.kind, claim.limit, claim.period_ms, claim.cost, used)
        return tuple(arguments)

    def price(self, tokens: int) -> ClaimGroup:
        """Return the same claims, with ``tokens`` as the cost of those that count tokens, at most the whole limit."""
        claims = tuple(
            # At most the limit: a request that may use more is admitted when nothing else was used, and what it uses
            # beyond becomes an overdraft. Otherwise it would have to be refused for ever.
            evolve(claim, cost=max(1, min(tokens, claim.limit))) if claim.unit is LimitUnit.TOKENS else claim
            for claim in self.claims
        )
        # A new group for each request to a token quota, because the arguments contain the cost.
        return ClaimGroup(self.record_prefix, claims, self.thresholds, self.alert_key)


def build_key_prefix(source: str, actor_id: str) -> str:
    """Return ``cgw:{<source>:<actor id>}:``: one hash tag per actor, so that all its limits share a slot.

    Characters with a meaning in keys (``{``, ``}``, ``:``) and all unusual ones are percent-encoded.
    """
    # Encoded apart, so that a colon in an id cannot make it look like another source's.
    return f"cgw:{{{quote(source, safe='')}:{quote(actor_id, safe='')}}}:"


def bound_in_flight(rate_limit: RateLimit, max_in_flight: int | None) -> RateLimit:
    """Return the same limits, with the operator's bound on requests in flight if they have none of their own."""
    return rate_limit if rate_limit.max_in_flight is not None else evolve(rate_limit, max_in_flight=max_in_flight)


def build_claims(prefix: str, feature: Feature, rate_limit: RateLimit, lease_ms: int) -> tuple[Claim, ...]:
    """Build the claims of one request: on the quota, on the short-term rate, and on a slot if these are bounded."""
    # The quota first: the scripts report thresholds of the first limit.
    quota = Claim(
        "quota",
        "bucket",
        f"{prefix}{feature}:quota",
        rate_limit.limit,
        rate_limit.interval_ms,
        unit=rate_limit.unit,
    )
    # In requests, also where the quota counts tokens.
    rate = Claim(
        "concurrency",
        "bucket",
        f"{prefix}{feature}:rate",
        rate_limit.concurrent_requests,
        rate_limit.concurrent_interval_ms,
    )
    if rate_limit.max_in_flight is None:
        return quota, rate  # no lease to keep up, and a third of the keys less
    return quota, rate, Claim("in_flight", "lease", f"{prefix}{feature}:in_flight", rate_limit.max_in_flight, lease_ms)


def build_actor_group(
    actor: Actor, feature: Feature, rate_limit: RateLimit, *, lease_ms: int, thresholds: str
) -> ClaimGroup:
    """Build the claims of one request of ``actor``, each with a cost of 1."""
    prefix = build_key_prefix(actor.source, actor.id)
    claims = build_claims(prefix, feature, rate_limit, lease_ms)
    # The suffix `notice` is in stores since the first version: another one would send alerts a second time.
    return ClaimGroup(f"{prefix}reservation:", claims, thresholds, f"{prefix}{feature}:notice")


def build_free_group(actor: Actor, requests_per_minute: int) -> ClaimGroup:
    """Build the claim of one request that costs nothing upstream: all features share one rate, and no quota counts."""
    prefix = build_key_prefix(actor.source, actor.id)
    claim = Claim("free", "bucket", f"{prefix}free:rate", requests_per_minute, MINUTE_MS)
    return ClaimGroup(f"{prefix}reservation:", (claim,))


def build_provider_claim(provider: str, max_in_flight: int, lease_ms: int) -> Claim:
    """Build the claim on one of the slots for requests to ``provider``, which all actors share."""
    return Claim("provider", "lease", f"{_provider_prefix(provider)}in_flight", max_in_flight, lease_ms)


def group_claims(actor_group: ClaimGroup, provider: str, claim: Claim | None, *, is_cluster: bool) -> list[ClaimGroup]:
    """Return all claims of an exchange in as few groups as the store allows.

    That is one, except in a cluster: there, actor and provider are in different slots, and a script has only one.
    """
    if claim is None:
        return [actor_group]
    if is_cluster:
        # Two calls then, so no longer atomic: Limiter._claim gives the first group back when the second one refuses.
        return [actor_group, ClaimGroup(f"{_provider_prefix(provider)}reservation:", (claim,))]
    # Behind the actor's claims, because alerts are about the first one. The record stays under the actor's prefix.
    claims = (*actor_group.claims, claim)
    return [ClaimGroup(actor_group.record_prefix, claims, actor_group.thresholds, actor_group.alert_key)]


def _provider_prefix(provider: str) -> str:
    return f"cgw:{{provider:{quote(provider, safe='')}}}:"
