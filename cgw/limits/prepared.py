"""The usual calls of one plan, packed once: what varies from request to request is put into bytes that are ready.

Everything here has a general twin, and gives the same bytes (``tests/limits/test_prepared.py``).
"""

from __future__ import annotations

from cgw.errors import Headers
from cgw.limits.claims import ClaimGroup
from cgw.limits.headers import LimitHeaderTemplate, build_limit_headers
from cgw.limits.reservations import ID_CHARACTERS, Reservation
from cgw.limits.scripts import FIRST_LIMIT, LimitScripts
from cgw.redis.handshake import pack_command
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

    The general twins are :class:`~cgw.limits.reservations.Reservation`'s methods and
    :func:`~cgw.limits.headers.build_limit_headers`.
    """

    __slots__ = ("_admit", "_charge", "_forget", "_header_template", "_lowest_threshold", "group")

    def __init__(self, group: ClaimGroup, scripts: LimitScripts) -> None:
        self.group = group
        # No key or argument contains it: keys are percent-encoded, and arguments are words and numbers.
        sample = Reservation(group, (), "\0" * ID_CHARACTERS)
        self._admit = CallTemplate(sample.build_admit(scripts), sample.id)
        self._charge = CallTemplate(sample.build_settle(scripts, is_charged=True), sample.id)
        self._forget = pack_command(("DEL", sample.keys[0])).decode("ascii").split(sample.id)
        self._header_template: LimitHeaderTemplate | None = None
        # A percentage; more than 100 is never reached.
        self._lowest_threshold = min(map(int, group.thresholds.split()), default=101)

    def pack_admit(self, reservation_id: str) -> bytes:
        """Pack the call that reserves."""
        return self._admit.pack(reservation_id)

    def pack_charge(self, reservation: Reservation) -> bytes:
        """Pack the call that charges what was reserved: ``settle``, or ``DEL`` of the record if that does the same."""
        if self.can_forget(reservation):
            before, after = self._forget
            return f"{before}{reservation.id}{after}".encode("ascii")
        return self._charge.pack(reservation.id)

    def build_headers(self, reservation: Reservation) -> Headers:
        """Build the rate-limit fields of the response."""
        template = self._header_template
        if template is None:
            if not LimitHeaderTemplate.is_possible(self.group.claims):
                return build_limit_headers(reservation.states)
            # Not with the group: an actor whose only request is refused needs none.
            template = self._header_template = LimitHeaderTemplate(self.group.claims)
        return template.fill(reservation.answer)

    def can_forget(self, reservation: Reservation) -> bool:
        """Return whether charging what was reserved comes to deleting the record.

        ``settle`` does four things: it takes the record, frees slots, moves buckets by the difference between reserved
        and used, and compares the quota's usage, by the record, with the thresholds of alerts. Here there are no slots
        and no difference, and the record is ``admit``'s answer, so that the usage is known to be below all thresholds.

        The record itself is necessary until then: a refund has to find it, so as to count once, and so does the undo of
        an admission whose answer was lost. After a crash it expires.
        """
        group = self.group
        if group.has_lease:
            return False
        limit = group.claims[0].limit
        # The same division as in state.lua's `cross`, so that rounding is the same too.
        return (limit - reservation.answer[FIRST_LIMIT]) / limit < self._lowest_threshold / 100
