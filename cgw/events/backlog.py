"""Lines that wait in memory for the disk, and the callers that wait for these lines."""

from __future__ import annotations

from collections import deque

import trio

MAX_BYTES = 16 * 2**20


class Backlog:
    """A bounded queue of lines. All methods belong to the Trio thread."""

    def __init__(self) -> None:
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._removed = 0
        self._has_removed = trio.Event()
        self.wake = trio.Event()
        """Set when there may be something to do for the writer."""

    def __len__(self) -> int:
        """Return how many lines wait."""
        return len(self._queue)

    def add(self, line: bytes) -> bool:
        """Queue a line; return false, leaving it out, when 16 MiB are queued already."""
        if self._queued_bytes + len(line) > MAX_BYTES:
            return False
        self._queue.append(line)
        self._queued_bytes += len(line)
        self.wake.set()
        return True

    def list_first(self, max_bytes: int = MAX_BYTES) -> list[bytes]:
        """Return the first lines, up to ``max_bytes`` and the line that exceeds them."""
        lines: list[bytes] = []
        size = 0
        for line in self._queue:
            if size >= max_bytes:
                break
            lines.append(line)
            size += len(line)
        return lines

    def remove_first(self, count: int) -> None:
        """Remove lines that are written, or lost, and wake those who wait for that."""
        for _ in range(count):
            self._queued_bytes -= len(self._queue.popleft())
        self._removed += count
        self._has_removed.set()
        self._has_removed = trio.Event()
        if self._queue:
            self.wake.set()

    async def wait_removed(self) -> None:
        """Wait until all lines that are queued now have been removed."""
        last = self._removed + len(self)
        while self._removed < last:
            await self._has_removed.wait()
