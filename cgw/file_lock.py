"""Locks between processes: an exclusive ``flock(2)``, which the kernel releases when the process ends."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_POLL_SECONDS = 0.01


@contextmanager
def hold_file_lock(path: Path, *, timeout_seconds: float = 0) -> Iterator[int]:
    """Hold the lock on the file at ``path`` for the length of the block; yield a descriptor open for read and write.

    Creates the file if it is missing (mode 0600), and never removes it. Raises :exc:`BlockingIOError` when another
    process holds the lock for longer than ``timeout_seconds``, and other :exc:`OSError` when the file cannot be
    opened. Blocks for up to the timeout: with one, call it off the Trio thread.
    """
    # Removing the file would let a third process lock a new file of the same name while the second one holds the old.
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    with _hold_lock(descriptor, timeout_seconds):
        yield descriptor


@contextmanager
def hold_folder_lock(folder: Path, *, timeout_seconds: float = 0) -> Iterator[None]:
    """Hold the lock on ``folder`` itself for the length of the block, for files that are replaced in it.

    Raises and blocks as :func:`hold_file_lock` does, and leaves no file behind.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    with _hold_lock(descriptor, timeout_seconds):
        yield


@contextmanager
def _hold_lock(descriptor: int, timeout_seconds: float) -> Iterator[None]:
    """Lock ``descriptor`` for the length of the block, and close it."""
    deadline = time.monotonic() + timeout_seconds
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(_POLL_SECONDS)  # flock(2) itself has no timeout
        yield
    finally:
        os.close(descriptor)  # releases the lock
