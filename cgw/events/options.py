"""The options that an event log is opened with, and its statistics."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import field, frozen

from cgw.events.settings import EventSettings


@frozen
class EventLogOptions:
    """The options of an event log. Sizes in bytes, times in seconds."""

    settings: EventSettings = field(factory=EventSettings)
    sink_names: Sequence[str] = ()
    """The sinks that must have an event before it is deleted for its age."""
    segment_bytes: int = 16 * 2**20
    """A segment is sealed at the first check after it has reached this size, or this age."""
    segment_seconds: float = 3600.0
    check_seconds: float = 1.0
    """The time between two looks at the segment: whether it is in its place, and due to be synced or sealed."""
    close_seconds: float = 10.0
    """The time for which closing may wait for a slow disk."""


@frozen
class EventLogStatistics:
    """Counts of events since opening; only ``waiting`` goes down again.

    ``recorded`` events are in a segment, ``waiting`` ones in memory because the disk is slow. ``dropped`` ones could
    not be written and went to the log instead; ``blank`` ones had no identifier. ``deleted_segments`` were deleted
    before all sinks had them, because the bound was reached.
    """

    recorded: int
    waiting: int
    dropped: int
    blank: int
    deleted_segments: int = 0
