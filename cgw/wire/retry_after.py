"""The header field ``retry-after``, as servers that cgw asks send it (RFC 9110 §10.2.3). Pure."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


def parse_retry_after(text: str, most_seconds: float) -> float:
    """Return the seconds that a ``retry-after`` asks for, 0 to ``most_seconds``; 0 if it is empty or not valid."""
    text = text.strip()
    if re.fullmatch("[0-9]{1,9}", text):
        seconds = float(text)
    else:
        try:
            at = parsedate_to_datetime(text)
        except ValueError:
            return 0.0
        # The parser returns a time without a zone for the zone -0000.
        at = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
        seconds = (at - datetime.now(UTC)).total_seconds()
    return min(max(seconds, 0.0), most_seconds)
