"""The usual calls of one plan, packed once: what varies from request to request is put into bytes that are ready.

Everything here has a general twin, and gives the same bytes (``tests/limits/test_prepared.py``).
"""

from __future__ import annotations

from cgw.limits.claims import ClaimGroup
from cgw.limits.reservations import ID_CHARACTERS, Reservation
from cgw.limits.scripts import LimitScripts
from cgw.redis.opening import ScriptCall


class CallTemplate:
    """A packed ``EVALSHA`` in which only the reservation's id is missing, once in the record's key, once as ARGV[1]."""

    __slots__ = ("_after", "_before", "_between")

    def __init__(self, call: ScriptCall, placeholder: str) -> None:
        # The sizes in front of each word are right as well, because all ids have the same length.
        self._before, self._between, self._after = call.pack_evalsha().decode("ascii").split(placeholder)

    def pack(self, reservation_id: str) -> bytes:
        """Return the packed call for one reservation."""
        return f"{self._before}{reservation_id}{self._between}{reservation_id}{self._after}".encode("ascii")


class PreparedGroup:
    """The packed calls about one group of claims whose costs are always the same.

    :meth:`pack_admit` is the twin of :meth:`~cgw.limits.reservations.Reservation.build_admit`, :meth:`pack_charge` that
    of :meth:`~cgw.limits.reservations.Reservation.build_settle`.
    """

    __slots__ = ("_admit", "_charge", "group")

    def __init__(self, group: ClaimGroup, scripts: LimitScripts) -> None:
        self.group = group
        # No key or argument contains it: keys are percent-encoded, and arguments are words and numbers.
        sample = Reservation(group, (), "\0" * ID_CHARACTERS)
        self._admit = CallTemplate(sample.build_admit(scripts), sample.id)
        self._charge = CallTemplate(sample.build_settle(scripts, is_charged=True), sample.id)

    def pack_admit(self, reservation_id: str) -> bytes:
        """Pack the call that reserves."""
        return self._admit.pack(reservation_id)

    def pack_charge(self, reservation_id: str) -> bytes:
        """Pack the call that charges what was reserved."""
        return self._charge.pack(reservation_id)
