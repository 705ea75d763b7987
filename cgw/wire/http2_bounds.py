"""Bounds on one HTTP/2 connection, and the token bucket on its control frames."""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field, frozen
from h2.errors import ErrorCodes

from cgw.wire.http2_frames import Http2ConnectionError


@frozen
class Http2Bounds:
    """Bounds per connection; sizes in bytes.

    For comparison: nghttp2 allows 1,000 unsent replies, and 33 resets per second after a burst of 1,000.
    """

    max_streams: int = 100
    """Streams open at a time (SETTINGS_MAX_CONCURRENT_STREAMS)."""

    control_frames_per_second: float = 1000
    control_frames_burst: float = 5000
    """Rate and burst of PING, SETTINGS, PRIORITY, unknown frames, nearly empty DATA frames, and WINDOW_UPDATE beyond
    two for each DATA frame sent. A reset or a stream error counts as :data:`RESET_COST` frames, SETTINGS as
    :data:`SETTINGS_COST`."""

    max_block_frames: int = 32
    """HEADERS and CONTINUATION frames of one header block."""

    stream_window_bytes: int = 65_535
    """Bytes that a client may send on a stream before an exchange asks for the body (SETTINGS_INITIAL_WINDOW_SIZE)."""

    body_window_bytes: int = 1024 * 1024
    """A stream's window while its body is being read."""

    connection_window_bytes: int = 16 * 1024 * 1024
    """More than twice ``max_streams`` × ``stream_window_bytes``, so that streams whose bodies are not being read cannot
    block the others. Twice, because h2 gives a window back only once half of it is used."""

    unsent_bytes: int = 64 * 1024
    """Above this, answers wait until the client reads."""

    max_unsent_bytes: int = 160 * 1024
    """Above this the connection ends: the client does not read the replies that it causes (PING, SETTINGS, errors)."""


FRAME_COST = 1
SETTINGS_COST = 10
RESET_COST = 5
"""Cost of a reset by the client, or of a stream error that makes the server reset: each may have started an exchange
(CVE-2023-44487 "rapid reset", CVE-2025-8671 "MadeYouReset")."""

UPDATES_PER_DATA = 2
"""WINDOW_UPDATE frames that each DATA frame sent entitles the client to: one for the stream, one for the connection.
They are counted apart from the bucket, since they may all come at once, a round trip later."""

TINY_DATA_BYTES = 64
"""DATA frames with fewer bytes count as control frames: a body of one-byte frames is a flood, too."""


@define
class FloodBucket:
    """A token bucket. ``rate`` is per second of ``clock``, which returns seconds."""

    rate: float
    burst: float
    clock: Callable[[], float]
    _tokens: float = field(init=False)
    _refilled_at: float = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._tokens = self.burst
        self._refilled_at = self.clock()

    def charge(self, cost: float) -> None:
        """Take ``cost`` tokens. Raises :exc:`Http2ConnectionError` (ENHANCE_YOUR_CALM) if there are not enough."""
        # Refilled first, then capped, then charged: a long idle time never yields more than one burst.
        now = self.clock()
        self._tokens = min(self._tokens + (now - self._refilled_at) * self.rate, self.burst) - cost
        self._refilled_at = now
        if self._tokens < 0:
            raise Http2ConnectionError(ErrorCodes.ENHANCE_YOUR_CALM, "too many control frames")
