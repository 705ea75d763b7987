"""Keeping the first and the last bytes of a body that passes through, so that usage can be read from it."""

from __future__ import annotations

from cgw.model import BodyWindow

HEAD_BYTES = 32 * 1024
TAIL_BYTES = 32 * 1024


class BodyWindowCollector:
    """Sees every chunk of one body and keeps at most ``head_bytes`` of its start and ``tail_bytes`` of its end.

    A chunk costs one append while the windows fill; the tail is trimmed once it has grown to twice its size, so
    that the work per byte is constant.
    """

    __slots__ = ("_head", "_head_room", "_tail", "_tail_bytes", "_tail_limit", "total_bytes")

    def __init__(self, head_bytes: int = HEAD_BYTES, tail_bytes: int = TAIL_BYTES) -> None:
        self._head = bytearray()
        self._head_room = head_bytes
        self._tail = bytearray()
        self._tail_bytes = tail_bytes
        self._tail_limit = 2 * tail_bytes
        self.total_bytes = 0

    def feed(self, chunk: bytes | bytearray | memoryview) -> None:
        """Take the next bytes of the body."""
        size = len(chunk)
        self.total_bytes += size
        if self._head_room:
            taken = min(self._head_room, size)
            self._head += chunk[:taken]
            self._head_room -= taken
            if taken == size:
                return
            chunk = chunk[taken:]
        self._tail += chunk
        if len(self._tail) > self._tail_limit:
            del self._tail[: -self._tail_bytes]

    def close(self, *, is_complete: bool) -> BodyWindow:
        """What was kept; ``is_complete`` tells whether the upstream ended the body properly."""
        if len(self._head) + len(self._tail) != self.total_bytes:
            del self._tail[: -self._tail_bytes]
        return BodyWindow(bytes(self._head), bytes(self._tail), self.total_bytes, is_complete)
