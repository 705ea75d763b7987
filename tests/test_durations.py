"""Durations in Go's notation: reading them, and writing them in two forms."""

from __future__ import annotations

import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgw.durations import format_duration, format_go_duration, parse_duration, quote_value

UNIT_MS = {"h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}


def parse_go_duration(text: str) -> Fraction:
    """Return the milliseconds, by the grammar of Go's ``time.ParseDuration``."""
    parts = re.findall(r"(\d+(?:\.\d+)?)(h|ms|m|s)", text)
    assert "".join(number + unit for number, unit in parts) == text
    return sum((Fraction(number) * UNIT_MS[unit] for number, unit in parts), Fraction(0))


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (0, "0s"),
        (1, "1ms"),
        (250, "250ms"),
        (1000, "1s"),
        (1500, "1.5s"),
        (1001, "1.001s"),
        (10_000, "10s"),
        (60_000, "1m0s"),
        (90_000, "1m30s"),
        (90_250, "1m30.25s"),
        (3_600_000, "1h0m0s"),
        (86_400_000, "24h0m0s"),
        (30 * 86_400_000, "720h0m0s"),
        (3_600_001, "1h0m0.001s"),
    ],
)
def test_durations_are_printed_as_by_go(milliseconds: int, text: str) -> None:
    """Each text is the one that Go's ``Duration.String`` gives for the same time."""
    assert format_go_duration(milliseconds) == text


@given(st.integers(min_value=0, max_value=10**13))
def test_printed_durations_are_exact(milliseconds: int) -> None:
    """A duration in Go's form has, by Go's grammar, exactly the same time."""
    assert parse_go_duration(format_go_duration(milliseconds)) == milliseconds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10s", 10), ("1m30s", 90), ("24h", 86400), ("500ms", 0.5), ("1.5h", 5400), ("75", 75), (".5s", 0.5), ("0", 0)],
)
def test_durations_are_written_as_in_go(text: str, seconds: float) -> None:
    """Go's notation and plain seconds are read."""
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "10 s", "-1s", "1s2", "1d", "9999999999999", "1e3", "٣s"])
def test_other_texts_are_no_durations(text: str) -> None:
    """Signs, blanks, unknown units, missing units and absurd lengths are refused."""
    with pytest.raises(ValueError, match="must be a "):
        parse_duration(text)


@given(st.integers(min_value=0, max_value=10**12))
def test_durations_survive_being_shown(milliseconds: int) -> None:
    """A duration that is shown reads as the same number of milliseconds."""
    assert round(parse_duration(format_duration(milliseconds / 1000)) * 1000) == milliseconds


def test_long_values_are_not_quoted() -> None:
    """A text that is long enough to be a key is described by its length."""
    assert quote_value("10 sec") == "'10 sec'"
    assert quote_value("x" * 25) == "a text of 25 characters"
