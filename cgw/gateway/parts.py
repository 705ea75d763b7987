"""The parts that all exchanges share."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import trio
from attrs import Factory, frozen

from cgw.actors.refresh import Refresher
from cgw.actors.source import Sources
from cgw.clock import read_clock
from cgw.errors import Refusal
from cgw.events.event_log import EventLog
from cgw.events.repeats import RepeatedEvents
from cgw.flagging.flagger import Flagger
from cgw.gateway.load import LoadTracker
from cgw.gateway.stored import StoredObjects
from cgw.gateway.upstream_counts import UpstreamCounts
from cgw.limits.limiter import Limiter
from cgw.model import UsageEvent
from cgw.providers.fallback import Fallback
from cgw.telemetry.readers import Readers
from cgw.transport.flat_relay import FlatRelay
from cgw.transport.upstream import UpstreamPool
from cgw.wire.trace_context import RequestTrace

SETTLE_SECONDS = 10.0
"""The time that settling may take once nothing else can cancel it."""

RECORD_SECONDS = 10.0
"""The time for which the end of a response may wait for a slow disk."""


class InFlight:
    """The number of exchanges under way, from their heads to their log lines."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


@frozen
class Gateway:
    """The parts that all exchanges share. ``max_timeout_seconds`` caps what ``X-Timeout-Ms`` may ask for.

    ``readers`` report each exchange; ``fallbacks`` are by provider. ``passes_account_fields``: clients see the header
    fields of the provider's account. ``build_traceparent`` is ``None`` where providers are not told the trace.
    ``read_time`` reads the clock of the Trio run that the gateway is made in.
    """

    sources: Sources
    refresher: Refresher
    limiter: Limiter
    pool: UpstreamPool
    relay: FlatRelay
    event_log: EventLog
    repeats: RepeatedEvents
    flagger: Flagger
    stored: StoredObjects
    readers: Readers = Factory(Readers)
    timeout_seconds: float = 600
    max_timeout_seconds: float = 600
    load: LoadTracker = Factory(LoadTracker)
    upstream_counts: UpstreamCounts = Factory(UpstreamCounts)
    in_flight: InFlight = Factory(InFlight)
    read_time: Callable[[], float] = Factory(read_clock)
    fallbacks: Mapping[str, Fallback] = Factory(dict)
    passes_account_fields: bool = False
    build_traceparent: Callable[[RequestTrace], bytes] | None = None


def check_recording(gateway: Gateway) -> None:
    """Raise :exc:`~cgw.errors.Refusal` 503 while events cannot be written and requests are to be refused for that."""
    if not gateway.event_log.is_accepting:
        retry_after = (b"retry-after", b"1")
        raise Refusal(503, "usage cannot be recorded right now, please retry", headers=[retry_after])


async def record_event(gateway: Gateway, event: UsageEvent) -> None:
    """Record ``event``; wait for the disk only where it is slow, or where each event is to be synced."""
    gateway.event_log.record(event)
    if gateway.event_log.must_wait:
        await wait_recorded(gateway)


async def wait_recorded(gateway: Gateway) -> None:
    """Wait until what was recorded is on disk. The client may be gone, the usage is not: only time ends the waiting."""
    with trio.CancelScope(shield=True):
        await gateway.event_log.wait_durable(gateway.read_time() + RECORD_SECONDS)
