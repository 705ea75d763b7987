"""The pause that a server asks for is read in both forms, and bounded."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial

from hypothesis import given
from hypothesis import strategies as st

from cgw.wire.retry_after import parse_retry_after


@given(st.text() | st.integers().map(str) | st.datetimes(timezones=st.just(UTC)).map(partial(format_datetime)))
def test_any_retry_after_is_a_bounded_pause(text: str) -> None:
    """The pause is from 0 to the caller's most, whatever a server sends."""
    assert 0 <= parse_retry_after(text, 60.0) <= 60.0


def test_retry_after_may_be_a_date() -> None:
    """A date gives the time until then, and nothing if it is in the past (RFC 9110 §10.2.3)."""
    soon = datetime.now(UTC) + timedelta(seconds=40)
    assert 35 <= parse_retry_after(format_datetime(soon, usegmt=True), 60.0) <= 40
    assert parse_retry_after(format_datetime(soon - timedelta(days=1), usegmt=True), 60.0) == 0
