"""The limit of open descriptors, and the connections that it allows."""

from __future__ import annotations

import logging
import resource
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgw.service.descriptors import (
    MOST_CONNECTIONS,
    choose_max_connections,
    compute_max_connections,
    raise_descriptor_limit,
    read_descriptor_limit,
)


@pytest.fixture
def lowered_limit() -> Iterator[int]:
    """A soft limit below the hard one; the former limit is restored afterwards."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    yield 512
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_limit_is_raised_to_the_hard_one_and_logged(lowered_limit: int, caplog: pytest.LogCaptureFixture) -> None:
    """The soft limit rises to the hard limit, with one line that names both."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with caplog.at_level(logging.INFO):
        limit = raise_descriptor_limit()
    assert limit == read_descriptor_limit() == min(hard, 1 << 20)
    assert caplog.messages == [
        f"the limit of open descriptors is raised from {lowered_limit} to its hard limit of {limit}"
    ]


def test_a_limit_that_is_high_already_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    """The second call changes and logs nothing."""
    first = raise_descriptor_limit()
    caplog.clear()
    assert raise_descriptor_limit() == first
    assert caplog.messages == []


@given(st.integers(min_value=0, max_value=1 << 31))
def test_connections_with_their_upstreams_fit_the_limit(limit: int) -> None:
    """Whatever the limit, there is at least one connection, and two descriptors for each beside the reserve."""
    connections = compute_max_connections(limit)
    assert 1 <= connections <= MOST_CONNECTIONS
    assert connections == 1 or 2 * connections + 64 <= limit


@pytest.mark.parametrize(
    ("configured", "limit", "chosen", "warning"),
    [
        (None, 20_000, 9_968, ""),
        (None, 256, 96, "the limit of 256 open descriptors allows 96 client connections only"),
        (5000, 20_000, 5000, ""),
        (
            5000,
            1024,
            5000,
            "CODY_GATEWAY_MAX_CONNECTIONS is 5000, but the limit of 1024 open descriptors",
        ),
    ],
)
def test_a_small_limit_is_warned_about(
    caplog: pytest.LogCaptureFixture, configured: int | None, limit: int, chosen: int, warning: str
) -> None:
    """The setting wins over the derived number, and a limit that does not suffice is named."""
    assert choose_max_connections(configured, limit) == chosen
    assert len(caplog.messages) == bool(warning)
    assert all(message.startswith(warning) for message in caplog.messages)
