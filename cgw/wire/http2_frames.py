"""HTTP/2 frames as bytes (RFC 9113 §4 and §6): splitting received bytes, and packing frames.

:mod:`cgw.wire.http2_protocol` passes frames to h2 one at a time, after its own checks. h2's own splitter checks a
frame's length only once the whole frame, up to 16 MiB, is in its buffer.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from h2.errors import ErrorCodes

from cgw.errors import CgwError

FRAME_HEADER_BYTES = 9
MAX_FRAME_BYTES = 16_384
"""Largest payload, both ways: the protocol's initial SETTINGS_MAX_FRAME_SIZE (RFC 9113 §4.2)."""

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)

END_STREAM = 0x01
ACK = 0x01
END_HEADERS = 0x04
PADDED = 0x08
HAS_PRIORITY = 0x20

MAX_STREAM_ID = 2**31 - 1

_HEADER = struct.Struct(">HBBBL")
_LONG = struct.Struct(">L")
_SETTING = struct.Struct(">HL")
_GOAWAY = struct.Struct(">LL")


class Http2ConnectionError(CgwError):
    """A connection error (RFC 9113 §5.4.1): the connection must end with a GOAWAY frame with ``code``."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = ErrorCodes(code)


class Frame(NamedTuple):
    """One frame as received; ``payload`` includes the padding."""

    type: int
    flags: int
    stream_id: int
    payload: bytes


class FrameSplitter:
    """Splits bytes into frames. Holds at most one incomplete frame and the bytes fed last."""

    def __init__(self) -> None:
        self._buffer = b""
        self._start = 0

    @property
    def is_partial(self) -> bool:
        """True while an incomplete frame is buffered. Valid once :meth:`next_frame` returned ``None``."""
        return self._start < len(self._buffer)

    @property
    def partial_type(self) -> int:
        """The type of the incomplete frame; −1 while its header is incomplete."""
        return self._buffer[self._start + 3] if len(self._buffer) - self._start >= FRAME_HEADER_BYTES else -1

    def feed(self, data: bytes) -> None:
        """Append received bytes."""
        # Once per read, not per frame: the consumed bytes are dropped here.
        self._buffer = self._buffer[self._start :] + data
        self._start = 0

    def next_frame(self) -> Frame | None:
        """Return the next complete frame, or ``None``.

        Raises :exc:`Http2ConnectionError` for a frame that is too large, as soon as its header is there. RFC 9113 §4.2
        allows a stream error for DATA, but then the payload would have to be read and counted against the windows.
        """
        start = self._start
        if len(self._buffer) - start < FRAME_HEADER_BYTES:
            return None
        high, low, frame_type, flags, stream_id = _HEADER.unpack_from(self._buffer, start)
        size = (high << 8) + low
        if size > MAX_FRAME_BYTES:
            raise Http2ConnectionError(ErrorCodes.FRAME_SIZE_ERROR, f"a frame of {size} bytes")
        begin = start + FRAME_HEADER_BYTES
        end = begin + size
        if end > len(self._buffer):
            return None
        self._start = end
        # The highest bit of the stream identifier is reserved and must be ignored (RFC 9113 §4.1).
        return Frame(frame_type, flags, stream_id & MAX_STREAM_ID, self._buffer[begin:end])


def strip_padding(frame: Frame) -> bytes:
    """Return the payload of a DATA or HEADERS frame without its padding.

    Raises :exc:`Http2ConnectionError` where the padding is as long as the payload (RFC 9113 §6.1).
    """
    if not frame.flags & PADDED:
        return frame.payload
    if not frame.payload:
        raise Http2ConnectionError(ErrorCodes.FRAME_SIZE_ERROR, "a padded frame without a pad length")
    padding = frame.payload[0]
    if padding >= len(frame.payload):
        raise Http2ConnectionError(ErrorCodes.PROTOCOL_ERROR, "a frame's padding is longer than the frame")
    return frame.payload[1 : len(frame.payload) - padding]


def read_long(payload: bytes) -> int:
    """Decode a payload of one 32-bit number."""
    number: int = _LONG.unpack(payload)[0]
    return number


def read_settings(payload: bytes) -> list[tuple[int, int]]:
    """Decode a SETTINGS payload into identifiers and values, in order."""
    return list(_SETTING.iter_unpack(payload))


def pack_frame(frame_type: int, flags: int, stream_id: int, payload: bytes | memoryview = b"") -> bytes:
    """Return one frame; ``payload`` must not be longer than the peer's SETTINGS_MAX_FRAME_SIZE."""
    size = len(payload)
    return _HEADER.pack(size >> 8, size & 0xFF, frame_type, flags, stream_id) + payload


def pack_settings(settings: dict[int, int]) -> bytes:
    """Return a SETTINGS frame."""
    return pack_frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(*setting) for setting in settings.items()))


def pack_goaway(last_stream_id: int, code: int, text: str = "") -> bytes:
    """Return a GOAWAY frame; ``text`` is additional debug data."""
    return pack_frame(GOAWAY, 0, 0, _GOAWAY.pack(last_stream_id, code) + text.encode("ascii", "replace"))


def pack_header_block(stream_id: int, flags: int, block: bytes) -> bytes:
    """Return a header block as a HEADERS frame, followed by CONTINUATION frames if it is large.

    ``flags`` are those of the HEADERS frame, without END_HEADERS.
    """
    pieces = [block[start : start + MAX_FRAME_BYTES] for start in range(0, len(block), MAX_FRAME_BYTES)] or [b""]
    last = len(pieces) - 1
    return b"".join(
        pack_frame(
            CONTINUATION if index else HEADERS,
            (0 if index else flags) | (END_HEADERS if index == last else 0),
            stream_id,
            piece,
        )
        for index, piece in enumerate(pieces)
    )
