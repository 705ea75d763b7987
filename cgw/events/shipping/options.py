"""The options of a shipper, and its statistics."""

from __future__ import annotations

from attrs import frozen


@frozen
class ShipperOptions:
    """The options of a shipper. Sizes in bytes, times in seconds."""

    batch_events: int = 500
    batch_bytes: int = 2**20
    """A batch has at most so many events, and bytes, and no more than its sink takes."""
    age_seconds: float = 1.0
    """The time for which events may wait in the log for others to be sent with."""
    max_in_flight: int = 4
    """Batches that are sent at once."""
    scan_seconds: float = 15.0
    """The time between two searches of the folder for segments that another process left."""
    first_backoff_seconds: float = 0.5
    max_backoff_seconds: float = 30.0
    """The pauses between attempts to reach a sink that is down: the first, doubled up to the last, less up to half."""
    cursor_seconds: float = 0.1
    """The time by which the cursor may be behind the sink's answers, to be written once for several."""


@frozen
class SinkStatistics:
    """Figures of one sink, of this process since it opened the sink.

    ``shipped`` events were taken, in ``batches``; ``failed`` ones were rejected and set aside; ``retries`` are attempts
    after one that failed. ``unshipped_bytes`` are in the segments that this process ships or has found;
    ``unshipped_events`` is an estimate by the mean size of an event. ``lag_seconds`` is the age of the oldest
    unshipped event that this process has read, 0 when it has shipped all. ``trouble`` says why the sink takes nothing.
    """

    name: str
    shipped: int
    batches: int
    failed: int
    retries: int
    unshipped_events: int
    unshipped_bytes: int
    lag_seconds: float
    trouble: str | None
