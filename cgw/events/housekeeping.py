"""The folder of the event log: opened at the start, and kept in order: segments adopted, and deleted when too old."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from pathlib import Path

import trio

from cgw.errors import ConfigError, explain_os_error
from cgw.events.imports import import_sqlite
from cgw.events.options import EventLogOptions
from cgw.events.retention import Deleted, Retention, delete_old_segments
from cgw.events.segments import OpenSegment, adopt_segments, create_segment

PERIOD_SECONDS = 60.0
OVER_SECONDS = 5.0
"""The period while requests are refused, because the bound is exceeded by events that sinks do not have."""

FULL_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
"""With these a service starts nevertheless: they may pass while it runs."""

logger = logging.getLogger("cgw.events")


def open_folder(folder: Path, options: EventLogOptions) -> tuple[OpenSegment | None, str]:
    """Bring the folder in order, import the events of an earlier version, and start a segment.

    Where there can be no segment for a reason that may pass, the reason is returned. Raises
    :exc:`~cgw.errors.ConfigError` for any other.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _keep_house(folder, options)
        import_sqlite(folder.parent / "events.sqlite", folder)
        return create_segment(folder, has_sync=options.settings.fsync != "off"), ""
    except OSError as error:
        if error.errno in FULL_ERRORS:
            return None, explain_os_error(error)
        raise ConfigError([f"usage events cannot be kept in {folder}: {explain_os_error(error)}"]) from None


async def serve_housekeeping(folder: Path, options: EventLogOptions, report: Callable[[Deleted], None]) -> None:
    """Keep the folder in order in a thread, until cancelled; pass what was deleted to ``report`` each time.

    Once a minute, and more often while the bound is exceeded.
    """
    pause = PERIOD_SECONDS
    while True:
        await trio.sleep(pause)
        try:
            # Abandoned when cancelled: a disk that hangs must not keep the process from ending.
            deleted = await trio.to_thread.run_sync(_keep_house, folder, options, abandon_on_cancel=True)
        except OSError as error:
            logger.error("event segments in %s cannot be listed: %s", folder, explain_os_error(error))
        else:
            report(deleted)
            pause = OVER_SECONDS if deleted.is_over else PERIOD_SECONDS


def _keep_house(folder: Path, options: EventLogOptions) -> Deleted:
    adopt_segments(folder)
    settings, names = options.settings, options.sink_names
    retention = Retention(
        settings.get_retention(has_sinks=bool(names)),
        settings.max_bytes,
        names,
        # Without a sink nothing would ever make room again.
        drops_unshipped=settings.when_full == "drop" or not names,
    )
    return delete_old_segments(folder, retention)
