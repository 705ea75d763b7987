"""The C library's allocator: keep the memory of one large body for the next one.

By default glibc returns freed memory to the kernel as soon as 128 KiB to some megabytes of it lie at the end of the
heap. A body of 1 MB is received, decoded and sent in several pieces of that size, so that each exchange would fault all
of them in again. Measured with bodies of 1 MB: half of an exchange's CPU time.
"""

from __future__ import annotations

import ctypes
import sys

# malloc.h
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3

TRIM_BYTES = 32 * 2**20
"""Free memory at the end of the heap from which on it is returned: what an idle process keeps at most."""

MMAP_BYTES = 4 * 2**20
"""Larger pieces have a mapping of their own, and are returned as soon as they are freed."""


def keep_freed_memory() -> bool:
    """Set both thresholds for this process; return whether that was possible, as it is with glibc only."""
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    return bool(mallopt(_M_TRIM_THRESHOLD, TRIM_BYTES)) and bool(mallopt(_M_MMAP_THRESHOLD, MMAP_BYTES))
