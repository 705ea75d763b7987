"""Incremental parsing of HTTP/1.1 heads and bodies, as ``wire.h`` does for the tools in C."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

__all__ = ["FramingError", "MessageBody", "MessageHead", "split_head"]

HEAD_LIMIT = 65536
LINE_LIMIT = 4096


class FramingError(Exception):
    """The peer's bytes are not valid HTTP/1.1."""


class MessageHead:
    """A start line and headers, names in lower case."""

    def __init__(self, raw: bytes) -> None:
        lines = raw.split(b"\r\n")
        self.start = lines[0].decode("latin-1").split(" ", 2)
        if len(self.start) < 2:
            raise FramingError("a start line needs at least two words")
        self.headers: dict[str, str] = {}
        for line in lines[1:]:
            name, _, value = line.decode("latin-1").partition(":")
            self.headers[name.lower()] = value.strip()

    @property
    def keeps_alive(self) -> bool:
        return self.headers.get("connection", "").lower() != "close"


def split_head(buffer: bytearray) -> MessageHead | None:
    """Remove a whole head from the front of ``buffer``; return ``None`` while it is incomplete."""
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        if len(buffer) > HEAD_LIMIT:
            raise FramingError("the head is too long")
        return None
    head = MessageHead(bytes(buffer[:end]))
    del buffer[: end + 4]
    return head


class MessageBody:
    """A message's body. Without length and chunks it is empty (``none``, requests) or ends with the connection."""

    def __init__(self, head: MessageHead, without: Literal["none", "until-close"]) -> None:
        self._left = 0
        self._at: Literal["size", "data", "data-end", "trailer"] = "size"
        self.done = False
        if head.headers.get("transfer-encoding", "").lower() == "chunked":
            self.framing = "chunked"
        elif "content-length" in head.headers:
            self.framing = "counted"
            self._left = int(head.headers["content-length"])
            self.done = self._left == 0
        else:
            self.framing = without
            self.done = without == "none"

    def take(self, buffer: bytearray) -> Iterator[bytes]:
        """Yield the data in ``buffer`` and remove what was parsed: up to the body's end or an incomplete line."""
        if self.framing == "until-close":
            yield bytes(buffer)
            buffer.clear()
        elif self.framing == "counted":
            yield self._take_data(buffer)
            self.done = self._left == 0
        else:
            yield from self._take_chunks(buffer)

    def _take_data(self, buffer: bytearray) -> bytes:
        piece = bytes(buffer[: self._left])
        self._left -= len(piece)
        del buffer[: len(piece)]
        return piece

    def _take_chunks(self, buffer: bytearray) -> Iterator[bytes]:
        while not self.done:
            if self._at == "data":
                if not buffer:
                    return
                yield self._take_data(buffer)
                if self._left == 0:
                    self._at = "data-end"
                continue
            line = self._take_line(buffer)
            if line is None:
                return
            if self._at == "size":
                self._left = _chunk_size(line)
                self._at = "data" if self._left else "trailer"
            elif self._at == "data-end":
                if line:
                    raise FramingError("a chunk is longer than its size")
                self._at = "size"
            else:
                self.done = not line

    @staticmethod
    def _take_line(buffer: bytearray) -> bytes | None:
        end = buffer.find(b"\r\n")
        if end < 0:
            if len(buffer) > LINE_LIMIT:
                raise FramingError("a line of the framing is too long")
            return None
        line = bytes(buffer[:end])
        del buffer[: end + 2]
        return line


def _chunk_size(line: bytes) -> int:
    digits = line.partition(b";")[0].strip()
    if not digits or len(digits) > 15 or not all(digit in b"0123456789abcdefABCDEF" for digit in digits):
        raise FramingError(f"the chunk size {digits[:20]!r} is not hexadecimal")
    return int(digits, 16)
