"""Calls and header fields that are prepared once per plan give the bytes of their general twins."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cgw.limits.claims import ClaimGroup, build_actor_group, build_provider_claim, group_claims
from cgw.limits.prepared import PreparedGroup
from cgw.limits.reservations import Reservation, ReservationIds
from cgw.limits.scripts import load_scripts
from cgw.model import Actor, Feature, RateLimit

SCRIPTS = load_scripts()
IDS = ReservationIds()


@st.composite
def groups(draw: st.DrawFn) -> ClaimGroup:
    """Return the claims of any actor whose quota counts requests."""
    numbers = st.integers(1, 2**31)
    limits = RateLimit(draw(numbers), draw(numbers), ("*",), draw(numbers), draw(numbers))
    name = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
    actor = Actor(draw(name), "", draw(name), True, {})
    if draw(st.booleans()):
        limits = RateLimit(
            limits.limit, limits.interval_ms, ("*",), 1, 1_000, max_in_flight=draw(st.integers(1, 10**6))
        )
    feature, thresholds = draw(st.sampled_from(Feature)), draw(st.sampled_from(["", "100", "50 90 95 100"]))
    group = build_actor_group(actor, feature, limits, lease_ms=30_000, thresholds=thresholds)
    provider = build_provider_claim("anthropic", 5, 30_000) if draw(st.booleans()) else None
    return group_claims(group, "anthropic", provider, is_cluster=False)[0]


@given(groups())
def test_calls_are_packed_as_in_general(group: ClaimGroup) -> None:
    """A prepared admission and a prepared charge are the packed general calls."""
    prepared = PreparedGroup(group, SCRIPTS)
    for _ in range(2):
        reservation = Reservation(group, (), IDS.next())
        assert prepared.pack_admit(reservation.id) == reservation.build_admit(SCRIPTS).pack_evalsha()
        charge = reservation.build_settle(SCRIPTS, is_charged=True).pack_evalsha()
        assert prepared.pack_charge(reservation.id) == charge
