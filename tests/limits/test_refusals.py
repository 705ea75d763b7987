"""Refusals by limits: what clients are told, on the reference's routes and on SDK routes, and what events say."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from email.utils import parsedate_to_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgw.errors import Refusal
from cgw.limits.refusals import build_limit_refusal, choose_wait_ms, describe_for_events
from cgw.limits.states import LimitExceeded, LimitName, LimitState
from cgw.model import Feature, LimitUnit

NOW = datetime(2026, 3, 1, 12, 0, 0, 250_000, tzinfo=UTC)
QUOTA = LimitState("quota", 100, 97, 2_592_000, 86_400_000, 11_001)
RATE = LimitState("concurrency", 50, 0, 10_000, 10_000, 200)
DAY_MS = 86_400_000


def _field(refusal: Refusal, name: bytes) -> bytes | None:
    return dict(refusal.headers).get(name)


def _refuse(exceeded: LimitExceeded, feature: Feature, *, now: datetime = NOW, is_patient: bool = False) -> Refusal:
    return build_limit_refusal(exceeded, feature, now, is_patient=is_patient)


def test_concurrency_refusal() -> None:
    """A refusal by the short-term rate has the reference's text, a date and milliseconds."""
    refusal = _refuse(LimitExceeded(RATE, [QUOTA, RATE], 200), Feature.CHAT_COMPLETIONS)
    assert refusal.status == 429
    assert refusal.message == (
        'you have exceeded the concurrency limit of 50 requests per 10s for "chat_completions". '
        "Retry after Sun, 01 Mar 2026 12:00:01 GMT"
    )
    assert _field(refusal, b"x-ratelimit-limit") == b"50"
    assert _field(refusal, b"x-ratelimit-remaining") == b"0"
    assert _field(refusal, b"retry-after") == b"Sun, 01 Mar 2026 12:00:01 GMT"
    assert _field(refusal, b"retry-after-ms") == b"200"
    assert _field(refusal, b"x-should-retry") is None
    assert _field(refusal, b"ratelimit") == b'"quota";r=97;t=12, "concurrency";r=0;t=1'


def test_quota_refusal_far_away() -> None:
    """A wait of more than a minute tells clients not to retry by themselves."""
    used_up = LimitState("quota", 100, 0, 86_400_000, 86_400_000, 864_000)
    refusal = _refuse(LimitExceeded(used_up, [used_up, RATE], 864_000), Feature.EMBEDDINGS)
    assert refusal.message == (
        'you have exceeded the rate limit of 100 requests per 24h for "embeddings". '
        "Retry after Sun, 01 Mar 2026 12:14:25 GMT"
    )
    assert _field(refusal, b"x-should-retry") == b"false"


@pytest.mark.parametrize(("wait_ms", "is_discouraged"), [(60_000, False), (60_001, True)])
def test_a_minute_is_worth_waiting(wait_ms: int, is_discouraged: bool) -> None:
    """The bound is a minute, inclusive."""
    refusal = _refuse(LimitExceeded(RATE, [RATE], wait_ms), Feature.CODE_COMPLETIONS)
    assert (_field(refusal, b"x-should-retry") == b"false") is is_discouraged


def test_pointless_waiting() -> None:
    """A refusal for a request that never fits has no time, and says not to retry."""
    refusal = _refuse(LimitExceeded(QUOTA, [QUOTA], None), Feature.CHAT_COMPLETIONS)
    assert refusal.message == 'you have exceeded the rate limit of 100 requests per 24h for "chat_completions".'
    assert (_field(refusal, b"retry-after"), _field(refusal, b"retry-after-ms")) == (None, None)
    assert _field(refusal, b"x-should-retry") == b"false"


def test_cut_off_is_the_references_403() -> None:
    """An actor that was cut off gets a 403, and is told not to retry."""
    refusal = _refuse(LimitExceeded(QUOTA, [QUOTA], None, is_cut_off=True), Feature.CHAT_COMPLETIONS)
    assert (refusal.status, refusal.message) == (403, "completions access has not been granted")
    assert _field(refusal, b"x-should-retry") == b"false"


@given(
    st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1)),  # noqa: DTZ001 - the zone is the next argument
    st.integers(-14 * 60, 14 * 60),
    st.integers(0, 10**10),
)
def test_retry_after_is_never_early(moment: datetime, zone_minutes: int, wait_ms: int) -> None:
    """The date is an IMF-fixdate in GMT, at most a second after the exact time, and never before it."""
    now = moment.replace(tzinfo=timezone(timedelta(minutes=zone_minutes)))
    refusal = _refuse(LimitExceeded(RATE, [RATE], wait_ms), Feature.CHAT_COMPLETIONS, now=now)
    text = (_field(refusal, b"retry-after") or b"").decode("ascii")
    assert re.fullmatch(r"(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT", text)
    early_by = parsedate_to_datetime(text) - (now + timedelta(milliseconds=wait_ms))
    assert timedelta(0) <= early_by < timedelta(seconds=1)


