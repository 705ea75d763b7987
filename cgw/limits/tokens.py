"""Counting a request's tokens: an estimate before the response, the usage after it. Pure."""

from __future__ import annotations

from cgw.model import Usage

CHARACTERS_PER_TOKEN = 4
"""The providers' rule of thumb for English text."""

DEFAULT_COMPLETION_TOKENS = 1024
"""The tokens to reserve for a response whose length the request does not bound."""


def estimate_tokens(prompt_character_count: int, max_completion_tokens: int | None) -> int:
    """Return the tokens to reserve, at least 1: an estimate for the prompt, and the most that the response may have."""
    completion = DEFAULT_COMPLETION_TOKENS if max_completion_tokens is None else max_completion_tokens
    return max(1, _estimate_from_size(prompt_character_count) + completion)


def count_tokens(usage: Usage, body_bytes: int) -> int:
    """Return the tokens of an exchange: the provider's figures, or an estimate from characters or, at worst, bytes.

    ``body_bytes`` is the size of the response body. A response that broke off is charged for what arrived, not for
    all that was reserved. A prompt that the provider's cache had in part counts by the provider's rule.
    """
    prompt = usage.prompt_quota_token_count
    if prompt is None:
        prompt = usage.prompt_token_count
    if prompt is None:
        prompt = _estimate_from_size(usage.prompt_character_count or 0)
    completion = usage.completion_token_count
    if completion is None:
        characters = usage.completion_character_count
        # The body is at least as long as its text, so this never charges too little by the rule of thumb.
        completion = _estimate_from_size(body_bytes if characters is None else characters)
    return prompt + completion


def _estimate_from_size(character_count: int) -> int:
    return -(-character_count // CHARACTERS_PER_TOKEN)
