"""Counting the tokens of an exchange: estimates before it, figures after it."""

from __future__ import annotations

import pytest

from cgw.limits.tokens import DEFAULT_COMPLETION_TOKENS, count_tokens, estimate_tokens
from cgw.model import Usage


@pytest.mark.parametrize(
    ("characters", "most", "tokens"),
    [(0, 0, 1), (1, 0, 1), (9, 100, 103), (8, None, 2 + DEFAULT_COMPLETION_TOKENS)],
)
def test_a_reservation_is_for_the_prompt_and_the_longest_response(
    characters: int, most: int | None, tokens: int
) -> None:
    """Four characters are a token, rounded up; a response without bound has a default; at least one is reserved."""
    assert estimate_tokens(characters, most) == tokens


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        (Usage(10, 20), 30),
        (Usage(10, 20, prompt_quota_token_count=15), 35),
        (Usage(10, 20, cache_read_token_count=8), 30),
        (Usage(None, 20, prompt_character_count=9), 23),
        (Usage(10, None, completion_character_count=9), 13),
        (Usage(10, None), 10 + 250),
    ],
)
def test_figures_are_charged_and_estimated_where_they_are_missing(usage: Usage, tokens: int) -> None:
    """A provider's rule for its cache comes before its count of the prompt; characters, then bytes, replace figures."""
    assert count_tokens(usage, 1000) == tokens
