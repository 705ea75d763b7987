"""Claims: which process ships which segment.

A segment is shipped by the process that holds its lock (``flock``)::

    open      the process that appends to it has the lock already; its shipper shares it
    sealed    whichever process locks it first; the kernel frees the lock when that process dies

The lock of an open segment stays with its process while it is sealed, for as long as the shipper needs it. So no
two processes send the same events, but for those whose sender died before it could move the cursor.
"""

from __future__ import annotations

import fcntl
import os
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path

from cgw.events.segments import Segment, is_same_file
from cgw.events.shipping.threads import run_in_thread


class ClaimedFile:
    """A segment's file, locked and open for reading. Safe to use from any thread."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()

    def read(self, size: int, offset: int) -> bytes:
        """Return up to ``size`` bytes from ``offset`` on. Blocks on the disk; raises :exc:`OSError`."""
        with self._lock:
            return os.pread(self._descriptor, size, offset)

    def close(self) -> None:
        """Close the file, unless a thread hangs in reading it; then it stays open."""
        # The number of a closed descriptor could be reused under that thread.
        if self._lock.acquire(blocking=False):
            with suppress(OSError):
                os.close(self._descriptor)
            # Never released: nobody may read any more.


class Claims:
    """The segments that this process ships, shared by its sinks. All methods belong to the Trio thread.

    A file is closed, and its lock freed, when each sink that claimed it has released it.
    """

    def __init__(self) -> None:
        self._files: dict[str, ClaimedFile] = {}
        self._counts: dict[str, int] = {}
        self._damaged: set[str] = set()

    def __len__(self) -> int:
        return len(self._files)

    def share(self, name: str, descriptor: int) -> ClaimedFile:
        """Claim the open segment of this process, whose locked ``descriptor`` is duplicated. Raises :exc:`OSError`."""
        return self._count(name) or self._add(name, os.dup(descriptor))

    async def claim(self, segment: Segment) -> ClaimedFile | None:
        """Claim a sealed segment; return ``None`` when another process has it, or it is gone.

        Raises :exc:`OSError` when the file cannot be opened.
        """
        if (claimed := self._count(segment.name)) is not None:
            return claimed
        descriptor = await run_in_thread(partial(_lock_file, segment.path))
        if descriptor is None:
            return self._count(segment.name)  # another sink of this process was faster
        return self._add(segment.name, descriptor)

    def release(self, name: str) -> None:
        """Give up one claim of a segment."""
        self._counts[name] -= 1
        if not self._counts[name]:
            del self._counts[name]
            self._files.pop(name).close()

    def note_damage(self, name: str) -> bool:
        """Return whether a segment's damage was not reported yet by another sink of this process."""
        is_new = name not in self._damaged
        self._damaged.add(name)
        return is_new

    def _count(self, name: str) -> ClaimedFile | None:
        claimed = self._files.get(name)
        if claimed is not None:
            self._counts[name] += 1
        return claimed

    def _add(self, name: str, descriptor: int) -> ClaimedFile:
        self._counts[name] = 1
        self._files[name] = ClaimedFile(descriptor)
        return self._files[name]


def _lock_file(path: Path) -> int | None:
    """Open and lock a file for reading; return the descriptor, ``None`` if it is locked or gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if is_same_file(path, descriptor):
            return descriptor
    except BlockingIOError:
        pass
    except BaseException:  # the descriptor belongs to nobody yet
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None
