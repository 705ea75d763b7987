"""The alarm that keeps a link's deadlines."""

from __future__ import annotations

import trio
import trio.testing

from cgw.alarm import Alarm


async def test_earliest_time_counts(autojump_clock: trio.testing.MockClock) -> None:
    """A waiting task wakes up at the earliest of the times that were set, also of those set before it waited."""
    alarm, woken = Alarm(), []

    async def note_wake_ups() -> None:
        while True:
            at = await alarm.wait()
            woken.append((at, trio.current_time()))

    start = trio.current_time()
    alarm.set(start + 5)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(note_wake_ups)
        await trio.sleep(1)
        for seconds in (3, 9):
            alarm.set(start + seconds)
        await trio.sleep(9)
        assert woken == [(start + 3, start + 3)]  # the later times are forgotten with the earliest
        alarm.set(trio.current_time() + 1)
        await trio.sleep(2)
        assert woken[1:] == [(start + 11, start + 11)]
        nursery.cancel_scope.cancel()


async def test_cancelled_wait_keeps_the_time(autojump_clock: trio.testing.MockClock) -> None:
    """A time that is set while a cancelled task leaves is there for the next wait."""
    alarm = Alarm()
    alarm.set(trio.current_time() + 10)
    with trio.move_on_after(1) as client_scope:
        await alarm.wait()
    assert client_scope.cancelled_caught
    assert await alarm.wait() == trio.current_time()
