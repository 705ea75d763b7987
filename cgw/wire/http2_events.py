"""Events of an HTTP/2 connection, as :mod:`cgw.wire.http2_protocol` reports them."""

from __future__ import annotations

from attrs import frozen

from cgw.errors import Refusal
from cgw.wire.messages import RequestHead


@frozen
class RequestStarted:
    """A request's head arrived. With ``refusal``, answer with that; ``head`` is then what could be read of it."""

    stream_id: int
    head: RequestHead
    content_length: int | None
    is_ended: bool
    refusal: Refusal | None = None


@frozen
class HeadMalformed:
    """A request's head is malformed, and its stream was reset for that; ``reason`` quotes nothing of it."""

    stream_id: int
    reason: str


@frozen
class BodyReceived:
    """Bytes of a request's body. They count against the windows until ``Http2Protocol.release``."""

    stream_id: int
    data: bytes
    is_ended: bool


@frozen
class StreamLost:
    """The client reset the stream, or a stream error did: nothing more can be sent on it."""

    stream_id: int


@frozen
class WindowOpened:
    """A window opened: that of a stream, or, for 0, the connection's or those of all streams."""

    stream_id: int


@frozen
class PingAnswered:
    """The client acknowledged a PING."""

    data: bytes


@frozen
class ClientLeaving:
    """The client sent GOAWAY: it will open no more streams."""


Http2Event = RequestStarted | HeadMalformed | BodyReceived | StreamLost | WindowOpened | PingAnswered | ClientLeaving
