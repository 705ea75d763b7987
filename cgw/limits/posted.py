"""Settlements that no task waits for: sent with a later admission, or at once, and retried through the backlog."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import trio
from redis.exceptions import ResponseError

from cgw.errors import StoreUnavailable
from cgw.limits.admissions import Admission, PreparedAdmission
from cgw.limits.offline.backlog import Backlog
from cgw.limits.offline.outage import Outage, build_broken_limit
from cgw.limits.reservations import Reservation
from cgw.limits.scripts import LimitScripts
from cgw.redis.opening import ScriptCall, Store

MAX_DELETED_AT_ONCE = 100
"""Records that one command deletes: more would keep the server from other clients for too long."""


class PostedSettlements:
    """The posted settlements of one limiter.

    ::

        post() ──reply──► done (``alert`` is called if a threshold was reached)
          └──lost, or refused for now──► backlog

        forget() ──► _forgotten ──an admission, 100 ms, or enough of them──► one DEL ──► as above

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
        # Charges that come to deleting their records, and whose command has not left yet.
        self._forgotten: list[PreparedAdmission] = []
        # Set when the gateway stops: then nothing may wait for an admission.
        self._all_done: trio.Event | None = None

    def __len__(self) -> int:
        return self._count + len(self._forgotten)

    def post(self, admission: Admission, reservation: Reservation, *, is_charged: bool, tokens: int | None) -> None:
        """Send the settlement of one reservation, or put it into the backlog. Never blocks."""
        settlement = _Settlement(self, admission, reservation, is_charged, tokens)
        may_wait = self._all_done is None and reservation.can_settle_late(is_charged=is_charged, tokens=tokens)
        # Counted before it is sent: without a link, its outcome is there before post_script returns.
        self._count += 1
        self._redis.post_script(settlement, reservation.group.keys[0], may_wait=may_wait)

    def forget(self, admission: PreparedAdmission) -> None:
        """Delete the record of one reservation, whose charge comes to that, as :meth:`post` settles. Never blocks.

        Many leave in one command, which costs both sides a fraction of a command for each.
        """
        forgotten = self._forgotten
        forgotten.append(admission)
        count = len(forgotten)
        # In between, the command of those before is waiting, and takes this one along.
        if count == 1 or count >= MAX_DELETED_AT_ONCE:
            self._send_deletion(admission, count)

    def _send_deletion(self, admission: PreparedAdmission, count: int) -> None:
        if count > 1:
            self._redis.send_postponed()
            return
        if self._redis.is_cluster:
            # The records of several actors are in several slots, and a command has only one.
            self._forgotten.clear()
            self.post(admission, admission.reservations[0], is_charged=True, tokens=None)
            return
        self._redis.post_script(_Deletion(self), admission.prepared.first_key, may_wait=self._all_done is None)

    def take_forgotten(self) -> list[PreparedAdmission]:
        """Return the charges whose records are to be deleted now: they count as under way until their outcome."""
        taken, self._forgotten = self._forgotten, []
        self._count += len(taken)
        return taken

    async def finish(self) -> None:
        """Send at once what waits, now and from now on, and return when all settlements have their outcome.

        Cancel-safe.
        """
        self._all_done = self._all_done or trio.Event()
        if len(self):
            self._redis.send_postponed()
            await self._all_done.wait()

    def build_call(self, settlement: _Settlement) -> ScriptCall:
        """Build a settlement's call in its general form."""
        return settlement.reservation.build_settle(
            self._scripts, is_charged=settlement.is_charged, tokens=settlement.tokens
        )

    def handle_reply(self, settlement: _Settlement, reply: Any) -> None:
        """Handle the outcome of a settlement: the reply to ``settle`` or ``DEL``, or an exception."""
        self._note_outcome(reply, [settlement])
        # An answer of `settle`; that of DEL is a number.
        if isinstance(reply, list) and reply[1]:
            self._alert(settlement.admission, int(reply[1]))

    def handle_deletion(self, admissions: Sequence[PreparedAdmission], reply: Any) -> None:
        """Handle the outcome of charges by a deletion: the number of records, or an exception."""
        self._note_outcome(reply, admissions)

    def _note_outcome(self, reply: Any, settled: Sequence[_Settlement | PreparedAdmission]) -> None:
        """Note the outcome of settlements that left in one command."""
        self._count -= len(settled)
        if not self._count and self._all_done is not None:
            self._all_done.set()
        if isinstance(reply, StoreUnavailable):
            # Not reported as an outage: a lost link may be replaced in a moment, and a slot of a cluster may just have
            # moved. The backlog is sent soon, and reports that Redis is away if it still is.
            for one in settled:
                self._backlog.add_settlement(
                    one.build_charge() if isinstance(one, PreparedAdmission) else one.build_call()
                )
        elif isinstance(reply, ResponseError):
            self._outage.failed(build_broken_limit(reply))  # not kept: the key would be as broken for every retry
        else:
            self._outage.succeeded()


class _Settlement:
    """One posted settlement: a :class:`~cgw.redis.posted_call.PostedCall`."""

    __slots__ = ("_owner", "admission", "is_charged", "reservation", "tokens")
    gathers: ClassVar[bool] = False
    """It may reach a threshold, whose alert is due before that of the next one."""

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

    def pack(self) -> bytes:
        admission = self.admission
        if self.is_charged and isinstance(admission, PreparedAdmission):
            return admission.prepared.pack_charge(admission.number, admission.answer)
        return self.build_call().pack_evalsha()

    def build_call(self) -> ScriptCall:
        return self._owner.build_call(self)

    def handle_reply(self, reply: Any) -> None:
        self._owner.handle_reply(self, reply)


class _Deletion:
    """The command that deletes the records of charges: a :class:`~cgw.redis.posted_call.PostedCall`.

    Until it leaves, further ones join it.
    """

    __slots__ = ("_admissions", "_owner")
    gathers: ClassVar[bool] = True

    def __init__(self, owner: PostedSettlements) -> None:
        self._owner = owner
        self._admissions: Sequence[PreparedAdmission] = ()

    def pack(self) -> bytes:
        self._close()
        return pack_deletion(self._admissions)

    def build_call(self) -> None:
        """Return ``None``: this is not a script's."""

    def handle_reply(self, reply: Any) -> None:
        self._close()  # the link may be lost before it leaves
        self._owner.handle_deletion(self._admissions, reply)

    def _close(self) -> None:
        self._admissions = self._admissions or self._owner.take_forgotten()


def pack_deletion(admissions: Sequence[PreparedAdmission]) -> bytes:
    """Return the packed ``DEL`` of the records of ``admissions``."""
    records = [admission.prepared.record_format % admission.number for admission in admissions]
    return b"*%d\r\n$3\r\nDEL\r\n%b" % (len(records) + 1, b"".join(records))
