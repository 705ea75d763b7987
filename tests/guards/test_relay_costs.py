"""What one event costs on the flat path, in counts that do not vary. They fail when a change makes the path worse.

How to read them: the load (the other ends of all sockets) moves inside the loop's own hook, so nothing of it is
counted, and each count is a whole number per event. A bound is what was measured when it was set. One that fails says
that each event costs one more call, turn or object; one that could be lower has been earned, and should be lowered.
"""

from __future__ import annotations

import socket
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable

import pytest
import trio
import trio.testing
from attrs import define

from cgw.transport.flat_relay import FlatRelay
from tests.support.counting import CallCounter, StepCounter
from tests.support.flat_legs import Leg, open_legs

EVENT = b"c8\r\n" + b"data: %b\n\n" % (b"x" * 192) + b"\r\n"
WARM_UP = 1_000
"""Rounds before anything is counted: until the windows are full (2 × 32 KiB), and the relay has found its pace."""


class Load(trio.abc.Instrument):
    """Sends one event on each stream as soon as all clients have got the last ones, and counts the rounds.

    It runs just before the loop waits. ``at`` holds what to do after so many rounds.
    """

    def __init__(self, legs: list[Leg], counter: CallCounter, at: dict[int, Callable[[], None]]) -> None:
        self._legs = legs
        self._counter = counter
        self._at = at
        self._is_waiting = [False] * len(legs)
        self.rounds = 0
        self.is_stopped = False

    def before_io_wait(self, timeout: float) -> None:
        """Called by Trio."""
        was_on, self._counter.is_on = self._counter.is_on, False
        if not self.is_stopped and self._is_delivered():
            self.rounds += 1
            for leg in self._legs:
                leg.upstream.send(EVENT)
            self._is_waiting = [True] * len(self._legs)
        self._counter.is_on = was_on
        if (action := self._at.pop(self.rounds, None)) is not None:
            action()

    def _is_delivered(self) -> bool:
        for index, leg in enumerate(self._legs):
            if self._is_waiting[index]:
                try:
                    self._is_waiting[index] = leg.client.recv(65536) != EVENT
                except BlockingIOError:
                    return False
        return not any(self._is_waiting)


@define
class Costs:
    """What so many events cost. ``ticks`` and ``passes`` are the relay's own."""

    events: int
    system_calls: Counter[str]
    steps: Counter[str]
    registrations: int
    passes: int
    blocks_growth: int
    bytes_growth: int


async def measure(flat: FlatRelay, streams: int, rounds: int, *, traces: bool = False) -> Costs:
    """Carry ``rounds`` events on each of ``streams``, and count, after a warm-up."""
    counter, steps = CallCounter(), StepCounter()
    began, ended = [0, 0, 0, 0], [0, 0, 0, 0]
    stop_ours, stop_theirs = socket.socketpair()

    def note(numbers: list[int]) -> None:
        statistics = flat.statistics()
        traced = tracemalloc.get_traced_memory()[0] if traces else 0
        numbers[:] = statistics.registrations, statistics.passes, sys.getallocatedblocks(), traced

    def begin() -> None:
        if traces:
            tracemalloc.start()
        note(began)
        counter.is_on = steps.is_on = not traces

    def end() -> None:
        counter.is_on = steps.is_on = False
        note(ended)
        load.is_stopped = True
        stop_theirs.send(b"x")

    async with open_legs(flat, streams) as legs:
        load = Load(legs, counter, {WARM_UP: begin, WARM_UP + rounds: end})
        trio.lowlevel.add_instrument(steps)
        trio.lowlevel.add_instrument(load)
        if not traces:
            sys.setprofile(counter.note)
        try:
            with trio.fail_after(30):
                await trio.lowlevel.wait_readable(stop_ours)
        finally:
            sys.setprofile(None)
            tracemalloc.stop()
            trio.lowlevel.remove_instrument(load)
            trio.lowlevel.remove_instrument(steps)
            stop_ours.close()
            stop_theirs.close()
    registrations, passes, blocks, traced = (after - before for before, after in zip(began, ended, strict=True))
    return Costs(rounds * streams, counter.system_calls(), steps.steps, registrations, passes, blocks, traced)
