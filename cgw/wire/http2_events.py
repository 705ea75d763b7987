"""What happens on an HTTP/2 connection, as its engine gets to know it from :mod:`cgw.wire.http2_protocol`."""

from __future__ import annotations

from attrs import frozen

from cgw.errors import Refusal
from cgw.wire.messages import RequestHead


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
