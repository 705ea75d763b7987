"""The clock of a run is the one that Trio's own functions read."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from cgw.clock import read_clock


async def test_it_tells_the_time_of_the_run(mock_clock: MockClock) -> None:
    """The function that was taken once follows the run's clock, as trio.current_time() does."""
    now = read_clock()
    start = now()
    mock_clock.jump(12.5)
    assert now() - start == 12.5
    assert now() == trio.current_time()


async def test_it_agrees_with_deadlines(autojump_clock: MockClock) -> None:
    """A sleep until a time of this clock ends at that time."""
    now = read_clock()
    deadline = now() + 3
    await trio.sleep_until(deadline)
    assert now() == deadline


def test_each_run_has_its_own() -> None:
    """A function that is taken in one run does not read the clock of the next."""

    async def take() -> float:
        return read_clock()()

    early, late = MockClock(), MockClock()
    late.jump(1000)
    assert trio.run(take, clock=late) - trio.run(take, clock=early) >= 1000


def test_there_is_none_outside_of_a_run() -> None:
    """Taking it outside of a run is a mistake, and raises."""
    with pytest.raises(RuntimeError):
        read_clock()
