"""The phases of an exchange: which may follow on which, and that a move is noted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import pytest
import trio
from trio.testing import MockClock

from cgw.clock import read_clock
from cgw.gateway.phases import FOLLOWING, Phase
from cgw.gateway.state import ExchangeState
from cgw.transport.client_side import ClientSide
from cgw.wire.messages import RequestHead


class Caller:
    """What an exchange reads of its client before anything is received or sent."""

    head = RequestHead(b"POST", b"/v1/x", [])
    peer = "203.0.113.7"


def open_state() -> ExchangeState:
    return ExchangeState(cast(ClientSide, Caller()), "/v1/x", read_clock())


def list_paths(phase: Phase = Phase.RECEIVING) -> Iterator[list[Phase]]:
    """Yield every path from ``phase`` to an end."""
    if not FOLLOWING[phase]:
        yield [phase]
    for following in FOLLOWING[phase]:
        for path in list_paths(following):
            yield [phase, *path]


def test_every_path_records_and_settles() -> None:
    """No path of an exchange leads past the usage event or the settlement, and each goes forward in time."""
    assert FOLLOWING.keys() == set(Phase)
    paths = list(list_paths())
    assert len(paths) == 2
    for path in paths:
        assert path[-2:] == [Phase.RECORDING, Phase.SETTLING]
        assert path == sorted(path)


async def test_every_move_is_noted(mock_clock: MockClock) -> None:
    """Each move notes its moment, at the index of its phase."""
    for path in list_paths():
        state = open_state()
        for phase in path[1:]:
            mock_clock.jump(1)
            state.move(phase)
            assert state.phase is phase
            assert state.journal.times[phase] == trio.current_time()


@pytest.mark.parametrize("phase", [Phase.RECEIVING, Phase.ADMITTING, Phase.RECORDING, Phase.SETTLING])
async def test_an_illegal_move_is_a_bug(phase: Phase, mock_clock: MockClock) -> None:
    """A move that is not in the table raises, and leaves the exchange where it is."""
    state = open_state()
    with pytest.raises(RuntimeError, match=f"cannot go from RECEIVING to {phase.name}"):
        state.move(phase)
    assert state.phase is Phase.RECEIVING
    assert state.journal.times[1:] == [None] * 11
