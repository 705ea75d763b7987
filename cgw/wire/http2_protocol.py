"""The receiving side of an HTTP/2 server: bytes in, events out. Sans-I/O, on h2 (:mod:`cgw.wire.http2_core`).

Every frame is checked before h2 gets it: counted against the bounds, ignored where it does not matter to a server
(PRIORITY, unknown types, late frames), and turned into a stream error where h2 would end the connection without need::

    bytes → FrameSplitter → guards here → h2 (states, windows, HPACK) → events
                                 ↓ stream errors: RST_STREAM
                                 ↓ Http2ConnectionError: GOAWAY, by the caller
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from attrs import define
from h2.errors import ErrorCodes
from h2.events import Event, StreamReset

from cgw.errors import Refusal
from cgw.wire import http2_frames as frames
from cgw.wire.heads import HTTP2_PREFACE
from cgw.wire.http2_bounds import FRAME_COST, RESET_COST, SETTINGS_COST, TINY_DATA_BYTES, FloodBucket, Http2Bounds
from cgw.wire.http2_events import (
    BodyReceived,
    ClientLeaving,
    HeadMalformed,
    Http2Event,
    PingAnswered,
    RequestStarted,
    StreamLost,
    WindowOpened,
)
from cgw.wire.http2_frames import END_STREAM, Frame, FrameSplitter, Http2ConnectionError
from cgw.wire.http2_heads import (
    MalformedFields,
    check_trailers,
    parse_request_fields,
    read_content_length,
    sketch_head,
)
from cgw.wire.http2_streams import Http2Streams, Stream

_KNOWN_SETTINGS = frozenset(range(1, 7))
_SETTINGS_INITIAL_WINDOW = 4


@define
class _HeaderBlock:
    stream_id: int
    flags: int
    pieces: list[bytes]
    size: int


class Http2Protocol(Http2Streams):
    """One connection. ``clock`` returns seconds, for the flood bucket.

    Receive: ``feed``, then ``process_frame`` until it returns ``None``; send: the methods of
    :class:`~cgw.wire.http2_streams.Http2Streams`. After either, ``take_output`` holds what must be written.
    """

    def __init__(self, bounds: Http2Bounds, max_head_bytes: int, clock: Callable[[], float]) -> None:
        super().__init__(bounds, max_head_bytes)
        self._max_head_bytes = max_head_bytes
        self._splitter = FrameSplitter()
        self._bucket = FloodBucket(bounds.control_frames_per_second, bounds.control_frames_burst, clock)
        self._block: _HeaderBlock | None = None
        self._preface = HTTP2_PREFACE
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
        """The last stream of the final GOAWAY; newer streams are refused. ``None`` while not draining."""

    @property
    def is_partial(self) -> bool:
        """True while a frame, a header block or the preface is incomplete."""
        return self._splitter.is_partial or self._block is not None or 0 < len(self._preface) < len(HTTP2_PREFACE)

    @property
    def is_block_open(self) -> bool:
        """True between HEADERS and END_HEADERS."""
        return self._block is not None

    @property
    def is_partial_body(self) -> bool:
        """True while a DATA frame is incomplete."""
        return self._splitter.is_partial and self._splitter.partial_type == frames.DATA

    def feed(self, data: bytes) -> None:
        """Append received bytes. Raises :exc:`Http2ConnectionError` for a wrong preface."""
        if self._preface:
            size = min(len(self._preface), len(data))
            if data[:size] != self._preface[:size]:
                raise Http2ConnectionError(ErrorCodes.PROTOCOL_ERROR, "not the preface of HTTP/2")
            self._preface = self._preface[size:]
            data = data[size:]
        self._splitter.feed(data)

    def process_frame(self) -> list[Http2Event] | None:
        """Process one frame and return its events; ``None`` if no complete frame is buffered.

        Raises :exc:`Http2ConnectionError`; only :meth:`abandon` and :meth:`send_goaway` may be called after that.
        """
        frame = self._splitter.next_frame()
        if frame is None:
            return None
        block = self._block
        # Nothing may come between the frames of a header block, on any stream (RFC 9113 §6.10).
        if block is not None and (frame.type != frames.CONTINUATION or frame.stream_id != block.stream_id):
            raise _violation("a header block is interrupted")
        if not self.has_settings and (frame.type != frames.SETTINGS or frame.flags & frames.ACK):
            raise _violation("the first frame is not SETTINGS")
        if frame.type >= len(self._handlers):
            self._bucket.charge(FRAME_COST)  # unknown types must be ignored (RFC 9113 §5.5)
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
        if self.has_settings:  # the first one is part of the preface
            self._bucket.charge(SETTINGS_COST)
        self.has_settings = True
        # Unknown settings must be ignored (RFC 9113 §6.5.2). h2 would store each of the 65,536 possible ones.
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
        # By hand, which costs 2 µs in all: PING is the cheapest frame to flood with.
        self._output += frames.pack_frame(frames.PING, frames.ACK, 0, frame.payload)
        return []

    def _on_goaway(self, frame: Frame) -> list[Http2Event]:
        """Not passed to h2, which would refuse to send afterwards; open streams must go on (RFC 9113 §6.8)."""
        if frame.stream_id:
            raise _violation("GOAWAY on a stream")
        if len(frame.payload) < 8:
            raise _wrong_size(frame)
        self._bucket.charge(RESET_COST)
        return [ClientLeaving()]

    def _on_push_promise(self, frame: Frame) -> list[Http2Event]:
        raise _violation("PUSH_PROMISE from a client")

    def _on_priority(self, frame: Frame) -> list[Http2Event]:
        """Check the form only: priorities are deprecated and may be ignored (RFC 9113 §5.3.2)."""
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
                return []  # it crossed the end of the stream (RFC 9113 §5.1)
        # h2 would end the connection in both cases; on a stream it is a stream error (RFC 9113 §6.9).
        if not frames.read_long(frame.payload) & frames.MAX_STREAM_ID:
            if stream_id:
                return self._fail_stream(stream_id, ErrorCodes.PROTOCOL_ERROR)
            raise _violation("WINDOW_UPDATE by 0")
        return self._take_reset(self._feed_frame(frame)) or [WindowOpened(stream_id)]

    def _on_rst_stream(self, frame: Frame) -> list[Http2Event]:
        if len(frame.payload) != 4:
            raise _wrong_size(frame)
        self._check_not_idle(frame)  # h2 ignores RST_STREAM on an idle stream; it is an error (RFC 9113 §6.4)
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
        # Flow control counts the whole payload, padding and its length included (RFC 9113 §6.1).
        padding = len(frame.payload) - len(data)
        stream.unreleased_bytes += len(frame.payload)
        stream.received_bytes += len(data)
        stream.is_ended = is_ended
        if padding:  # nobody will consume it
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
            # Not passed to h2, which would end the connection for a stream that depends on itself.
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
        # h2 allows 64 frames, together 1 MiB.
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
            # A stream error (RFC 9113 §8.1), for which h2 would end the connection. HPACK must process the block,
            # so h2 gets it as if END_STREAM were set, and the stream is reset below.
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
        # Before any refusal, so that HPACK's state and h2's streams stay in step with the client's.
        self._feed(packed)
        self.last_stream_id = stream_id
        stream = self._streams[stream_id] = Stream(None, is_ended)
        if len(self._streams) > self._bounds.max_streams:
            self._bucket.charge(RESET_COST)
            self.reset(stream_id, ErrorCodes.REFUSED_STREAM)
            return []
        if self.refuses_after is not None and stream_id > self.refuses_after:
            self.reset(stream_id, ErrorCodes.REFUSED_STREAM)
            return []
        try:
            head = parse_request_fields(self._core.fields, self._max_head_bytes)
        except MalformedFields as error:
            self._fail_stream(stream_id, ErrorCodes.PROTOCOL_ERROR)
            return [HeadMalformed(stream_id, str(error))]
        except Refusal as refusal:
            return [RequestStarted(stream_id, sketch_head(self._core.fields), None, is_ended, refusal)]
        stream.content_length = read_content_length(head)
        if not _is_length_right(stream):
            self._fail_stream(stream_id, ErrorCodes.PROTOCOL_ERROR)
            return [HeadMalformed(stream_id, "a content-length without a body")]
        return [RequestStarted(stream_id, head, stream.content_length, is_ended)]

    def _check_not_idle(self, frame: Frame) -> None:
        if not frame.stream_id or not frame.stream_id % 2 or frame.stream_id > self.last_stream_id:
            raise _violation(f"frame type {frame.type} on stream {frame.stream_id}, which is not open")

    def _discard_late(self, stream_id: int, packed: bytes) -> None:
        """Pass a frame of a closed stream to h2, for HPACK's state and the connection's window only.

        h2 replies with RST_STREAM (STREAM_CLOSED). That is right where the client had ended or reset the stream.
        Where we reset it, the frames were already under way and must be ignored (RFC 9113 §5.1).
        """
        self._core.feed(packed)
        output = self._core.take_output()
        # A stream that is no longer remembered counts as one that we reset.
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
        """Return the event for a stream that h2 reset because of a stream error, if there is one."""
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


def _is_length_right(stream: Stream) -> bool:
    """Return false once the body contradicts ``content-length`` (RFC 9113 §8.1.1)."""
    if stream.content_length is None:
        return True
    if stream.is_ended:
        return stream.received_bytes == stream.content_length
    return stream.received_bytes <= stream.content_length


def _violation(text: str) -> Http2ConnectionError:
    return Http2ConnectionError(ErrorCodes.PROTOCOL_ERROR, text)


def _wrong_size(frame: Frame) -> Http2ConnectionError:
    return Http2ConnectionError(ErrorCodes.FRAME_SIZE_ERROR, f"frame type {frame.type} of {len(frame.payload)} bytes")
