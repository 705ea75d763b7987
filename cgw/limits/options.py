"""The settings of a limiter."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import field, frozen

from cgw.limits.offline.outage import WhenDown

# A gateway keeps its slots if it misses two heartbeats, and loses them after three: it has died, or is cut off.
HEARTBEATS_PER_LEASE = 3


@frozen
class LimiterOptions:
    """The settings of a :class:`Limiter`; the numbers of the limits come with the actors.

    ``max_in_flight`` bounds actors that bring no bound; ``provider_max_in_flight`` bounds the requests in flight to a
    provider, over all replicas. ``free_per_minute`` bounds each actor's requests that cost nothing upstream.
    ``notify_thresholds`` are percentages of a quota, in ascending order.
    """

    when_down: WhenDown = "local"
    max_in_flight: int | None = None
    provider_max_in_flight: Mapping[str, int] = field(factory=dict)
    free_per_minute: int = 600
    heartbeat_seconds: float = 10.0
    notify_thresholds: tuple[int, ...] = ()

    @property
    def lease_ms(self) -> int:
        """The time that a slot is held without a heartbeat."""
        return round(self.heartbeat_seconds * 1000) * HEARTBEATS_PER_LEASE
