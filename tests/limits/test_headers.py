"""The header fields and refusals about limits."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from email.utils import parsedate_to_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgw.errors import Refusal
from cgw.limits.headers import build_limit_headers, build_limit_refusal
from cgw.limits.states import LimitExceeded, LimitState
from cgw.model import Feature

NOW = datetime(2026, 3, 1, 12, 0, 0, 250_000, tzinfo=UTC)
QUOTA = LimitState("quota", 100, 97, 2_592_000, 86_400_000, 11_001)
RATE = LimitState("concurrency", 50, 0, 10_000, 10_000, 200)


def _field(refusal: Refusal, name: bytes) -> bytes | None:
    return dict(refusal.headers).get(name)


def test_headers_of_an_admitted_request() -> None:
    """The quota is in the x-ratelimit fields, all limits in the IETF draft's; times are seconds, rounded up."""
    assert list(build_limit_headers([QUOTA, RATE])) == [
        (b"x-ratelimit-limit", b"100"),
        (b"x-ratelimit-remaining", b"97"),
        (b"ratelimit-policy", b'"quota";q=100;w=86400, "concurrency";q=50;w=10'),
        (b"ratelimit", b'"quota";r=97;t=12, "concurrency";r=0;t=1'),
    ]


def test_no_limits_no_headers() -> None:
    """Without limits there are no fields."""
    assert list(build_limit_headers([])) == []


def test_concurrency_refusal() -> None:
    """A refusal by the short-term rate has the reference's text, a date and milliseconds."""
    refusal = build_limit_refusal(LimitExceeded(RATE, [QUOTA, RATE], 200), Feature.CHAT_COMPLETIONS, NOW)
    assert refusal.status == 429
    assert refusal.message == (
        'you have exceeded the concurrency limit of 50 requests for "chat_completions". '
        "Retry after Sun, 01 Mar 2026 12:00:01 GMT"
    )
    assert _field(refusal, b"x-ratelimit-limit") == b"50"
    assert _field(refusal, b"x-ratelimit-remaining") == b"0"
    assert _field(refusal, b"retry-after") == b"Sun, 01 Mar 2026 12:00:01 GMT"
    assert _field(refusal, b"retry-after-ms") == b"200"
    assert _field(refusal, b"x-should-retry") is None
    assert _field(refusal, b"ratelimit") == b'"quota";r=97;t=12, "concurrency";r=0;t=1'


def test_quota_refusal_far_away() -> None:
    """A wait of more than two minutes tells clients not to retry by themselves."""
    used_up = LimitState("quota", 100, 0, 86_400_000, 86_400_000, 864_000)
    refusal = build_limit_refusal(LimitExceeded(used_up, [used_up, RATE], 864_000), Feature.EMBEDDINGS, NOW)
    assert refusal.message == (
        "you have exceeded the rate limit of 100 requests. Retry after Sun, 01 Mar 2026 12:14:25 GMT"
    )
    assert _field(refusal, b"x-should-retry") == b"false"


@pytest.mark.parametrize(("wait_ms", "is_discouraged"), [(120_000, False), (120_001, True)])
def test_two_minutes_are_worth_waiting(wait_ms: int, is_discouraged: bool) -> None:
    """The bound is two minutes, inclusive."""
    refusal = build_limit_refusal(LimitExceeded(RATE, [RATE], wait_ms), Feature.CODE_COMPLETIONS, NOW)
    assert (_field(refusal, b"x-should-retry") == b"false") is is_discouraged


def test_pointless_waiting() -> None:
    """A refusal for a request that never fits has no time, and says not to retry."""
    refusal = build_limit_refusal(LimitExceeded(QUOTA, [QUOTA], None), Feature.CHAT_COMPLETIONS, NOW)
    assert refusal.message == "you have exceeded the rate limit of 100 requests."
    assert (_field(refusal, b"retry-after"), _field(refusal, b"retry-after-ms")) == (None, None)
    assert _field(refusal, b"x-should-retry") == b"false"


def test_cut_off_is_the_references_403() -> None:
    """An actor that was cut off gets a 403, and is told not to retry."""
    refusal = build_limit_refusal(LimitExceeded(QUOTA, [QUOTA], None, is_cut_off=True), Feature.CHAT_COMPLETIONS, NOW)
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
    refusal = build_limit_refusal(LimitExceeded(RATE, [RATE], wait_ms), Feature.CHAT_COMPLETIONS, now)
    text = (_field(refusal, b"retry-after") or b"").decode("ascii")
    assert re.fullmatch(r"(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT", text)
    early_by = parsedate_to_datetime(text) - (now + timedelta(milliseconds=wait_ms))
    assert timedelta(0) <= early_by < timedelta(seconds=1)


@given(st.builds(LimitState, st.sampled_from(["quota", "concurrency"]), *[st.integers(0, 2**60)] * 5))
def test_structured_fields_stay_within_their_range(state: LimitState) -> None:
    """Integers in the IETF fields have at most 15 digits, whatever the limit."""
    fields = dict(build_limit_headers([state]))
    for name in (b"ratelimit-policy", b"ratelimit"):
        assert all(len(number) <= 15 for number in re.findall(rb"=(\d+)", fields[name]))
