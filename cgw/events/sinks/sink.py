"""The interface between the shipper and a place that usage events are shipped to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from attrs import frozen

from cgw.errors import CgwError


class SinkUnavailable(CgwError):
    """A sink did not take a batch, for a reason that may pass: the shipper sends the whole batch again.

    ``retry_after_seconds`` is the pause that the sink asks for, 0 if it asks for none.
    """

    def __init__(self, message: str, *, retry_after_seconds: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


@frozen
class RejectedEvent:
    """An event that a sink will never take as it is: its position in the batch, and the sink's reason."""

    index: int
    reason: str


class Sink(Protocol):
    """A place that usage events are shipped to. Opened for the time that the service runs."""

    name: str
    """As ``CODY_GATEWAY_EVENTS_SINKS`` names it; also the name of its cursor."""

    max_batch_events: int
    max_batch_bytes: int
    """The largest batch that it takes; one event may be larger than ``max_batch_bytes`` and is then sent alone."""

    async def send(self, lines: Sequence[bytes], batch_id: str) -> Sequence[RejectedEvent]:
        """Send events, each a line of the event log (:mod:`cgw.events.lines`); return those that it will never take.

        When it returns, all others are durably the sink's. ``batch_id`` is the same when the same batch is sent again.
        Raises :exc:`SinkUnavailable`. Cancel-safe: the batch may or may not have arrived, and is sent again later;
        sinks deduplicate by the events' ids.
        """
        ...
