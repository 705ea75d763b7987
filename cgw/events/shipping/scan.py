"""Finding the segments that a sink does not have as a whole yet."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from attrs import frozen

from cgw.events.segments import Segment, list_segments


@frozen
class Listed:
    """A segment and its size in bytes."""

    segment: Segment
    size: int


def list_sized(folder: Path) -> Iterator[Listed]:
    """Yield the segments in ``folder`` with their sizes, the earliest started first.

    None of a folder that is missing, or of a segment that is deleted meanwhile. Blocks on the disk; raises
    :exc:`OSError`.
    """
    try:
        segments = list_segments(folder)
    except FileNotFoundError:
        return
    for segment in segments:
        if (listed := _measure(segment)) is not None:
            yield listed


def _measure(segment: Segment) -> Listed | None:
    try:
        return Listed(segment, os.stat(segment.path).st_size)
    except FileNotFoundError:  # sealed since it was listed, or deleted
        sealed = Segment(segment.folder, segment.name, is_open=False)
    with suppress(FileNotFoundError):
        return Listed(sealed, os.stat(sealed.path).st_size)
    return None


def is_shipped(listed: Listed, offsets: Mapping[str, int]) -> bool:
    """Return whether a sink with these offsets has all of a segment. An open one may still grow."""
    return not listed.segment.is_open and offsets.get(listed.segment.name, 0) >= listed.size
