"""Examining requests without a gateway: models, allow lists, and what becomes of the figures."""

from __future__ import annotations

from typing import Any, cast

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from cgw.flagging.flagger import Flagger, PromptBlocked
from cgw.flagging.recorder import PromptRecorder
from cgw.flagging.settings import FlaggingSettings
from cgw.flagging.tokens import Tokenizer
from cgw.model import Actor, Feature
from cgw.providers.dialect import PreparedRequest
from cgw.providers.prompts import Prompt
from cgw.redis.opening import Store
from cgw.wire.messages import UpstreamRequest

ACTOR = Actor("acme", "Acme", "static", access_enabled=True)


async def examine(
    rules: FlaggingSettings, text: str, *, model: str = "anthropic/claude-2", tokenizer: Tokenizer | None = None
) -> dict[str, Any] | None:
    """Return the result of flagging a request to Anthropic, ``None`` if it is not flagged."""
    flagger = Flagger(rules, tokenizer, PromptRecorder(cast(Store, None), 60))
    body = {"messages": [{"role": "user", "content": text}]}
    prompt = Prompt(body, "system", "messages", labels={"user": "Human: "}, has_token_limits=True)
    request = PreparedRequest(
        cast(UpstreamRequest, None), model, False, len(text), {"stream": False}, 10, prompt=prompt
    )
    if flagger.must_examine(ACTOR, request):
        await flagger.check(ACTOR, Feature.CHAT_COMPLETIONS, request, "anthropic", "ab" * 16)
    assert request.metadata["stream"] is False
    result: dict[str, Any] | None = request.metadata.get("flagging_result")
    return result


NAMES = st.sampled_from(["claude-2", "anthropic/claude-2", "gpt-4o"])


@given(
    st.builds(
        FlaggingSettings,
        allowed_phrases=st.sampled_from([(), ("you are",)]),
        blocked_phrases=st.sampled_from([(), ("bad",)]),
        flagged_models=st.lists(NAMES, max_size=1).map(tuple),
        logged_identifiers=st.sampled_from([(), ("acme",)]),
        prompt_flagging_tokens=st.sampled_from([40, 1_000]),
        response_flagging_tokens=st.sampled_from([10, 1_000]),
    ),
    st.builds(evolve, st.just(ACTOR), source=st.sampled_from(["static", "dotcom-user"])),
    NAMES,
    st.sampled_from([None, 0, 10, 11, 1_001]),
    st.integers(1, 40),
    st.booleans(),
)
def test_what_no_rule_can_apply_to_is_not_examined(
    rules: FlaggingSettings, actor: Actor, model: str, max_tokens: int | None, size: int, has_token_limits: bool
) -> None:
    """The decision, which leaves out kinds of rules that the settings do not have, is that of looking at each."""
    flagger = Flagger(rules, None, PromptRecorder(cast(Store, None), 60))
    body = {"messages": [{"role": "user", "content": "x" * size}]}
    prompt = Prompt(body, "system", "messages", has_token_limits=has_token_limits)
    request = PreparedRequest(cast(UpstreamRequest, None), model, False, size, {}, max_tokens, prompt=prompt)
    least_tokens = min(rules.prompt_flagging_tokens, rules.prompt_blocking_tokens)
    least_max_tokens = min(rules.response_flagging_tokens, rules.response_blocking_tokens)
    reasons = (
        rules.allowed_phrases or rules.blocked_phrases,
        model in rules.flagged_models or model.partition("/")[2] in rules.flagged_models,
        actor.source == "dotcom-user" and actor.id in rules.logged_identifiers,
        max_tokens is not None and max_tokens > least_max_tokens,
        has_token_limits and 4 * size + 2 * 16 > least_tokens,
    )
    assert flagger.must_examine(actor, request) == any(reasons)
    request.prompt = None
    assert not flagger.must_examine(actor, request)


@pytest.mark.parametrize(
    ("listed", "is_flagged"),
    [("claude-2", True), ("Anthropic/Claude-2", True), ("claude-2.1", False), ("claude", False)],
)
async def test_s9_2_model_used(listed: str, is_flagged: bool) -> None:
    """The whole name, with or without the prefix, in any case."""
    result = await examine(FlaggingSettings(flagged_models=(listed,)), "Hi")
    assert (result["reason"] if result else None) == (["model_used"] if is_flagged else None)


@pytest.mark.parametrize(
    ("text", "is_flagged"), [("You are CODY, an AI", False), ("You are coder", True), ("Human: hi", True)]
)
async def test_s9_2_unknown_prompt(text: str, is_flagged: bool) -> None:
    """A prompt must have one of the allowed phrases, in any case, labels of roles included."""
    rules = FlaggingSettings(allowed_phrases=("you are Cody", "human: you are coDY"))
    result = await examine(rules, text)
    assert (result["reason"] if result else None) == (["unknown_prompt"] if is_flagged else None)


async def test_s9_2_the_tokenizer_decides_where_there_is_one() -> None:
    """Its figure is in the result, and said to be exact."""
    rules = FlaggingSettings(prompt_flagging_tokens=20, prompt_blocking_tokens=1000)
    words = Tokenizer(lambda text: len(text.split()))
    assert await examine(rules, "word " * 19, tokenizer=words) is None
    result = await examine(rules, "word " * 20, tokenizer=words)
    assert result is not None
    assert (result["prompt_token_count"], result["prompt_token_count_quality"]) == (21, "exact")


async def test_s9_2_a_blocked_request_tells_its_tokens() -> None:
    """Also where the limits of tokens had nothing to do with it."""
    with pytest.raises(PromptBlocked) as caught:
        await examine(FlaggingSettings(blocked_phrases=("bad",), is_blocking=True), "so bad")
    assert caught.value.metadata["prompt_token_count"] == -(-len("Human: so bad\n\n") // 3)
    assert caught.value.message.endswith(f"reference this ID: {caught.value.metadata['trace_id']}")
    assert caught.value.status == 400
