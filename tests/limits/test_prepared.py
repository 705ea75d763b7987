"""Calls and header fields that are prepared once per plan give the bytes of their general twins."""

from __future__ import annotations

from collections.abc import Sequence

import redis
from attrs import astuple
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cgw.limits.admissions import PreparedAdmission
from cgw.limits.claims import Claim, ClaimGroup, build_actor_group, build_provider_claim, group_claims
from cgw.limits.headers import build_limit_headers
from cgw.limits.plans import LimitPlan
from cgw.limits.posted import pack_deletion
from cgw.limits.prepared import PreparedGroup, find_least_forgotten
from cgw.limits.reservations import Reservation, ReservationIds
from cgw.limits.scripts import FIRST_LIMIT, load_scripts
from cgw.model import Actor, Feature, RateLimit
from cgw.redis.handshake import pack_command
from tests.limits.test_properties import EXAMPLES
from tests.support.limit_store import ALERT, RECORD, Limit, LimitStore, as_claim

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


def build_admission(prepared: PreparedGroup, answer: Sequence[int]) -> PreparedAdmission:
    """Build the admission that Redis has answered so."""
    limits = RateLimit(1, 1, ("*",), 1, 1)
    actor = Actor("acme", "Acme Inc.", "static", True, {})
    plan = LimitPlan(limits, [prepared.group], prepared)
    admission = PreparedAdmission(actor, Feature.EMBEDDINGS, plan, prepared, IDS.next_number())
    admission.answer = answer
    return admission


@given(groups())
def test_calls_are_packed_as_in_general(group: ClaimGroup) -> None:
    """A prepared admission, a prepared charge, and a deletion of records are the packed general calls."""
    prepared = PreparedGroup(group, SCRIPTS, IDS)
    admissions = [build_admission(prepared, (1, 0, 0, *(0, 1, 1, 0) * len(group.claims))) for _ in range(2)]
    for admission in admissions:
        (reservation,), number = admission.reservations, admission.number
        packed = reservation.build_admit(SCRIPTS).pack_evalsha()
        assert prepared.admit_format % (number, number) == packed == admission.build_admit().pack_evalsha()
        assert admission.build_undo() == reservation.build_undo(SCRIPTS)
        expected = reservation.build_settle(SCRIPTS, is_charged=True).pack_evalsha()
        assert admission.build_charge().pack_evalsha() == expected
        # Used up, so that a threshold is reached if there is one.
        if not (group.has_lease or group.thresholds):
            expected = pack_command(("DEL", group.record_prefix + reservation.id))
        assert prepared.pack_charge(number, admission.answer) == expected
    records = [group.record_prefix + admission.reservations[0].id for admission in admissions]
    assert pack_deletion(admissions) == pack_command(("DEL", *records))


@given(groups(), st.data())
def test_headers_are_those_of_the_states(group: ClaimGroup, data: st.DataObject) -> None:
    """The fields that are built from admit's answer are those that are built from the states."""
    prepared = PreparedGroup(group, SCRIPTS, IDS)
    for _ in range(2):
        figures: list[int] = []
        for claim in group.claims:
            times = data.draw(st.tuples(st.integers(0, 2**40), st.integers(0, 2**40)))
            figures += (data.draw(st.integers(0, claim.limit)), *(times if claim.kind == "bucket" else (0, 0)), 0)
        admission = build_admission(prepared, (1, 0, 0, *figures))
        assert prepared.header_template is not None
        assert admission.build_headers() == build_limit_headers(admission.states)


def test_headers_of_huge_limits_are_clipped() -> None:
    """A limit with more digits than a structured field may have takes the general way."""
    group = ClaimGroup(RECORD, (Claim("quota", "bucket", "{t}:q", 2**51, 1),))
    admission = build_admission(PreparedGroup(group, SCRIPTS, IDS), (1, 0, 0, 2**51 - 1, 1, 1, 0))
    headers = admission.build_headers()
    assert headers == build_limit_headers(admission.states)
    assert dict(headers)[b"ratelimit"] == b'"quota";r=999999999999999;t=1'


@given(
    st.integers(1, 40),
    st.sampled_from(["", "1", "100", "50 90 95 100", "7 33 66"]),
    st.lists(st.sampled_from(["admit", "charge", "charge", "refund", "advance"]), max_size=60),
)
@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_settling_what_can_be_forgotten_only_takes_the_record(
    store: LimitStore, size: int, thresholds: str, steps: list[str]
) -> None:
    """Where a charge is sent as DEL, ``settle`` would return no threshold and change no key besides the record."""
    store.reset()
    limits = [Limit("{t}:quota", "bucket", size, 86_400_000), Limit("{t}:rate", "bucket", 30, 60_000)]
    claims = tuple(as_claim(limit, 1) for limit in limits)
    group = ClaimGroup(RECORD, claims, thresholds, ALERT)
    least = find_least_forgotten(group)
    held: list[Reservation] = []
    for number, step in enumerate(steps):
        if step == "advance":
            store.set_clock(store.now + 9_000)
        elif step == "admit":
            rid = f"{number:028x}"
            threshold, is_admitted, answers = store.admit_with_alerts(rid, [(limit, 1) for limit in limits], thresholds)
            if is_admitted:
                numbers = [part for answer in answers for part in astuple(answer)]
                held.append(Reservation(group, (1, store.now, threshold, *numbers), rid))
        elif held:
            reservation = held.pop(0)
            used = int(step == "charge")
            before = store.dump()
            settled = store.settle_with_alerts(reservation.id, [(limit, 1, used) for limit in limits], thresholds)
            if used and reservation.answer[FIRST_LIMIT] >= least:
                assert settled == (0, True)
                del before[RECORD.encode() + reservation.id.encode()]
                assert store.dump() == before
            elif used:
                quota_used = size - reservation.answer[3]
                assert any(quota_used * 100 >= size * int(percentage) for percentage in thresholds.split())


@given(st.integers(1, 2**51), st.integers(0, 2**51), st.integers(1, 100))
@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_thresholds_are_compared_as_in_lua(client: redis.Redis, limit: int, used: int, threshold: int) -> None:
    """Whether a threshold is in reach is decided in Python exactly as in the script, also where division rounds."""
    near = min(limit, limit * threshold // 100 + used % 3 - 1)
    group = ClaimGroup(RECORD, (Claim("quota", "bucket", "{t}:q", limit, 1),), str(threshold), ALERT)
    least = find_least_forgotten(group)
    for spent in (min(used, limit), max(0, near), limit - least, limit - least + 1):
        if not 0 <= spent <= limit:
            continue
        text = "return ARGV[1] / ARGV[2] >= ARGV[3] / 100 and 1 or 0"
        is_reached = client.eval(text, 0, spent, limit, threshold)
        assert (limit - spent >= least) == (not is_reached)
