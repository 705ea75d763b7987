"""Examining requests without a gateway: models, allow lists, and what becomes of the figures."""

from __future__ import annotations

from typing import Any, cast

import pytest

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
