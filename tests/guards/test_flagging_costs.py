"""The cost of flagging, in counts: what is examined in one turn of the loop, and when nothing is examined."""

from __future__ import annotations

from collections import Counter
from typing import Any, cast

import pytest
import trio
from attrs import define, field

from cgw.flagging.flagger import Flagger
from cgw.flagging.recorder import PromptRecorder
from cgw.flagging.settings import FlaggingSettings
from cgw.flagging.slices import PIECES_PER_SLICE, SLICE_CHARACTERS
from cgw.model import Actor, Feature
from cgw.providers.dialect import PreparedRequest
from cgw.providers.prompts import Prompt
from cgw.redis.opening import Store
from cgw.wire.messages import UpstreamRequest
from tests.support.counting import CallCounter

ACTOR = Actor("acme", "Acme", "static", access_enabled=True)
MIB = 2**20
PHRASES = FlaggingSettings(blocked_phrases=tuple(f"phrase {number}" for number in range(10)))


def build_flagger(rules: FlaggingSettings) -> Flagger:
    """Return a flagger that records nothing: the actor is no user of Sourcegraph.com."""
    return Flagger(rules, None, PromptRecorder(cast(Store, None), 60))


def build_request(body: dict[str, Any], characters: int) -> PreparedRequest:
    """Return a request of the Messages API, whose text has so many ``characters``."""
    prompt = Prompt(body, "system", "messages", labels={"user": "Human: "}, has_token_limits=True)
    # It is never sent.
    upstream = cast(UpstreamRequest, None)
    return PreparedRequest(upstream, "anthropic/claude", True, characters, {}, 100, prompt=prompt)


@define(eq=False)
class Turns(trio.abc.Instrument):
    """Notes what one task calls in each of its turns."""

    counter: CallCounter
    task: trio.lowlevel.Task
    calls: list[Counter[str]] = field(factory=list)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """Begin a turn."""
        if task is self.task:
            self.counter.calls = Counter()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """End it."""
        if task is self.task:
            self.calls.append(self.counter.calls)


@pytest.mark.parametrize(
    ("body", "characters"),
    [
        ({"messages": [{"role": "user", "content": "word " * (MIB // 5)}]}, MIB),
        ({"messages": [{"role": "user", "content": "é" * (MIB // 2)}]}, MIB // 2),
        ({"messages": [{"role": "user", "content": "x"}] * 30_000}, 30_000),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}] * 40_000}]}, 40_000),
        ({"messages": [{"role": "user", "content": "x"}], "tools": [1, []] * 200_000}, 1),
        ({"messages": [{"role": "user", "content": "x"}], "tools": [{"description": "x" * MIB}]}, 1),
    ],
    ids=["text", "not ASCII", "messages", "parts", "numbers", "tool"],
)
async def test_a_large_prompt_is_examined_in_short_turns(body: dict[str, Any], characters: int) -> None:
    """1 MiB in any shape: each turn has a slice at most, of bounded length and of bounded pieces.

    Folding and searching a slice takes below 1 ms, and reading its pieces too, so others wait less than 5 ms.
    """
    flagger, counter = build_flagger(PHRASES), CallCounter()
    turns = Turns(counter, trio.lowlevel.current_task())
    request = build_request(body, characters)
    trio.lowlevel.add_instrument(turns)
    with counter.count():
        await flagger.check(ACTOR, Feature.CHAT_COMPLETIONS, request, "anthropic", "ab" * 16)
    trio.lowlevel.remove_instrument(turns)
    for calls in turns.calls:
        assert calls["cgw.flagging.phrases:fold"] <= 2
        assert calls["cgw.flagging.tokens:add"] <= 2
        read = sum(count for name, count in calls.items() if name.startswith("cgw.providers.prompts:"))
        # Nested generators: each piece passes through up to four, for the two slices around a change of what is read.
        assert read <= 2 * 4 * PIECES_PER_SLICE + 100
    assert len(turns.calls) >= 15
    assert SLICE_CHARACTERS * len(turns.calls) >= characters


@pytest.mark.parametrize("characters", [1, 4400])
async def test_with_the_defaults_usual_prompts_are_not_read(characters: int) -> None:
    """Without phrases, and below all limits: no text is looked at."""
    flagger, counter = build_flagger(FlaggingSettings()), CallCounter()
    request = build_request({"messages": [{"role": "user", "content": "x" * characters}]}, characters)
    with counter.count():
        assert not flagger.must_examine(ACTOR, request)
    assert {name for name in counter.calls if name.startswith("cgw.")} == {
        "cgw.flagging.flagger:must_examine",
        "cgw.flagging.flagger:_may_exceed",
        "cgw.providers.prompts:message_count",
    }


async def test_a_small_prompt_is_examined_in_one_turn() -> None:
    """With phrases: without a checkpoint, which would cost a turn of the loop."""
    flagger, turns = build_flagger(PHRASES), Turns(CallCounter(), trio.lowlevel.current_task())
    trio.lowlevel.add_instrument(turns)
    await flagger.check(
        ACTOR,
        Feature.CHAT_COMPLETIONS,
        build_request({"messages": [{"role": "user", "content": "Hi"}]}, 2),
        "anthropic",
        "ab" * 16,
    )
    trio.lowlevel.remove_instrument(turns)
    assert turns.calls == []
