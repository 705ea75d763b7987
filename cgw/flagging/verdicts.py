"""The rules that flag and block a request, applied to what is known of it. Pure."""

from __future__ import annotations

import enum
from typing import Any

from attrs import frozen

from cgw.flagging.settings import FlaggingSettings
from cgw.flagging.tokens import TokenCount

PREFIX_BYTES = 250
PHRASE_BYTES = 5


class Reason(enum.StrEnum):
    """The reasons to flag a request, in the reference's order."""

    MODEL_USED = "model_used"
    UNKNOWN_PROMPT = "unknown_prompt"
    HIGH_MAX_TOKENS = "high_max_tokens_to_sample"
    HIGH_PROMPT_TOKENS = "high_prompt_token_count"
    BLOCKED_PHRASE = "blocked_phrase"
    """Also for both blocking limits, as in the reference (its quirk 2): queries rely on it."""


@frozen
class Facts:
    """The subject of the rules. ``prompt_tokens`` is ``None`` where the rules about prompts' tokens do not apply."""

    is_listed_model: bool
    max_tokens: int | None
    prompt_tokens: TokenCount | None
    has_allowed_phrase: bool
    blocked_phrase: str | None


@frozen
class Verdict:
    """The reasons to flag a request, and whether to refuse it."""

    reasons: tuple[Reason, ...]
    should_block: bool
    blocked_phrase: str | None
    prompt_tokens: TokenCount | None

    def describe(self, prefix: str | None) -> dict[str, Any]:
        """Return the metadata of usage events. ``prefix`` is the beginning of the prompt, if it may be told."""
        result: dict[str, Any] = {
            "reason": [reason.value for reason in self.reasons],
            "should_block": self.should_block,
        }
        if self.blocked_phrase is not None:
            result["blocked_phrase"] = cut_bytes(self.blocked_phrase, PHRASE_BYTES)
        if prefix is not None:
            result["prompt_prefix"] = cut_bytes(prefix, PREFIX_BYTES)
        if self.prompt_tokens is not None:
            result["prompt_token_count"] = self.prompt_tokens.tokens
            result["prompt_token_count_quality"] = self.prompt_tokens.quality.value
        return {"flagged": True, "flagging_result": result}


def cut_bytes(text: str, most: int) -> str:
    """Return the beginning of ``text`` that has at most ``most`` bytes in UTF-8, without half a character."""
    return text[:most].encode("utf-8", "replace")[:most].decode("utf-8", "ignore")


def judge(rules: FlaggingSettings, facts: Facts) -> Verdict | None:
    """Return the verdict of ``rules``; ``None`` if the request is not flagged. All limits are exceeded above them."""
    tokens = -1 if facts.prompt_tokens is None else facts.prompt_tokens.tokens
    max_tokens = -1 if facts.max_tokens is None else facts.max_tokens
    is_to_block = (
        facts.blocked_phrase is not None
        or tokens > rules.prompt_blocking_tokens
        or max_tokens > rules.response_blocking_tokens
    )
    causes = {
        Reason.MODEL_USED: facts.is_listed_model,
        Reason.UNKNOWN_PROMPT: bool(rules.allowed_phrases) and not facts.has_allowed_phrase,
        Reason.HIGH_MAX_TOKENS: max_tokens > rules.response_flagging_tokens,
        Reason.HIGH_PROMPT_TOKENS: tokens > rules.prompt_flagging_tokens,
        Reason.BLOCKED_PHRASE: is_to_block,
    }
    reasons = tuple(reason for reason, applies in causes.items() if applies)
    if not reasons:
        return None
    return Verdict(reasons, is_to_block and rules.is_blocking, facts.blocked_phrase, facts.prompt_tokens)
