"""Tokens that are derived from Sourcegraph's own."""

from __future__ import annotations

import hashlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgw.actors.tokens import derive_subscription_token, derive_user_token, derive_user_token_from_hash

PAYLOAD = "0123456789abcdef0123456789abcdef01234567"
DERIVED = "sgd_ee6ba2aa505be17522e936ebac2c31c108d58ebfc8d483ed75a6b298506cb949"
"""A pair that the reference's tests have, too."""


@pytest.mark.parametrize(
    "access_token",
    [PAYLOAD, f"sgp_{PAYLOAD}", f"sgph_{PAYLOAD}", f"sgp_local_{PAYLOAD}", f"sgp_0123456789abcdef_{PAYLOAD}"],
)
def test_a_user_token_is_the_double_hash_of_an_access_token_s_bytes(access_token: str) -> None:
    """Prefix and instance do not count (the reference's §2.6)."""
    assert derive_user_token(access_token) == DERIVED
    assert derive_user_token(access_token.replace(PAYLOAD, PAYLOAD.upper())) == DERIVED


def test_a_stored_hash_needs_one_more_hash() -> None:
    """The database has the first of the two hashes already."""
    stored = hashlib.sha256(bytes.fromhex(PAYLOAD)).hexdigest()
    assert derive_user_token_from_hash(stored) == derive_user_token_from_hash(f"\\x{stored}") == DERIVED


def test_a_subscription_token_is_the_hash_of_the_licence_key() -> None:
    """``slk_`` and the SHA-256 of the key's text (§2.7)."""
    assert derive_subscription_token("licence") == "slk_" + hashlib.sha256(b"licence").hexdigest()


@pytest.mark.parametrize(
    "text", ["", "sgp", PAYLOAD[:-1], f"sgp_{PAYLOAD}0", f"sgd_{PAYLOAD}", f"sgp_a_b_{PAYLOAD}", "é" * 40]
)
def test_other_texts_are_refused_without_being_repeated(text: str) -> None:
    """What was pasted by mistake may be another secret."""
    for derive in (derive_user_token, derive_user_token_from_hash):
        with pytest.raises(ValueError, match=r"^must ") as caught:
            derive(text)
        assert len(text) < 4 or text not in str(caught.value)


@given(st.text(max_size=100))
def test_any_text_gives_a_token_or_a_value_error(text: str) -> None:
    """No other exception, and no other form of token."""
    for derive in (derive_user_token, derive_user_token_from_hash):
        try:
            token = derive(text)
        except ValueError:
            continue
        assert re.fullmatch("sgd_[0-9a-f]{64}", token)
    assert re.fullmatch("slk_[0-9a-f]{64}", derive_subscription_token(text))
