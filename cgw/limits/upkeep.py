"""The limiter's background work: heartbeats for requests in flight, and sending Redis what it missed."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence

import trio
from attrs import frozen
from redis.exceptions import ResponseError

from cgw.errors import StoreUnavailable
from cgw.limits.clock_steps import ClockSteps
from cgw.limits.offline.backlog import Backlog
from cgw.limits.offline.fallback import Fallback
from cgw.limits.offline.outage import Outage, build_broken_limit
from cgw.limits.posted import PostedSettlements
from cgw.limits.scripts import LimitScripts
from cgw.redis.opening import Store

FLUSH_SECONDS = 0.1
"""The interval at which Redis is tried while it is away, or while there is a backlog."""
LAST_FLUSH_SECONDS = 1.0
PROBE_MS = 1_000
STEP_PAUSE_SECONDS = 1.0
RENEWED_AT_ONCE = 500
"""Leases that one call renews: a script blocks the server for all clients, so it must be short."""

_logger = logging.getLogger("cgw.limits")


@frozen(eq=False)
class Upkeep:
    """The tasks of one limiter.

    Leases are renewed every ``heartbeat_seconds``, and when the server's clock has made a step, for ``lease_ms``
    milliseconds.
    """

    redis: Store
    scripts: LimitScripts
    backlog: Backlog
    fallback: Fallback
    posted: PostedSettlements
    outage: Outage
    steps: ClockSteps
    heartbeat_seconds: float
    lease_ms: int

    async def run(self) -> None:
        """Run until cancelled; then send and await what is left, for at most 1 s, and log how much of it is lost."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep_leases)
                nursery.start_soon(self._keep_flushing)
        finally:
            # Shielded: the gateway is stopping, and what is not sent now is never charged.
            with trio.move_on_after(LAST_FLUSH_SECONDS, shield=True):
                # First the posted settlements: those that fail are in the backlog afterwards.
                await self.posted.finish()
                await self._flush()
            lost = len(self.backlog) + len(self.posted)
            if lost:
                _logger.error("%d settlements of limits are lost: Redis is away and the gateway stops", lost)

    async def _keep_leases(self) -> None:
        while True:
            with trio.move_on_after(self.heartbeat_seconds) as quiet_scope:
                await self.steps.wait_step()
            # A snapshot: requests begin and end while the calls are under way.
            for key, ids in self.fallback.renew_leases(self.lease_ms).items():
                for first in range(0, len(ids), RENEWED_AT_ONCE):
                    await self._renew(key, ids[first : first + RENEWED_AT_ONCE])
            if not quiet_scope.cancelled_caught:
                # The nodes of a cluster may have different clocks, so that each answer looks like a step.
                await trio.sleep(min(STEP_PAUSE_SECONDS, self.heartbeat_seconds))

    async def _renew(self, key: str, ids: Sequence[str]) -> None:
        """Renew leases. Those that Redis has lost are taken again, unless they were freed in the meantime."""
        try:
            # In two steps, as `ids` may be out of date when the call arrives. `keep` never creates a lease, so it
            # cannot bring back one that was freed on the way.
            lost = await self.redis.run_script(self.scripts.renew, [key], [self.lease_ms, "keep", *ids])
            # No checkpoint between selecting and sending: a settlement that follows is sent after this, and frees it.
            # The ids come back as bytes: replies are not decoded.
            held = self.fallback.select_held(key, [reservation_id.decode() for reservation_id in lost])
            if held:
                self.fallback.note_taken(held)
                await self.redis.run_script(self.scripts.renew, [key], [self.lease_ms, "take", *held])
        except StoreUnavailable as error:
            self.outage.failed(error)  # the next heartbeat retries; a lease outlives two failures
        except ResponseError as error:
            self.outage.failed(build_broken_limit(error))  # other keys are renewed all the same

    async def _keep_flushing(self) -> None:
        while True:
            # Nothing to do in normal times, so no timer runs then.
            await self.outage.attention.wait()
            await trio.sleep(FLUSH_SECONDS)
            await self._flush()
            if not (self.outage.is_on or len(self.backlog)):
                # No checkpoint since the check, so nothing that set the event meanwhile is missed.
                self.outage.attention = trio.Event()

    async def _flush(self) -> None:
        """Send Redis what it missed; if nothing is left to send, find out whether it is back."""
        if not (self.outage.is_on or len(self.backlog)):
            return
        try:
            if len(self.backlog):
                # A flush consists of writes, so if it succeeds, no probe is needed.
                await self.backlog.flush()
            else:
                await self._probe()
        except StoreUnavailable as error:
            self.outage.failed(error)
        else:
            self.outage.succeeded()

    async def _probe(self) -> None:
        # A write, which expires at once: a server that is full, or is only a replica, answers a PING too.
        probe_id = secrets.token_hex(12)
        # A positive mode makes settle.lua write a record, here without any limits, for PROBE_MS.
        await self.redis.run_script(self.scripts.settle, [f"cgw:{{probe}}:{probe_id}"], [probe_id, PROBE_MS, ""])
