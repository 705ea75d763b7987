"""The windows of a body: its first and last bytes, kept while it is relayed, from which usage is read at its end."""

from __future__ import annotations

from collections.abc import Callable

from cgw.model import BodyWindow
from cgw.wire.final_events import FinalEventScanner

# Providers put usage into the first and the last events of a stream, and at one of the ends of a JSON body.
HEAD_BYTES = 32 * 1024
TAIL_BYTES = 32 * 1024

MAX_PIECES = 32
"""The most pieces that wait to be put into the windows."""

_RARE = b"\r\n0\r\n\r\n"
"""What hardly any piece contains: the needle where there is no marker."""


class BodyWindowCollector:
    """Takes every chunk of a body, and keeps ``head_bytes`` of its start and at least ``tail_bytes`` of its end.

    If :meth:`look_for` was called, ``is_ending`` becomes true with the chunk in which the API's last event is known by
    its marker, and ``is_final`` with the chunk in which that event ends. ``total_bytes`` and ``chunks`` are counts, up
    to date after :meth:`fold`.

    Most chunks of a stream are small, and nothing is to be seen in them. While :attr:`takes_pieces` is true, a chunk
    that ends with a line feed may be appended to ``pieces`` instead of being fed, at a small part of the cost, unless
    it contains ``needle`` and ``may_hold_marker``. After :data:`MAX_PIECES` of them :meth:`fold` is to be called: it
    puts all into the windows.
    """

    __slots__ = (
        "_first",
        "_head",
        "_head_room",
        "_scanner",
        "_tail",
        "_tail_bytes",
        "_tail_limit",
        "chunks",
        "is_ending",
        "is_final",
        "may_hold_marker",
        "needle",
        "pieces",
        "total_bytes",
    )

    def __init__(self, head_bytes: int = HEAD_BYTES, tail_bytes: int = TAIL_BYTES) -> None:
        self._first = b""  # the only chunk so far; short bodies consist of one, which need not be copied
        self._head = bytearray()
        self._head_room = head_bytes
        self._tail = bytearray()
        self._tail_bytes = tail_bytes
        self._tail_limit = 2 * tail_bytes
        self._scanner: FinalEventScanner | None = None
        self.is_ending = self.is_final = False
        self.total_bytes = self.chunks = 0
        self.pieces: list[bytes] = []
        self.needle = _RARE
        self.may_hold_marker: Callable[[bytes], object] = bool

    def look_for(self, markers: tuple[bytes, ...]) -> None:
        """Look for the API's last event, before anything is fed; see :class:`FinalEventScanner`."""
        if markers:
            self._scanner = FinalEventScanner(markers)
            self.needle, self.may_hold_marker = self._scanner.needle, self._scanner.may_hold_marker

    @property
    def takes_pieces(self) -> bool:
        """True if the next chunk may be appended to ``pieces``."""
        scanner = self._scanner
        return not self.is_ending if scanner is None else scanner.is_at_line

    def fold(self) -> None:
        """Put ``pieces`` into the windows."""
        pieces = self.pieces
        if pieces:
            self._keep(b"".join(pieces), len(pieces))
            pieces.clear()

    def feed(self, chunk: bytes | bytearray) -> None:
        """Take the next bytes of the body."""
        if self.pieces:
            self.fold()
        scanner = self._scanner
        if scanner is not None and scanner.feed(chunk):
            self.is_ending, self.is_final = True, scanner.is_final
            if self.is_final:
                self._scanner = None
        self._keep(chunk, 1)

    def _keep(self, chunk: bytes | bytearray, chunks: int) -> None:
        size = len(chunk)
        self.chunks += chunks
        if not self.total_bytes and isinstance(chunk, bytes) and size <= self._head_room:
            self._first, self.total_bytes = chunk, size
            return
        if self._first:
            self._head += self._first
            self._head_room -= len(self._first)
            self._first = b""
        self.total_bytes += size
        if self._head_room:
            taken = min(self._head_room, size)
            self._head += chunk[:taken]
            self._head_room -= taken
            if taken == size:
                return
            chunk = chunk[taken:]
        self._tail += chunk
        # Trimmed only once it has twice its size: each byte is moved at most once, so the cost per byte is constant.
        if len(self._tail) > self._tail_limit:
            del self._tail[: -self._tail_bytes]

    def close(self, *, is_complete: bool) -> BodyWindow:
        """Return the windows. ``is_complete`` says whether the upstream ended the body properly."""
        self.fold()
        if self._first:
            return BodyWindow(self._first, b"", self.total_bytes, is_complete)
        # A body that was kept whole is left whole, even if its tail is longer than asked for.
        if len(self._head) + len(self._tail) != self.total_bytes:
            del self._tail[: -self._tail_bytes]
        return BodyWindow(bytes(self._head), bytes(self._tail), self.total_bytes, is_complete)
