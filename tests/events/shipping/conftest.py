"""What the tests of shipping share: a sink whose answers the test decides."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from attrs import define, field

from cgw.events.event_log import EventLog, open_event_log
from cgw.events.options import EventLogOptions
from cgw.events.shipping.options import ShipperOptions
from cgw.events.shipping.shipping import Shipping, open_shipping
from cgw.events.sinks.sink import RejectedEvent, Sink

QUICK = ShipperOptions(
    batch_events=10, age_seconds=0.01, scan_seconds=0.1, first_backoff_seconds=0.01, max_backoff_seconds=0.05,
    cursor_seconds=0.01,
)  # fmt: skip


@define
class MemorySink:
    """A sink that keeps what it takes. ``decide`` may raise, wait, or reject events of a batch."""

    name: str = "memory"
    max_batch_events: int = 1000
    max_batch_bytes: int = 2**20
    decide: Callable[[Sequence[str]], Awaitable[Sequence[RejectedEvent]]] | None = None
    identifiers: list[str] = field(factory=list)
    batch_ids: list[str] = field(factory=list)
    sizes: list[int] = field(factory=list)
    in_flight: int = 0
    most_in_flight: int = 0

    async def send(self, lines: Sequence[bytes], batch_id: str) -> Sequence[RejectedEvent]:
        """Take a batch, or do what the test wants."""
        self.batch_ids.append(batch_id)
        identifiers = [json.loads(line)["identifier"] for line in lines]
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            rejected = () if self.decide is None else await self.decide(identifiers)
            await trio.lowlevel.checkpoint()
        finally:
            self.in_flight -= 1
        wrong = {event.index for event in rejected}
        self.identifiers += [name for index, name in enumerate(identifiers) if index not in wrong]
        self.sizes.append(len(lines))
        return rejected


@asynccontextmanager
async def open_shipped_log(
    folder: Path,
    *sinks: Sink,
    options: ShipperOptions = QUICK,
    log_options: EventLogOptions | None = None,
    drain_seconds: float = 5.0,
) -> AsyncIterator[tuple[EventLog, Shipping]]:
    """Open an event log that is shipped to ``sinks``."""
    log_options = log_options or EventLogOptions(check_seconds=0.02)
    async with open_event_log(folder, log_options) as event_log:
        pairs = [(sink, options) for sink in sinks]
        async with open_shipping(event_log, pairs, drain_timeout_seconds=drain_seconds) as shipping:
            yield event_log, shipping
