"""Deleting segments: those that are too old, and, beyond the bound, the oldest.

Without a sink these files are the only copy, and the oldest go. With sinks a segment that one of them does not have as
a whole outlives all that are shipped, whatever its age; only the bound deletes it, if the policy lets it::

    shipped, older than the retention     deleted
    beyond the bound: shipped             deleted, the oldest first
    beyond the bound: not shipped         drop: deleted, the oldest first, with an error; refuse: kept, and said so
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from attrs import frozen

from cgw.errors import explain_os_error
from cgw.events.segments import SUMMARY_SUFFIX, TORN_SUFFIX, Segment, list_segments
from cgw.events.shipping.cursor import CursorFile, get_sink_folder

logger = logging.getLogger("cgw.events")


@frozen
class Retention:
    """The time for which, and the bytes in which, segments are kept. ``drops_unshipped`` is the policy at the bound."""

    seconds: float
    max_bytes: int
    sink_names: Sequence[str] = ()
    drops_unshipped: bool = True


@frozen
class Deleted:
    """Segments that were deleted. ``is_over`` says that the rest is beyond the bound, and has to be kept."""

    shipped: int
    unshipped: int
    is_over: bool


@frozen(order=True)
class _Sealed:
    written_at: float
    size: int
    segment: Segment


def delete_old_segments(folder: Path, retention: Retention) -> Deleted:
    """Delete sealed segments by the rules above, and log what was deleted.

    Open segments count towards the size and are never deleted. Several processes may do this at once. Raises
    :exc:`OSError` when the folder cannot be read.
    """
    sealed: list[_Sealed] = []
    total_bytes = 0
    for segment in list_segments(folder):
        with suppress(FileNotFoundError):
            status = os.stat(segment.path)
            total_bytes += status.st_size
            if not segment.is_open:
                sealed.append(_Sealed(status.st_mtime, status.st_size, segment))
    sealed.sort()
    is_shipped = _read_shipped(folder, retention.sink_names)
    shipped = [item for item in sealed if is_shipped(item)]
    expired_at = time.time() - retention.seconds
    excess_bytes = total_bytes - retention.max_bytes
    first, excess_bytes = _delete_first(shipped, excess_bytes, expired_at)
    lost = 0
    if retention.drops_unshipped:
        unshipped = [item for item in sealed if not is_shipped(item)]
        lost, excess_bytes = _delete_first(unshipped, excess_bytes)
    deleted = Deleted(first, lost, is_over=excess_bytes > 0 and not retention.drops_unshipped)
    _log(folder, deleted)
    return deleted


def _read_shipped(folder: Path, sink_names: Sequence[str]) -> Callable[[_Sealed], bool]:
    """Return a function that says whether all sinks have a segment."""
    cursors: list[Mapping[str, int]] = []
    for name in sink_names:
        cursor = CursorFile(get_sink_folder(folder, name))
        try:
            cursors.append(cursor.read().segments)
        except OSError as error:
            logger.error("%s cannot be read, so nothing counts as shipped: %s", cursor.path, explain_os_error(error))
            cursors.append({})
    return lambda item: all(offsets.get(item.segment.name, 0) >= item.size for offsets in cursors)


def _delete_first(items: Sequence[_Sealed], excess_bytes: int, expired_at: float = 0.0) -> tuple[int, int]:
    """Delete the oldest of ``items``, while there is an excess or they are expired.

    Return how many this process deleted, and the excess that is left.
    """
    deleted = 0
    for item in items:
        if excess_bytes <= 0 and item.written_at >= expired_at:
            break
        try:
            item.segment.path.unlink()
            deleted += 1
        except FileNotFoundError:
            pass  # another process was faster
        except OSError as error:  # read-only
            logger.error("event segment %s cannot be deleted: %s", item.segment.path, explain_os_error(error))
            break
        excess_bytes -= item.size
        for suffix in (SUMMARY_SUFFIX, TORN_SUFFIX):
            with suppress(OSError):
                item.segment.beside(suffix).unlink()
    return deleted, excess_bytes


def _log(folder: Path, deleted: Deleted) -> None:
    if deleted.shipped:
        logger.info("deleted %d event segments from %s: CODY_GATEWAY_EVENTS_RETENTION or CODY_GATEWAY_EVENTS_MAX_BYTES "
                    "is reached", deleted.shipped, folder)  # fmt: skip
    if deleted.unshipped:
        logger.error(
            "deleted %d event segments from %s that were not shipped yet: CODY_GATEWAY_EVENTS_MAX_BYTES is reached; "
            "mend the sink, see `cgw events status`, or raise it",
            deleted.unshipped,
            folder,
        )
