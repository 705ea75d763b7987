"""The cost of one event on the fast path, in counts that do not vary. A change that makes it worse fails here.

Each bound is the count that was measured when it was set. A failure means that every event costs one more call, turn
or object. A change that lowers a count lowers its bound, too. Only the relay is counted: the test uses the other ends
of the sockets while counting is off.
"""

from __future__ import annotations

import functools
import sys
import tracemalloc
from collections import Counter
from contextlib import suppress

import pytest
import trio
import trio.testing

from cgw.transport.flat_relay import MAX_EVENTS, FlatRelay
from cgw.wire.windows import MAX_PIECES
from tests.support.counting import CallCounter, StepCounter
from tests.support.flat_legs import Leg, open_legs
from tests.support.waiting import wait_until

EVENT = b"c8\r\n" + b"data: %b\n\n" % (b"x" * 192) + b"\r\n"
WARM_UP = 1_000
"""Events of each stream before counting begins: after them the windows (2 × 32 KiB) are full."""

CALLS_INTO_C = 7.5
"""Calls into C for one event: two system calls, two look-ups (stream, chunk size), `append`, and two `len`. The lock is
left out: versions of Python differ in what they report of a ``with``."""

CALLS_OF_PYTHON = 1.3
"""Calls of Python functions for one event: the framer; and a part of the window, and of what is for several events."""

GROWTH_BLOCKS = 64
GROWTH_BYTES = 128 * 1024
"""What may remain of 10,000 events (2 MB): only the tail window, whose size varies between 32 and 64 KiB."""


def send(legs: list[Leg]) -> None:
    for leg in legs:
        leg.upstream.send(EVENT)


def check_received(legs: list[Leg]) -> None:
    for leg in legs:
        assert leg.client.recv(65536) == EVENT


def play(flat: FlatRelay, legs: list[Leg], rounds: int, counter: CallCounter | None = None) -> None:
    """Make ``rounds`` passes of the relay, each with one event on every stream."""
    for _ in range(rounds):
        send(legs)
        if counter is None:
            ready = flat.drain(0)
        else:
            with counter.count():
                ready = flat.drain(0)
        assert ready == len(legs)
        check_received(legs)


