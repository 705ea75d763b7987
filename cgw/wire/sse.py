"""Server-sent event frames, read as the WHATWG HTML standard's "Interpreting an event stream" says.

Pure and incremental: bytes in, whole frames out, in whatever pieces they come. cgw itself passes streams through
unread; this parser serves those who want to know what went by: usage from the windows that were kept of a body, the
demo, and tests. A window may begin in mid-frame (``mid_frame``: everything up to the first blank line is skipped)
and may end in one (an unfinished frame is never yielded; clients drop those too).
"""

from __future__ import annotations

import re
from typing import NamedTuple

_LINE_END = re.compile(rb"\r\n|\n|\r")
_BOM = b"\xef\xbb\xbf"


class Frame(NamedTuple):
    """One event: its name (``b""`` when the stream gives none) and its data lines, joined by LF.

    A named tuple rather than an attrs class: hundreds are made for each body that is read.
    """

    event: bytes
    data: bytes


class FrameParser:
    """Turns pieces of an event stream into :class:`Frame` objects, independently of where the pieces are cut.

    Memory: what is held is the frame that is not finished yet, nothing else; whoever feeds unbounded streams bounds
    them. ``id`` and ``retry`` fields, comments and frames without data yield nothing, as in the standard.
    """

    def __init__(self, *, mid_frame: bool = False) -> None:
        """Begin at the start of a stream, or (``mid_frame``) at an unknown byte of one."""
        self._rest: list[bytes] = []
        """The pieces of the line that is not ended yet."""
        self._follows_cr = False
        """The last piece ended in CR: an LF at the start of the next belongs to it."""
        self._is_mid_frame = mid_frame
        self._in_first_line = True
        self._is_skipping = mid_frame
        self._event = b""
        self._data: list[bytes] = []

    def feed(self, piece: bytes) -> list[Frame]:
        """Take the stream's next bytes; return the frames that they complete."""
        if self._follows_cr and piece:
            self._follows_cr = False
            if piece.startswith(b"\n"):
                piece = piece[1:]
        if not piece:
            return []
        if b"\r" in piece:
            self._follows_cr = piece.endswith(b"\r")
            lines = _LINE_END.split(piece)
        else:
            lines = piece.split(b"\n")
        rest = lines.pop()
        if lines:
            if self._rest:
                self._rest.append(lines[0])
                lines[0] = b"".join(self._rest)
                self._rest.clear()
            if self._in_first_line or self._is_skipping:
                lines = self._start(lines)
        if rest:
            self._rest.append(rest)
        return self._read_lines(lines)

    def _start(self, lines: list[bytes]) -> list[bytes]:
        """The lines without a byte order mark, or without what is left of a frame that was cut off before them."""
        if self._in_first_line:
            self._in_first_line = False
            if self._is_mid_frame:
                # The end of a line of which the start is unknown: even if it is empty it is no blank line.
                lines = lines[1:]
            else:
                lines[0] = lines[0].removeprefix(_BOM)
        if self._is_skipping:
            if b"" not in lines:
                return []
            self._is_skipping = False
            lines = lines[lines.index(b"") + 1 :]
        return lines

    def _read_lines(self, lines: list[bytes]) -> list[Frame]:
        frames: list[Frame] = []
        event, data = self._event, self._data
        for line in lines:
            if line.startswith(b"data: "):  # as all APIs write it; the general case is below
                data.append(line[6:])
            elif line.startswith(b"event: "):
                event = line[7:]
            elif not line:
                if data:
                    frames.append(Frame(event, data[0] if len(data) == 1 else b"\n".join(data)))
                    data = []
                event = b""
            else:
                name, _, value = line.partition(b":")
                if name == b"data":
                    data.append(value.removeprefix(b" "))
                elif name == b"event":
                    event = value.removeprefix(b" ")
        self._event, self._data = event, data
        return frames


def parse_frames(data: bytes, *, mid_frame: bool = False) -> list[Frame]:
    """The whole frames of ``data``, which begins at the start of a stream or (``mid_frame``) anywhere in it."""
    return FrameParser(mid_frame=mid_frame).feed(data)
