"""Repeated refusals as one event with a count: a client that hammers must not fill the disk.

The windows of one actor and kind of refusal, each a second long::

    refused ──> recorded at once, count 1 ──┬── refused again: counted
                                            │
      ┌──────── the second is over ─────────┘
      │   none counted: forgotten
      └── some counted: one event with their count, and the next window begins

So the death of the process loses the counts of the second under way at most, and of no actor all of them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Mapping
from typing import Any

import trio
from attrs import define
from msgspec import Struct

from cgw.events.event_log import EventLog
from cgw.model import UsageEvent

WINDOW_SECONDS = 1.0

MAX_WINDOWS = 10_000
"""Windows in memory. While there are so many, further actors' refusals are recorded one by one."""

SLICE_SECONDS = 0.02
"""The shortest time between two rounds of closing windows, each of which is a wake-up of the process."""

WINDOWS_PER_TURN = 100
"""Windows that are closed, at up to 10 µs each, before other tasks get their turn."""


@define(eq=False)
class _Window:
    ends_at: float
    latest: UsageEvent
    metadata: Mapping[str, Any]  # of the latest
    count: int = 0  # of refusals since the last event


class RepeatedEvents:
    """Counts events that repeat each other while :meth:`run` runs; until then, and afterwards, none is absorbed."""

    def __init__(self, event_log: EventLog) -> None:
        self._event_log = event_log
        # By their end, because all are equally long.
        self._windows: OrderedDict[Hashable, _Window] = OrderedDict()
        self._is_running = False
        self._begun = trio.Event()

    def absorb(self, event: UsageEvent) -> bool:
        """Return whether ``event`` repeats one of the last second, and is counted; otherwise the caller records it.

        Events repeat each other if they have the same name, actor, ``feature``, ``cause`` and ``reason``.
        """
        if not self._is_running:
            return False
        metadata = event.metadata
        if isinstance(metadata, Struct):  # a completion, and no two are the same
            return False
        details = metadata.get("feature"), metadata.get("cause"), metadata.get("reason")
        key = event.name, event.source, event.identifier, details
        window = self._windows.get(key)
        if window is not None:
            window.latest, window.metadata = event, metadata
            window.count += 1
            return True
        if len(self._windows) < MAX_WINDOWS:
            self._windows[key] = _Window(trio.current_time() + WINDOW_SECONDS, event, metadata)
            self._begun.set()
        return False

    async def run(self) -> None:
        """Record what was counted at the end of each second, until cancelled; then, at once, what is left."""
        self._is_running = True
        try:
            while True:
                await self._begun.wait()
                first = next(iter(self._windows.values()))
                await trio.sleep_until(max(first.ends_at, trio.current_time() + SLICE_SECONDS))
                await self._close_windows(trio.current_time())
                if not self._windows:
                    self._begun = trio.Event()
        finally:
            self._is_running = False
            for window in self._windows.values():
                self._record(window)
            self._windows.clear()

    async def _close_windows(self, now: float) -> None:
        closed = 0
        while self._windows:
            key, window = next(iter(self._windows.items()))
            if window.ends_at > now:
                return
            if window.count:
                self._record(window)
                window.ends_at = now + WINDOW_SECONDS
                self._windows.move_to_end(key)
            else:
                del self._windows[key]
            closed += 1
            if not closed % WINDOWS_PER_TURN:
                await trio.lowlevel.checkpoint()

    def _record(self, window: _Window) -> None:
        if window.count:
            latest, count, window.count = window.latest, window.count, 0
            # A new event, with an id and a time of its own.
            metadata = {**window.metadata, "count": count}
            self._event_log.record(UsageEvent(latest.name, latest.source, latest.identifier, metadata))
