"""Finding the end of an answer as its API defines it: the last event of a stream, such as ``data: [DONE]``.

Many clients close their connection at that event, before HTTP's own end of the body. So whoever relays a stream has to
notice the event before the client gets it. A marker is a whole line, which a JSON text in a stream of server-sent
events cannot contain: line ends are escaped there.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

MAX_LINE_BYTES = 64
"""How much of an unfinished line is kept; markers are shorter."""

MAX_EVENT_BYTES = 2**20
"""The most that may follow a marker's line in its event. Most have less than 500 bytes; that of OpenAI's Responses API
repeats the whole response. What the event has so far is held back, so an event that does not end must not grow for
ever: at this size it counts as ended."""

_EVENT_END = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r)")
"""A line end with an empty line behind it."""


class FinalEventScanner:
    """Looks for an event with one of ``markers`` in the pieces of a body, wherever the pieces are cut.

    A marker is the text of a line, such as ``data: [DONE]``; the space behind its colon may be missing in the stream.
    ``is_ending`` becomes true with the piece in which the line ends, ``is_final`` with that in which its event ends, or
    has more than :data:`MAX_EVENT_BYTES`. ``needle`` is what every line of a marker contains, ``b""`` if they have
    nothing in common: then ``may_hold_marker`` looks for each.
    """

    __slots__ = ("_event_bytes", "_line", "_pattern", "is_ending", "is_final", "may_hold_marker", "needle")

    def __init__(self, markers: tuple[bytes, ...]) -> None:
        self.needle, self.may_hold_marker, self._pattern = _compile(markers)
        # The unfinished line at the end of the last piece, up to a byte more than MAX_LINE_BYTES. While the event ends:
        # the last bytes of the last piece.
        self._line = b""
        self._event_bytes = 0  # that followed the marker's line
        self.is_ending = self.is_final = False

    @property
    def is_at_line(self) -> bool:
        """True at the start of a line, before the event.

        Then a piece that ends with a line feed changes nothing, unless it contains ``needle`` and ``may_hold_marker``:
        it need not be fed.
        """
        return not self._line and not self.is_ending

    def feed(self, piece: bytes | bytearray) -> bool:
        """Take the next bytes of the body; return ``is_ending``."""
        if self.needle not in piece and not self._line and piece.endswith(b"\n"):
            return False  # the usual case, in 0.2 µs: whole lines, in which nothing looks like a marker
        text = self._line + piece
        begin = 0
        if not self.is_ending:
            found = self._pattern.search(text)
            if found is None:
                # A line that is too long to be a marker is kept as one that is too long.
                start = max(text.rfind(b"\n"), text.rfind(b"\r")) + 1
                self._line = bytes(text[start : start + MAX_LINE_BYTES + 1])
                return False
            self.is_ending, begin = True, found.end() - 1
        self._event_bytes += min(len(text) - begin, len(piece))
        self.is_final = self._event_bytes > MAX_EVENT_BYTES or _EVENT_END.search(text, begin) is not None
        self._line = bytes(text[begin:][-3:])
        return True


@lru_cache(maxsize=32)
def _compile(markers: tuple[bytes, ...]) -> tuple[bytes, Callable[[bytes], object], re.Pattern[bytes]]:
    """Return what a scanner's attributes are, and a pattern for a text that begins at the start of a line."""
    lines, values = [], []
    for marker in markers:
        name, _, value = marker.partition(b":")
        value = value.strip()
        if not value or len(marker) > MAX_LINE_BYTES:
            raise ValueError(f"a marker must be 'name: value' with at most {MAX_LINE_BYTES} bytes, not {marker!r}")
        lines.append(re.escape(name) + b": ?" + re.escape(value))
        values.append(value)
    pattern = re.compile(rb"(?:\A|[\r\n])(?:" + b"|".join(lines) + rb")[\r\n]")
    if len(values) == 1:
        return values[0], bool, pattern  # with the needle, that is true
    return b"", re.compile(b"|".join(map(re.escape, values))).search, pattern
