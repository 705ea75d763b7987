"""One connection to an upstream, one exchange at a time.

A plain head (:mod:`cgw.wire.plain_heads`) is read without h11, any other by it. h11 is given the response's head and
no byte more. So the body can be taken as raw bytes by the flat relay, or be read through h11, or first the one and then
the other, without a byte being lost in between.
"""

from __future__ import annotations

from typing import cast

import h11
import trio

from cgw.errors import UpstreamProtocolError
from cgw.transport.sockets import PlainTransport
from cgw.wire.heads import describe_violation, find_head_end
from cgw.wire.messages import Origin, ResponseHead, UpstreamRequest
from cgw.wire.plain_heads import parse_plain_response, says_close

MAX_HEAD_BYTES = 64 * 1024
"""The largest response head that is read."""

MAX_INFORMATIONAL = 16
"""The most 1xx responses that may precede a final one."""


class StaleConnection(Exception):
    """A kept connection broke before the first byte of a response: the upstream had closed it meanwhile."""


class UpstreamConnection:
    """A connection and what h11 knows of it. ``buffer`` is scratch that may be shared: nothing stays in it."""

    def __init__(self, transport: PlainTransport, origin: Origin, buffer: bytearray) -> None:
        self._buffer = buffer
        self._h11: h11.Connection | None = None
        self._plain_head = b""
        self._unread = b""
        self._is_request_sent = False
        self._has_received = False
        self._has_ended = False
        self._may_be_kept = False
        self._has_upstream_ended = False
        self.transport = transport
        self.origin = origin
        self.idle_since = 0.0
        self.was_used = False

    def is_usable(self) -> bool:
        """Whether an idle connection still is: no end has come, nor bytes that nobody asked for."""
        return self.transport.is_quiet(self._buffer)

    def close(self) -> None:
        """Close the socket at once. A TLS upstream gets no close_notify: there is nobody left to lie to."""
        self.transport.close()

    async def send_request(self, request: UpstreamRequest) -> None:
        """Send ``request``. An upstream that closes early may have answered already: that is for reading to say."""
        self._has_received = self._has_ended = self._is_request_sent = False
        self._h11 = None
        lines = [b"%b %b HTTP/1.1\r\nhost: %b" % (request.method, request.target, request.origin.authority)]
        lines += [b"%b: %b" % field for field in request.headers]
        lines.append(b"content-length: %d\r\n\r\n" % len(request.body))
        head = b"\r\n".join(lines)
        if head.count(b"\n") != len(lines) + 2:
            raise ValueError("a header field of the upstream request holds a line end")
        try:
            await self.transport.send_all(head + request.body)
        except (OSError, trio.ClosedResourceError):
            return
        self._is_request_sent = True

    async def receive_head(self) -> ResponseHead:
        """The final response's head; 1xx ones are skipped.

        Raises :exc:`StaleConnection` when a kept connection ends without a byte, :exc:`UpstreamProtocolError` else.
        """
        for _ in range(MAX_INFORMATIONAL + 1):
            data = await self._take_head()
            head = parse_plain_response(data)
            if head is not None and self._h11 is None:
                self._plain_head = data
                self._may_be_kept = not says_close(head)
                return head
            self._feed_h11(data)
            event = self._parse()
            if isinstance(event, h11.Response):
                head = ResponseHead(event.status_code, tuple(event.headers), event.http_version, event.reason)
                self._may_be_kept = head.http_version != b"1.0" and not says_close(head)
                return head
            if not isinstance(event, h11.InformationalResponse) or event.status_code == 101:
                raise UpstreamProtocolError("the upstream sent no response")
        raise UpstreamProtocolError("the upstream sent too many 1xx responses")

    async def _take_head(self) -> bytes:
        """The next head, or whatever there is when that will never be one."""
        while (end := find_head_end(self._unread)) < 0:
            if len(self._unread) > MAX_HEAD_BYTES:
                raise UpstreamProtocolError(f"the upstream's response head is larger than {MAX_HEAD_BYTES} bytes")
            data = await self._receive()
            if not data:
                end = len(self._unread)
                self._has_upstream_ended = True
                break
            self._unread += data
        head, self._unread = self._unread[:end], self._unread[end:]
        return head

    def _feed_h11(self, head: bytes) -> None:
        """Bring h11, which has not been needed so far, to where ``head`` has been read."""
        if self._h11 is None:
            self._h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)
            # What was asked for makes no difference to how the answer is framed, unless it was HEAD or CONNECT.
            fields = [(b"host", self.origin.authority), (b"content-length", b"0")]
            self._h11.send(h11.Request(method=b"POST", target=b"/", headers=fields))
            self._h11.send(h11.EndOfMessage())
        if head:
            self._h11.receive_data(head)
        if self._has_upstream_ended:
            self._h11.receive_data(b"")

    async def receive_chunk(self) -> bytes | None:
        """The next bytes of the body as they came, or ``None`` at its proper end."""
        if self._h11 is None:
            self._feed_h11(self._plain_head)
            self._parse()
        while (event := self._parse()) is h11.NEED_DATA:
            data, self._unread = self._unread or await self._receive(), b""
            self._get_h11().receive_data(data)
        if isinstance(event, h11.Data):
            return bytes(event.data)
        if isinstance(event, h11.EndOfMessage):
            return None
        raise UpstreamProtocolError("the upstream broke off its response")

    def _get_h11(self) -> h11.Connection:
        if self._h11 is None:
            raise RuntimeError("h11 has not been given the head")
        return self._h11

    def _parse(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        try:
            return cast("h11.Event", self._get_h11().next_event())
        except h11.RemoteProtocolError as error:
            if not self._has_received and self.was_used:
                raise StaleConnection from None
            raise UpstreamProtocolError(f"the upstream broke HTTP/1.1: {describe_violation(error)}") from None

    async def _receive(self) -> bytes:
        try:
            size = await self.transport.receive_some(self._buffer)
        except OSError:
            if not self._has_received and self.was_used:
                raise StaleConnection from None
            raise UpstreamProtocolError("the upstream reset the connection") from None
        self._has_received = self._has_received or bool(size)
        return bytes(memoryview(self._buffer)[:size])

    def take_unread(self) -> bytes:
        """The beginning of the body that came with the head, for who reads the rest from the transport itself."""
        unread, self._unread = self._unread, b""
        return unread

    def go_on_after(self, unread: bytes) -> None:
        """Read on with h11 from a boundary between chunks, where ``unread`` is what comes next."""
        self._unread = unread

    def end_of_raw_body(self, surplus_bytes: int) -> None:
        """The body was read from the transport itself, up to its end and ``surplus_bytes`` more."""
        self._has_ended = True
        self._may_be_kept = self._may_be_kept and not surplus_bytes

    def recycle(self) -> bool:
        """Make ready for another request; whether that is possible after what came and went."""
        if not self._is_request_sent or self._unread:
            return False
        if self._h11 is not None and not self._has_ended:
            # Only our own stand-in for the request was sent through h11, so its own state says nothing.
            if self._h11.their_state is not h11.DONE or self._h11.trailing_data != (b"", False):
                return False
        elif not (self._has_ended and self._may_be_kept):
            return False
        self._h11 = None
        self.was_used = True
        return True
