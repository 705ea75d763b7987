"""One connection to an upstream: HTTP/1.1 with h11, one exchange at a time.

h11 is given the response's head and no byte more. So the body can be read through h11, or taken as raw bytes by the
flat relay, or first the one and then the other, without a byte being lost in between.
"""

from __future__ import annotations

from typing import cast

import h11
import trio

from cgw.errors import UpstreamProtocolError
from cgw.transport.sockets import PlainTransport
from cgw.wire.heads import describe_violation, find_head_end
from cgw.wire.messages import Origin, ResponseHead, UpstreamRequest, find_header

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
        self._h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)
        self._unread = b""
        self._has_received = False
        self._has_ended = False
        self._may_be_kept = False
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
        self._has_received = self._has_ended = False
        fields = [(b"host", request.origin.authority), *request.headers, (b"content-length", b"%d" % len(request.body))]
        head = self._h11.send(h11.Request(method=request.method, target=request.target, headers=fields))
        body = self._h11.send(h11.Data(data=request.body)) if request.body else b""
        self._h11.send(h11.EndOfMessage())
        try:
            await self.transport.send_all((head or b"") + (body or b""))
        except (OSError, trio.ClosedResourceError):
            return

    async def receive_head(self) -> ResponseHead:
        """The final response's head; 1xx ones are skipped.

        Raises :exc:`StaleConnection` when a kept connection ends without a byte, :exc:`UpstreamProtocolError` else.
        """
        for _ in range(MAX_INFORMATIONAL + 1):
            await self._feed_head()
            event = self._parse()
            if isinstance(event, h11.Response):
                self._may_be_kept = event.http_version != b"1.0" and not _says_close(event)
                return ResponseHead(event.status_code, tuple(event.headers), event.http_version, event.reason)
            if not isinstance(event, h11.InformationalResponse) or event.status_code == 101:
                raise UpstreamProtocolError("the upstream sent no response")
        raise UpstreamProtocolError("the upstream sent too many 1xx responses")

    async def _feed_head(self) -> None:
        """Give h11 the next head, or whatever there is when that will never be one."""
        while (end := find_head_end(self._unread)) < 0:
            if len(self._unread) > MAX_HEAD_BYTES:
                raise UpstreamProtocolError(f"the upstream's response head is larger than {MAX_HEAD_BYTES} bytes")
            data = await self._receive()
            if not data:
                self._h11.receive_data(self._unread)
                self._h11.receive_data(b"")
                self._unread = b""
                return
            self._unread += data
        self._h11.receive_data(self._unread[:end])
        self._unread = self._unread[end:]

    async def receive_chunk(self) -> bytes | None:
        """The next bytes of the body as they came, or ``None`` at its proper end."""
        while (event := self._parse()) is h11.NEED_DATA:
            data, self._unread = self._unread or await self._receive(), b""
            self._h11.receive_data(data)
        if isinstance(event, h11.Data):
            return bytes(event.data)
        if isinstance(event, h11.EndOfMessage):
            return None
        raise UpstreamProtocolError("the upstream broke off its response")

    def _parse(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        try:
            return cast("h11.Event", self._h11.next_event())
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
        if self._has_ended:
            if not self._may_be_kept:
                return False
            self._h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)
        else:
            has_ended = self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE
            if not has_ended or self._unread or self._h11.trailing_data != (b"", False):
                return False
            self._h11.start_next_cycle()
        self.was_used = True
        return True


def _says_close(response: h11.Response) -> bool:
    value = find_header(tuple(response.headers), b"connection") or b""
    return any(token.strip().lower() == b"close" for token in value.split(b","))
