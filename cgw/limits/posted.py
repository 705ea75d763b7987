"""Settlements that no task waits for: sent with the next admission, or at once, and retried through the backlog."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import trio
from redis.exceptions import ResponseError

from cgw.errors import StoreUnavailable
from cgw.limits.admissions import Admission
from cgw.limits.offline.backlog import Backlog
from cgw.limits.offline.outage import Outage, build_broken_limit
from cgw.limits.reservations import Reservation
from cgw.limits.scripts import LimitScripts
from cgw.redis.opening import ScriptCall, Store


class PostedSettlements:
    """The posted settlements of one limiter.

    ::

        post() ──reply──► done (``alert`` is called if a threshold was reached)
          └──lost, or refused for now──► backlog

    A settlement may be executed although its reply is lost; repeated by the backlog it has the same reservation id, and
    so counts once.
    """

    def __init__(
        self,
        redis: Store,
        scripts: LimitScripts,
        backlog: Backlog,
        outage: Outage,
        alert: Callable[[Admission, int], None],
    ) -> None:
        self._redis = redis
        self._scripts = scripts
        self._backlog = backlog
        self._outage = outage
        self._alert = alert
        self._count = 0
        # Set when the gateway stops: then nothing may wait for a next admission.
        self._all_done: trio.Event | None = None

    def __len__(self) -> int:
        return self._count

    def post(self, admission: Admission, reservation: Reservation, *, is_charged: bool, tokens: int | None) -> None:
        """Send the settlement of one reservation, or put it into the backlog. Never blocks."""
        settlement = _Settlement(self, admission, reservation, is_charged, tokens)
        prepared = admission.plan.prepared
        if is_charged and prepared is not None:
            data = prepared.pack_charge(reservation)
        else:
            data = settlement.build_call().pack_evalsha()
        may_wait = self._all_done is None and reservation.can_settle_late(is_charged=is_charged, tokens=tokens)
        # Counted before it is sent: without a link, its outcome is there before post_script returns.
        self._count += 1
        self._redis.post_script(settlement, data, reservation.group.keys[0], may_wait=may_wait)

    async def finish(self) -> None:
        """Send at once what waits, now and from now on, and return when all settlements have their outcome.

        Cancel-safe.
        """
        self._all_done = self._all_done or trio.Event()
        if self._count:
            self._redis.send_postponed()
            await self._all_done.wait()

    def build_call(self, settlement: _Settlement) -> ScriptCall:
        """Build a settlement's call in its general form."""
        return settlement.reservation.build_settle(
            self._scripts, is_charged=settlement.is_charged, tokens=settlement.tokens
        )

    def handle_reply(self, settlement: _Settlement, reply: Any) -> None:
        """Handle the outcome of a settlement: the reply to ``settle`` or ``DEL``, or an exception."""
        self._count -= 1
        if not self._count and self._all_done is not None:
            self._all_done.set()
        if isinstance(reply, StoreUnavailable):
            # Not reported as an outage: a lost link may be replaced in a moment, and a slot of a cluster may just have
            # moved. The backlog is sent soon, and reports that Redis is away if it still is.
            self._backlog.add_settlement(self.build_call(settlement))
        elif isinstance(reply, ResponseError):
            self._outage.failed(build_broken_limit(reply))  # not kept: the key would be as broken for every retry
        else:
            self._outage.succeeded()
            # An answer of `settle`; that of DEL is a number.
            if isinstance(reply, list) and reply[1]:
                self._alert(settlement.admission, int(reply[1]))


class _Settlement:
    """One posted settlement: a :class:`~cgw.redis.posted_call.PostedCall`."""

    __slots__ = ("_owner", "admission", "is_charged", "reservation", "tokens")

    def __init__(
        self,
        owner: PostedSettlements,
        admission: Admission,
        reservation: Reservation,
        is_charged: bool,
        tokens: int | None,
    ) -> None:
        self._owner = owner
        self.admission = admission
        self.reservation = reservation
        self.is_charged = is_charged
        self.tokens = tokens

    def build_call(self) -> ScriptCall:
        return self._owner.build_call(self)

    def handle_reply(self, reply: Any) -> None:
        self._owner.handle_reply(self, reply)
