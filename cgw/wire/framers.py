"""Framers: find the end of a response's body in raw HTTP/1.1 bytes that are forwarded unchanged.

Used on the fast path only (:mod:`cgw.transport.flat_relay`). For each piece of data a framer says how many bytes may be
forwarded now and whether the body has ended, and gives the payload to a collector, from which usage is read later. It
stops before the bytes that tell the client that the answer is complete, so that the exchange can be recorded first:
HTTP's end of the body, or the API's last event, if the collector looks for that.

Framers accept a strict subset of RFC 9112 §7.1. At anything else that could be valid (chunk extensions, trailers) they
stop at a boundary between chunks, where h11 can continue.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Protocol

from cgw.wire.windows import MAX_PIECES, BodyWindowCollector

MAX_SIZES = 4096
"""The most chunk-size lines that are cached, and the most small chunks. Providers use few; the bound is for upstreams
that do not."""

SMALL_BYTES = 1024
"""The most bytes of a small chunk, its framing included. Most events of streams are smaller."""

MAX_SIZE_DIGITS = 16
"""The most hexadecimal digits of a chunk size: what fits in 64 bits."""

_CR, _LF = 0x0D, 0x0A
_DIGITS = frozenset(b"0123456789abcdefABCDEF")


class FramerState(enum.Enum):
    """The state of a body after a piece of its data. After ``OPEN`` and ``FINAL`` more may be fed."""

    OPEN = "open"
    """More of the body follows."""
    FINAL = "final"
    """The API's last event has come, and is in ``final``. More of the body may follow: ``feed`` may be called again,
    with ``held`` first."""
    COMPLETE = "complete"
    """The body has ended properly; ``held`` are its bytes that were not forwarded."""
    UNUSUAL = "unusual"
    """``held`` begins at a boundary between chunks, with something that only a full parser can read."""
    MALFORMED = "malformed"
    """The data is not valid framing."""


class Framer(Protocol):
    """One body's framing.

    ``take`` or ``feed`` is called with each piece of data that comes from the upstream, until ``feed`` returns another
    state than ``OPEN``.
    """

    held: bytes
    """Data that was fed but may not be forwarded yet. While the body is open: the start of a chunk-size line, or of the
    end of the body; the caller puts it in front of the next piece. In a final state: see :class:`FramerState`."""
    final: bytes
    """Raw data that completes the answer, to be sent once the exchange is recorded: what was read with the API's last
    event, or the last piece of a body with a content length."""
    final_payload_bytes: int
    """How much of what was collected is in ``final``."""
    surplus_bytes: int
    """How many bytes were fed beyond the end of the body. The upstream was not asked for them, so its connection cannot
    be used again."""

    @property
    def has_begun(self) -> bool:
        """True if any payload was seen."""
        ...

    @property
    def is_at_boundary(self) -> bool:
        """True if the data that may be forwarded ends where a chunk, or the whole body, has ended validly."""
        ...

    def take(self, data: bytes, size: int) -> bool:
        """Take ``data`` if it is as usual: then all of it may be forwarded, and the body is still open.

        ``size`` is ``len(data)``. Where this returns ``False``, nothing has happened, and ``data`` is to be fed.
        """
        ...

    def feed(self, data: bytes, size: int) -> tuple[int, FramerState]:
        """Take ``data`` (``held`` first), and return how many of its bytes may be forwarded, and the body's state.

        ``size`` is ``len(data)``, which the caller has at hand. The rest of ``data`` is in ``held`` afterwards.
        """
        ...


class ChunkSizes:
    """A cache that all framers of a process may share, of chunk sizes that were checked.

    Looking a size line up replaces checking and converting its digits.
    """

    __slots__ = ("sizes", "small")

    def __init__(self) -> None:
        self.sizes: dict[bytes, int] = {}
        """From a chunk-size line to the size of the whole chunk: line, payload and CR LF. Not of the last chunk."""
        self.small: dict[bytes, tuple[int, slice]] = {}
        """From the first five bytes of a small chunk to its whole size, and the place of its payload."""

    def note(self, line: bytes, chunk_bytes: int) -> None:
        """Remember a valid line, as long as there is room for it."""
        if len(self.sizes) < MAX_SIZES:
            self.sizes[line] = len(line) + chunk_bytes + 2

    def note_small(self, chunks: bytes, size: int) -> None:
        """Remember a small chunk, if ``chunks``, of ``size`` bytes, is only one, and its size was noted."""
        if size > SMALL_BYTES:
            return
        line_end = chunks.find(b"\n") + 1
        # The first five bytes have the whole line, of two or three digits, which alone decides of the size.
        if 4 <= line_end <= 5 and self.sizes.get(chunks[:line_end]) == size and len(self.small) < MAX_SIZES:
            self.small[chunks[:5]] = size, slice(line_end, -2)


_NO_SMALL: dict[bytes, tuple[int, slice]] = {}
_UNKNOWN: tuple[int, slice] = (-1, slice(0))


class ChunkedFramer:
    """The framer of a chunked body, which goes to the client in the upstream's own chunks."""

    __slots__ = (
        "_collector",
        "_has_been_final",
        "_may_hold_marker",
        "_need",
        "_needle",
        "_pieces",
        "_sizes",
        "_small",
        "final",
        "final_payload_bytes",
        "held",
        "surplus_bytes",
    )

    def __init__(self, collector: BodyWindowCollector, sizes: ChunkSizes) -> None:
        self._collector = collector
        self._sizes = sizes
        # What ``take`` needs. Before the first payload, and within a chunk, it finds no size, and so takes nothing.
        self._small = _NO_SMALL
        self._pieces, self._needle, self._may_hold_marker = (
            collector.pieces,
            collector.needle,
            collector.may_hold_marker,
        )
        self._need = 0  # bytes of the current chunk that are still to come, its CR LF included
        self._has_been_final = False
        self.held = self.final = b""
        self.final_payload_bytes = self.surplus_bytes = 0

    @property
    def has_begun(self) -> bool:
        """See :class:`Framer`."""
        return self._collector.total_bytes > 0

    @property
    def is_at_boundary(self) -> bool:
        """See :class:`Framer`."""
        return not self._need

    def take(self, data: bytes, size: int) -> bool:
        """See :meth:`Framer.take`. As usual is one small chunk, in which nothing is to be seen."""
        expected, payload = self._small.get(data[:5], _UNKNOWN)
        # As all events end with an empty line, the payload ends with a line feed.
        if expected != size or data[-3:] != b"\n\r\n" or (self._needle in data and self._may_hold_marker(data)):
            return False
        pieces = self._pieces
        pieces.append(data[payload])
        if len(pieces) >= MAX_PIECES:
            self._collector.fold()
        return True

    def feed(self, data: bytes, size: int) -> tuple[int, FramerState]:
        """See :meth:`Framer.feed`. ``held`` is at most one chunk-size line, or the end of the body."""
        collector, pieces, position = self._collector, self._pieces, 0
        taken, could_take = len(pieces), self._small is not _NO_SMALL
        self.held, self._small = b"", _NO_SMALL
        if could_take or (not self._need and collector.takes_pieces):
            # Several chunks, a large one or an unknown one, in which nothing is to be seen either, up to a marker.
            needle_at = data.find(self._needle)
            limit = needle_at if needle_at >= 0 and self._may_hold_marker(data) else size
            position = self._walk_chunks(data, 0, limit, pieces.append, b"\n\r\n")
            if size and position == size:
                if size > SMALL_BYTES or len(pieces) >= MAX_PIECES or not collector.total_bytes:
                    collector.fold()
                self._sizes.note_small(data, size)
                self._small = self._sizes.small
                return size, FramerState.OPEN
        before = collector.total_bytes + sum(map(len, pieces[:taken]))
        collector.fold()
        if not self._need:
            position = self._walk_chunks(data, position, size, collector.feed, b"\r\n")
        passable, state = self._feed_pieces(data, position, size)
        # In the middle of a chunk, or of its line, ``take`` would have to see both parts.
        is_between_chunks = state is FramerState.OPEN and not self._need and not self.held
        if is_between_chunks and collector.total_bytes and collector.takes_pieces:
            self._small = self._sizes.small
        if not collector.is_ending or self._has_been_final:
            return passable, state
        return 0, self._hold(data[:passable], collector.total_bytes - before, state)

    def _walk_chunks(
        self, data: bytes, position: int, size: int, collect: Callable[[bytes], None], end_of_chunk: bytes
    ) -> int:
        """Collect chunks from ``position`` on while they are whole and of sizes seen before: nearly always all of them.

        Return the position behind them.
        """
        sizes = self._sizes.sizes
        while line_end := data.find(b"\n", position) + 1:
            # An unknown size line counts as longer than the data, which leaves it to _feed_pieces.
            end = position + sizes.get(data[position:line_end], size + 1)
            if end > size or not data.endswith(end_of_chunk, line_end, end):
                break
            collect(data[line_end : end - 2])
            position = end
        return position

    def _hold(self, data: bytes, payload_bytes: int, state: FramerState) -> FramerState:
        """Hold the API's last event with all that was read together with it; return the state."""
        self.final += data
        self.final_payload_bytes += payload_bytes
        if state is FramerState.OPEN and self._collector.is_final:
            state = FramerState.FINAL
        self._has_been_final = state is not FramerState.OPEN
        return state

    def _feed_pieces(self, data: bytes, position: int, size: int) -> tuple[int, FramerState]:
        """Take ``data`` from ``position`` on, where chunks may be cut anywhere and sizes may be new."""
        while position < size:
            if self._need:
                position, is_valid = self._feed_chunk(data, position, size)
                if not is_valid:
                    return position, FramerState.MALFORMED
                continue
            line_end = data.find(b"\n", position) + 1
            if not line_end:
                # A size line that cannot become valid is handed over now: h11 refuses it without waiting for more.
                self.held = data[position:]
                return position, FramerState.OPEN if self._may_be_size(self.held) else FramerState.UNUSUAL
            chunk_bytes = self._parse_size(data[position:line_end])
            if chunk_bytes < 0:
                self.held = data[position:]
                return position, FramerState.UNUSUAL
            if chunk_bytes == 0:
                return position, self._end(data[position:])
            self._need = chunk_bytes + 2
            position = line_end
        return size, FramerState.OPEN

    def _feed_chunk(self, data: bytes, position: int, size: int) -> tuple[int, bool]:
        """Take what there is of the current chunk; return the position behind it, and whether its line end is valid."""
        need = self._need
        end = position + need
        if end <= size:
            is_valid = data[end - 1] == _LF and (need == 1 or data[end - 2] == _CR)
            if is_valid:  # otherwise the chunk has no end
                self._need = 0
            if need > 2:  # with 1 or 2, only (the rest of) the CR LF was missing
                self._collector.feed(data[position : end - 2])
            return end, is_valid
        self._need = end - size
        payload_end = min(size, end - 2)
        if payload_end > position:
            self._collector.feed(data[position:payload_end])
        # One missing byte means that the data ends between CR and LF: the CR is checked now, as it is forwarded now.
        return size, self._need != 1 or data[size - 1] == _CR

    def _may_be_size(self, part: bytes) -> bool:
        digits = part[:-1] if part.endswith(b"\r") else part
        return len(digits) <= MAX_SIZE_DIGITS and _DIGITS.issuperset(digits)

    def _parse_size(self, line: bytes) -> int:
        """Return the size in a chunk-size line, or −1 unless it is only digits (an extension, or not valid)."""
        digits = line[:-2]
        # int() alone would accept signs, underscores and spaces, as in "+3" and "1_0": request smuggling by chunk size.
        if not line.endswith(b"\r\n") or not digits or len(digits) > MAX_SIZE_DIGITS or not _DIGITS.issuperset(digits):
            return -1
        chunk_bytes = int(digits, 16)
        if chunk_bytes:
            self._sizes.note(line, chunk_bytes)
        return chunk_bytes

    def _end(self, rest: bytes) -> FramerState:
        """Return the state at ``rest``, which begins with the size line of the last chunk."""
        line_end = rest.index(b"\n") + 1
        self.held = rest
        after = rest[line_end : line_end + 2]
        if after == b"\r\n":
            self.surplus_bytes = len(rest) - line_end - 2
            return FramerState.COMPLETE
        # Anything but the empty line is a trailer field, which h11 has to read (RFC 9112 §7.1.2).
        return FramerState.OPEN if b"\r\n".startswith(after) else FramerState.UNUSUAL


