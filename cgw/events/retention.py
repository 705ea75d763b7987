"""Keeping the folder of the event log in order: adopting segments, and deleting those too old or too many."""

from __future__ import annotations

import logging
import os
import time
from contextlib import suppress
from pathlib import Path

from cgw.events.segments import SUMMARY_SUFFIX, TORN_SUFFIX, Segment, adopt_segments, list_segments
from cgw.events.settings import EventSettings

logger = logging.getLogger("cgw.events")


def keep_house(folder: Path, settings: EventSettings) -> None:
    """Seal the segments of processes that died, then delete old ones; see the two functions for details."""
    adopt_segments(folder)
    delete_old_segments(folder, retention_seconds=settings.retention_seconds, max_bytes=settings.max_bytes)


def delete_old_segments(folder: Path, *, retention_seconds: float, max_bytes: int) -> int:
    """Delete sealed segments last written before ``retention_seconds`` ago, then the oldest above ``max_bytes``.

    Open segments count towards the size and are never deleted. Returns how many were deleted. Several processes may
    do this at once. Raises :exc:`OSError` when the folder cannot be read.
    """
    sealed: list[tuple[float, int, Segment]] = []
    total_bytes = 0
    for segment in list_segments(folder):
        with suppress(FileNotFoundError):
            status = os.stat(segment.path)
            total_bytes += status.st_size
            if not segment.is_open:
                sealed.append((status.st_mtime, status.st_size, segment))
    expired = time.time() - retention_seconds
    deleted = deleted_bytes = 0
    for written_at, size, segment in sorted(sealed):
        if written_at >= expired and total_bytes <= max_bytes:
            break
        with suppress(FileNotFoundError):  # another process was faster
            segment.path.unlink()
            deleted += 1
            deleted_bytes += size
        total_bytes -= size
        for suffix in (SUMMARY_SUFFIX, TORN_SUFFIX):
            with suppress(FileNotFoundError):
                segment.beside(suffix).unlink()
    if deleted:
        logger.info("deleted %d event segments (%d bytes) from %s: CODY_GATEWAY_EVENTS_RETENTION or "
                    "CODY_GATEWAY_EVENTS_MAX_BYTES is reached", deleted, deleted_bytes, folder)  # fmt: skip
    return deleted
