"""Shipping a log's events to all sinks, for as long as the service runs."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

import trio

from cgw.events.event_log import EventLog
from cgw.events.shipping.claims import Claims
from cgw.events.shipping.options import ShipperOptions, SinkStatistics
from cgw.events.shipping.shipper import SinkShipper
from cgw.events.sinks.sink import Sink
from cgw.lifetime import open_background_task

AGAIN_SECONDS = 30.0
"""The pause after a bug."""

CLOSE_SECONDS = 2.0
"""The time that writing the cursors may take after draining."""

logger = logging.getLogger("cgw.events")


class Shipping:
    """The shippers of all sinks. They share nothing but claims: one that is down does not hold up another."""

    def __init__(self, event_log: EventLog, sinks: Sequence[tuple[Sink, ShipperOptions]]) -> None:
        claims = Claims()
        self._event_log = event_log
        self._build = [partial(SinkShipper, event_log, sink, claims, options) for sink, options in sinks]
        self._shippers = [build() for build in self._build]
        self._is_draining = False
        self._drain_scope = trio.CancelScope(shield=True)
        self._ended = trio.Event()

    def statistics(self) -> list[SinkStatistics]:
        """Return the figures of each sink. Cheap: nothing is read from the disk."""
        return [shipper.statistics() for shipper in self._shippers]

    def describe(self) -> list[str]:
        """Return a sentence for each sink that takes nothing now; the reason, which may name hosts, is in the log."""
        return [
            f"sink {sink.name} takes no events (see the log): about {sink.unshipped_events} wait"
            for sink in self.statistics()
            if sink.trouble is not None
        ]

    def cut(self) -> None:
        """Give up draining now."""
        self._drain_scope.cancel()

    async def run(self) -> None:
        """Ship until drained or cancelled."""
        async with trio.open_nursery() as nursery:
            for index in range(len(self._shippers)):
                nursery.start_soon(self._run_shipper, index)
        self._ended.set()

    async def _run_shipper(self, index: int) -> None:
        """Run one shipper; after a bug in it, another one."""
        while True:
            shipper = self._shippers[index]
            try:
                await shipper.run()
                return
            except Exception:  # the boundary between shipping and serving
                logger.exception("a bug in shipping events to %s; it begins again in %g s", shipper.name, AGAIN_SECONDS)
            await shipper.close()
            if self._is_draining:
                return
            self._shippers[index] = self._build[index]()
            await trio.sleep(AGAIN_SECONDS)

    async def drain(self, timeout_seconds: float) -> None:
        """Ship what is recorded, for so long at most, whatever cancels the service. The rest is for the next start."""
        self._drain_scope.deadline = trio.current_time() + timeout_seconds
        with self._drain_scope:
            await self._event_log.wait_durable()
            self._is_draining = True
            for shipper in self._shippers:
                shipper.drain()
            await self._ended.wait()
        for shipper in self._shippers:
            figures = shipper.statistics()
            if figures.unshipped_bytes:
                logger.warning(
                    "about %d events are not shipped to %s yet: they stay in %s, and the next start ships them",
                    figures.unshipped_events,
                    figures.name,
                    self._event_log.folder,
                )

    async def close(self) -> None:
        """Write the cursors, each for a bounded time, and release the segments."""
        with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_SECONDS):
            async with trio.open_nursery() as nursery:
                for shipper in self._shippers:
                    nursery.start_soon(shipper.close)


@asynccontextmanager
async def open_shipping(
    event_log: EventLog, sinks: Sequence[tuple[Sink, ShipperOptions]], *, drain_timeout_seconds: float
) -> AsyncIterator[Shipping]:
    """Ship the events of ``event_log`` to open sinks for the length of the block.

    On leaving, also by cancellation, what is recorded by then is shipped, shielded, for ``drain_timeout_seconds`` at
    most; the rest stays for the next start, and so does everything when the block raised an error.
    """
    shipping = Shipping(event_log, sinks)
    try:
        async with open_background_task(shipping.run):
            try:
                yield shipping
            except Exception:
                shipping.cut()  # a start that failed, say: the next one ships
                raise
            finally:
                await shipping.drain(drain_timeout_seconds)
    finally:
        await shipping.close()
