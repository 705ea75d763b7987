"""The phases of one exchange, as a transition table: an illegal move is a bug, and says so at once."""

from __future__ import annotations

import enum


class Phase(enum.Enum):
    """Where an exchange stands. The value is what logs call it."""

    RECEIVING = "receiving the request"
    PREPARING = "checking the request"
    ADMITTING = "waiting for limits"
    OPENING = "waiting for the upstream"
    RELAYING = "relaying the answer"
    RECORDING = "recording usage"
    DONE = "done"


TRANSITIONS: dict[Phase, frozenset[Phase]] = {
    Phase.RECEIVING: frozenset([Phase.PREPARING, Phase.DONE]),
    Phase.PREPARING: frozenset([Phase.ADMITTING, Phase.DONE]),
    Phase.ADMITTING: frozenset([Phase.OPENING, Phase.DONE]),
    Phase.OPENING: frozenset([Phase.RELAYING, Phase.RECORDING]),
    Phase.RELAYING: frozenset([Phase.RECORDING]),
    Phase.RECORDING: frozenset([Phase.DONE]),
    Phase.DONE: frozenset(),
}
"""From an admitted exchange every way leads through RECORDING: there is none past the usage event."""


def move(current: Phase, following: Phase) -> Phase:
    """``following``, if the table allows it after ``current``; :exc:`RuntimeError` otherwise."""
    if following not in TRANSITIONS[current]:
        raise RuntimeError(f"an exchange cannot go from {current.name} to {following.name}")
    return following
