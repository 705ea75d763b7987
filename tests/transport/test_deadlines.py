"""Deadlines that one task keeps: noticed within a tick, however they are moved, and within bounds, however many."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from cgw.transport.deadlines import (
    LOOKS_PER_PASS,
    MAX_AHEAD_SECONDS,
    NEAR_SECONDS,
    TICK_SECONDS,
    DeadlineKeeper,
    KeptDeadline,
)
from tests.support.counting import StepCounter


class Noted(KeptDeadline):
    """Notes when it was late."""

    def __init__(self, keeper: DeadlineKeeper) -> None:
        super().__init__(keeper)
        self.late_at: list[float] = []

    def on_late(self) -> None:
        self.late_at.append(trio.current_time())


@asynccontextmanager
async def open_keeper() -> AsyncIterator[DeadlineKeeper]:
    keeper = DeadlineKeeper()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keeper.run)
        yield keeper
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("seconds", [0.3, 9.99, 75, 600])
async def test_a_deadline_is_noticed_within_a_tick(autojump_clock: trio.testing.MockClock, seconds: float) -> None:
    """Once, and never too early; also further ahead than any look is planned."""
    async with open_keeper() as keeper:
        noted, deadline = Noted(keeper), trio.current_time() + seconds
        noted.set_deadline(deadline)
        await trio.sleep(2 * seconds + 1)
        (late_at,) = noted.late_at
        assert deadline <= late_at <= deadline + TICK_SECONDS
        assert noted.deadline == deadline
        assert keeper.statistics().planned == 0


async def test_a_deadline_that_has_passed_is_noticed_at_once(mock_clock: trio.testing.MockClock) -> None:
    """It needs no time to pass, and it may be set again."""
    async with open_keeper() as keeper:
        noted = Noted(keeper)
        for count in (1, 2):
            noted.set_deadline(trio.current_time() - 5)
            await trio.testing.wait_all_tasks_blocked()
            assert len(noted.late_at) == count


async def test_a_deadline_moves_both_ways(autojump_clock: trio.testing.MockClock) -> None:
    """Later and earlier, by an assignment where it is later; none, and a closed one, never pass."""
    async with open_keeper() as keeper:
        start = trio.current_time()
        later, earlier, none, closed = (Noted(keeper) for _ in range(4))
        for noted in (later, earlier, none, closed):
            noted.set_deadline(start + 10)
        later.deadline = start + 20
        earlier.set_deadline(start + 5)
        none.deadline = math.inf
        closed.close()
        await trio.sleep(100)
        assert later.late_at == [start + 20]
        assert earlier.late_at == [start + 5]
        assert none.late_at == closed.late_at == []
        none.set_deadline(start + 200)
        await trio.sleep(200)
        assert none.late_at == [start + 200]


STEPS = st.lists(
    st.tuples(st.integers(0, 4), st.sampled_from(["set", "assign", "close", "sleep"]), st.floats(-1, 150)), max_size=40
)


@given(STEPS)
def test_any_sequence_of_moves(steps: list[tuple[int, str, float]]) -> None:
    """A deadline is noticed once and within a tick, unless it is moved or closed before; what is planned has bounds."""

    async def play() -> None:
        async with open_keeper() as keeper:
            all_noted = [Noted(keeper) for _ in range(5)]
            waiting: dict[Noted, float] = {}  # the deadlines that have not been noticed

            async def check() -> None:
                await trio.testing.wait_all_tasks_blocked()
                now = trio.current_time()
                for noted in all_noted:
                    if noted.late_at:
                        assert waiting.pop(noted) <= noted.late_at.pop()
                    assert not noted.late_at
                assert all(now < deadline + TICK_SECONDS for deadline in waiting.values())
                statistics = keeper.statistics()
                assert statistics.planned <= len(waiting)
                assert statistics.ticks <= len(steps) + 1

            for index, step, seconds in steps:
                noted, deadline = all_noted[index], trio.current_time() + seconds
                if step == "set":
                    noted.set_deadline(deadline)
                    waiting[noted] = deadline
                elif step == "assign" and deadline >= waiting.get(noted, math.inf):
                    noted.deadline = waiting[noted] = deadline
                elif step == "close":
                    noted.close()
                    waiting.pop(noted, None)
                elif step == "sleep":
                    for _ in range(int(seconds)):
                        await trio.sleep(1)
                        await check()
                await check()
            await trio.sleep(200)
            await check()
            assert not waiting

    trio.run(play, clock=trio.testing.MockClock(autojump_threshold=0))


async def test_thousands_of_deadlines_at_once_hold_nothing_up(autojump_clock: trio.testing.MockClock) -> None:
    """Others get their turn in between, and may close those that were not looked at yet."""
    async with open_keeper() as keeper:
        all_noted = [Noted(keeper) for _ in range(10 * LOOKS_PER_PASS)]
        for noted in all_noted:
            noted.set_deadline(trio.current_time() + 1)

        def count_late() -> int:
            return sum(len(noted.late_at) for noted in all_noted)

        await trio.sleep(1)
        while not (late := count_late()):
            await trio.lowlevel.checkpoint()
        assert late <= 2 * LOOKS_PER_PASS  # which of the two tasks was first
        for noted in all_noted:
            noted.close()
        await trio.sleep(10)
        assert count_late() == late


async def test_moving_costs_no_looks(autojump_clock: trio.testing.MockClock) -> None:
    """Five thousand deadlines, each moved once a second, are looked at about once in their timeout, not once a move."""
    counter = StepCounter()
    async with open_keeper() as keeper:
        all_noted = [Noted(keeper) for _ in range(5000)]
        trio.lowlevel.add_instrument(counter)
        counter.is_on = True
        for _ in range(120):
            for index, noted in enumerate(all_noted):
                noted.set_deadline(trio.current_time() + 75 + index / 5000)
            await trio.sleep(1)
        trio.lowlevel.remove_instrument(counter)
        # One wake-up a second, at most, and one look at each in a minute.
        assert counter.steps["run"] <= 120 + 2 * 5000 / LOOKS_PER_PASS + 2
        assert not any(noted.late_at for noted in all_noted)
        assert keeper.statistics().ticks <= MAX_AHEAD_SECONDS + NEAR_SECONDS / TICK_SECONDS
        for noted in all_noted:
            noted.close()
        assert keeper.statistics().planned == 0