class LengthFramer:
    """The framer of a body with a content length (more than 0). The piece that completes it is held as a whole."""

    __slots__ = ("_collector", "_need", "final", "final_payload_bytes", "held", "surplus_bytes")

    def __init__(self, collector: BodyWindowCollector, content_length: int) -> None:
        self._collector = collector
        self._need = content_length
        self.held = self.final = b""
        self.final_payload_bytes = self.surplus_bytes = 0

    @property
    def has_begun(self) -> bool:
        """See :class:`Framer`."""
        return self._collector.total_bytes > 0

    @property
    def is_at_boundary(self) -> bool:
        """See :class:`Framer`."""
        return not self._need

    def take(self, data: bytes, size: int) -> bool:
        """See :meth:`Framer.take`. Nothing is as usual: such bodies are short, or come in large pieces."""
        return False

    def feed(self, data: bytes, size: int) -> tuple[int, FramerState]:
        """See :meth:`Framer.feed`."""
        if size < self._need:
            self._need -= size
            self._collector.feed(data)
            return size, FramerState.OPEN
        # No marker follows the body, so its last bytes are what tells the client that it is complete.
        self.held = self.final = data[: self._need]
        self.final_payload_bytes = self._need
        self._collector.feed(self.final)
        self.surplus_bytes = size - self._need
        self._need = 0
        return 0, FramerState.COMPLETE
