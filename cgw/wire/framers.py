"""Following a body's framing in bytes that are passed on as they are: the flat relay's view of HTTP/1.1.

A framer says of every piece how much of it may be passed on at once, collects the payload for usage, and notices the
end before the bytes that would tell the client of it have left. It is strict (RFC 9112 §7.1): what it does not know,
chunk extensions and trailers included, it stops at, on a boundary where a full parser can go on.
"""

from __future__ import annotations

import enum
from typing import Protocol

from cgw.wire.windows import BodyWindowCollector

MAX_SIZES = 4096
"""How many different chunk-size lines are remembered: providers' chunks come in few sizes."""

MAX_SIZE_DIGITS = 16
"""Hexadecimal digits of a chunk size: more would not fit in 64 bits."""

_CR, _LF = 0x0D, 0x0A
_DIGITS = frozenset(b"0123456789abcdefABCDEF")


class Standing(enum.Enum):
    """Where a framer stands after a piece."""

    OPEN = "open"
    """More of the body is to come."""
    COMPLETE = "complete"
    """The body has ended properly; ``held`` is what has not been passed on."""
    UNUSUAL = "unusual"
    """``held`` begins with something for a full parser, at a boundary between chunks."""
    MALFORMED = "malformed"
    """The bytes are no valid framing."""


class Framer(Protocol):
    """What the relay needs of a framing."""

    held: bytes
    """Bytes seen but not passed on: the beginning of what comes next, or what must wait for the end."""
    held_body: bytes
    """What of ``held`` is the body's own: the last piece of a counted one."""
    surplus_bytes: int
    """Bytes after the end of the body, which nobody asked for."""

    @property
    def has_begun(self) -> bool:
        """Whether there was anything of the payload yet."""
        ...

    def follow(self, data: bytes, size: int) -> tuple[int, Standing]:
        """Take ``data``, all of its ``size`` bytes, which begin with ``held``; how many may be passed on, and where it
        leaves the body. What may not be passed on is ``held`` from now on."""
        ...


class ChunkedFramer:
    """Follows a chunked body that goes to the client in its own chunks.

    ``sizes`` remembers valid chunk-size lines and how many bytes follow each, the chunk's CR LF included. It may be
    shared by all framers of a process.
    """

    __slots__ = ("_collector", "_need", "_sizes", "held", "held_body", "surplus_bytes")

    def __init__(self, collector: BodyWindowCollector, sizes: dict[bytes, int]) -> None:
        self._collector = collector
        self._sizes = sizes
        self._need = 0  # bytes of the present chunk still to come, its CR LF included
        self.held = self.held_body = b""
        self.surplus_bytes = 0

    @property
    def has_begun(self) -> bool:
        """See :class:`Framer`."""
        return self._collector.total_bytes > 0

    def follow(self, data: bytes, size: int) -> tuple[int, Standing]:
        """See :meth:`Framer.follow`. What is held is at most a chunk-size line, or the last chunk."""
        position = 0
        self.held = b""
        if not self._need:
            # Nearly always a piece is one or more whole chunks of sizes that were seen before.
            sizes, feed = self._sizes, self._collector.feed
            while line_end := data.find(b"\n", position) + 1:
                end = line_end + sizes.get(data[position:line_end], size)
                if end > size or data[end - 2 : end] != b"\r\n":
                    break
                feed(data[line_end : end - 2])
                if end == size:
                    return size, Standing.OPEN
                position = end
        return self._follow_closely(data, position, size)

    def _follow_closely(self, data: bytes, position: int, size: int) -> tuple[int, Standing]:
        while position < size:
            if self._need:
                position, is_valid = self._follow_chunk(data, position, size)
                if not is_valid:
                    return position, Standing.MALFORMED
                continue
            line_end = data.find(b"\n", position) + 1
            if not line_end:
                self.held = data[position:]
                return position, Standing.OPEN if self._may_be_size(self.held) else Standing.UNUSUAL
            chunk_bytes = self._parse_size(data[position:line_end])
            if chunk_bytes < 0:
                self.held = data[position:]
                return position, Standing.UNUSUAL
            if chunk_bytes == 0:
                return position, self._end(data[position:])
            self._need = chunk_bytes + 2
            position = line_end
        return size, Standing.OPEN

    def _follow_chunk(self, data: bytes, position: int, size: int) -> tuple[int, bool]:
        need = self._need
        end = position + need
        if end <= size:
            self._need = 0
            if need > 2:
                self._collector.feed(data[position : end - 2])
            is_valid = data[end - 1] == _LF and (need == 1 or data[end - 2] == _CR)
            return end, is_valid
        self._need = end - size
        payload_end = min(size, end - 2)
        if payload_end > position:
            self._collector.feed(data[position:payload_end])
        return size, self._need != 1 or data[size - 1] == _CR

    def _may_be_size(self, part: bytes) -> bool:
        digits = part[:-1] if part.endswith(b"\r") else part
        return len(digits) <= MAX_SIZE_DIGITS and _DIGITS.issuperset(digits)

    def _parse_size(self, line: bytes) -> int:
        """The size of a plain chunk-size line, or −1 for what is not one (an extension, or nonsense)."""
        digits = line[:-2]
        if not line.endswith(b"\r\n") or not digits or len(digits) > MAX_SIZE_DIGITS or not _DIGITS.issuperset(digits):
            return -1
        chunk_bytes = int(digits, 16)
        if chunk_bytes and len(self._sizes) < MAX_SIZES:
            self._sizes[line] = chunk_bytes + 2
        return chunk_bytes

    def _end(self, rest: bytes) -> Standing:
        """``rest`` begins with the last chunk's size line; only when no trailer follows is it the plain end."""
        line_end = rest.index(b"\n") + 1
        self.held = rest
        after = rest[line_end : line_end + 2]
        if after == b"\r\n":
            self.surplus_bytes = len(rest) - line_end - 2
            return Standing.COMPLETE
        return Standing.OPEN if b"\r\n".startswith(after) else Standing.UNUSUAL


class LengthFramer:
    """Follows a body of ``content_length`` bytes. The piece that completes it is held as a whole."""

    __slots__ = ("_collector", "_need", "held", "held_body", "surplus_bytes")

    def __init__(self, collector: BodyWindowCollector, content_length: int) -> None:
        self._collector = collector
        self._need = content_length
        self.held = self.held_body = b""
        self.surplus_bytes = 0

    @property
    def has_begun(self) -> bool:
        """See :class:`Framer`."""
        return self._collector.total_bytes > 0

    def follow(self, data: bytes, size: int) -> tuple[int, Standing]:
        """See :meth:`Framer.follow`."""
        if size < self._need:
            self._need -= size
            self._collector.feed(data)
            return size, Standing.OPEN
        self.held = self.held_body = data[: self._need]
        self._collector.feed(self.held)
        self.surplus_bytes = size - self._need
        self._need = 0
        return 0, Standing.COMPLETE
