"""A server's side of one HTTP/2 connection, as bytes in and events out. Sans-I/O, on h2 (:mod:`cgw.wire.http2_core`).

Every frame is looked at before h2 gets it: counted, bounded, dropped where it has no meaning for us (PRIORITY, unknown
types, late frames), and answered as RFC 9113 asks where h2 would end the connection for one stream's fault::

    bytes → FrameSplitter → guards here → h2 (states, windows, HPACK) → events
                                 ↓ stream errors: RST_STREAM
                                 ↓ Http2ConnectionError: GOAWAY, by the caller

A stream lives here from its HEADERS until both sides are done or one of them reset it::

    HEADERS → [live] --END_STREAM of both--> closed (late frames: a violation)
                   --RST_STREAM received---> closed (late frames: a violation)
                   --RST_STREAM sent-------> closed (late frames: discarded, RFC 9113 §5.1)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from attrs import define, frozen
from h2.errors import ErrorCodes
from h2.events import Event, StreamReset

from cgw.errors import Headers, Refusal
from cgw.wire import http2_frames as frames
from cgw.wire.heads import HTTP2_PREFACE
from cgw.wire.http2_bounds import (
    FRAME_COST,
    RESET_COST,
    SETTINGS_COST,
    TINY_DATA_BYTES,
    UPDATES_PER_DATA,
    FloodBucket,
    Http2Bounds,
)
from cgw.wire.http2_core import CLOSED_STREAMS, Http2Core
from cgw.wire.http2_frames import END_STREAM, MAX_FRAME_BYTES, Frame, FrameSplitter, Http2ConnectionError
from cgw.wire.http2_heads import (
    MalformedFields,
    check_trailers,
    parse_request_fields,
    read_content_length,
    select_response_fields,
)
from cgw.wire.messages import RequestHead

_KNOWN_SETTINGS = frozenset(range(1, 7))
_SETTINGS_INITIAL_WINDOW = 4


@frozen
class RequestStarted:
    """A stream's head is there. With ``refusal`` it must be answered with that; ``head`` is ``None`` then."""

    stream_id: int
    head: RequestHead | None
    content_length: int | None
    is_ended: bool
    refusal: Refusal | None = None


@frozen
class BodyReceived:
    """Bytes of a request's body. They stay charged to the stream's window until :meth:`Http2Protocol.release`."""

    stream_id: int
    data: bytes
    is_ended: bool


@frozen
class StreamLost:
    """The client reset the stream, or broke its rules: nothing can be sent on it any more."""

    stream_id: int


@frozen
class WindowOpened:
    """There may be more to send now: on one stream, or, for 0, on any."""

    stream_id: int


@frozen
class PingAnswered:
    """The client answered a PING."""

    data: bytes


@frozen
class ClientLeaving:
    """The client sent GOAWAY: it will not open more streams."""


Http2Event = RequestStarted | BodyReceived | StreamLost | WindowOpened | PingAnswered | ClientLeaving


@define
class _Stream:
    content_length: int | None
    is_ended: bool
    received_bytes: int = 0
    unreleased_bytes: int = 0
    is_answered: bool = False


@define
class _HeaderBlock:
    stream_id: int
    flags: int
    pieces: list[bytes]
    size: int


