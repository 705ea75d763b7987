"""Reading batches of events from a segment."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from attrs import frozen

from cgw.events.lines import MAX_LINE_BYTES, EventLine
from cgw.events.shipping.claims import ClaimedFile

READ_BYTES = 2**17

MAX_DAMAGE_BYTES = 4 * 2**20
"""A batch ends after so many bytes that are not events, so that one call does not read a large file to its end."""

_decode = msgspec.json.Decoder(EventLine).decode


@frozen
class Batch:
    """Whole events of one segment, in their order, and where they stand in it: from ``start`` up to ``end``.

    ``lines`` may be empty: between the offsets there was nothing but damaged lines then. ``first_created_at`` is the
    time of the first event, as it stands in its line.
    """

    segment_name: str
    start: int
    end: int
    lines: Sequence[bytes]
    first_created_at: str

    @property
    def id(self) -> str:
        """The same for the same events of the same segment."""
        return f"{self.segment_name}.{self.start}-{self.end}"


class SegmentReader:
    """Reads a claimed segment from an offset on. One call at a time, each from any thread.

    Damaged lines are left out and counted in ``damaged``.
    """

    def __init__(self, name: str, file: ClaimedFile, offset: int) -> None:
        self.name = name
        self.offset = offset  # of the next line to return
        self.damaged = 0
        self._file = file
        self._buffer = b""
        self._position = 0  # within the buffer, of the next line
        self._is_cut = False  # the beginning of the next line was discarded: it is too long to be an event

    def read_batch(self, max_events: int, max_bytes: int) -> Batch | None:
        """Return the next events, ``None`` when there are none yet.

        The batch is filled up to ``max_events`` and ``max_bytes``, as far as there are whole lines; one event that is
        larger comes alone. Memory: the batch and 1 MiB. Blocks on the disk; raises :exc:`OSError`.
        """
        start, size, first_created_at = self.offset, 0, ""
        lines: list[bytes] = []
        while len(lines) < max_events and self.offset - start < max_bytes + MAX_DAMAGE_BYTES:
            end = self._buffer.find(b"\n", self._position) + 1
            if not end:
                if not self._fill():
                    break
                continue
            line = self._buffer[self._position : end]
            if lines and size + len(line) > max_bytes:
                break
            self._position = end
            self.offset += len(line)
            created_at = None if self._is_cut else examine_line(line)
            self._is_cut = False
            if created_at is None:
                self.damaged += bool(line.strip())
                continue
            first_created_at = first_created_at or created_at
            lines.append(line)
            size += len(line)
        if self.offset == start:
            return None
        return Batch(self.name, start, self.offset, lines, first_created_at)

    def skip_rest(self) -> Batch | None:
        """Return an empty batch for what follows the last newline of a sealed segment, if there is something."""
        start, rest = self.offset, self._buffer[self._position :]
        if not rest:
            return None
        self.damaged += 1
        self.offset += len(rest)
        self._buffer, self._position = b"", 0
        return Batch(self.name, start, self.offset, (), "")

    def _fill(self) -> bool:
        """Read more of the file; return whether there was more."""
        rest = self._buffer[self._position :]
        if len(rest) > MAX_LINE_BYTES:
            self.offset += len(rest)
            rest, self._is_cut = b"", True
        data = self._file.read(READ_BYTES, self.offset + len(rest))
        self._buffer, self._position = rest + data, 0
        return bool(data)


def examine_line(line: bytes) -> str | None:
    """Return the time of the event in a line, ``None`` if it is damaged."""
    # One by one and not the whole batch at once: msgspec would not let another thread run for milliseconds.
    try:
        return _decode(line).created_at
    except (ValueError, RecursionError):
        return None
