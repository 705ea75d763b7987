"""Durations in Go's notation, which the reference's settings and responses use."""

from __future__ import annotations

import re

_SECONDS_PER_UNIT = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_PLAIN_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")


def quote_value(text: str) -> str:
    """Return ``text`` quoted for an error message; only its length if it is so long that it may be a key."""
    return repr(text) if len(text) <= 24 else f"a text of {len(text)} characters"


def parse_duration(text: str) -> float:
    """Return the seconds of a duration in Go's notation (``1m30s``, ``500ms``) or in plain seconds.

    The notation is that of ``time.ParseDuration``, without a sign.

    Raises :exc:`ValueError` for anything else, and for 2**53 milliseconds or more.
    """
    if _PLAIN_NUMBER.fullmatch(text):
        seconds = float(text)
    else:
        parts = list(_DURATION_PART.finditer(text))
        if not parts or "".join(part[0] for part in parts) != text:
            raise ValueError(f"must be a duration such as 10s, 1m30s or 500ms, not {quote_value(text)}")
        seconds = sum(float(part[1]) * _SECONDS_PER_UNIT[part[2]] for part in parts)
    if seconds * 1000 >= 2**53:  # a float, and a number in Redis, counts exactly to 2**53
        raise ValueError(f"must be a shorter duration than {quote_value(text)}")
    return seconds


def format_duration(seconds: float) -> str:
    """Return the shortest notation, to the millisecond: ``24h``, ``1m30s``, ``100ms``, ``0s``."""
    whole, milliseconds = divmod(round(seconds * 1000), 1000)
    hours, rest = divmod(whole, 3600)
    minutes, rest = divmod(rest, 60)
    parts = [(hours, "h"), (minutes, "m"), (rest, "s"), (milliseconds, "ms")]
    return "".join(f"{count}{unit}" for count, unit in parts if count) or "0s"


def format_go_duration(milliseconds: int) -> str:
    """Return ``milliseconds`` as Go's ``time.Duration.String`` prints them: ``24h0m0s``, ``1m30s``, ``250ms``.

    Instances parse the ``interval`` of ``/v1/limits`` with Go's ``time.ParseDuration``.
    """
    if milliseconds < 1000:
        return f"{milliseconds}ms" if milliseconds else "0s"
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    seconds = f"{milliseconds / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    if hours:
        return f"{hours}h{minutes}m{seconds}"
    return f"{minutes}m{seconds}" if minutes else seconds