class Http2Protocol:
    """See the module. ``clock`` gives seconds, for the flood bucket.

    Receive: ``feed``, then ``process_frame`` until it gives ``None``. Send: any of the methods below. After either,
    ``take_output`` holds what must be written, in this order.
    """

    def __init__(self, bounds: Http2Bounds, max_head_bytes: int, clock: Callable[[], float]) -> None:
        self._bounds: Final = bounds
        self._max_head_bytes = max_head_bytes
        self._core = Http2Core(bounds, max_head_bytes)
        self._h2 = self._core.h2
        self._splitter = FrameSplitter()
        self._bucket = FloodBucket(bounds.control_frames_per_second, bounds.control_frames_burst, clock)
        self._streams: dict[int, _Stream] = {}
        self._closed: dict[int, bool] = {}  # stream → whether its late frames are to be expected; oldest first
        self._block: _HeaderBlock | None = None
        self._preface = HTTP2_PREFACE
        self._expected_updates = 0
        self._output = bytearray(self._core.take_output())
        self._handlers: Final = (
            self._on_data,
            self._on_headers,
            self._on_priority,
            self._on_rst_stream,
            self._on_settings,
            self._on_push_promise,
            self._on_ping,
            self._on_goaway,
            self._on_window_update,
            self._on_continuation,
        )
        self.has_settings = False
        self.last_stream_id = 0
        self.refuses_after: int | None = None
        """Streams above this id are refused, once it is set: the last one that the final GOAWAY names."""

    # --- what arrives -------------------------------------------------------------------------------------------------

    @property
    def is_partial(self) -> bool:
        """Whether a frame, a header block or the preface is incomplete."""
        return self._splitter.is_partial or self._block is not None or 0 < len(self._preface) < len(HTTP2_PREFACE)

    @property
    def is_block_open(self) -> bool:
        """Whether a header block has begun and not ended."""
        return self._block is not None

    @property
    def is_partial_body(self) -> bool:
        """Whether the incomplete frame is a DATA frame."""
        return self._splitter.is_partial and self._splitter.partial_type == frames.DATA

    def feed(self, data: bytes) -> None:
        """Take the next bytes. Raises :exc:`Http2ConnectionError` for a wrong preface."""
        if self._preface:
            size = min(len(self._preface), len(data))
            if data[:size] != self._preface[:size]:
                raise Http2ConnectionError(ErrorCodes.PROTOCOL_ERROR, "not the preface of HTTP/2")
            self._preface = self._preface[size:]
            data = data[size:]
        self._splitter.feed(data)

    def process_frame(self) -> list[Http2Event] | None:
        """Process one frame; ``None`` when no whole one is there.

        Raises :exc:`Http2ConnectionError`: the connection must end with a GOAWAY of that code.
        """
        frame = self._splitter.next_frame()
        if frame is None:
            return None
        block = self._block
        if block is not None and (frame.type != frames.CONTINUATION or frame.stream_id != block.stream_id):
            raise _violation("a header block is interrupted")
        if not self.has_settings and (frame.type != frames.SETTINGS or frame.flags & frames.ACK):
            raise _violation("the first frame is not SETTINGS")
        if frame.type >= len(self._handlers):
            self._bucket.charge(FRAME_COST)  # unknown types are ignored (RFC 9113 §5.5)
            return []
        return self._handlers[frame.type](frame)

    def _on_settings(self, frame: Frame) -> list[Http2Event]:
        if frame.stream_id:
            raise _violation("SETTINGS on a stream")
        if len(frame.payload) % 6 or (frame.flags & frames.ACK and frame.payload):
            raise _wrong_size(frame)
        if frame.flags & frames.ACK:
            self._bucket.charge(FRAME_COST)
            return []
        if self.has_settings:
            self._bucket.charge(SETTINGS_COST)
        self.has_settings = True
        # Unknown ones are ignored (RFC 9113 §6.5.2). h2 would keep each of the 65,536 that there can be.
        known = {code: value for code, value in frames.read_settings(frame.payload) if code in _KNOWN_SETTINGS}
        self._feed(frames.pack_settings(known))
        return [WindowOpened(0)] if _SETTINGS_INITIAL_WINDOW in known else []

    def _on_ping(self, frame: Frame) -> list[Http2Event]:
        if frame.stream_id:
            raise _violation("PING on a stream")
        if len(frame.payload) != 8:
            raise _wrong_size(frame)
        self._bucket.charge(FRAME_COST)
        if frame.flags & frames.ACK:
            return [PingAnswered(frame.payload)]
        self._output += frames.pack_frame(frames.PING, frames.ACK, 0, frame.payload)
        return []

    def _on_goaway(self, frame: Frame) -> list[Http2Event]:
        """h2 would neither send nor receive after it, but the streams that are open go on (RFC 9113 §6.8)."""
        if frame.stream_id:
            raise _violation("GOAWAY on a stream")
        if len(frame.payload) < 8:
            raise _wrong_size(frame)
        self._bucket.charge(RESET_COST)
        return [ClientLeaving()]

    def _on_push_promise(self, frame: Frame) -> list[Http2Event]:
        raise _violation("PUSH_PROMISE from a client")

    def _on_priority(self, frame: Frame) -> list[Http2Event]:
        """Ignored (RFC 9113 §5.3.2), but for its form."""
        if not frame.stream_id:
            raise _violation("PRIORITY without a stream")
        self._bucket.charge(FRAME_COST)
        if len(frame.payload) == 5:
            return []
        if frame.stream_id in self._streams:
            return self._fail_stream(frame.stream_id, ErrorCodes.FRAME_SIZE_ERROR)
        raise _wrong_size(frame)  # RST_STREAM must not be sent on an idle stream (RFC 9113 §6.4)

    def _on_window_update(self, frame: Frame) -> list[Http2Event]:
        stream_id = frame.stream_id
        if len(frame.payload) != 4:
            raise _wrong_size(frame)
        if self._expected_updates:
            self._expected_updates -= 1
        else:
            self._bucket.charge(FRAME_COST)
        if stream_id:
            self._check_not_idle(frame)
            if stream_id not in self._streams:
                return []
        if not frames.read_long(frame.payload) & frames.MAX_STREAM_ID:
            if stream_id:
                return self._fail_stream(stream_id, ErrorCodes.PROTOCOL_ERROR)
            raise _violation("WINDOW_UPDATE by 0")
        return self._take_reset(self._feed_frame(frame)) or [WindowOpened(stream_id)]

    def _on_rst_stream(self, frame: Frame) -> list[Http2Event]:
        if len(frame.payload) != 4:
            raise _wrong_size(frame)
        self._check_not_idle(frame)
        self._bucket.charge(RESET_COST)
        if frame.stream_id not in self._streams:
            return []
        self._feed_frame(frame)
        self._forget(frame.stream_id, are_late_frames_expected=False)
        return [StreamLost(frame.stream_id)]

    def _on_data(self, frame: Frame) -> list[Http2Event]:
        self._check_not_idle(frame)
        data = frames.strip_padding(frame)
        is_ended = bool(frame.flags & END_STREAM)
        if len(data) < TINY_DATA_BYTES and not is_ended:
            self._bucket.charge(FRAME_COST)
        stream = self._streams.get(frame.stream_id)
        if stream is None:
            self._discard_late(frame.stream_id, frames.pack_frame(*frame))
            return []
        events = self._feed_frame(frame)
        if lost := self._take_reset(events):
            return lost
        padding = len(frame.payload) - len(data)
        stream.unreleased_bytes += len(frame.payload)
        stream.received_bytes += len(data)
        stream.is_ended = is_ended
        if padding:
            self.release(frame.stream_id, padding)
        if not _is_length_right(stream):
            return self._fail_stream(frame.stream_id, ErrorCodes.PROTOCOL_ERROR)
        if is_ended and stream.is_answered:
            self._forget(frame.stream_id, are_late_frames_expected=False)
        return [BodyReceived(frame.stream_id, data, is_ended)]

    def _on_headers(self, frame: Frame) -> list[Http2Event]:
        if not frame.stream_id % 2:
            raise _violation("HEADERS without a stream, or with an even id")
        fragment = frames.strip_padding(frame)
        if frame.flags & frames.HAS_PRIORITY:
            if len(fragment) < 5:
                raise _wrong_size(frame)
            # h2 ends the connection for a stream that depends on itself; RFC 9113 §5.3.2 has us ignore all of it.
            fragment = fragment[5:]
        self._block = _HeaderBlock(frame.stream_id, frame.flags & END_STREAM, [], 0)
        return self._take_fragment(frame, fragment)

    def _on_continuation(self, frame: Frame) -> list[Http2Event]:
        if self._block is None:
            raise _violation("CONTINUATION without HEADERS")
        return self._take_fragment(frame, frame.payload)

    def _take_fragment(self, frame: Frame, fragment: bytes) -> list[Http2Event]:
        block = self._block
        assert block is not None
        block.pieces.append(fragment)
        block.size += len(fragment)
        # h2 allows 64 frames of any size.
        if block.size > self._max_head_bytes or len(block.pieces) > self._bounds.max_block_frames:
            raise Http2ConnectionError(ErrorCodes.ENHANCE_YOUR_CALM, "the header block is too large")
        if not frame.flags & frames.END_HEADERS:
            return []
        self._block = None
        packed = frames.pack_header_block(block.stream_id, block.flags, b"".join(block.pieces))
        if block.stream_id in self._streams:
            return self._take_trailers(block, packed)
        if block.stream_id <= self.last_stream_id:
            self._discard_late(block.stream_id, packed)
            return []
        return self._start_stream(block.stream_id, packed, is_ended=bool(block.flags))

    def _take_trailers(self, block: _HeaderBlock, packed: bytes) -> list[Http2Event]:
        stream_id, stream = block.stream_id, self._streams[block.stream_id]
        if not block.flags:
            # h2 would end the connection; it is a malformed message only (RFC 9113 §8.1). HPACK needs to see it.
            packed = packed[:4] + bytes([packed[4] | END_STREAM]) + packed[5:]
        if lost := self._take_reset(self._feed(packed)):
            return lost
        stream.is_ended = True
        try:
            check_trailers(self._core.fields)
        except MalformedFields:
            return self._fail_stream(stream_id, ErrorCodes.PROTOCOL_ERROR)
        if not block.flags or not _is_length_right(stream):
            return self._fail_stream(stream_id, ErrorCodes.PROTOCOL_ERROR)
        if stream.is_answered:
            self._forget(stream_id, are_late_frames_expected=False)
        return [BodyReceived(stream_id, b"", is_ended=True)]

    def _start_stream(self, stream_id: int, packed: bytes, *, is_ended: bool) -> list[Http2Event]:
        self._feed(packed)
        self.last_stream_id = stream_id
        stream = self._streams[stream_id] = _Stream(None, is_ended)
        if len(self._streams) > self._bounds.max_streams:
            self._bucket.charge(RESET_COST)
            self.reset(stream_id, ErrorCodes.REFUSED_STREAM)
            return []
        if self.refuses_after is not None and stream_id > self.refuses_after:
            self.reset(stream_id, ErrorCodes.REFUSED_STREAM)
            return []
        try:
            head = parse_request_fields(self._core.fields, self._max_head_bytes)
        except MalformedFields:
            self._fail_stream(stream_id, ErrorCodes.PROTOCOL_ERROR)
            return []
        except Refusal as refusal:
            return [RequestStarted(stream_id, None, None, is_ended, refusal)]
        stream.content_length = read_content_length(head)
        if not _is_length_right(stream):
            self._fail_stream(stream_id, ErrorCodes.PROTOCOL_ERROR)
            return []
        return [RequestStarted(stream_id, head, stream.content_length, is_ended)]

    def _check_not_idle(self, frame: Frame) -> None:
        if not frame.stream_id or not frame.stream_id % 2 or frame.stream_id > self.last_stream_id:
            raise _violation(f"frame type {frame.type} on stream {frame.stream_id}, which is not open")

    def _discard_late(self, stream_id: int, packed: bytes) -> None:
        """Let h2 process a frame of a stream that has ended: for HPACK's state, and for the connection's window.

        h2 answers each with RST_STREAM. That is right where the client had ended or reset the stream; where we did,
        its frames were under way already, and are ignored (RFC 9113 §5.1).
        """
        self._core.feed(packed)
        output = self._core.take_output()
        if self._closed.get(stream_id, True):
            splitter = FrameSplitter()
            splitter.feed(output)
            while (sent := splitter.next_frame()) is not None:
                if sent.type != frames.RST_STREAM:
                    self._output += frames.pack_frame(*sent)
        else:
            self._bucket.charge(RESET_COST)
            self._output += output

    def _feed_frame(self, frame: Frame) -> list[Event]:
        return self._feed(frames.pack_frame(*frame))

    def _feed(self, packed: bytes) -> list[Event]:
        events = self._core.feed(packed)
        self._output += self._core.take_output()
        return events

    def _take_reset(self, events: list[Event]) -> list[Http2Event]:
        """Look for a stream that h2 reset itself, for a stream error."""
        for event in events:
            if isinstance(event, StreamReset):
                self._bucket.charge(RESET_COST)
                self._forget(event.stream_id, are_late_frames_expected=True)
                return [StreamLost(event.stream_id)]
        return []

    def _fail_stream(self, stream_id: int, code: ErrorCodes) -> list[Http2Event]:
        self._bucket.charge(RESET_COST)
        self.reset(stream_id, code)
        return [StreamLost(stream_id)]

    # --- what is sent -------------------------------------------------------------------------------------------------

    def take_output(self) -> bytes:
        """Return what must be written now."""
        output, self._output = bytes(self._output), bytearray()
        return output

    def has_stream(self, stream_id: int) -> bool:
        """Whether frames can be sent on the stream."""
        return stream_id in self._streams

    def stream_window(self, stream_id: int) -> int:
        """What the client allows to be sent on a live stream; may be below 0 (RFC 9113 §6.9.2)."""
        return self._h2.streams[stream_id].outbound_flow_control_window

    @property
    def connection_window(self) -> int:
        """What the client allows to be sent on all streams together."""
        return self._h2.outbound_flow_control_window

    def send_head(self, stream_id: int, status: int, headers: Headers, *, is_end: bool = False) -> None:
        """Send a response's head, or an informational one. Raises :exc:`ValueError` for a field that must not be sent.

        With ``is_end`` it is the whole response, and :meth:`end` must follow.
        """
        self._h2.send_headers(stream_id, select_response_fields(status, headers), end_stream=is_end)
        self._output += self._core.take_output()

    def frame_room(self, stream_id: int) -> int:
        """The largest DATA frame that can be sent on a live stream now; 0 or less where a window is closed."""
        return min(MAX_FRAME_BYTES, self.stream_window(stream_id), self.connection_window)

    def send_data(self, stream_id: int, data: bytes | memoryview, *, is_end: bool = False) -> int:
        """Send as much of ``data`` in one frame as the windows allow; return how much.

        ``is_end`` ends the response with the frame that takes all of the rest; then :meth:`end` must follow.
        """
        size = max(0, min(len(data), self.frame_room(stream_id)))
        if is_end and size == len(data):
            self._h2.send_data(stream_id, bytes(data), end_stream=True)
            self._output += self._core.take_output()
        elif size:
            # What h2 does for a frame that does not end its stream, without its objects: 1 µs instead of 6.
            self._h2.streams[stream_id].outbound_flow_control_window -= size
            self._h2.outbound_flow_control_window -= size
            self._output += frames.pack_frame(frames.DATA, 0, stream_id, data[:size])
        else:
            return 0
        self._expected_updates += UPDATES_PER_DATA
        return size

    def end(self, stream_id: int) -> None:
        """Note that a response is complete. The stream stays live until its request has ended, or :meth:`reset`."""
        stream = self._streams[stream_id]
        stream.is_answered = True
        if stream.is_ended:
            self._forget(stream_id, are_late_frames_expected=False)

    def reset(self, stream_id: int, code: ErrorCodes) -> None:
        """Close a stream with RST_STREAM. Nothing happens when it is closed already."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            self._h2.reset_stream(stream_id, code)
            self._output += self._core.take_output()
            self._forget(stream_id, are_late_frames_expected=not stream.is_ended)

    def release(self, stream_id: int, size: int) -> None:
        """Give the client back ``size`` bytes of the windows: that much of the body has found its place."""
        stream = self._streams.get(stream_id)
        if stream is not None and size:
            stream.unreleased_bytes -= size
            self._h2.acknowledge_received_data(size, stream_id)
            self._output += self._core.take_output()

    def widen(self, stream_id: int) -> None:
        """Open a stream's window for a body that is wanted; once per stream."""
        increment = self._bounds.body_window_bytes - self._bounds.stream_window_bytes
        self._h2.increment_flow_control_window(increment, stream_id)
        self._output += self._core.take_output()

    def send_goaway(self, last_stream_id: int, code: ErrorCodes, text: str = "") -> None:
        """Send GOAWAY. h2's own would forbid to send anything after it."""
        self._output += frames.pack_goaway(last_stream_id, code, text)

    def abandon(self) -> None:
        """Close all streams without a word: the connection ends, and h2 refuses to send once it has found an error."""
        self._streams.clear()

    def send_ping(self, data: bytes) -> None:
        """Send a PING with eight bytes of ``data``; a :class:`PingAnswered` will tell of its answer."""
        self._output += frames.pack_frame(frames.PING, 0, 0, data)

    def _forget(self, stream_id: int, *, are_late_frames_expected: bool) -> None:
        stream = self._streams.pop(stream_id)
        if stream.unreleased_bytes:
            # The stream's window is gone, but the connection's goes on.
            self._h2.acknowledge_received_data(stream.unreleased_bytes, stream_id)
            self._output += self._core.take_output()
        self._closed[stream_id] = are_late_frames_expected
        if len(self._closed) > CLOSED_STREAMS:
            del self._closed[next(iter(self._closed))]


def _is_length_right(stream: _Stream) -> bool:
    """Whether what came so far can be the body that ``content-length`` announced (RFC 9113 §8.1.1)."""
    if stream.content_length is None:
        return True
    if stream.is_ended:
        return stream.received_bytes == stream.content_length
    return stream.received_bytes <= stream.content_length


def _violation(text: str) -> Http2ConnectionError:
    return Http2ConnectionError(ErrorCodes.PROTOCOL_ERROR, text)


def _wrong_size(frame: Frame) -> Http2ConnectionError:
    return Http2ConnectionError(ErrorCodes.FRAME_SIZE_ERROR, f"frame type {frame.type} of {len(frame.payload)} bytes")
