"""Following the event log live, over all of its segments, as ``tail -f`` does a file."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from cgw.events.reading import list_readable_segments, read_chunks

POLL_SECONDS = 0.25

TAIL_BYTES = 2**20
"""The end of a segment in which its last lines are looked for."""


class Follower:
    """Reads what is appended to the segments in ``folder``, from the construction on. Every method blocks.

    Segments are known by names that stay the same when they are sealed, so that none is read twice or missed over a
    rotation, whichever process writes. Raises :exc:`~cgw.errors.EventLogError`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._offsets: dict[str, int] = {}

    def read_last(self, count: int) -> list[bytes]:
        """Return the last ``count`` lines that there are now; :meth:`read_new` goes on after them."""
        lines: list[bytes] = []
        for segment in list_readable_segments(self._folder):
            try:
                size = segment.path.stat().st_size
            except FileNotFoundError:
                continue  # sealed meanwhile: all of it comes as new
            offset = start = max(0, size - TAIL_BYTES)
            for chunk in read_chunks(segment, start):
                whole = chunk.lines.splitlines()
                if start and offset == start:
                    whole = whole[1:]  # a piece of a line
                offset = chunk.offset
                lines = [*lines, *whole][-count:] if count else []
            self._offsets[segment.name] = offset
        return lines

    def read_new(self) -> Iterator[bytes]:
        """Yield the lines that were appended since the last call."""
        segments = list_readable_segments(self._folder)
        for segment in segments:
            for chunk in read_chunks(segment, self._offsets.get(segment.name, 0)):
                self._offsets[segment.name] = chunk.offset
                yield from chunk.lines.splitlines()
        names = {segment.name for segment in segments}
        self._offsets = {name: offset for name, offset in self._offsets.items() if name in names}

    def follow(self) -> Iterator[bytes]:
        """Yield lines as they are appended, for ever."""
        while True:
            yield from self.read_new()
            time.sleep(POLL_SECONDS)
