"""Bounds on what one HTTP/2 connection may ask for; the bucket that counts frames which carry nothing for a request."""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field, frozen
from h2.errors import ErrorCodes

from cgw.wire.http2_frames import Http2ConnectionError


@frozen
class Http2Bounds:
    """Bounds per connection; sizes in bytes.

    A client that does nothing wrong comes near none of them: nghttp2 and Go allow a thousand unanswered control frames
    and some ten resets a second.
    """

    max_streams: int = 100
    """Streams open at a time (SETTINGS_MAX_CONCURRENT_STREAMS)."""

    control_frames_per_second: float = 1000
    control_frames_burst: float = 5000
    """Frames that carry nothing for a request: PING, SETTINGS, PRIORITY, unknown ones, WINDOW_UPDATE beyond two for
    each DATA frame sent, DATA frames that are nearly empty. Resets and violations count for :data:`RESET_COST`."""

    max_block_frames: int = 32
    """HEADERS and CONTINUATION frames of one header block."""

    stream_window_bytes: int = 65_535
    """What a client may send on a stream before its body is asked for (SETTINGS_INITIAL_WINDOW_SIZE)."""

    body_window_bytes: int = 1024 * 1024
    """The stream's window while its body is read."""

    connection_window_bytes: int = 16 * 1024 * 1024
    """Large enough that streams whose bodies nobody reads cannot hold up the others: more than twice
    ``max_streams`` × ``stream_window_bytes``, since h2 gives back a window in halves."""

    unsent_bytes: int = 64 * 1024
    """Above it, answers wait until the client has read."""

    max_unsent_bytes: int = 160 * 1024
    """Above it the client makes us answer (PING, SETTINGS, stream errors) without reading: the connection ends."""


FRAME_COST = 1
SETTINGS_COST = 10
RESET_COST = 5
"""Cost of a reset, or of a stream error that the client provokes: an exchange began and ended for it (CVE-2023-44487,
"rapid reset", and CVE-2025-8671, where the server is made to reset)."""

UPDATES_PER_DATA = 2
"""A client may answer each DATA frame with two WINDOW_UPDATE frames, for the stream and for the connection. Those are
not taken from the bucket: they may come all at once, long after."""

TINY_DATA_BYTES = 64
"""DATA frames with less than this are counted: a body of one-byte frames is a flood, too."""


@define
class FloodBucket:
    """A token bucket on the frames of one connection. ``clock`` gives seconds."""

    rate: float
    burst: float
    clock: Callable[[], float]
    _tokens: float = field(init=False)
    _refilled_at: float = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._tokens = self.burst
        self._refilled_at = self.clock()

    def charge(self, cost: float) -> None:
        """Take ``cost`` tokens. Raises :exc:`Http2ConnectionError` ENHANCE_YOUR_CALM when there are not so many."""
        now = self.clock()
        self._tokens = min(self._tokens + (now - self._refilled_at) * self.rate, self.burst) - cost
        self._refilled_at = now
        if self._tokens < 0:
            raise Http2ConnectionError(ErrorCodes.ENHANCE_YOUR_CALM, "too many control frames")
