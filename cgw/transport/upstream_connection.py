"""One connection to an upstream: requests are encoded, and responses read, one after the other.

A head that the fast parser (:mod:`cgw.wire.fast_heads`) reads needs no h11; others do. h11 gets the response's head
and not a byte of the body before it has to read it. So the body can be taken as raw data by the flat relay, or through
h11, or first the one and then the other, and no data is lost in between::

    send_request ──> receive_head ──┬──> receive_chunk (h11), until None ────────────────────┬──> recycle, or close
                                    │            ^                                            │
                                    │            │ continue_with(unread)                      │
                                    └──> take_unread, then the transport ──> end_raw_body ────┘
"""

from __future__ import annotations

from typing import cast

import h11
import trio

from cgw.clock import read_clock
from cgw.errors import UpstreamProtocolError
from cgw.transport.arrival import find_arrival
from cgw.transport.sockets import Transport
from cgw.wire.chunked import ChunkedFramingError, ChunkScanner
from cgw.wire.fast_heads import PERSISTENT, has_connection_close, parse_fast_response
from cgw.wire.heads import check_response_head, describe_violation, find_head_end
from cgw.wire.messages import Origin, ResponseHead, UpstreamRequest, encode_head, encode_upload_head

MAX_HEAD_BYTES = 64 * 1024
"""The largest response head that is read."""

MAX_INFORMATIONAL = 16
"""The most 1xx responses that may precede a final one."""

CHUNKS_PER_CHECKPOINT = 32
"""Chunks that are returned before other tasks get their turn."""

SLICE_BYTES = 16 * 1024
"""How much of a chunked body is checked and parsed at once: some 2,700 chunks of one byte, in about 5 ms."""


class StaleConnection(Exception):
    """A kept connection ended before the first byte of a response, as when the upstream has closed it while idle."""


