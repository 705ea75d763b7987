"""The parts that all exchanges share."""

from __future__ import annotations

import logging

from attrs import frozen

from cgw.actors.refresh import Refresher
from cgw.actors.source import Sources
from cgw.errors import SpoolError
from cgw.events.spool import Spool
from cgw.limits.limiter import Limiter
from cgw.model import UsageEvent
from cgw.transport.flat_relay import FlatRelay
from cgw.transport.upstream import UpstreamPool

logger = logging.getLogger("cgw.exchange")


@frozen
class Gateway:
    """The parts that all exchanges share. ``max_timeout_seconds`` caps what ``X-Timeout-Ms`` may ask for."""

    sources: Sources
    refresher: Refresher
    limiter: Limiter
    pool: UpstreamPool
    relay: FlatRelay
    spool: Spool
    timeout_seconds: float = 600
    max_timeout_seconds: float = 600


async def record_event(gateway: Gateway, event: UsageEvent) -> None:
    """Make ``event`` durable. Where that fails, the log is the last resort, and serving goes on."""
    try:
        await gateway.spool.record(event)
    except SpoolError as error:
        logger.error("a usage event could not be spooled: %s; it reads: %s", error, event)