def build_quota(limit: int, remaining: int, window_ms: int = DAY_MS) -> LimitState:
    """A quota, as Redis reports it when exactly ``remaining`` are left."""
    reset_ms = -(-(limit - remaining) * window_ms // limit)
    return LimitState("quota", limit, remaining, reset_ms, window_ms, -(-window_ms // limit))


@pytest.mark.parametrize(
    ("limit", "window_ms", "wait_ms", "expected_ms"),
    [
        (86_400, DAY_MS, 1_000, 864_000),  # a second for each: one percent is 864
        (100, DAY_MS, 864_000, 864_000),  # one percent is one request
        (10, DAY_MS, 8_640_000, 8_640_000),  # less than one is one
        (60, 60_000, 1_000, 5_000),  # never sooner than five seconds
    ],
)
def test_a_patient_client_waits_for_one_percent_of_the_quota(
    limit: int, window_ms: int, wait_ms: int, expected_ms: int
) -> None:
    """On the reference's routes a used-up quota says when 1 % is back, at least a request, and 5 s or more ahead."""
    quota = build_quota(limit, 0, window_ms)
    exceeded = LimitExceeded(quota, [quota, RATE], wait_ms)
    assert choose_wait_ms(exceeded, is_patient=True) == expected_ms
    assert choose_wait_ms(exceeded, is_patient=False) == wait_ms
    refusal = _refuse(exceeded, Feature.CHAT_COMPLETIONS, is_patient=True)
    retry_at = parsedate_to_datetime((_field(refusal, b"retry-after") or b"").decode())
    assert timedelta(0) <= retry_at - NOW - timedelta(milliseconds=expected_ms) < timedelta(seconds=1)
    assert _field(refusal, b"retry-after-ms") == b"%d" % expected_ms


def test_a_large_request_waits_until_it_fits() -> None:
    """Where the request itself needs more than 1 % of a token quota, its own wait counts."""
    quota = LimitState("quota", 1_000_000, 20_000, DAY_MS, DAY_MS, 87, LimitUnit.TOKENS)
    assert choose_wait_ms(LimitExceeded(quota, [quota], 3_600_000), is_patient=True) == 3_600_000


def test_only_a_used_up_quota_makes_patient() -> None:
    """The short-term rate keeps its exact wait, unless a retry then would meet a used-up quota."""
    assert choose_wait_ms(LimitExceeded(RATE, [QUOTA, RATE], 200), is_patient=True) == 200
    used_up = build_quota(86_400, 0)
    assert choose_wait_ms(LimitExceeded(RATE, [used_up, RATE], 1_200), is_patient=True) == 864_000


@given(st.integers(1, 2**40), st.integers(1, 2**40), st.integers(1, 10**6), st.booleans())
def test_a_wait_is_never_shorter_than_until_the_request_fits(
    limit: int, window_ms: int, wait_ms: int, is_patient: bool
) -> None:
    """Whatever the quota, no client is told to come back too early, or after all of the quota is back."""
    quota = build_quota(limit, 0, window_ms)
    chosen = choose_wait_ms(LimitExceeded(quota, [quota], wait_ms), is_patient=is_patient)
    assert chosen is not None
    assert wait_ms <= chosen <= max(wait_ms, 5_000, quota.reset_ms)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("quota", "rate limit exceeded"),
        ("concurrency", '"chat_completions": concurrency limit exceeded'),
        ("in_flight", '"chat_completions": limit of requests in flight exceeded'),
        ("provider", "limit of requests in flight to the provider exceeded"),
    ],
)
def test_events_have_the_references_stable_text(name: LimitName, text: str) -> None:
    """The error of an event names the cause, without any number or date."""
    state = LimitState(name, 17, 0, 1, 1, 1)
    assert describe_for_events(LimitExceeded(state, [state], 1), Feature.CHAT_COMPLETIONS) == text


def test_the_event_of_an_actor_that_is_cut_off() -> None:
    """It has the reference's text, too."""
    exceeded = LimitExceeded(QUOTA, [QUOTA], None, is_cut_off=True)
    assert describe_for_events(exceeded, Feature.EMBEDDINGS) == "completions access has not been granted"