async def count_calls(streams: int, rounds: int) -> CallCounter:
    """Count the calls of ``rounds`` passes, each with an event on every stream."""
    flat, counter = FlatRelay(tick_seconds=0), CallCounter()
    async with open_legs(flat, streams) as legs:
        play(flat, legs, WARM_UP // streams)
        play(flat, legs, rounds, counter)
    return counter


async def test_system_calls_of_a_single_stream() -> None:
    """An event that comes alone costs three system calls: wait, receive, send; nothing is registered again."""
    counter = await count_calls(1, 500)
    assert counter.system_calls() == {"epoll.poll": 500, "socket.recv": 500, "socket.send": 500}


async def test_system_calls_of_many_streams() -> None:
    """Events that come together share the wait: 50 of them cost 101 system calls."""
    counter = await count_calls(50, 100)
    assert counter.system_calls() == {"epoll.poll": 100, "socket.recv": 5000, "socket.send": 5000}


async def test_calls_per_event() -> None:
    """An event costs at most as many calls of C and Python functions as were measured."""
    one, fifty = await count_calls(1, 100), await count_calls(50, 100)
    # The difference is 49 more events in the same number of passes.
    more = Counter(fifty.calls)
    more.subtract(one.calls)
    per_event = {name: count / 4900 for name, count in more.items() if count}
    in_python = sum(count for name, count in per_event.items() if ":" in name)
    in_c = sum(count for name, count in per_event.items() if ":" not in name and "Lock" not in name)
    assert in_c <= CALLS_INTO_C, per_event
    assert in_python <= CALLS_OF_PYTHON, per_event


@pytest.mark.parametrize("streams", [1, 50])
async def test_nothing_grows_with_the_length_of_a_stream(streams: int) -> None:
    """Once the windows are full, 10,000 events leave no objects and no memory behind."""
    flat = FlatRelay(tick_seconds=0)
    # As many events are waiting to be put into the window before as after.
    rounds = 10_000 // streams // MAX_PIECES * MAX_PIECES
    async with open_legs(flat, streams) as legs:
        play(flat, legs, WARM_UP)
        blocks = sys.getallocatedblocks()
        play(flat, legs, rounds)
        assert sys.getallocatedblocks() - blocks < GROWTH_BLOCKS
        tracemalloc.start()
        try:
            play(flat, legs, rounds)
            assert tracemalloc.get_traced_memory()[0] < GROWTH_BYTES * streams
        finally:
            tracemalloc.stop()


async def test_no_task_takes_a_turn_for_an_event() -> None:
    """While the relay's thread forwards 2,000 events one by one, no task of Trio runs but for the sweep."""
    flat, steps = FlatRelay(tick_seconds=0), StepCounter()
    async with open_legs(flat, 1, in_thread=True) as legs:
        await forward_in_thread(flat, legs, 10)
        registrations, passes = flat.statistics().registrations, flat.statistics().passes
        trio.lowlevel.add_instrument(steps)
        steps.is_on = True
        await trio.to_thread.run_sync(blocking_load, legs[0], 2_000)
        steps.is_on = False
        trio.lowlevel.remove_instrument(steps)
        statistics = flat.statistics()
    assert statistics.registrations == registrations
    assert statistics.passes - passes <= 2_000
    assert sum(steps.steps.values()) < 20, steps.steps


async def forward_in_thread(flat: FlatRelay, legs: list[Leg], rounds: int) -> None:
    for _ in range(rounds):
        expected = flat.statistics().events + len(legs)
        send(legs)
        await wait_until(functools.partial(has_forwarded, flat, expected))
        check_received(legs)


def has_forwarded(flat: FlatRelay, events: int) -> bool:
    return flat.statistics().events == events


def blocking_load(leg: Leg, events: int) -> None:
    leg.client.settimeout(5)
    for _ in range(events):
        leg.upstream.send(EVENT)
        assert leg.client.recv(65536) == EVENT


async def test_coalescing_shares_the_wait(mock_clock: trio.testing.MockClock) -> None:
    """On a tick, 50 streams with an event each are served in one pass: one wait for all of them."""
    flat = FlatRelay(tick_seconds=0.001)
    async with open_legs(flat, 50) as legs:
        for _ in range(100):
            send(legs)
            mock_clock.jump(0.001)
            await trio.testing.wait_all_tasks_blocked()
            check_received(legs)
        assert flat.statistics().is_coalescing
        before = flat.statistics()
        for _ in range(100):
            for half in (legs[:25], legs[25:]):
                send(half)
                await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(0.001)
            await trio.testing.wait_all_tasks_blocked()
            check_received(legs)
        after = flat.statistics()
    assert after.events - before.events == 5_000
    assert after.passes - before.passes == after.ticks - before.ticks == 100
    assert after.registrations == before.registrations


async def test_pressure_registers_once_on_each_side() -> None:
    """A client that stops reading, and one that continues, cost one registration each, however many events wait."""
    flat = FlatRelay(tick_seconds=0)
    async with open_legs(flat, 1) as legs:
        (leg,) = legs
        for _ in range(20):
            before = flat.statistics().registrations
            while flat.statistics().registrations == before:
                with suppress(BlockingIOError):
                    leg.upstream.send(EVENT * 100)
                flat.drain(0)
            for _ in range(10):
                flat.drain(0)
            assert flat.statistics().registrations - before == 1
            while flat.statistics().registrations - before == 1:
                leg.received()
                flat.drain(0)
            leg.received()
            assert flat.statistics().registrations - before == 2


def test_a_pass_is_bounded() -> None:
    """A pass is bounded: each socket costs some 20 µs, and tasks need the interpreter, too."""
    assert MAX_EVENTS <= 128
