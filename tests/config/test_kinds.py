"""The kinds of value: each reads its notation, refuses the rest, and shows values in the same notation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgw.config.kinds import (
    API_URL,
    BOOLEAN,
    HOST,
    MAX_PHRASE_CHARACTERS,
    MAX_PHRASES,
    NAMES,
    PATH,
    PHRASES,
    SECRET,
    THRESHOLDS,
    VISIBLE_TEXT,
    WEBHOOK_URL,
    Kind,
    Secret,
    check_url,
    choice,
    duration,
    duration_ms,
    format_size,
    integer,
    parse_size,
    size,
)

PERCENTAGE = integer(least=1, most=100)
COLOUR = choice("red", "Green")
SIZE = size(least=1024, most=2**20)
SECONDS = duration(least=0.5, most=60)
MILLISECONDS = duration_ms(least=0.5, most=60)


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (PERCENTAGE, "+7", 7),
        (integer(least=0), "999999999999999999", 10**18 - 1),
        (SECONDS, "1m", 60),
        (MILLISECONDS, "500ms", 500),
        (SIZE, "1 KiB", 1024),
        (BOOLEAN, "ON", True),
        *((BOOLEAN, text, True) for text in ("1", "t", "T", "TRUE", "true", "True")),
        *((BOOLEAN, text, False) for text in ("0", "f", "F", "FALSE", "false", "False")),
        (COLOUR, "GREEN", "Green"),
        (NAMES, " a ,b,,a", ("a", "b")),
        (THRESHOLDS, "90%, 50,90", (50, 90)),
        (THRESHOLDS, "OFF", ()),
        (HOST, "::1", "::1"),
        (VISIBLE_TEXT, "org-1", "org-1"),
        (SECRET, "sk-1", Secret("sk-1")),
        (API_URL, "https://host/base//", "https://host/base"),
        (WEBHOOK_URL, "https://hooks.example/T/B", Secret("https://hooks.example/T/B")),
        (PATH, "~/x", Path.home() / "x"),
    ],
)
def test_each_kind_reads_its_notation(kind: Kind[Any], text: str, value: object) -> None:
    """The value has the kind's own type, whatever the case, order and blanks of the text."""
    assert kind.parse(text) == value


@pytest.mark.parametrize(
    ("kind", "text", "problem"),
    [
        (PERCENTAGE, "0", "must be a whole number, from 1 to 100, not '0'"),
        (PERCENTAGE, "1_0", "must be a whole number, from 1 to 100, not '1_0'"),
        (integer(least=1), "1e3", "must be a whole number, at least 1, not '1e3'"),
        (SECONDS, "61s", "must be from 500ms to 1m, not '61s'"),
        (MILLISECONDS, "0", "must be from 500ms to 1m, not '0'"),
        (SIZE, "1", "must be from 1KiB to 1MiB, not '1'"),
        (SIZE, "1 byte", "must be a size such as 32MiB, 64KiB or 1048576, not '1 byte'"),
        (BOOLEAN, "perhaps", "must be true or false, not 'perhaps'"),
        (COLOUR, "blue", "must be one of red, Green, not 'blue'"),
        (NAMES, " , ", "must name at least one, separated by commas"),
        (THRESHOLDS, "0", "must be percentages from 1 to 100, separated by commas, or off, not '0'"),
        (HOST, "[::1]", "must be a host name or an IP address, without brackets or port, not '[::1]'"),
        (SECRET, "two words", "must consist of visible ASCII characters, without spaces or line breaks"),
        (API_URL, "ftp://host", "must be a URL that begins with https:// or http:// and a host"),
        (API_URL, "https://user@host", "must have no user, query or fragment"),
        (WEBHOOK_URL, "hooks.example", "must be a URL that begins with https:// or http:// and a host"),
        (PATH, "~no-such-user/x", "must be a path; its ~ names no known home directory"),
    ],
)
def test_each_kind_refuses_the_rest(kind: Kind[Any], text: str, problem: str) -> None:
    """The problem says which values are allowed; together with the variable's name it is a sentence."""
    with pytest.raises(ValueError, match=r"^must ") as caught:
        kind.parse(text)
    assert str(caught.value) == problem


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (PERCENTAGE, 7),
        (SECONDS, 1.5),
        (MILLISECONDS, 1500),
        (SIZE, 1500),
        (BOOLEAN, True),
        (COLOUR, "Green"),
        (NAMES, ("a", "b")),
        (THRESHOLDS, (50, 90)),
        (THRESHOLDS, ()),
        (API_URL, "https://host/base"),
        (PATH, Path("/x")),
    ],
)
def test_a_shown_value_can_be_read_again(kind: Kind[Any], value: object) -> None:
    """``show`` is the inverse of ``parse``."""
    assert kind.parse(kind.show(value)) == value


@given(st.integers(min_value=0, max_value=10**12))
def test_sizes_survive_being_shown(size_bytes: int) -> None:
    """A size that is shown reads as the same number of bytes."""
    assert parse_size(format_size(size_bytes)) == size_bytes


def test_a_secret_is_shown_only_on_purpose() -> None:
    """``repr``, ``str`` and formatting give the mask; ``reveal()`` gives the value, and equality compares it."""
    secret = SECRET.parse("CANARY")
    assert f"{secret} {secret!r} {SECRET.show(secret)}" == "**** Secret(****) ****"
    assert secret.reveal() == "CANARY"
    assert secret != Secret("other")


def test_a_webhook_shows_its_host_alone() -> None:
    """The path, the query and the login of a webhook's URL are masked."""
    secret = WEBHOOK_URL.parse("https://u:CANARY@hooks.example/services/CANARY?CANARY")
    assert WEBHOOK_URL.show(secret) == "https://hooks.example/****"


@pytest.mark.parametrize("text", ["redis://", "redis://host:0", "redis://host:99999", "redis://a b", "redis://[::1"])
def test_a_url_needs_a_host_and_a_valid_port(text: str) -> None:
    """A URL that cannot be connected to is refused; a socket's path needs no host."""
    with pytest.raises(ValueError, match=r"must be a URL that begins with redis:// or unix:// and a host"):
        check_url(text, ("redis", "unix"))
    assert check_url("unix:///run/redis.sock", ("redis", "unix")) == "unix:///run/redis.sock"


@pytest.mark.parametrize("text", ["a,,b", "a,", " ,a", "x" * (MAX_PHRASE_CHARACTERS + 1), "a," * MAX_PHRASES + "a"])
def test_wrong_phrases_are_refused(text: str) -> None:
    """An empty one, which every text contains, and more than can be searched for in a moment."""
    with pytest.raises(ValueError, match=r"^must be"):
        PHRASES.parse(text)


def test_blanks_in_phrases_count() -> None:
    """As in the reference; case is left as it is, and repetitions are dropped."""
    assert PHRASES.parse("a b, C,a b") == ("a b", " C")
