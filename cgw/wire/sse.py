"""A parser of server-sent events, after "Interpreting an event stream" in the WHATWG HTML standard.

The relay forwards streams without parsing them. This parser is for usage, which is read from the windows that were
kept of a body, for the demo and for tests. A window may begin in the middle of a frame (``mid_frame``: all up to the
first blank line is skipped) and may end in one (an unfinished frame is not returned; clients discard those too).
"""

from __future__ import annotations

import re
from typing import NamedTuple

_LINE_END = re.compile(rb"\r\n|\n|\r")
_BOM = b"\xef\xbb\xbf"


class Frame(NamedTuple):
    """One event: its name (``b""`` when the stream gives none) and its data lines, joined by LF.

    A named tuple rather than an attrs class: each body has hundreds, and a tuple is cheaper to create.
    """

    event: bytes
    data: bytes


class FrameParser:
    """Turns pieces of an event stream into :class:`Frame` objects, independently of where the pieces are cut.

    Only the unfinished frame is kept in memory; its size is not limited here, so callers with unbounded streams must
    limit it. ``id`` and ``retry`` fields, comments and frames without data are skipped, as in the standard.
    """

    def __init__(self, *, mid_frame: bool = False) -> None:
        """Begin at the start of a stream or, with ``mid_frame``, at any byte of one."""
        self._rest: list[bytes] = []  # pieces of the unfinished line, joined only once: a long line stays linear
        self._follows_cr = False  # the last piece ended in CR: an LF at the start of the next belongs to it
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
        """Drop the byte order mark or, in the middle of a frame, the rest of that frame, from the first ``lines``."""
        if self._in_first_line:
            self._in_first_line = False
            if self._is_mid_frame:
                # The start of this line is unknown: even if its end is empty, it does not count as a blank line.
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
            if line.startswith(b"data: "):  # the form that all providers use; the general case is below
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
    """Return the whole frames of ``data``, which begins at the start of a stream or, with ``mid_frame``, anywhere."""
    return FrameParser(mid_frame=mid_frame).feed(data)


def parse_data(data: bytes, *, mid_frame: bool = False) -> list[bytes]:
    """Return the data of the frames that :func:`parse_frames` returns, at half the cost for usual streams."""
    contents = None if mid_frame or b"\r" in data else _parse_usual_data(data)
    return [frame.data for frame in parse_frames(data, mid_frame=mid_frame)] if contents is None else contents


def _parse_usual_data(data: bytes) -> list[bytes] | None:
    """Return the data of a stream as providers send it; ``None`` for another one, which the parser has to read.

    All frames have one line of data; before it, either all or none have a line with the event's name. All is done by
    a few calls into C: a look at each frame in Python would be what reading the usage of a stream costs most.
    """
    data = data[: data.rfind(b"\n\n") + 2]  # without the last frame if it is unfinished
    if not data:
        return []
    if data.startswith(b"event: "):
        return _parse_named_data(data)
    contents = _split_starting(data[:-2], b"data: ", b"\n\n")
    # The line feeds that separate the frames are all there are.
    return contents if contents is not None and data.count(b"\n") == 2 * len(contents) else None


def _parse_named_data(data: bytes) -> list[bytes] | None:
    lines = data[:-1].split(b"\n")
    frames = len(lines) // 3
    # Every line must be at its place.
    if len(lines) % 3 or any(lines[2::3]):
        return None
    names = _split_starting(b"\n".join(lines[0::3]), b"event: ", b"\n")
    contents = _split_starting(b"\n".join(lines[1::3]), b"data: ", b"\n")
    return contents if names and contents and len(names) == len(contents) == frames else None


def _split_starting(data: bytes, start: bytes, separator: bytes) -> list[bytes] | None:
    """Split ``data`` at each ``separator`` with ``start`` behind it; ``None`` unless ``data`` begins with ``start``."""
    return data[len(start) :].split(separator + start) if data.startswith(start) else None
