"""The windows of a body: its first and last bytes, kept while it is relayed, from which usage is read at its end."""

from __future__ import annotations

from cgw.model import BodyWindow
from cgw.wire.final_events import FinalEventScanner

# Providers put usage into the first and the last events of a stream, and at one of the ends of a JSON body.
HEAD_BYTES = 32 * 1024
TAIL_BYTES = 32 * 1024


class BodyWindowCollector:
    """Takes every chunk of a body, and keeps ``head_bytes`` of its start and at least ``tail_bytes`` of its end.

    If :meth:`look_for` was called, ``is_ending`` becomes true with the chunk in which the API's last event is known by
    its marker, and ``is_final`` with the chunk in which that event ends. ``total_bytes`` and ``chunks`` are counts.
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

    def look_for(self, markers: tuple[bytes, ...]) -> None:
        """Look for the API's last event, before anything is fed; see :class:`FinalEventScanner`."""
        self._scanner = FinalEventScanner(markers) if markers else None

    def feed(self, chunk: bytes | bytearray) -> None:
        """Take the next bytes of the body."""
        scanner = self._scanner
        if scanner is not None and scanner.feed(chunk):
            self.is_ending, self.is_final = True, scanner.is_final
            if self.is_final:
                self._scanner = None
        size = len(chunk)
        self.chunks += 1
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
        if self._first:
            return BodyWindow(self._first, b"", self.total_bytes, is_complete)
        # A body that was kept whole is left whole, even if its tail is longer than asked for.
        if len(self._head) + len(self._tail) != self.total_bytes:
            del self._tail[: -self._tail_bytes]
        return BodyWindow(bytes(self._head), bytes(self._tail), self.total_bytes, is_complete)
