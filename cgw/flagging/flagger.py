"""Flagging: examine requests by the operator's rules, note what was found, and refuse what is to be blocked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import trio
from attrs import evolve, frozen

from cgw.actors.policies import DOTCOM_USER
from cgw.errors import Refusal
from cgw.flagging.phrases import PhraseScan, choose_slice_characters, fold
from cgw.flagging.recorder import MAX_PROMPT_BYTES, PromptName, PromptRecorder
from cgw.flagging.settings import FlaggingSettings
from cgw.flagging.slices import slice_text
from cgw.flagging.tokens import TokenCount, TokenEstimate, Tokenizer
from cgw.flagging.verdicts import PREFIX_BYTES, Facts, Verdict, judge
from cgw.model import Actor, Feature
from cgw.providers.dialect import PreparedRequest
from cgw.providers.prompts import Prompt

MAX_FULL_PROMPT_CHARACTERS = 2**17
"""The most that a usage event has of a prompt. In JSON a character has up to six bytes, and an event up to 1 MiB."""

# "Assistant: ", and the blank line after a message.
_BYTES_PER_MESSAGE = 16
_MAX_BYTES_PER_CHARACTER = 4


class PromptBlocked(Refusal):
    """A request that is refused for its prompt. ``metadata`` is that of its usage event."""

    def __init__(self, found: dict[str, Any], metadata: dict[str, Any]) -> None:
        """``found`` is what flagging found, with the ``trace_id`` of the request."""
        text = (
            "We blocked your request because we detected your prompt to be against our Acceptable Use Policy "
            "(https://sourcegraph.com/terms/aup). Try again by removing any phrases that may violate our AUP. If you "
            "think this is a mistake, please contact support@sourcegraph.com and reference this ID: "
            f"{found['trace_id']}"
        )
        super().__init__(400, text, code="request_blocked")
        self.metadata = {**found, **metadata}


@frozen
class FlaggingStatistics:
    """Counts since the start: requests ``examined``, ``flagged`` (blocked ones included) and ``blocked``.

    ``prompts_dropped`` are flagged prompts that could not be kept.
    """

    examined: int
    flagged: int
    blocked: int
    prompts_dropped: int


class Flagger:
    """Examines requests by ``rules``. Without ``tokenizer``, tokens are estimated; ``recorder`` keeps prompts."""

    def __init__(self, rules: FlaggingSettings, tokenizer: Tokenizer | None, recorder: PromptRecorder) -> None:
        self._rules = rules
        self._tokenizer = tokenizer
        self.recorder = recorder
        self._allowed = tuple(fold(phrase) for phrase in rules.allowed_phrases)
        self._blocked = tuple(fold(phrase) for phrase in rules.blocked_phrases)
        self._has_phrases = bool(self._allowed or self._blocked)
        self._slice_characters = choose_slice_characters(self._allowed, self._blocked)
        self._models = frozenset(fold(name) for name in rules.flagged_models)
        self._has_further_rules = bool(self._has_phrases or self._models or rules.logged_identifiers)
        self._least_tokens = min(rules.prompt_flagging_tokens, rules.prompt_blocking_tokens)
        self._examined = self._flagged = self._blocked_count = 0
        self._most_tokens = max(rules.prompt_flagging_tokens, rules.prompt_blocking_tokens)
        self._least_max_tokens = min(rules.response_flagging_tokens, rules.response_blocking_tokens)

    def describe_counting(self) -> str | None:
        """Return a sentence for the log on how prompts' tokens are known; ``None`` if they are counted."""
        if self._tokenizer is not None:
            return None
        return (
            "the tokens of Anthropic prompts are estimated from their characters for the limits of flagging; set "
            "CODY_GATEWAY_TOKENIZER_FILE to count them"
        )

    def statistics(self) -> FlaggingStatistics:
        """Return counts since the start."""
        return FlaggingStatistics(self._examined, self._flagged, self._blocked_count, self.recorder.dropped)

    def must_examine(self, actor: Actor, prepared: PreparedRequest) -> bool:
        """Return whether a rule may apply to a request. Takes a microsecond or so; looks at no text."""
        prompt = prepared.prompt
        if prompt is None:
            return False
        # By the settings alone, most gateways have none of the rules that look closer.
        if self._has_further_rules and (self._has_phrases or self._is_listed(prepared) or self._is_logged(actor)):
            return True
        max_tokens = prepared.max_completion_tokens
        if max_tokens is not None and max_tokens > self._least_max_tokens:
            return True
        return prompt.has_token_limits and self._may_exceed(prompt, prepared.prompt_character_count)

    def _may_exceed(self, prompt: Prompt, characters: int) -> bool:
        # No token is shorter than a byte: a short prompt is below the limits, whatever it says.
        most_bytes = characters * _MAX_BYTES_PER_CHARACTER + (prompt.message_count + 1) * _BYTES_PER_MESSAGE
        return prompt.has_token_limits and most_bytes > self._least_tokens

    def _is_listed(self, prepared: PreparedRequest) -> bool:
        if not self._models:
            return False
        # Clients may leave the prefix out, and so may the operator.
        name = fold(prepared.model)
        return name in self._models or name.partition("/")[2] in self._models

    def _is_logged(self, actor: Actor) -> bool:
        listed = self._rules.logged_identifiers
        return bool(listed) and actor.source == DOTCOM_USER and actor.id in listed

    async def check(
        self, actor: Actor, feature: Feature, prepared: PreparedRequest, provider: str, trace_id: str
    ) -> None:
        """Examine a request, and add what was found to ``prepared.metadata``, for its usage event.

        Large prompts are examined in slices, between which other tasks run, and counted in a thread. Raises
        :exc:`PromptBlocked`. Cancel-safe.
        """
        prompt = prepared.prompt
        if prompt is None:
            return
        self._examined += 1
        must_count = self._may_exceed(prompt, prepared.prompt_character_count)
        slices = await self._read(prompt) if must_count or self._has_phrases else None
        verdict = judge(self._rules, await self._find_facts(prompt, prepared, slices or (), must_count=must_count))
        is_logged = self._is_logged(actor)
        if verdict is None and not is_logged:
            return
        if slices is None:
            slices = await self._read(prompt)
        metadata: dict[str, Any] = {}
        if verdict is not None:
            if verdict.prompt_tokens is None and prompt.has_token_limits:
                verdict = evolve(verdict, prompt_tokens=await self._count(slices))
            metadata = self._note(verdict, actor, feature, slices, trace_id)
            self._flagged += 1
            if verdict.should_block:
                self._blocked_count += 1
                raise PromptBlocked(metadata, build_blocked_metadata(verdict, prepared, provider))
        if is_logged:
            metadata["full_prompt"] = join_text(slices, MAX_FULL_PROMPT_CHARACTERS)
        prepared.metadata = {**prepared.metadata, **metadata}

    async def _read(self, prompt: Prompt) -> list[str]:
        slices: list[str] = []
        for text in slice_text(prompt.read_text(), self._slice_characters):
            if slices:
                await trio.lowlevel.checkpoint()
            slices.append(text)
        return slices

    async def _find_facts(
        self, prompt: Prompt, prepared: PreparedRequest, slices: Sequence[str], *, must_count: bool
    ) -> Facts:
        allowed, blocked = PhraseScan(self._allowed), PhraseScan(self._blocked)
        if self._has_phrases:
            for index, text in enumerate(slices):
                if index:
                    await trio.lowlevel.checkpoint()
                folded = fold(text)
                allowed.feed(folded)
                blocked.feed(folded)
        if self._blocked:
            blocked.feed("\n")
            # Beyond the reference, which drops all but text: what the model reads elsewhere must not be a way around.
            for index, text in enumerate(slice_text(prompt.read_other_text(), self._slice_characters)):
                if index:
                    await trio.lowlevel.checkpoint()
                blocked.feed(fold(text))
        return Facts(
            is_listed_model=self._is_listed(prepared),
            max_tokens=prepared.max_completion_tokens,
            prompt_tokens=await self._count(slices) if must_count else None,
            has_allowed_phrase=allowed.found is not None,
            blocked_phrase=blocked.found,
        )

    async def _count(self, slices: Sequence[str]) -> TokenCount:
        if self._tokenizer is None:
            estimate = TokenEstimate()
            for index, text in enumerate(slices):
                if index:
                    await trio.lowlevel.checkpoint()
                estimate.add(text)
            return estimate.total
        return await self._tokenizer.count(slices, self._most_tokens)

    def _note(
        self, verdict: Verdict, actor: Actor, feature: Feature, slices: Sequence[str], trace_id: str
    ) -> dict[str, Any]:
        """Record the prompt if that is to be, and return the metadata of a flagged request's event."""
        prefix = None
        if actor.source == DOTCOM_USER:
            prefix = join_text(slices, PREFIX_BYTES)
            # As in the reference: code completions are too many to look into.
            if feature is not Feature.CODE_COMPLETIONS:
                self.recorder.record(PromptName(trace_id, feature.value, actor.id), join_text(slices, MAX_PROMPT_BYTES))
        return {**verdict.describe(prefix), "trace_id": trace_id}


def join_text(slices: Sequence[str], most: int) -> str:
    """Return the first ``most`` characters of a text, of which ``slices`` are the slices."""
    parts, size = [], 0
    for text in slices:
        if size >= most:
            break
        parts.append(text[: most - size])
        size += len(parts[-1])
    return "".join(parts)


def build_blocked_metadata(verdict: Verdict, prepared: PreparedRequest, provider: str) -> dict[str, Any]:
    """Return what an event of a blocked request has besides what was found, under the reference's keys."""
    metadata: dict[str, Any] = {"model": prepared.model, "provider": provider}
    if verdict.prompt_tokens is not None:
        metadata["prompt_token_count"] = verdict.prompt_tokens.tokens
    if prepared.max_completion_tokens is not None:
        metadata["max_tokens_to_sample"] = prepared.max_completion_tokens
    return metadata
