"""Tokens of a request before it is asked, and after it was answered. Pure."""

from __future__ import annotations

from cgw.model import Usage

CHARACTERS_PER_TOKEN = 4
"""What providers give as a rule of thumb for English text."""

DEFAULT_COMPLETION_TOKENS = 1024
"""What is reserved for an answer whose length the request does not bound."""


def estimate_tokens(prompt_character_count: int, max_completion_tokens: int | None) -> int:
    """What to reserve for a request, before its answer is known: its prompt by the rule of thumb, its answer in full.

    At least 1. What it really used is settled afterwards.
    """
    completion = DEFAULT_COMPLETION_TOKENS if max_completion_tokens is None else max_completion_tokens
    return max(1, _tokens_of(prompt_character_count) + completion)


def count_tokens(usage: Usage, body_bytes: int) -> int:
    """What an answer came to: the provider's figures, or what its text or, at worst, its size suggests.

    ``body_bytes`` is the size of the answer's body, of which more than a token's text can't hide in four bytes: an
    answer that broke off is charged for what came, not for all that was reserved.
    """
    prompt = usage.prompt_token_count
    if prompt is None:
        prompt = _tokens_of(usage.prompt_character_count or 0)
    completion = usage.completion_token_count
    if completion is None:
        characters = usage.completion_character_count
        completion = _tokens_of(body_bytes if characters is None else characters)
    return prompt + completion


def _tokens_of(character_count: int) -> int:
    return -(-character_count // CHARACTERS_PER_TOKEN)
