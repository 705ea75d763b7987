"""Settings of the event log."""

from __future__ import annotations

from attrs import frozen

from cgw.config.declare import setting
from cgw.config.kinds import HOUR, MIB, choice, duration, size

_DAY = 24 * HOUR


@frozen
class EventSettings:
    """Settings of how usage events are written and how long they are kept."""

    fsync: str = setting(
        "CODY_GATEWAY_EVENTS_FSYNC",
        choice("off", "interval", "always"),
        "off",
        "Protection from power cuts: off leaves it to the kernel, interval syncs every second, always before the "
        "end of each response. Events survive the death of the process in any case.",
    )
    when_full: str = setting(
        "CODY_GATEWAY_EVENTS_WHEN_FULL",
        choice("drop", "refuse"),
        "drop",
        "While the disk takes no events: drop writes them to the log instead, refuse also answers new requests "
        "with 503.",
    )
    # 90 days and not the 7 of shipped events: nothing ships them yet, so these files are the only copy, and a
    # monthly report of the last month must still find its first day.
    retention_seconds: float = setting(
        "CODY_GATEWAY_EVENTS_RETENTION",
        duration(least=HOUR, most=3660 * _DAY),
        90 * _DAY,
        "How long events are kept after they were written.",
    )
    max_bytes: int = setting(
        "CODY_GATEWAY_EVENTS_MAX_BYTES",
        size(least=64 * MIB, most=2**50),
        1024 * MIB,
        "How much disk space events may take; beyond it the oldest are deleted.",
    )
