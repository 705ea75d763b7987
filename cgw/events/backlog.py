"""Lines that wait in memory for a slow disk."""

from __future__ import annotations

from collections import deque

MAX_BYTES = 16 * 2**20
MAX_BATCH_BYTES = 2**20


class Backlog:
    """A bounded queue of lines, taken in batches. ``batch`` is what is being written now."""

    def __init__(self) -> None:
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self.batch: list[bytes] = []

    def __len__(self) -> int:
        """Return how many lines are queued, without those of the batch."""
        return len(self._queue)

    def add(self, line: bytes) -> bool:
        """Queue a line; return false, leaving it out, when 16 MiB are queued already."""
        if self._queued_bytes + len(line) > MAX_BYTES:
            return False
        self._queue.append(line)
        self._queued_bytes += len(line)
        return True

    def take_batch(self) -> bytes:
        """Make the first lines of the queue, up to 1 MiB and at least one, the batch, and return them."""
        taken_bytes = 0
        while self._queue and taken_bytes < MAX_BATCH_BYTES:
            line = self._queue.popleft()
            taken_bytes += len(line)
            self.batch.append(line)
        self._queued_bytes -= taken_bytes
        return b"".join(self.batch)

    def end_batch(self) -> list[bytes]:
        """Forget the batch, and return its lines."""
        batch, self.batch = self.batch, []
        return batch

    def list_all(self) -> list[bytes]:
        """Return all lines, those of the batch first."""
        return [*self.batch, *self._queue]
