"""The streams of one HTTP/2 connection, and the sending side: states, windows, bytes to write. Sans-I/O.

A stream lives from its HEADERS until both sides are done or one of them reset it::

    HEADERS → [live] --END_STREAM of both--> closed (late frames: a violation)
                   --RST_STREAM received---> closed (late frames: a violation)
                   --RST_STREAM sent-------> closed (late frames: discarded, RFC 9113 §5.1)
"""

from __future__ import annotations

from attrs import define
from h2.errors import ErrorCodes

from cgw.errors import Headers
from cgw.wire import http2_frames as frames
from cgw.wire.http2_bounds import UPDATES_PER_DATA, Http2Bounds
from cgw.wire.http2_core import CLOSED_STREAMS, Http2Core
from cgw.wire.http2_frames import MAX_FRAME_BYTES
from cgw.wire.http2_heads import select_response_fields


@define
class Stream:
    """A live stream. ``unreleased_bytes`` of its body still count against the windows."""

    content_length: int | None
    is_ended: bool
    received_bytes: int = 0
    unreleased_bytes: int = 0
    is_answered: bool = False


class Http2Streams:
    """Streams and output of one connection. After any method, :meth:`take_output` returns the bytes to write."""

    def __init__(self, bounds: Http2Bounds, max_head_bytes: int) -> None:
        self._bounds = bounds
        self._core = Http2Core(bounds, max_head_bytes)
        self._h2 = self._core.h2
        self._streams: dict[int, Stream] = {}
        self._closed: dict[int, bool] = {}  # stream → true if late frames are to be expected; oldest first
        self._expected_updates = 0
        self._output = bytearray(self._core.take_output())

    def take_output(self) -> bytes:
        """Return the bytes to write, in order, and forget them."""
        output, self._output = bytes(self._output), bytearray()
        return output

    def has_stream(self, stream_id: int) -> bool:
        """Return true if frames can be sent on the stream."""
        return stream_id in self._streams

    def stream_window(self, stream_id: int) -> int:
        """Return a live stream's send window in bytes; it may be negative (RFC 9113 §6.9.2)."""
        return self._h2.streams[stream_id].outbound_flow_control_window

    @property
    def connection_window(self) -> int:
        """The connection's send window in bytes."""
        return self._h2.outbound_flow_control_window

    def send_head(self, stream_id: int, status: int, headers: Headers) -> None:
        """Send the head of a final or informational response. Raises :exc:`ValueError` for an invalid field."""
        self._h2.send_headers(stream_id, select_response_fields(status, headers))
        self._output += self._core.take_output()

    def frame_room(self, stream_id: int) -> int:
        """Return the largest payload of a DATA frame on a live stream now; 0 or less if a window is closed."""
        return min(MAX_FRAME_BYTES, self.stream_window(stream_id), self.connection_window)

    def send_data(self, stream_id: int, data: bytes | memoryview, *, is_end: bool = False) -> int:
        """Send one DATA frame with as much of ``data`` as the windows allow; return the number of bytes sent.

        With ``is_end``, a frame that takes all of ``data`` ends the response, and :meth:`end` must follow.
        """
        size = max(0, min(len(data), self.frame_room(stream_id)))
        if is_end and size == len(data):
            # END_STREAM changes h2's state of the stream, so h2 must send this frame.
            self._h2.send_data(stream_id, bytes(data), end_stream=True)
            self._output += self._core.take_output()
        elif size:
            # The same bookkeeping as h2's send_data for a frame without END_STREAM; 1 µs instead of 6.
            self._h2.streams[stream_id].outbound_flow_control_window -= size
            self._h2.outbound_flow_control_window -= size
            self._output += frames.pack_frame(frames.DATA, 0, stream_id, data[:size])
        else:
            return 0
        self._expected_updates += UPDATES_PER_DATA
        return size

    def end(self, stream_id: int) -> None:
        """Mark a response as complete. The stream stays live until the request ends, or :meth:`reset`."""
        stream = self._streams[stream_id]
        stream.is_answered = True
        if stream.is_ended:
            self._forget(stream_id, are_late_frames_expected=False)

    def reset(self, stream_id: int, code: ErrorCodes) -> None:
        """Close a stream with RST_STREAM. Does nothing if it is closed."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            # After END_STREAM of both sides the stream is closed, and RST_STREAM must not be sent (RFC 9113 §5.1): a
            # request whose end is malformed, but whose answer was early.
            if not (stream.is_answered and stream.is_ended):
                self._h2.reset_stream(stream_id, code)
                self._output += self._core.take_output()
            self._forget(stream_id, are_late_frames_expected=not stream.is_ended)

    def release(self, stream_id: int, size: int) -> None:
        """Give ``size`` bytes of a body back to the windows. Does nothing if the stream is closed."""
        stream = self._streams.get(stream_id)
        if stream is not None and size:
            stream.unreleased_bytes -= size
            self._h2.acknowledge_received_data(size, stream_id)
            self._output += self._core.take_output()

    def widen(self, stream_id: int) -> None:
        """Widen a live stream's window to ``body_window_bytes``. To be called once per stream."""
        # By WINDOW_UPDATE on this stream, not by SETTINGS: the others keep their small first windows.
        increment = self._bounds.body_window_bytes - self._bounds.stream_window_bytes
        self._h2.increment_flow_control_window(increment, stream_id)
        self._output += self._core.take_output()

    def send_goaway(self, last_stream_id: int, code: ErrorCodes, text: str = "") -> None:
        """Send GOAWAY, packed by hand: h2 would refuse to send anything after its own."""
        self._output += frames.pack_goaway(last_stream_id, code, text)

    def abandon(self) -> None:
        """Close all streams without sending anything: h2 refuses to send after a connection error."""
        self._streams.clear()

    def send_ping(self, data: bytes) -> None:
        """Send a PING with eight bytes of ``data``; its answer is a ``PingAnswered`` event."""
        self._output += frames.pack_frame(frames.PING, 0, 0, data)

    def _forget(self, stream_id: int, *, are_late_frames_expected: bool) -> None:
        stream = self._streams.pop(stream_id)
        if stream.unreleased_bytes:
            # These bytes still count against the connection's window, which other streams need.
            self._h2.acknowledge_received_data(stream.unreleased_bytes, stream_id)
            self._output += self._core.take_output()
        self._closed[stream_id] = are_late_frames_expected
        if len(self._closed) > CLOSED_STREAMS:
            del self._closed[next(iter(self._closed))]
