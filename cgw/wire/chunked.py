"""A strict checker of chunked request bodies (RFC 9112 §7.1), independent of where the data is cut.

It runs in front of h11, which is more lenient with size lines, and which tells of a chunk only once its data is there:
here a malformed or oversized chunk is refused as soon as its size line is read.
"""

from __future__ import annotations

import re

from cgw.errors import CgwError

MAX_SIZE_LINE_BYTES = 256
"""The longest chunk-size line, extensions and CR LF included. Bounds what is buffered of an unfinished line."""

MAX_TRAILER_BYTES = 8192
"""The longest trailer section."""

SMALL_CHUNKS = 1024
SMALL_CHUNK_BYTES = 32
"""A body of more than ``SMALL_CHUNKS`` chunks must have so many bytes of data per chunk in the mean: smaller ones cost
far more to read than to send."""

# At most 16 digits fit in 64 bits, leading zeros apart. Extensions are skipped, but may not contain control characters:
# a bare CR or LF that another parser takes for a line end would move the end of the body (request smuggling).
_SIZE_LINE = re.compile(rb"(0*+[0-9A-Fa-f]{0,16})(?<=[0-9A-Fa-f])([ \t]*;[^\x00-\x08\x0a-\x1f\x7f]*)?\r\n\Z")


class ChunkedFramingError(CgwError):
    """The data is not a valid chunked body. The first ``valid_bytes`` of what ``feed`` was given are."""

    valid_bytes = 0


class ChunkScanner:
    """Checks one chunked body.

    ``refuses_small_chunks``: see :data:`SMALL_CHUNK_BYTES`. ``body_bytes`` is the sum of all chunk sizes, which grows
    before the data arrives, so that a limit can be applied early. ``is_complete`` becomes true at the end of the body;
    ``feed`` must not be called after that.
    """

    __slots__ = (
        "_chunk_count",
        "_expects_line_end",
        "_in_trailer",
        "_line",
        "_remaining",
        "_small_chunk_bytes",
        "_trailer_bytes",
        "body_bytes",
        "is_complete",
    )

    def __init__(self, *, refuses_small_chunks: bool = True) -> None:
        self._small_chunk_bytes = SMALL_CHUNK_BYTES if refuses_small_chunks else 0
        self._line = bytearray()
        self._remaining = 0  # of the current chunk's data, without its CR LF
        self._expects_line_end = False
        self._in_trailer = False
        self._trailer_bytes = 0
        self._chunk_count = 0
        self.body_bytes = 0
        self.is_complete = False

    def feed(self, data: bytes | bytearray) -> int:
        """Check ``data``; return how many of its bytes belong to the body (fewer than given only at its end).

        Chunk data is not copied. Raises :exc:`ChunkedFramingError` at the first line that is not valid.
        """
        position, size = 0, len(data)
        while position < size and not self.is_complete:
            if self._remaining:
                step = min(self._remaining, size - position)
                self._remaining -= step
                position += step
                self._expects_line_end = self._remaining == 0
            else:
                try:
                    position = self._read_line(data, position)
                except ChunkedFramingError as error:
                    error.valid_bytes = position
                    raise
        return position

    def _read_line(self, data: bytes | bytearray, position: int) -> int:
        end = data.find(b"\n", position)
        stop = len(data) if end < 0 else end + 1
        self._line += data[position:stop]
        limit = MAX_TRAILER_BYTES if self._in_trailer else MAX_SIZE_LINE_BYTES
        if len(self._line) > limit:
            raise ChunkedFramingError("a chunk-size line is too long")
        # Checked before the LF is there: after chunk data only CR LF may follow, so nothing else is buffered.
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
            self._chunk_count += self._remaining > 0  # the last chunk has no data
            if self._chunk_count > SMALL_CHUNKS and self.body_bytes < self._chunk_count * self._small_chunk_bytes:
                raise ChunkedFramingError(f"its chunks are smaller than {self._small_chunk_bytes} bytes in the mean")
            self._in_trailer = self._remaining == 0

    def _end_trailer_line(self, line: bytes) -> None:
        self._trailer_bytes += len(line)
        if self._trailer_bytes > MAX_TRAILER_BYTES:
            raise ChunkedFramingError("the trailer section is too long")
        if not line.endswith(b"\r\n"):
            raise ChunkedFramingError("a trailer line does not end in CR LF")
        self.is_complete = line == b"\r\n"
