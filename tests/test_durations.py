"""Durations as in Go: ``time.ParseDuration`` accepts them, and they look like the output of ``Duration.String``."""

from __future__ import annotations

import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgw.durations import format_go_duration

UNIT_MS = {"h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}


def parse_go_duration(text: str) -> Fraction:
    """Return the milliseconds of ``text``, by the grammar of Go's ``time.ParseDuration``."""
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
def test_durations_are_written_as_go_prints_them(milliseconds: int, text: str) -> None:
    """Each text equals the output of Go's ``Duration.String`` for the same time."""
    assert format_go_duration(milliseconds) == text


@given(st.integers(min_value=0, max_value=10**13))
def test_no_duration_loses_a_millisecond(milliseconds: int) -> None:
    """Each text parses, by Go's grammar, to exactly the same time."""
    assert parse_go_duration(format_go_duration(milliseconds)) == milliseconds
