"""Allowed models: prefixes, intersections, and the check of one model."""

from __future__ import annotations

import re
from typing import get_args

import pytest
from anthropic.resources.messages.messages import DEPRECATED_MODELS
from anthropic.types.model_param import ModelParam
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.shared.chat_model import ChatModel

from cgw.errors import Refusal
from cgw.providers.anthropic.models import ANTHROPIC_MODELS
from cgw.providers.model_patterns import matches_pattern
from cgw.providers.models import add_prefix, check_model, evaluate_allowed_models, find_nearest
from cgw.providers.openai.models import OPENAI_MODELS

MASTER = ("anthropic/claude-2", "anthropic/claude-3", "openai/gpt-4")


@pytest.mark.parametrize(
    ("actor_models", "allowed"),
    [
        (["*"], MASTER),
        ([], ()),
        (["openai/gpt-4", "anthropic/claude-2"], ("anthropic/claude-2", "openai/gpt-4")),
        (["claude-2", "gpt-4"], ("anthropic/claude-2", "openai/gpt-4")),
        (["*", "openai/gpt-4"], ("openai/gpt-4",)),
        (["*", "*"], ()),
        (["openai/claude-2", "unknown", "google/gemini"], ()),
    ],
)
def test_an_actors_list_is_intersected_with_the_gateways(actor_models: list[str], allowed: tuple[str, ...]) -> None:
    """A lone star means all models; otherwise the intersection counts, in which names need no prefix."""
    assert evaluate_allowed_models(actor_models, MASTER) == allowed


def test_legacy_names_get_the_prefix_of_the_routes_provider() -> None:
    """With a provider, a name without prefix is that provider's model."""
    assert evaluate_allowed_models(["claude-2", "gpt-4"], MASTER, "anthropic") == ("anthropic/claude-2",)
    assert evaluate_allowed_models(["*"], MASTER, "anthropic") == MASTER
    assert evaluate_allowed_models(["*", "claude-2"], (*MASTER, "anthropic/*"), "anthropic") == ("anthropic/claude-2",)


@pytest.mark.parametrize(
    ("actor_models", "allowed"),
    [
        (["anthropic/claude-*"], MASTER[:2]),
        (["claude-*"], MASTER[:2]),
        (["anthropic/*-3", "openai/gpt-4"], MASTER[1:]),
        (["*/gpt-4"], MASTER[2:]),
        (["*-3"], MASTER[1:2]),
        (["anthropic/claude-2*"], MASTER[:1]),
        (["anthropic/claude-*-x"], ()),
        (["*", "anthropic/claude-*"], MASTER[:2]),
        (["*"] * 3, ()),
    ],
)
def test_s1_2_patterns_select_from_the_gateways_list(actor_models: list[str], allowed: tuple[str, ...]) -> None:
    """A star within a name stands for any text; alone beside other names it has no meaning."""
    assert evaluate_allowed_models(actor_models, MASTER, "anthropic") == allowed


@given(st.text("ab*", max_size=12), st.text("ab", max_size=12))
def test_a_pattern_matches_as_a_regular_expression_does(pattern: str, name: str) -> None:
    """The linear matcher agrees with ``re``."""
    expected = re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), name) is not None
    assert matches_pattern(name, pattern) is expected


def test_a_hostile_pattern_takes_linear_time() -> None:
    """Hundreds of stars, which would keep a regular expression busy for years, are over at once."""
    assert not matches_pattern("a" * 10_000 + "c", "a*" * 500 + "b")


@settings(deadline=None)
@given(st.lists(st.sampled_from([*MASTER, "*", "claude-2", "x/y"])), st.sampled_from([None, "anthropic", "openai"]))
def test_no_list_allows_more_than_the_gateways(actor_models: list[str], provider: str | None) -> None:
    """The result is a part of the gateway's list, in its order, whatever the actor's list."""
    allowed = evaluate_allowed_models(actor_models, MASTER, provider)
    assert allowed == tuple(model for model in MASTER if model in allowed)


@pytest.mark.parametrize("model", ["anthropic/claude-2", "Anthropic/CLAUDE-2"])
def test_an_allowed_model_passes_in_any_case(model: str) -> None:
    """The comparison ignores case, as in the reference."""
    check_model(model, MASTER[:2])
    with pytest.raises(Refusal):
        check_model(model, MASTER[1:])


def test_a_model_that_is_not_allowed_is_refused_with_those_that_are() -> None:
    """The text is the reference's; parameter and code are OpenAI's."""
    with pytest.raises(Refusal) as caught:
        check_model("openai/gpt-9", ("openai/gpt-4", "openai/gpt-5"))
    refusal = caught.value
    assert refusal.message == 'model "openai/gpt-9" is not allowed, allowed: [openai/gpt-4, openai/gpt-5]'
    assert (refusal.status, refusal.param, refusal.code) == (400, "model", "model_not_found")


@pytest.mark.parametrize(
    ("model", "nearest"),
    [
        ("openai/gpt-4o-2024-08-06", "openai/gpt-4o"),
        ("openai/gpt-4o-mni", "openai/gpt-4o-mini"),
        ("anthropic/claude-3.5-sonnet", "anthropic/claude-3-5-sonnet-20241022"),
        ("anthropic/claude-sonnet-4-5-latest", "anthropic/claude-sonnet-4-5"),
        ("openai/", "anthropic/claude-3-5-sonnet-20241022"),
    ],
)
def test_the_three_nearest_models_are_named(model: str, nearest: str) -> None:
    """Of many allowed models the three that are most like the wanted one are named, and how many there are."""
    allowed = (
        "anthropic/claude-3-5-sonnet-20241022",
        "anthropic/claude-sonnet-4-5",
        "anthropic/claude-2",
        "openai/gpt-4o",
        "openai/gpt-4o-mini",
        "openai/o1",
    )
    with pytest.raises(Refusal) as caught:
        check_model(model, allowed)
    message = caught.value.message
    assert message.startswith(f'model "{model}" is not allowed, allowed: [')
    assert message.endswith("] (the nearest of 6)")
    named = message.partition("allowed: [")[2].partition("]")[0].split(", ")
    assert (len(named), named[0]) == (3, nearest)


def test_an_endless_model_name_is_cut() -> None:
    """A name as long as a body neither comes back as a whole, nor is compared as a whole."""
    with pytest.raises(Refusal) as caught:
        check_model("openai/" + "gpt-4" * 1_000_000, ("openai/gpt-4",))
    assert len(caught.value.message) < 200


@given(st.text(max_size=20), st.lists(st.text(max_size=20), max_size=10))
def test_any_names_can_be_compared(model: str, allowed: list[str]) -> None:
    """Whatever the names, up to three of the allowed ones are found."""
    nearest = find_nearest(model, allowed)
    assert len(nearest) == min(3, len(allowed))
    assert set(nearest) <= set(allowed)


def test_prefixes_are_added_once() -> None:
    """A name with a slash has its prefix already."""
    assert [add_prefix("openai", name) for name in ("gpt-4", "openai/gpt-4")] == ["openai/gpt-4", "openai/gpt-4"]


def test_todays_default_models_are_those_of_the_sdks() -> None:
    """All names that the default lists add to the reference's are in the SDKs; no name comes twice."""
    named = {*get_args(get_args(ModelParam)[0]), *DEPRECATED_MODELS}
    assert set(ANTHROPIC_MODELS[23:]) <= named
    assert set(OPENAI_MODELS[5:]) <= set(get_args(ChatModel))
    assert len({*ANTHROPIC_MODELS, *OPENAI_MODELS}) == len(ANTHROPIC_MODELS) + len(OPENAI_MODELS)
