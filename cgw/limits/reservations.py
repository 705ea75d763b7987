"""Reservations: provisional claims on limits, and the script calls about them. Plain records; no I/O."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from itertools import count

from attrs import define

from cgw.limits.claims import ClaimGroup
from cgw.limits.scripts import LimitScripts, read_states
from cgw.limits.states import LimitState
from cgw.model import LimitUnit
from cgw.redis.opening import ScriptCall

RESERVATION_TTL_MS = 25 * 3_600_000
"""The time in which a reservation can be settled: longer than any exchange. Without settlement it stays charged."""

UNDO_TTL_MS = 600_000
"""The time for which Redis remembers an admission that was given up: longer than a broken connection delays a call."""


_RANDOM_BYTES = 8


class ReservationIds:
    """A generator of ids that are unique over all processes. They are not secret."""

    def __init__(self) -> None:
        # Random once, then a count: a random id for each request would cost a system call.
        self._beginning = secrets.token_hex(_RANDOM_BYTES)
        self.next_number: Callable[[], int] = count(1).__next__
        """Return the number of a new id."""

    def build(self, number: int) -> str:
        """Return the id with this number."""
        # Of a fixed length (2**48 requests are enough), for calls that are packed already except for the id.
        return f"{self._beginning}{number:012x}"

    def next(self) -> str:
        """Return a new id."""
        return self.build(self.next_number())

    def build_format(self, data: bytes) -> bytes:
        """Return a format for bytes as ``data``, in which the id with number 0 is: it takes the number instead."""
        sample = self.build(0).encode("ascii")
        # Percent signs: keys are percent-encoded.
        return data.replace(b"%", b"%%").replace(sample, b"%b%%012x" % self._beginning.encode("ascii"))


@define(eq=False)  # not frozen, which makes creating one three times as expensive
class Reservation:
    """A provisional claim on one group of limits, under an id of its own; ``answer`` is that of ``admit``."""

    group: ClaimGroup
    answer: Sequence[int]
    id: str

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of every call about it, the record's first."""
        # The order of KEYS in admit.lua and settle.lua. All of them share the hash tag of `record_prefix`, or the
        # server is not a cluster.
        return (self.group.record_prefix + self.id, *self.group.keys)

    @property
    def states(self) -> tuple[LimitState, ...]:
        """The state of its limits after the claim; empty if nothing was counted."""
        # There is no answer while Redis is away and requests are admitted without limits (`open`).
        return read_states(self.group.claims, self.answer) if self.answer else ()

    def can_settle_late(self, *, is_charged: bool, tokens: int | None) -> bool:
        """Return whether Redis counts the same before and after this settlement, which then is not urgent.

        That is: what was reserved is charged, and no slot is freed.
        """
        if not is_charged or self.group.has_lease:
            return False
        return tokens is None or self.group.claims[0].unit is LimitUnit.REQUESTS

    def build_admit(self, scripts: LimitScripts) -> ScriptCall:
        """Build the call that reserves."""
        arguments = (self.id, RESERVATION_TTL_MS, *self.group.admit_arguments)
        return ScriptCall(scripts.admit, self.keys, arguments)

    def build_undo(self, scripts: LimitScripts) -> ScriptCall:
        """Build the call that gives up an admission whose answer did not arrive.

        It may reach Redis before or after the admission itself, or without it: in each case nothing stays reserved.
        """
        # The negative time makes settle leave a `void` record if the admission has not arrived yet (see settle.lua).
        return ScriptCall(scripts.settle, self.keys, (self.id, -UNDO_TTL_MS, *self.group.refund_arguments))

    def build_settle(self, scripts: LimitScripts, *, is_charged: bool, tokens: int | None = None) -> ScriptCall:
        """Build the call that settles; without a charge it gives everything back."""
        # Mode 0: admitted in Redis, which has a record.
        arguments = (self.id, 0, *self.group.settle_arguments(is_charged=is_charged, tokens=tokens))
        return ScriptCall(scripts.settle, self.keys, arguments)
