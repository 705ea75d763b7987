"""Masking: credentials are replaced, ordinary text is not."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgw.telemetry.masking import MASK, SecretMask

CANARY = "CaFe0123456789abcdef"


@pytest.mark.parametrize(
    "template",
    [
        "Authorization: Bearer {}",
        "authorization=b'Bearer {}'",
        "[(b'authorization', b'Bearer {}')]",
        "('Authorization', 'token {}')",
        "GET / bearer {} HTTP/1.1",
        "Basic {}=",
        "/v1?x=Bearer%20{}",
        "x-api-key: {}",
        "(b'x-api-key', b'{}')",
        "{{'x-goog-api-key': '{}'}}",
        '{{"api_key": "{}", "model": "x"}}',
        "access_token={}&x=1",
        "password = {}",
        "redis://:{}@localhost:6379/0",
        "rediss://user:{}@host",
        "https://example.org/v1beta/models?key={}",
        "sk-{}",
        "sk-ant-api03-{}-AA",
        "Incorrect API key provided: sk-proj-{}.",
        "(sgp_{})",
        "sgp_local_{}",
        "sgd_{}",
        "slk_{}",
        "cgw_0123456789abcdef0123456789abcdef{}",
        "AIza{}xyz",
        "eyJhbGciOiJub25lIn0.eyJ{}.{}",
    ],
)
def test_every_form_of_credential_is_masked(template: str) -> None:
    """Every known form of a credential is replaced, anywhere in a text."""
    masked = SecretMask()(f"before {template.format(CANARY, CANARY)} after")
    assert CANARY not in masked
    assert masked.startswith("before ")
    assert masked.endswith(" after")


@pytest.mark.parametrize(
    "text",
    [
        "POST /v1/completions/anthropic-messages 200 ok acme anthropic/claude-3-5-sonnet-20240620 1234 ms",
        "token type missing in Authorization header",
        "the bearer of bad news, basic as it is",
        "http://localhost:9992/@scope",
        "task-based-scheduling, risk-assessment-of-things",
        "no api key, please set one",
        "max_tokens=1000 prompt_token_count=17",
        "cgw_requests_in_flight_total cgw_decade_facade",
        "[masked]",
        "x-api-key: [masked]",
    ],
)
def test_ordinary_text_is_left_alone(text: str) -> None:
    """Words that only resemble credentials pass unchanged."""
    assert SecretMask()(text) == text


@given(secret=st.text(min_size=6), before=st.text(), after=st.text())
def test_known_value_never_passes(secret: str, before: str, after: str) -> None:
    """A known value is masked in any text around it, and in the text's repr."""
    mask = SecretMask([secret])
    text = f"{before}{secret}{after}"
    if secret not in f"{before}{MASK}{after}" and secret not in MASK:
        assert secret not in mask(text)
        assert secret not in mask(repr(text))


def test_known_value_is_masked_when_quoted() -> None:
    """A known value is also found URL-quoted and inside reprs with either quote."""
    mask = SecretMask(["pass/word'with\\odd\nparts"])
    for text in (
        "pass%2Fword%27with%5Codd%0Aparts",
        repr("pass/word'with\\odd\nparts"),
        repr("\"pass/word'with\\odd\nparts"),
    ):
        assert mask(f"<{text}>") in (f"<{MASK}>", f"<'{MASK}'>", f'<"{MASK}">', f"<'\"{MASK}'>")


def test_longer_of_two_known_values_wins() -> None:
    """A known value that contains another one is masked as a whole."""
    assert SecretMask(["abcdef", "abcdefghi"])("xabcdefghix abcdefx") == f"x{MASK}x {MASK}x"


def test_short_values_are_not_masked_by_value() -> None:
    """An empty or very short "secret" is not masked inside ordinary words."""
    assert SecretMask(["", "a", "model"])("a model") == "a model"


def test_mask_does_not_show_its_secrets() -> None:
    """The mask's repr contains none of the values."""
    assert CANARY not in repr(SecretMask([CANARY]))


FRAGMENTS = st.sampled_from(
    [
        "Bearer",
        "bearer ",
        "password=",
        "x-api-key:",
        "sk-",
        "://",
        "a:b@",
        "?key=",
        "'",
        '"',
        ",",
        "cgw_requests_in_flight_total cgw_decade_facade",
        "[masked]",
        "eyJ",
        "\n",
    ]
)


@given(before=st.lists(FRAGMENTS | st.text(), max_size=8), after=st.lists(FRAGMENTS | st.text(), max_size=8))
def test_surroundings_do_not_hide_a_credential(before: list[str], after: list[str]) -> None:
    """A token that is a word of its own is masked in any surroundings, and no text makes masking fail."""
    assert CANARY not in SecretMask()(f"{''.join(before)} sgp_{CANARY} {''.join(after)}")


@pytest.mark.parametrize("piece", ["eyJ", "eyJaaaaaaaaa.", "bearer ", "://a:", "sk-", "password", "'\",", " ", "?key="])
def test_hostile_text_takes_linear_time(piece: str) -> None:
    """Repetitions that target the patterns take linear time: far below a second for 64 KiB."""
    text = "secret " + piece * (2**16 // len(piece))
    start = time.process_time()
    SecretMask([CANARY])(text)
    assert time.process_time() - start < 1
