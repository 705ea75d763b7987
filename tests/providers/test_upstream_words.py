"""Words of upstreams' errors in the log: what they say of themselves, and nothing that the caller said."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cgw.providers.upstream_words import LOGGED_CHARACTERS, MAX_SENT_BYTES, WITHHELD, describe_words

PROMPT = 'My doctor says "ümlaut\nfever" 发烧了怎么办呢请您告诉我该吃什么药好吗'
SENT = json.dumps({"model": "m", "messages": [{"role": "user", "content": PROMPT}]}, ensure_ascii=False).encode()
OWN = b'{"error": {"type": "rate_limit_error", "message": "This organization may use 40,000 tokens per minute"}}'


def test_what_an_upstream_says_of_itself_is_logged() -> None:
    """In one line, up to a length."""
    assert describe_words(OWN.replace(b", ", b",\n  "), SENT) == " ".join(OWN.replace(b", ", b",\n  ").decode().split())
    assert describe_words(b"", SENT) == "without a body"
    assert describe_words(b"x" * 999, SENT) == "x" * LOGGED_CHARACTERS
    assert describe_words(b"busy", b"busy") == "busy"


@pytest.mark.parametrize("has_ascii", [True, False])
@pytest.mark.parametrize("depth", range(4))
def test_a_quoted_prompt_is_withheld(has_ascii: bool, depth: int) -> None:
    """As it is, escaped, or inside of strings inside of strings."""
    quoted: str = PROMPT
    for _ in range(depth):
        quoted = json.dumps({"error": quoted}, ensure_ascii=has_ascii)
    for sent in (SENT, json.dumps({"content": PROMPT}).encode()):
        assert describe_words(quoted.encode(), sent) == WITHHELD
        assert describe_words(OWN[:100] + quoted.encode(), sent) == WITHHELD


def test_the_models_name_may_be_repeated() -> None:
    """A long name in both is no quotation."""
    model = "accounts/fireworks/models/llama-v3p1-70b-instruct"
    sent = json.dumps({"model": model, "messages": []}).encode()
    words = f"the model {model} is overloaded"
    assert describe_words(words.encode(), sent, (model,)) == words
    assert describe_words(words.encode(), sent) == WITHHELD


def test_a_large_request_is_not_searched() -> None:
    """The time for one error is bounded."""
    assert describe_words(OWN, b"a" * (MAX_SENT_BYTES + 1)) == WITHHELD
    started = time.thread_time()
    describe_words(OWN, (b"This organization m " * MAX_SENT_BYTES)[:MAX_SENT_BYTES])
    assert time.thread_time() - started < 0.2


@given(
    prompt=st.text(st.characters(min_codepoint=97, max_codepoint=122), min_size=23, max_size=60),
    before=st.integers(0, 200),
)
@example("a" * 23, 0)
def test_no_run_of_23_characters_is_missed(prompt: str, before: int) -> None:
    """Wherever it stands in the logged part."""
    words = "-" * before + prompt
    assert describe_words(words.encode(), f"[{prompt}]".encode()) == WITHHELD
