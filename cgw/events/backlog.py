"""Lines that wait in memory for the disk, and the callers that wait for these lines."""

from __future__ import annotations

from collections import deque

import trio

MAX_BYTES = 16 * 2**20
MAX_BATCH_BYTES = 2**20


class Backlog:
    """A bounded queue of lines, written in batches. All methods belong to the Trio thread."""

    def __init__(self) -> None:
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._batch: list[bytes] = []
        self._added = 0
        self._changed = trio.Event()
        self.wake = trio.Event()
        """Set when there is something to do for the writer."""

    def __len__(self) -> int:
        """Return how many lines are not written yet, those of the batch included."""
        return len(self._batch) + len(self._queue)

    def add(self, line: bytes) -> bool:
        """Queue a line; return false, leaving it out, when 16 MiB are queued already."""
        if self._queued_bytes + len(line) > MAX_BYTES:
            return False
        self._queue.append(line)
        self._queued_bytes += len(line)
        self._added += 1
        self.wake.set()
        return True

    def take_batch(self) -> list[bytes]:
        """Make the first lines of the queue, about 1 MiB at the most, the batch, and return them."""
        taken_bytes = 0
        while self._queue and taken_bytes < MAX_BATCH_BYTES:
            line = self._queue.popleft()
            taken_bytes += len(line)
            self._batch.append(line)
        self._queued_bytes -= taken_bytes
        return self._batch

    def end_batch(self) -> None:
        """Forget the batch, and wake those who wait for its lines."""
        self._batch = []
        self._changed.set()
        self._changed = trio.Event()
        if self._queue:
            self.wake.set()

    def take_all(self) -> list[bytes]:
        """Give up all lines, those of the batch first."""
        lines = [*self._batch, *self._queue]
        self._queue.clear()
        self.end_batch()
        return lines

    async def wait_ended(self) -> None:
        """Wait until the batches of all lines that are queued now have ended."""
        last = self._added
        while self._added - len(self) < last:
            await self._changed.wait()
