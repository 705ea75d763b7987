"""The header fields about limits."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from cgw.limits.headers import build_limit_headers
from cgw.limits.states import LimitState

QUOTA = LimitState("quota", 100, 97, 2_592_000, 86_400_000, 11_001)
RATE = LimitState("concurrency", 50, 0, 10_000, 10_000, 200)


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


@given(st.builds(LimitState, st.sampled_from(["quota", "concurrency"]), *[st.integers(0, 2**60)] * 5))
def test_structured_fields_stay_within_their_range(state: LimitState) -> None:
    """Integers in the IETF fields have at most 15 digits, whatever the limit."""
    fields = dict(build_limit_headers([state]))
    for name in (b"ratelimit-policy", b"ratelimit"):
        assert all(len(number) <= 15 for number in re.findall(rb"=(\d+)", fields[name]))
