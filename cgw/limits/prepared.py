"""The usual calls of one plan, packed once: what varies from request to request is put into bytes that are ready.

Everything here has a general twin, and gives the same bytes (``tests/limits/test_prepared.py``).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import cached_property

from cgw.limits.claims import ClaimGroup
from cgw.limits.headers import LimitHeaderTemplate
from cgw.limits.reservations import Reservation, ReservationIds
from cgw.limits.scripts import FIRST_LIMIT, LimitScripts
from cgw.redis.handshake import pack_command


class PreparedGroup:
    """The packed calls about one group of claims whose costs are always the same.

    A reservation is known here by the ``number`` that its id ends in. Formats take that number, where the id is:
    ``admit_format`` twice and ``charge_format`` twice, for the record's key and for ARGV[1], ``record_format`` once.
    One operation then makes a call. The general twins are :class:`~cgw.limits.reservations.Reservation`'s methods and
    :func:`~cgw.limits.headers.build_limit_headers`.
    """

    def __init__(self, group: ClaimGroup, scripts: LimitScripts, ids: ReservationIds) -> None:
        self.group = group
        self.scripts = scripts
        self._ids = ids
        self.first_key = group.keys[0]
        # The words' sizes, which are in front of each, are right for any number, because all ids have the same length.
        sample = Reservation(group, (), ids.build(0))
        self.admit_format = ids.build_format(sample.build_admit(scripts).pack_evalsha())
        self.charge_format = ids.build_format(sample.build_settle(scripts, is_charged=True).pack_evalsha())
        # A packed word, for a DEL of any number of records: without the array's size.
        self.record_format = ids.build_format(pack_command((sample.keys[0],)).partition(b"\r\n")[2])
        self.least_forgotten = find_least_forgotten(group)

    @cached_property
    def header_template(self) -> LimitHeaderTemplate | None:
        """The rate-limit fields of responses; ``None`` if there can be no template."""
        # Not with the group: an actor whose only request is refused needs none.
        return LimitHeaderTemplate(self.group.claims) if LimitHeaderTemplate.is_possible(self.group.claims) else None

    def pack_charge(self, number: int, answer: Sequence[int]) -> bytes:
        """Pack the call that charges what was reserved: ``settle``, or ``DEL`` of the record if that does the same."""
        if answer[FIRST_LIMIT] >= self.least_forgotten:
            return b"*2\r\n$3\r\nDEL\r\n" + self.record_format % number
        return self.charge_format % (number, number)

    def build_reservation(self, number: int, answer: Sequence[int]) -> Reservation:
        """Build the reservation in its general form."""
        return Reservation(self.group, answer, self._ids.build(number))


def find_least_forgotten(group: ClaimGroup) -> int:
    """Return from how much on that the first limit has left, by ``admit``'s answer, its record need only be deleted.

    That is, charging what was reserved comes to deleting the record. ``settle`` does four things: it takes the record,
    frees slots, moves buckets by the difference between reserved and used, and compares the quota's usage, by the
    record, with the thresholds of alerts. Without slots and difference, and with the usage below all thresholds, which
    the answer tells as the record does, only the first is left. A number above the limit: never.

    The record itself is necessary until then: a refund has to find it, so as to count once, and so does the undo of an
    admission whose answer was lost. After a crash it expires.
    """
    limit = group.claims[0].limit
    if group.has_lease or limit <= 0:  # with a limit of 0, nothing is ever admitted
        return limit + 1
    # A percentage; more than 100 is never reached.
    lowest_threshold = min(map(int, group.thresholds.split()), default=101)
    # The same divisions as in state.lua's `cross`, so that rounding is the same too: the quotient falls, or stays, with
    # each one that is left more, so that the first number can be searched for by halves.
    return bisect_left(
        range(limit + 1), True, key=lambda remaining: (limit - remaining) / limit < lowest_threshold / 100
    )
