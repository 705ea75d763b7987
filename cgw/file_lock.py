"""Locks between processes: an exclusive ``flock(2)`` on a file that the kernel releases when the process ends."""

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
    """Hold the lock file at ``path`` for the length of the block; yield its descriptor, open for reading and writing.

    The file is created when it is missing (mode 0600), and stays. Raises :exc:`BlockingIOError` when another process
    holds the lock for longer than ``timeout_seconds``, and other :exc:`OSError` when the file cannot be opened.
    Blocks: with a timeout, call it off the Trio thread.
    """
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + timeout_seconds
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(_POLL_SECONDS)
        yield descriptor
    finally:
        os.close(descriptor)
