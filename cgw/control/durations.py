"""Durations as Go writes them: instances parse the ``interval`` of ``/v1/limits`` with Go's ``time.ParseDuration``."""

from __future__ import annotations


def format_duration(milliseconds: int) -> str:
    """``milliseconds`` as Go's ``time.Duration.String`` prints them: ``24h0m0s``, ``1m30s``, ``1.5s``, ``250ms``."""
    if milliseconds < 1000:
        return f"{milliseconds}ms" if milliseconds else "0s"
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    seconds = f"{milliseconds / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    if hours:
        return f"{hours}h{minutes}m{seconds}"
    return f"{minutes}m{seconds}" if minutes else seconds
