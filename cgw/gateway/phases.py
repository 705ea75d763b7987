"""The phases of one exchange, as a transition table: an illegal move is a bug, and raises at once."""

from __future__ import annotations

import enum


class Phase(enum.Enum):
    """The phase of an exchange; the value is how logs name it."""

    RECEIVING = "receiving the request"
    PREPARING = "checking the request"
    ADMITTING = "waiting for limits"
    OPENING = "waiting for the upstream"
    RELAYING = "relaying the answer"
    RECORDING = "recording usage"
    SETTLING = "settling limits"


TRANSITIONS: dict[Phase, frozenset[Phase]] = {
    Phase.RECEIVING: frozenset([Phase.PREPARING]),
    Phase.PREPARING: frozenset([Phase.ADMITTING]),
    Phase.ADMITTING: frozenset([Phase.OPENING]),
    # An admitted exchange always records, whatever its upstream does: no path leads past the usage event.
    Phase.OPENING: frozenset([Phase.RELAYING, Phase.RECORDING]),
    Phase.RELAYING: frozenset([Phase.RECORDING]),
    Phase.RECORDING: frozenset([Phase.SETTLING]),
    Phase.SETTLING: frozenset(),
}


def move(current: Phase, following: Phase) -> Phase:
    """Return ``following`` if the table allows it after ``current``; raise :exc:`RuntimeError` otherwise."""
    if following not in TRANSITIONS[current]:
        raise RuntimeError(f"an exchange cannot go from {current.name} to {following.name}")
    return following
