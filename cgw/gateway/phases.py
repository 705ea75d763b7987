"""The phases of one exchange and the moves between them: an illegal move is a bug, and raises at once."""

from __future__ import annotations

import enum

from cgw.telemetry.exchange_record import Moment


class Phase(enum.IntEnum):
    """The phase of an exchange, numbered by the moment at which it begins.

    Each follows on the one before it, but :attr:`RECORDING`, which comes whatever the upstream does: no path of an
    admitted exchange leads past the usage event.
    """

    # Integers, because a move is made six times per exchange: looking an enum up in a table takes half a microsecond.
    RECEIVING = Moment.STARTED
    PREPARING = Moment.RECEIVED
    ADMITTING = Moment.PREPARED
    OPENING = Moment.ADMITTED
    RELAYING = Moment.ANSWERED
    RECORDING = Moment.RELAYED
    SETTLING = Moment.RECORDED

    @property
    def text(self) -> str:
        """The phase's name in logs."""
        return _TEXTS[self]


_TEXTS = {
    Phase.RECEIVING: "receiving the request",
    Phase.PREPARING: "checking the request",
    Phase.ADMITTING: "waiting for limits",
    Phase.OPENING: "waiting for the upstream",
    Phase.RELAYING: "relaying the answer",
    Phase.RECORDING: "recording usage",
    Phase.SETTLING: "settling limits",
}

FOLLOWING = {
    Phase.RECEIVING: (Phase.PREPARING,),
    Phase.PREPARING: (Phase.ADMITTING,),
    Phase.ADMITTING: (Phase.OPENING,),
    Phase.OPENING: (Phase.RELAYING, Phase.RECORDING),
    Phase.RELAYING: (Phase.RECORDING,),
    Phase.RECORDING: (Phase.SETTLING,),
    Phase.SETTLING: (),
}
"""The phases that may follow on each."""
