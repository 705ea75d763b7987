"""A disk that is slow, hangs, or does not sync: the system's own, held up on the way to it."""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest


class Disk:
    """Stands between the process and its regular files: writes may take long or stop, syncs are seen or fail."""

    def __init__(self, write: Callable[[int, bytes], int], fdatasync: Callable[[int], None]) -> None:
        self._write, self._fdatasync = write, fdatasync
        self._is_open = threading.Event()
        self._is_open.set()
        self.write_seconds = 0.0
        self.room_bytes: int | None = None
        """What still fits; ``None``: everything. Beyond it, writes fail with ``room_error``."""
        self.room_error = errno.ENOSPC
        self.sync_error: OSError | None = None
        self.synced_bytes: list[int] = []

    def write(self, descriptor: int, data: bytes) -> int:
        """Take the place of :func:`os.write`."""
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            time.sleep(self.write_seconds)
            self._is_open.wait()
            if self.room_bytes is not None:
                data = data[: self.room_bytes]
                self.room_bytes -= len(data)
                if not data:
                    raise OSError(self.room_error, os.strerror(self.room_error))
        return self._write(descriptor, data)

    def fdatasync(self, descriptor: int) -> None:
        """Take the place of :func:`os.fdatasync`."""
        if self.sync_error is not None:
            raise self.sync_error
        size = os.fstat(descriptor).st_size
        self._fdatasync(descriptor)
        self.synced_bytes.append(size)

    @contextmanager
    def stalled(self) -> Iterator[None]:
        """Let no write return while the block runs."""
        self._is_open.clear()
        try:
            yield
        finally:
            self._is_open.set()


def install_disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """Put a :class:`Disk` in the place of this process's own for the length of the test."""
    disk = Disk(os.write, os.fdatasync)
    monkeypatch.setattr(os, "write", disk.write)
    monkeypatch.setattr(os, "fdatasync", disk.fdatasync)
    return disk