class UpstreamConnection:
    """A connection and the state of its current exchange. ``buffer`` is scratch, shared by the pool."""

    def __init__(self, transport: Transport, origin: Origin, buffer: bytearray) -> None:
        self._buffer = buffer
        self._h11: h11.Connection | None = None
        self._fast_head = b""  # what h11 has to be given, should it be needed for the body
        self._fast_body_is_chunked = False
        self._unread = b""  # was received, and not used yet
        self._is_request_sent = False
        self._is_upload_chunked = False
        self._has_received = False
        self._has_ended = False
        self._may_be_kept = False
        self._has_upstream_ended = False
        self._scanner: ChunkScanner | None = None
        self._chunk_error: UpstreamProtocolError | None = None  # found in data of which a part is still to be returned
        self._chunks_until_checkpoint = CHUNKS_PER_CHECKPOINT
        self.transport = transport
        self.origin = origin
        self.idle_since = 0.0
        self.asked_at = 0.0  # when the request was sent (Trio's clock)
        self.was_used = False
        self._read_time = read_clock()

    def close(self) -> None:
        """Close the socket at once. TLS's close_notify is left out: it could wait, and upstreams don't need it."""
        self.transport.close()

    async def send_request(self, request: UpstreamRequest) -> None:
        """Send ``request``. That it could not be sent is not an error here: ``receive_head`` reports it."""
        self._has_received = self._has_ended = self._is_request_sent = False
        self._h11 = None
        head = encode_head(request)
        self.asked_at = self._read_time()
        try:
            await self.transport.send_all(head + request.body)
        except (OSError, trio.ClosedResourceError):
            # The upstream may have responded before it closed, as with 413: read that.
            return
        self._is_request_sent = True

    async def begin_upload(self, request: UpstreamRequest, body_bytes: int | None) -> None:
        """Send the head of ``request``, whose body follows by :meth:`send_piece`: ``body_bytes``, or any number.

        As with :meth:`send_request`, it is for ``receive_head`` to report that nothing could be sent.
        """
        self._has_received = self._has_ended = self._is_request_sent = False
        self._h11 = None
        self._is_upload_chunked = body_bytes is None
        self.asked_at = self._read_time()
        await self._send_upload(encode_upload_head(request, body_bytes))

    async def send_piece(self, data: bytes) -> bool:
        """Send the next bytes of an upload, not none; return whether the upstream still takes them.

        May run beside ``receive_head`` and ``receive_chunk``, but beside no raw reading of ``transport``.
        """
        return await self._send_upload(b"%x\r\n%b\r\n" % (len(data), data) if self._is_upload_chunked else data)

    async def end_upload(self) -> None:
        """Send the end of an upload. As with :meth:`send_piece`, errors are for the response's reader."""
        self._is_request_sent = await self._send_upload(b"0\r\n\r\n" if self._is_upload_chunked else b"")

    async def _send_upload(self, data: bytes) -> bool:
        try:
            await self.transport.send_all(data)
        except (OSError, trio.ClosedResourceError):
            return False
        return True

    async def receive_head(self) -> ResponseHead:
        """Return the final response's head; 1xx responses are skipped.

        Raises :exc:`StaleConnection` when a kept connection ends before any data, and :exc:`UpstreamProtocolError` when
        a new one does, or when the data is not a response.
        """
        transport, buffer = self.transport, self._buffer
        for _ in range(MAX_INFORMATIONAL + 1):
            unread = self._unread
            end = find_head_end(unread) if unread else -1
            # Read here and not in a method below: while an upstream thinks, each coroutine costs a frame per wake-up.
            while end < 0:
                if len(unread) > MAX_HEAD_BYTES:
                    raise UpstreamProtocolError(f"the upstream's response head is larger than {MAX_HEAD_BYTES} bytes")
                try:
                    size = await transport.receive_some(buffer) if self._has_received else self._receive_now()
                    if size < 0:
                        size = await transport.receive_some(buffer, waits_first=True)
                except OSError:
                    raise self._explain_reset() from None
                if not size:
                    self._has_upstream_ended, end = True, len(unread)
                    break
                self._has_received = True
                unread += memoryview(buffer)[:size]
                end = find_head_end(unread)
            data, self._unread = unread[:end], unread[end:]
            # After a 1xx response h11 has to see the final one, too.
            head = parse_fast_response(data) if self._h11 is None else None
            if head is not None:
                self._fast_head = data
                self._fast_body_is_chunked = head.header(b"transfer-encoding") is not None
                self._may_be_kept = head.header(b"connection") in PERSISTENT or not has_connection_close(head)
                return head
            if (head := self._parse_head(data)) is not None:
                return head
        raise UpstreamProtocolError("the upstream sent too many 1xx responses")

    def _parse_head(self, data: bytes) -> ResponseHead | None:
        """Return the head that h11 reads; ``None`` for that of a 1xx response. Raises as :meth:`receive_head` does."""
        self._feed_h11(data)
        event = self._parse()
        if isinstance(event, h11.Response):
            head = ResponseHead(event.status_code, tuple(event.headers), event.http_version, event.reason)
            check_response_head(head)
            self._begin_body(is_chunked=head.status not in (204, 304) and head.header(b"transfer-encoding") is not None)
            # HTTP/1.0 connections persist only if asked to, and we don't ask (RFC 9112 §9.3).
            self._may_be_kept = head.http_version != b"1.0" and not has_connection_close(head)
            return head
        # 101 would switch to a protocol that was not asked for.
        if not isinstance(event, h11.InformationalResponse) or event.status_code == 101:
            raise UpstreamProtocolError("the upstream sent no response")
        return None

    def _begin_body(self, *, is_chunked: bool) -> None:
        self._scanner = ChunkScanner(refuses_small_chunks=False) if is_chunked else None
        self._chunk_error = None

    def _feed_h11(self, head: bytes) -> None:
        """Give ``head`` to h11, which is created when it is first needed."""
        if self._h11 is None:
            self._h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)
            # A stand-in for the request that was sent: unless it is HEAD or CONNECT, it does not change how the
            # response is framed (RFC 9112 §6.3).
            fields = [(b"host", self.origin.authority), (b"content-length", b"0")]
            self._h11.send(h11.Request(method=b"POST", target=b"/", headers=fields))
            self._h11.send(h11.EndOfMessage())
        if head:
            self._h11.receive_data(head)
        if self._has_upstream_ended:
            self._h11.receive_data(b"")

    async def receive_chunk(self) -> bytes | None:
        """Return the next bytes of the body, as they came, or ``None`` at its proper end.

        Raises :exc:`UpstreamProtocolError` when the upstream breaks off or violates HTTP/1.1.
        """
        if self._h11 is None:
            self._feed_h11(self._fast_head)
            self._parse()
            self._begin_body(is_chunked=self._fast_body_is_chunked)
        self._chunks_until_checkpoint -= 1
        if self._chunks_until_checkpoint <= 0:
            # One read can hold thousands of tiny chunks, none of which has to wait for anything.
            self._chunks_until_checkpoint = CHUNKS_PER_CHECKPOINT
            await trio.lowlevel.checkpoint()
        while (event := self._parse()) is h11.NEED_DATA:
            if self._chunk_error is not None:
                raise self._chunk_error
            data = self._unread or await self._receive()
            size = len(data) if self._scanner is None else SLICE_BYTES
            data, self._unread = data[:size], data[size:]
            checked = self._check_chunks(data)
            if checked or not data:  # for h11, no data is the end of the connection
                self._get_h11().receive_data(checked)
        if isinstance(event, h11.Data):
            return bytes(event.data)
        if isinstance(event, h11.EndOfMessage):
            return None
        raise UpstreamProtocolError("the upstream broke off its response")

    def _check_chunks(self, data: bytes) -> bytes:
        """Return the part of ``data`` that is validly framed: h11 accepts control characters in chunk extensions.

        The error of the rest is raised once h11 has passed on everything before it, as on the fast path.
        """
        if self._scanner is None or self._scanner.is_complete:
            return data
        try:
            self._scanner.feed(data)
        except ChunkedFramingError as error:
            self._chunk_error = UpstreamProtocolError(f"the upstream broke HTTP/1.1: {error}")
            return data[: error.valid_bytes]
        return data

    def _get_h11(self) -> h11.Connection:
        if self._h11 is None:
            raise RuntimeError("h11 has not been given the head")
        return self._h11

    def _parse(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        try:
            return cast("h11.Event", self._get_h11().next_event())
        except h11.RemoteProtocolError as error:
            # As h11 sees it, a connection that ends before a response violates the protocol.
            if not self._has_received and self.was_used:
                raise StaleConnection from None
            raise UpstreamProtocolError(f"the upstream broke HTTP/1.1: {describe_violation(error)}") from None

    def _receive_now(self) -> int:
        """Return the size of the first data of a response, −1 while there is none.

        Without a checkpoint: sending the request was one, a moment ago. Later data is received with one.
        """
        try:
            return self.transport.receive_nowait(self._buffer)
        except BlockingIOError:
            return -1

    async def _receive(self) -> bytes:
        try:
            size = await self.transport.receive_some(self._buffer)
        except OSError:
            raise self._explain_reset() from None
        return bytes(memoryview(self._buffer)[:size])

    def _explain_reset(self) -> Exception:
        if not self._has_received and self.was_used:
            return StaleConnection()
        return UpstreamProtocolError("the upstream reset the connection")

    def find_arrival(self) -> float:
        """Return the time (Trio's clock) at which the kernel received the data that was read last."""
        return find_arrival(self.transport.ancillary, self._read_time(), self.asked_at)

    @property
    def unread_bytes(self) -> int:
        """The size of what :meth:`take_unread` returns."""
        return len(self._unread)

    def take_unread(self) -> bytes:
        """Return the start of the body that came with the head. The rest is to be read from ``transport``."""
        unread, self._unread = self._unread, b""
        return unread

    def continue_with(self, unread: bytes) -> None:
        """Have ``receive_chunk`` continue at a boundary between chunks, with ``unread`` as its next data."""
        self._unread = unread

    def end_raw_body(self, surplus_bytes: int) -> None:
        """Note that the body was read from ``transport``, up to its end and ``surplus_bytes`` beyond."""
        self._has_ended = True
        # Data that was not asked for would be taken for the response to the next request.
        self._may_be_kept = self._may_be_kept and not surplus_bytes

    def recycle(self) -> bool:
        """Prepare for another request; return ``False`` when the connection has to be closed instead.

        Kept is a connection whose request was sent whole and whose response was read to its end, with no data behind
        it, and which the upstream keeps open (RFC 9112 §9.3).
        """
        if not self._is_request_sent or self._unread:
            return False
        if self._h11 is not None and not self._has_ended:
            # Only h11's view of the upstream counts: what we sent through it was a stand-in. It has seen the head, and
            # so "close" and HTTP/1.0: then its state is MUST_CLOSE, not DONE.
            if self._h11.their_state is not h11.DONE or self._h11.trailing_data != (b"", False):
                return False
        elif not (self._has_ended and self._may_be_kept):
            return False
        self._h11 = None
        self.was_used = True
        return True
