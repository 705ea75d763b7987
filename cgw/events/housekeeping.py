"""The folder of the event log: opened at the start, and kept in order: segments adopted, and deleted when too old."""

from __future__ import annotations

import errno
import logging
import os
import time
from contextlib import suppress
from pathlib import Path

import trio

from cgw.errors import ConfigError, explain_os_error
from cgw.events.imports import import_sqlite
from cgw.events.segments import (
    SUMMARY_SUFFIX,
    TORN_SUFFIX,
    OpenSegment,
    Segment,
    adopt_segments,
    create_segment,
    list_segments,
)
from cgw.events.settings import EventSettings

PERIOD_SECONDS = 60.0

FULL_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
"""With these a service starts nevertheless: they may pass while it runs."""

logger = logging.getLogger("cgw.events")


def open_folder(folder: Path, settings: EventSettings) -> tuple[OpenSegment | None, str]:
    """Bring the folder in order, import the events of an earlier version, and start a segment.

    Where there can be no segment for a reason that may pass, the reason is returned. Raises
    :exc:`~cgw.errors.ConfigError` for any other.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _keep_house(folder, settings)
        import_sqlite(folder.parent / "events.sqlite", folder)
        return create_segment(folder, has_sync=settings.fsync != "off"), ""
    except OSError as error:
        if error.errno in FULL_ERRORS:
            return None, explain_os_error(error)
        raise ConfigError([f"usage events cannot be kept in {folder}: {explain_os_error(error)}"]) from None


async def serve_housekeeping(folder: Path, settings: EventSettings) -> None:
    """Keep the folder in order once a minute, in a thread, until cancelled."""
    while True:
        await trio.sleep(PERIOD_SECONDS)
        try:
            # Abandoned when cancelled: a disk that hangs must not keep the process from ending.
            await trio.to_thread.run_sync(_keep_house, folder, settings, abandon_on_cancel=True)
        except OSError as error:
            logger.error("event segments in %s cannot be listed: %s", folder, explain_os_error(error))


def _keep_house(folder: Path, settings: EventSettings) -> None:
    adopt_segments(folder)
    delete_old_segments(folder, retention_seconds=settings.get_retention(has_sinks=False), max_bytes=settings.max_bytes)


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
