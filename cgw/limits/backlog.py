"""What Redis has still to be told once it is back: settlements that failed, and what was used without it."""

from __future__ import annotations

import secrets
from collections import OrderedDict, deque

import trio
from attrs import evolve
from redis.exceptions import ResponseError

from cgw.errors import StoreUnavailable
from cgw.limits.claims import Claim
from cgw.limits.outage import Outage, build_broken_limit
from cgw.limits.scripts import LimitScripts
from cgw.transport.redis_links import ScriptCall, Store

MAX_SETTLEMENTS = 10_000
"""How many settlements are kept; then the oldest are dropped, and what they reserved stays charged."""
MAX_CHARGED_LIMITS = 20_000
"""Of how many limits the usage is kept."""
MARK_TTL_MS = 24 * 3_600_000
"""How long Redis remembers that a charge was settled, in ms: longer than any of its repeats may follow."""
_CALLS_AT_ONCE = 16


class Backlog:
    """Kept in memory only, within bounds. Every call is safe to repeat: it counts once.

    ``outage`` hears of limits that Redis can't count, and has its attention drawn to what is kept.
    """

    def __init__(self, redis: Store, scripts: LimitScripts, outage: Outage) -> None:
        self._redis = redis
        self._scripts = scripts
        self._outage = outage
        self._settlements: deque[ScriptCall] = deque(maxlen=MAX_SETTLEMENTS)
        self._charges: OrderedDict[str, tuple[str, Claim]] = OrderedDict()
        self.dropped = 0
        """Settlements and charges that there was no room for."""

    def __len__(self) -> int:
        return len(self._settlements) + len(self._charges)

    def add_settlement(self, call: ScriptCall) -> None:
        """Keep a settlement whose answer did not come."""
        self.dropped += len(self._settlements) == MAX_SETTLEMENTS
        self._settlements.append(call)
        self._outage.attention.set()

    def add_charge(self, record_prefix: str, claim: Claim, used: int) -> None:
        """Add ``used`` to what was used of a limit without Redis."""
        _, kept = self._charges.pop(claim.key, ("", None))
        total = used if kept is None else kept.cost + used
        self._charges[claim.key] = record_prefix, evolve(claim, cost=total)
        if len(self._charges) > MAX_CHARGED_LIMITS:
            self._charges.popitem(last=False)
            self.dropped += 1
        self._outage.attention.set()

    async def flush(self) -> None:
        """Tell Redis all of it. Raises :exc:`StoreUnavailable`; what was not confirmed is kept. Cancel-safe."""
        self._charges_to_settlements()
        failures: list[StoreUnavailable] = []
        async with trio.open_nursery() as nursery:
            for _ in range(min(_CALLS_AT_ONCE, len(self._settlements))):
                nursery.start_soon(self._send, failures)
        if failures:
            raise failures[0]

    def _charges_to_settlements(self) -> None:
        """One settlement for each charge, with an id of its own, so that it can be repeated.

        A limit that is broken must not take others along: what an error leaves undone is not done again.
        """
        while self._charges and len(self._settlements) < MAX_SETTLEMENTS:
            _, (record_prefix, claim) = self._charges.popitem(last=False)
            charge_id = secrets.token_hex(12)
            arguments = (charge_id, MARK_TTL_MS, "", claim.kind, claim.limit, claim.period_ms, 0, claim.cost)
            self.add_settlement(ScriptCall(self._scripts.settle, [record_prefix + charge_id, claim.key], arguments))

    async def _send(self, failures: list[StoreUnavailable]) -> None:
        while self._settlements and not failures:
            call = self._settlements.popleft()
            try:
                await self._redis.run_script(call.script, call.keys, call.args)
            except StoreUnavailable as error:
                self._settlements.append(call)
                failures.append(error)
            except ResponseError as error:
                self._outage.failed(build_broken_limit(error))
            except BaseException:
                self._settlements.append(call)
                raise
