"""Fitting a source's limits to what can be counted."""

from __future__ import annotations

import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgw.actors.fetched.fetched_actor import (
    MAX_NUMBER,
    ActorBuilder,
    FetchedActor,
    LimitProblem,
    check_limit,
    fit_quota,
)
from cgw.actors.portal.subscriptions import parse_protobuf_duration
from cgw.model import MAX_TOKEN_MS, Feature, rate_limit_problems

DAY_MS = 86_400_000


@given(st.integers(1, MAX_NUMBER), st.integers(1, MAX_NUMBER * 1000))
def test_a_fitted_quota_can_be_counted_and_never_grants_more(limit: int, interval_ms: int) -> None:
    """Its size and its rate are at most those that the source says."""
    fitted_limit, fitted_ms = fit_quota(limit, interval_ms)
    assert fitted_limit >= 1
    assert fitted_ms >= 1
    assert fitted_limit * fitted_ms <= MAX_TOKEN_MS
    assert fitted_limit <= max(1, limit)
    # limit / interval, compared without division; a rate below one per 2^51 ms is the only one that is raised.
    assert fitted_limit * interval_ms <= limit * fitted_ms or fitted_ms == MAX_TOKEN_MS


@given(st.integers(1, 10**9), st.integers(1, 2_000_000))
def test_a_quota_that_can_be_counted_stays_as_it_is(limit: int, interval_ms: int) -> None:
    """Usual limits are not touched."""
    assert fit_quota(limit, interval_ms) == (limit, interval_ms)


@pytest.mark.parametrize(
    ("limit", "interval_ms"),
    [
        (6_666_666_666, DAY_MS),  # embeddings of 1000 users
        (200_000_000, (2**31 - 1) * 1000),  # embeddings of a user of Sourcegraph.com, "for ever"
        (26_400_000, DAY_MS),
    ],
)
def test_token_quotas_of_real_plans_keep_their_rate(limit: int, interval_ms: int) -> None:
    """The rate is that of the source within one per mille, for the plans of the reference's §2.8."""
    fitted_limit, fitted_ms = fit_quota(limit, interval_ms)
    assert math.isclose(fitted_limit / fitted_ms, limit / interval_ms, rel_tol=1e-3)
    assert fitted_limit >= limit / 520


@pytest.mark.parametrize(("limit", "seconds", "models"), [(0, 60, ("*",)), (5, 0, ("*",)), (5, 60, ()), (0, 0, ())])
def test_s1_2_a_zero_is_no_limit(limit: int, seconds: int, models: tuple[str, ...]) -> None:
    """Valid is only a positive limit and interval with at least one model."""
    assert check_limit(limit, seconds, models) is None


@given(st.integers(), st.integers() | st.floats())
def test_any_numbers_are_a_limit_a_zero_or_a_problem(limit: int, seconds: float) -> None:
    """No number crashes, and what passes can be enforced."""
    try:
        fetched = check_limit(limit, seconds, ("*",))
    except LimitProblem as problem:
        assert len(str(problem)) < 120
        return
    if fetched is None:
        return
    actor = FetchedActor("1", "", True, 0, {"chat_completions": fetched})
    built = ActorBuilder("dotcom-user", percentage=50, interval_ms=10_000).build(actor)
    rate = built.rate_limits[Feature.CHAT_COMPLETIONS]
    numbers = (rate.limit, rate.interval_ms, rate.concurrent_requests, rate.concurrent_interval_ms)
    assert rate_limit_problems(*numbers) == []


def test_features_that_are_not_known_are_left_out() -> None:
    """A record of a newer version may have others."""
    limit = check_limit(5, 60, ("*",))
    assert limit is not None
    actor = FetchedActor("1", "", True, 0, {"something_new": limit, "embeddings": limit})
    built = ActorBuilder("dotcom-user", percentage=50, interval_ms=10_000).build(actor)
    assert list(built.rate_limits) == [Feature.EMBEDDINGS]


@pytest.mark.parametrize(("text", "seconds"), [("86400s", 86400), ("0.5s", 0.5), ("0s", 0), ("-3s", -3)])
def test_durations_of_protobuf(text: str, seconds: float) -> None:
    """Seconds with the suffix s."""
    assert parse_protobuf_duration(text) == seconds


@given(st.text(max_size=30))
def test_any_text_is_a_duration_or_a_problem(text: str) -> None:
    """No text crashes."""
    with contextlib.suppress(LimitProblem):
        assert math.isfinite(parse_protobuf_duration(text))
