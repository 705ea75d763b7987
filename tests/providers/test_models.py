"""Allowed models: prefixes, intersections, and the check of one model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import get_args

import pytest
from anthropic.resources.messages.messages import DEPRECATED_MODELS
from anthropic.types.model_param import ModelParam
from attrs import frozen
from hypothesis import given
from hypothesis import strategies as st
from openai.types.shared.chat_model import ChatModel

from cgw.errors import Refusal
from cgw.providers.anthropic.models import ANTHROPIC_MODELS
from cgw.providers.model_patterns import add_prefix, compile_allow_list, matches_pattern
from cgw.providers.models import add_prefixes, check_model, evaluate_allowed_models, find_nearest
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


@given(st.lists(st.sampled_from([*MASTER, "*", "claude-2", "x/y"])), st.sampled_from([None, "anthropic", "openai"]))
def test_no_list_allows_more_than_the_gateways(actor_models: list[str], provider: str | None) -> None:
    """The result is a part of the gateway's list, in its order, whatever the actor's list."""
    allowed = evaluate_allowed_models(actor_models, MASTER, provider)
    assert allowed == tuple(model for model in MASTER if model in allowed)


VARIABLE = "CODY_GATEWAY_TEST_ALLOWED_MODELS"


@frozen
class Served:
    provider: str
    models: tuple[str, ...]
    models_variable: str = VARIABLE


def check(model: str, master: Sequence[str], actor_models: Sequence[str] = ("*",), *other_names: str) -> None:
    check_model((model, *other_names), tuple(actor_models), Served(model.partition("/")[0], tuple(master)))


def refuse(model: str, master: Sequence[str], actor_models: Sequence[str] = ("*",)) -> Refusal:
    with pytest.raises(Refusal) as caught:
        check(model, master, actor_models)
    return caught.value


@pytest.mark.parametrize("model", ["anthropic/claude-2", "Anthropic/CLAUDE-2"])
def test_an_allowed_model_passes_in_any_case(model: str) -> None:
    """The comparison ignores case, as in the reference."""
    check(model, MASTER[:2])
    check(model, MASTER, ["Anthropic/Claude-2"])
    refuse(model, MASTER[1:])


@pytest.mark.parametrize(
    ("entry", "model", "is_admitted"),
    [
        ("gpt-4o", "gpt-4o-2024-08-06", True),
        ("gpt-4", "gpt-4-0613", True),
        ("claude-sonnet-4-5", "claude-sonnet-4-5-20250929", True),
        ("gemini-1.5-pro", "gemini-1.5-pro-002", True),
        ("gpt-4o", "gpt-4o-mini", False),
        ("gpt-4o", "gpt-4o-mini-2024-07-18", False),
        ("gpt-4", "gpt-4-1106-preview", False),
        ("gpt-4o-2024-08-06", "gpt-4o", False),
        ("gpt-4o-2024-08-06", "gpt-4o-2024-11-20", False),
        ("chatgpt-4o", "chatgpt-4o-latest", False),
        ("claude-*", "claude-opus-4-5-20251101", True),
        ("claude-*", "claude", False),
        ("gpt-4.1*", "gpt-4.1", True),
        ("gpt-4.1*", "gpt-401", False),
        ("*-mini", "gpt-4o-mini-2024-07-18", True),
        ("gpt-*-mini", "gpt-4o-mini", True),
        ("gpt-*-mini", "gpt-mini", False),
        ("*a*b*", "xbxaxbx", True),
        ("*a*b*", "xbxaxx", False),
        ("GPT-*", "gpt-4", True),
        ("gpt-?", "gpt-4", False),
        ("gpt-[4]", "gpt-4", False),
        ("*", "anything/at/all", True),
    ],
)
def test_a_list_has_patterns_and_admits_snapshots(entry: str, model: str, is_admitted: bool) -> None:
    """A star stands for any characters, nothing else does; a name and a pattern admit the dated versions of theirs."""
    for master, actor_models in (((f"p/{entry}",), ("*",)), (("p/*",), (entry, "other/*"))):
        if actor_models == ("*", "other/*"):
            continue  # a lone star has no meaning beside other entries
        if is_admitted:
            check(f"p/{model}", master, actor_models)
        else:
            refuse(f"p/{model}", master, actor_models)


def test_both_lists_must_admit_a_model() -> None:
    """A pattern of an actor adds nothing to the gateway's list, and the other way round."""
    master, actor_models = ("openai/gpt-4*", "openai/o1"), ("gpt-4o*", "o3")
    check("openai/gpt-4o-mini", master, actor_models)
    for model in ("openai/gpt-4", "openai/o3", "openai/o1"):
        refuse(model, master, actor_models)
    assert evaluate_allowed_models(actor_models, master, "openai") == ("openai/gpt-4o*",)
    assert evaluate_allowed_models(["gpt-*"], master, "openai") == ("openai/gpt-4*",)


