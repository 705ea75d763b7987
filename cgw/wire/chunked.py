"""Following chunked framing (RFC 9112 §7.1) in raw bytes, strictly and across any split.

Used where the bytes themselves are needed and h11's events are not: to refuse an oversized or malformed chunk as soon
as its size is announced. ``feed`` never copies chunk data.
"""

from __future__ import annotations

import re

from cgw.errors import CgwError

MAX_SIZE_LINE_BYTES = 256
"""The longest chunk-size line, extensions and CR LF included."""

MAX_TRAILER_BYTES = 8192
"""The longest trailer section."""

_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})([ \t]*;[^\x00-\x08\x0a-\x1f\x7f]*)?\r\n\Z")


class ChunkedFramingError(CgwError):
    """The bytes are no valid chunked body."""


class ChunkScanner:
    """Follows one chunked body. ``body_bytes`` counts the data of all chunks announced so far.

    After the end of the body ``is_complete`` is true and ``feed`` must not be called again.
    """

    __slots__ = (
        "_expects_line_end",
        "_in_trailer",
        "_line",
        "_remaining",
        "_trailer_bytes",
        "body_bytes",
        "is_complete",
    )

    def __init__(self) -> None:
        self._line = bytearray()
        self._remaining = 0
        self._expects_line_end = False
        self._in_trailer = False
        self._trailer_bytes = 0
        self.body_bytes = 0
        self.is_complete = False

    def feed(self, data: bytes | bytearray) -> int:
        """Follow ``data``; return how many of its bytes belong to this body (fewer than given only at its end).

        Raises :exc:`ChunkedFramingError` at the first byte that cannot be part of a chunked body.
        """
        position, size = 0, len(data)
        while position < size and not self.is_complete:
            if self._remaining:
                step = min(self._remaining, size - position)
                self._remaining -= step
                position += step
                self._expects_line_end = self._remaining == 0
            else:
                position = self._read_line(data, position)
        return position

    def _read_line(self, data: bytes | bytearray, position: int) -> int:
        end = data.find(b"\n", position)
        stop = len(data) if end < 0 else end + 1
        self._line += data[position:stop]
        limit = MAX_TRAILER_BYTES if self._in_trailer else MAX_SIZE_LINE_BYTES
        if len(self._line) > limit:
            raise ChunkedFramingError("a chunk-size line is too long")
        if self._expects_line_end and not b"\r\n".startswith(self._line):
            raise ChunkedFramingError("chunk data is not followed by CR LF")
        if end >= 0:
            line = bytes(self._line)
            self._line.clear()
            self._end_line(line)
        return stop

    def _end_line(self, line: bytes) -> None:
        if self._expects_line_end:
            self._expects_line_end = False
        elif self._in_trailer:
            self._end_trailer_line(line)
        else:
            match = _SIZE_LINE.match(line)
            if match is None:
                raise ChunkedFramingError("a chunk-size line is malformed")
            self._remaining = int(match[1], 16)
            self.body_bytes += self._remaining
            self._in_trailer = self._remaining == 0

    def _end_trailer_line(self, line: bytes) -> None:
        self._trailer_bytes += len(line)
        if self._trailer_bytes > MAX_TRAILER_BYTES:
            raise ChunkedFramingError("the trailer section is too long")
        if not line.endswith(b"\r\n"):
            raise ChunkedFramingError("a trailer line does not end in CR LF")
        self.is_complete = line == b"\r\n"
