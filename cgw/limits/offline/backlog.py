"""The backlog for Redis: settlements that failed, and what was used while it was away."""

from __future__ import annotations

import logging
import secrets
from collections import OrderedDict, deque

import trio
from attrs import define
from redis.exceptions import ResponseError

from cgw.errors import StoreUnavailable
from cgw.limits.claims import Claim
from cgw.limits.offline.local import Bucket
from cgw.limits.offline.outage import Outage, build_broken_limit
from cgw.limits.scripts import LimitScripts
from cgw.redis.opening import ScriptCall, Store

MAX_SETTLEMENTS = 10_000
"""Settlements that are kept; of more, the oldest are dropped, and what they reserved stays charged."""
MAX_CHARGED_LIMITS = 20_000
"""Limits whose usage is kept; of more, the longest unused are dropped, and their usage is not charged."""
MARK_TTL_MS = 24 * 3_600_000
"""The time for which Redis remembers a settled charge: longer than any retry of it can be delayed."""
_CALLS_AT_ONCE = 16

_logger = logging.getLogger("cgw.limits")


@define(eq=False)
class _Charge:
    """The usage of one limit without Redis.

    ``used`` is the sum. The debt of ``bucket`` is what Redis would count now if it had got all of it in time: time pays
    it off meanwhile, so that the usage of a long outage is not charged to one short interval.
    """

    record_prefix: str
    claim: Claim
    bucket: Bucket
    used: int = 0

    def add(self, claim: Claim, used: int, now: int) -> None:
        """Add usage. ``claim`` has the limit's present numbers, which may have changed."""
        self.bucket.advance(now)
        if claim.period_ms != self.claim.period_ms:
            # Whole tokens are kept, as in Bucket.convert, but not capped: `used` is not either.
            self.bucket.debt = -(-self.bucket.debt // self.claim.period_ms) * claim.period_ms
        self.claim, self.bucket.limit, self.bucket.period = claim, claim.limit, claim.period_ms
        self.used += used
        self.bucket.debt += used * claim.period_ms

    def count_owed(self, now: int) -> int:
        """Return what has to be charged now, in whole tokens."""
        self.bucket.advance(now)
        # The debt began with what Redis knew already (see Backlog.add_charge), so it may be more than was used.
        return min(self.used, -(-self.bucket.debt // self.claim.period_ms))


class Backlog:
    """A bounded backlog of calls, in memory only. Each call can be repeated: it counts once.

    Limits that Redis cannot count are reported to ``outage``; its ``attention`` is set when something is added.
    """

    def __init__(self, redis: Store, scripts: LimitScripts, outage: Outage) -> None:
        self._redis = redis
        self._scripts = scripts
        self._outage = outage
        # Not a channel: settlements that fail are put back, and the oldest give way to new ones.
        self._settlements: deque[ScriptCall] = deque(maxlen=MAX_SETTLEMENTS)
        # By the limit's key, those used last at the end.
        self._charges: OrderedDict[str, _Charge] = OrderedDict()
        self.dropped = 0
        """Settlements and charges dropped since the backlog was last empty: reported when it is empty again."""
        self.dropped_in_all = 0
        """The same, since the start."""

    def __len__(self) -> int:
        return len(self._settlements) + len(self._charges)

    def add_settlement(self, call: ScriptCall) -> None:
        """Keep a settlement whose answer did not arrive."""
        if len(self._settlements) == MAX_SETTLEMENTS:
            self._note_drop()
        self._settlements.append(call)
        self._outage.attention.set()

    def add_charge(self, record_prefix: str, claim: Claim, used: int, *, debt: int = 0) -> None:
        """Add ``used`` to the usage of a limit without Redis.

        ``debt`` (tokens × ms) is what Redis counts for the limit by its last answer. Time pays that off first, and only
        then what is added here.
        """
        now = now_ms()
        charge = self._charges.pop(claim.key, None)
        if charge is None:
            charge = _Charge(record_prefix, claim, Bucket(debt, now, claim.limit, claim.period_ms))
        charge.add(claim, used, now)
        self._charges[claim.key] = charge
        if len(self._charges) > MAX_CHARGED_LIMITS:
            self._charges.popitem(last=False)
            self._note_drop()
        self._outage.attention.set()

    def add_free(self, claim: Claim, reservation_id: str) -> None:
        """Free the slot of a request that Redis did not admit, but that a heartbeat has created a lease for."""
        keys = (f"{claim.key}:{reservation_id}", claim.key)  # there is no record; any key of the slot will do
        arguments = (reservation_id, 0, "", claim.kind, claim.limit, claim.period_ms, claim.cost, 0)
        self.add_settlement(ScriptCall(self._scripts.settle, keys, arguments))

    async def flush(self) -> None:
        """Send Redis all of it. Raises :exc:`StoreUnavailable`; what was not confirmed is kept. Cancel-safe."""
        # Settlements first: they free slots and give back what new requests are waiting for.
        await self._send_settlements()
        while self._charges:
            # Few at a time: a charge that has become a settlement is no longer paid off by time, nor added up with
            # later usage, so while Redis is away at most these few lose that.
            for _ in range(min(_CALLS_AT_ONCE, len(self._charges))):
                self._settle_charge(self._charges.popitem(last=False)[1])
            await self._send_settlements()
        if self.dropped:
            _logger.error("%d settlements of limits were lost while Redis was away", self.dropped)
            self.dropped = 0

    def _note_drop(self) -> None:
        if not self.dropped:
            _logger.error("Redis has been away for too long: settlements of limits are being dropped, the oldest first")
        self.dropped += 1
        self.dropped_in_all += 1

    def _settle_charge(self, charge: _Charge) -> None:
        """Turn a charge into a settlement with an id of its own, so that it can be repeated and counts once."""
        claim, owed = charge.claim, charge.count_owed(now_ms())
        if owed:
            charge_id = secrets.token_hex(12)
            arguments = (charge_id, MARK_TTL_MS, "", claim.kind, claim.limit, claim.period_ms, 0, owed)
            # One limit per settlement: a broken key must not take other limits' charges along.
            keys = (charge.record_prefix + charge_id, claim.key)
            self.add_settlement(ScriptCall(self._scripts.settle, keys, arguments))

    async def _send_settlements(self) -> None:
        failures: list[StoreUnavailable] = []
        async with trio.open_nursery() as nursery:
            for _ in range(min(_CALLS_AT_ONCE, len(self._settlements))):
                nursery.start_soon(self._send, failures)
        if failures:
            raise failures[0]

    async def _send(self, failures: list[StoreUnavailable]) -> None:
        # After the first failure, stop: the others would each wait for their timeout too.
        while self._settlements and not failures:
            call = self._settlements.popleft()
            try:
                await self._redis.run_script(call.script, call.keys, call.args)
            except StoreUnavailable as error:
                self._settlements.append(call)
                failures.append(error)
            except ResponseError as error:
                self._outage.failed(build_broken_limit(error))  # not kept: every retry would fail in the same way
            except BaseException:
                # Cancelled: it may have been executed or not; sending it again is safe.
                self._settlements.append(call)
                raise


def now_ms() -> int:
    """Return the time of what is counted without Redis: Trio's clock, in milliseconds."""
    return int(trio.current_time() * 1000)