def test_any_of_a_models_names_will_do() -> None:
    """A virtual model is allowed by its own name or by that of the model that it stands for."""
    master = ("fireworks/starcoder", "fireworks/accounts/a/models/b")
    check("fireworks/accounts/x", master, ["*"], "fireworks/starcoder")
    check("fireworks/accounts/a/models/b", master, ["fireworks/starcoder"], "fireworks/starcoder")


def test_an_endless_name_is_in_no_list() -> None:
    """No list admits a name as long as a body, not even the one that means everything."""
    assert not compile_allow_list(("*",)).admits("p/" + "a" * 1_000_000)


@pytest.mark.parametrize("entry", ["*", "p/*", "p/a*"])
@pytest.mark.parametrize("name", ["p/a\r\nset-cookie: b", "p/a\x00", "p/a\x7f", "p/a\u2028", "p/a\ud83d"])
def test_a_name_with_control_characters_is_in_no_list(entry: str, name: str) -> None:
    """It comes back as a header field, whose line it would break."""
    assert not compile_allow_list((entry,)).admits(name)
    assert compile_allow_list((entry,)).admits("p/a b-\u00e9")


def test_a_model_that_is_not_allowed_is_refused_with_those_that_are() -> None:
    """The text is the reference's and names the list; parameter and code are OpenAI's."""
    refusal = refuse("openai/gpt-9", ("openai/gpt-4", "openai/gpt-5"))
    assert refusal.message == (
        'model "openai/gpt-9" is not allowed, allowed: [openai/gpt-4, openai/gpt-5] '
        f"(by the gateway's list, {VARIABLE})"
    )
    assert (refusal.status, refusal.param, refusal.code) == (400, "model", "model_not_found")
    refusal = refuse("openai/gpt-5", ("openai/gpt-4", "openai/gpt-5"), ["gpt-4"])
    assert refusal.message.endswith("is not allowed, allowed: [openai/gpt-4] (by the caller's own list)")


@pytest.mark.parametrize(
    ("model", "nearest"),
    [
        ("openai/gpt-4o-latest", "openai/gpt-4o"),
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
    message = refuse(model, allowed).message
    assert message.startswith(f'model "{model}" is not allowed, allowed: [')
    assert message.endswith(f"] (the nearest of 6, by the gateway's list, {VARIABLE})")
    named = message.partition("allowed: [")[2].partition("]")[0].split(", ")
    assert (len(named), named[0]) == (3, nearest)


def test_an_endless_model_name_is_cut() -> None:
    """A name as long as a body neither comes back as a whole, nor is compared as a whole."""
    assert len(refuse("openai/" + "gpt-4" * 1_000_000, ("openai/gpt-4",)).message) < 250


@given(st.text(max_size=20), st.lists(st.text(max_size=20), max_size=10))
def test_any_names_can_be_compared(model: str, allowed: list[str]) -> None:
    """Whatever the names, up to three of the allowed ones are found."""
    nearest = find_nearest(model, allowed)
    assert len(nearest) == min(3, len(allowed))
    assert set(nearest) <= set(allowed)


def test_prefixes_are_added_once() -> None:
    """A name with a slash has its prefix already, but for a provider's own list, where it may be a path."""
    assert [add_prefix("openai", name) for name in ("gpt-4", "openai/gpt-4")] == ["openai/gpt-4", "openai/gpt-4"]
    own = ("a", "fireworks/a", "accounts/a")
    assert add_prefixes("fireworks", own) == ("fireworks/a", "fireworks/a", "fireworks/accounts/a")


def test_todays_default_models_are_those_of_the_sdks() -> None:
    """All names that the default lists add to the reference's are in the SDKs; no name comes twice."""
    named = {*get_args(get_args(ModelParam)[0]), *DEPRECATED_MODELS}
    assert set(ANTHROPIC_MODELS[23:]) <= named
    assert set(OPENAI_MODELS[5:]) <= set(get_args(ChatModel))
    assert len({*ANTHROPIC_MODELS, *OPENAI_MODELS}) == len(ANTHROPIC_MODELS) + len(OPENAI_MODELS)
