"""Counters of what does not vary between runs: calls of C and Python functions, turns of tasks."""

from __future__ import annotations

import gc
import select
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import trio


class CallCounter:
    """Counts calls in this thread: of C functions by owner and name, of Python functions by module and name.

    A C function that belongs to a socket or an epoll instance is a system call: ``socket.send``, ``epoll.poll``.
    """

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.is_on = False

    def note(self, frame: FrameType, event: str, argument: Any) -> None:
        """Count one call; a profile function for :func:`sys.setprofile`."""
        if not self.is_on:
            return
        if event == "c_call":
            owner = getattr(argument, "__self__", None)
            self.calls[f"{_owner_name(owner)}.{argument.__name__}"] += 1
        elif event == "call":
            self.calls[f"{frame.f_globals.get('__name__')}:{frame.f_code.co_name}"] += 1

    @contextmanager
    def count(self) -> Iterator[None]:
        """Count while the block runs."""
        self.is_on = True
        sys.setprofile(self.note)
        try:
            yield
        finally:
            sys.setprofile(None)
            self.is_on = False

    def system_calls(self) -> Counter[str]:
        """Return the calls of methods of sockets and epoll instances."""
        calls = {name: count for name, count in self.calls.items() if name.startswith(("socket.", "epoll."))}
        return Counter({name: count for name, count in calls.items() if not name.endswith((".fileno", ".__exit__"))})


def _owner_name(owner: object) -> str:
    if isinstance(owner, socket.socket):
        return "socket"
    if isinstance(owner, select.epoll):
        return "epoll"
    return getattr(owner, "__name__", None) or f"{type(owner).__module__}.{type(owner).__qualname__}"


class StepCounter(trio.abc.Instrument):
    """Counts the turns of tasks by their names, while ``is_on``."""

    def __init__(self) -> None:
        self.steps: Counter[str] = Counter()
        self.is_on = False

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """Count one turn; called by Trio."""
        if self.is_on:
            self.steps[task.name.rpartition(".")[2]] += 1


class LongestStep(trio.abc.Instrument):
    """Measures the longest turn of a task, in seconds of this thread's processor time: other load does not count."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.name = ""
        self._began = time.thread_time()  # the turn in which the measuring begins

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """Note the time; called by Trio."""
        self._began = time.thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """Compare the turn with the longest so far; called by Trio."""
        seconds = time.thread_time() - self._began
        if seconds > self.seconds:
            self.seconds, self.name = seconds, task.name


@contextmanager
def measure_longest_step() -> Iterator[LongestStep]:
    """Measure the turns of all tasks while the block runs."""
    longest = LongestStep()
    gc.disable()  # to look through what all tests before have left takes longer than any turn
    trio.lowlevel.add_instrument(longest)
    try:
        yield longest
    finally:
        trio.lowlevel.remove_instrument(longest)
        gc.enable()
