"""The policies of sources, and the actors that carry them."""

from __future__ import annotations

from pathlib import Path

import pytest

from cgw.actors.anonymous import AnonymousSource
from cgw.actors.policies import POLICIES
from cgw.actors.static import load_static_actors
from cgw.actors.tokens import build_entry, hash_token
from cgw.model import Actor


@pytest.mark.parametrize(
    ("name", "is_cut_off_at_one", "has_usage_alerts", "has_page"),
    [
        ("static", False, True, False),
        ("anonymous", False, False, False),
        ("dotcom-user", True, False, False),
        ("dotcom-product-subscriptions", True, True, True),
    ],
)
def test_sources_have_the_policies_of_the_reference(
    name: str, is_cut_off_at_one: bool, has_usage_alerts: bool, has_page: bool
) -> None:
    """A limit of 1 cuts off actors of Sourcegraph.com; alerts are about customers and the operator's own actors."""
    policy = POLICIES[name]
    assert (policy.is_cut_off_at_one, policy.has_usage_alerts) == (is_cut_off_at_one, has_usage_alerts)
    assert (policy.admin_path is not None) == has_page
    assert len(POLICIES) == 4


async def test_actors_carry_the_policy_of_their_source(tmp_path: Path) -> None:
    """Each actor of a source has the policy that belongs to the source's name."""
    path = tmp_path / "actors.toml"
    path.write_text(build_entry("acme", "", hash_token("one")))
    actors: list[Actor] = [
        await load_static_actors(path, percentage=50, interval_ms=10_000).get("one"),
        await AnonymousSource(percentage=50, interval_ms=10_000).get(""),
    ]
    assert [actor.source for actor in actors] == ["static", "anonymous"]
    assert all(actor.policy is POLICIES[actor.source] for actor in actors)
