"""The server's side of one HTTP/1.1 exchange as bytes: decodes a request's body, encodes the response. Sans-I/O.

Two implementations: :class:`FastCodec` for requests whose head the fast parser reads (:mod:`cgw.wire.fast_heads`), and
:class:`H11Codec` for all others: HTTP/1.0, chunked requests, ``Expect: 100-continue``.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Protocol, cast

import h11

from cgw.errors import CgwError, Headers, Refusal
from cgw.wire.chunked import ChunkedFramingError, ChunkScanner
from cgw.wire.fast_heads import PERSISTENT, has_connection_close, parse_fast_request
from cgw.wire.heads import describe_violation, parse_request_head, status_phrase
from cgw.wire.messages import RequestHead


class BodyMismatch(CgwError):
    """A response's body is longer or shorter than its content length says: the client must not take it for whole."""


class ServerCodec(Protocol):
    """One exchange of a connection.

    Of a request: ``feed`` until ``is_request_complete``, then ``take_body``. Of a response: ``begin``, ``encode`` for
    each piece of the body (or ``begin_raw_body``, once), and ``end``; each returns the bytes to send.
    """

    @property
    def is_request_complete(self) -> bool:
        """True if the whole body was fed."""
        ...

    @property
    def body_bytes(self) -> int:
        """The size of the request's body as far as it is known: its content length, or its chunks so far."""
        ...

    @property
    def is_chunked_request(self) -> bool:
        """True if the request's body is chunked: then reading it costs more than its bytes show."""
        ...

    @property
    def wants_continue(self) -> bool:
        """True if the client waits for a 100 response before it sends the body (RFC 9110 §10.1.1)."""
        ...

    @property
    def unread(self) -> bytes:
        """Bytes that were fed beyond the request."""
        ...

    @property
    def is_reusable(self) -> bool:
        """True if request and response are complete and the connection may carry another exchange (RFC 9112 §9.3)."""
        ...

    @property
    def is_close_delimited(self) -> bool:
        """True if only closing the connection ends the response's body (RFC 9112 §6.3, rule 8)."""
        ...

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the request. Raises :exc:`~cgw.errors.Refusal` 400."""
        ...

    def take_body(self) -> bytes:
        """Return the request's whole body. To be called once."""
        ...

    def encode_continue(self) -> bytes:
        """Encode a 100 response."""
        ...

    def begin(self, status: int, headers: Headers, *, is_last: bool) -> bytes:
        """Encode a response's head. The codec chooses the framing unless ``headers`` have a ``content-length``.

        With ``is_last`` the response says ``Connection: close``.
        """
        ...

    def encode(self, data: bytes) -> bytes:
        """Encode the next bytes of the body. Raises :exc:`BodyMismatch` when it gets longer than announced."""
        ...

    def begin_raw_body(self, content_length: int | None) -> bool:
        """Prepare for a body that is sent without ``encode``; return ``False`` where that is not possible.

        The caller sends ``content_length`` bytes, or a valid chunked body up to its last chunk, which is from ``end``.
        """
        ...

    def end(self) -> bytes:
        """Encode the end of the body. Raises :exc:`BodyMismatch` when it is shorter than announced."""
        ...


def parse_request(data: bytes) -> tuple[RequestHead, ServerCodec]:
    """Parse one whole head, through its blank line. Raises :exc:`~cgw.errors.Refusal` 400, 414 or 431."""
    head = parse_fast_request(data)
    if head is not None:
        return head, FastCodec(head)
    connection = h11.Connection(h11.SERVER)
    head = parse_request_head(data, connection)
    return head, H11Codec(head, connection)


def _build_status_line(status: int) -> bytes:
    return b"HTTP/1.1 %d %b" % (status, status_phrase(status))


_STATUS_LINES = {status.value: _build_status_line(status.value) for status in HTTPStatus}


_join_field = b": ".join


class FastCodec:
    """The codec for a request that the fast parser read: HTTP/1.1, with a content length or without a body."""

    wants_continue = False
    is_close_delimited = False
    is_chunked_request = False

    # The start values, of the class: setting them for each exchange would cost more than they are changed.
    is_reusable = False
    unread = b""
    _length: int | None = None  # bytes of the response's body still to come; None for a chunked one

    def __init__(self, head: RequestHead) -> None:
        self._is_head = head.method == b"HEAD"
        self._parts: list[bytes] = []
        # Bytes of the request's body still to come.
        self._need = self.body_bytes = need = int(head.header(b"content-length") or 0)
        self.is_request_complete = not need
        self._keeps_alive = head.header(b"connection") in PERSISTENT or not has_connection_close(head)

    def feed(self, data: bytes) -> None:
        """See :class:`ServerCodec`."""
        need = self._need
        if len(data) > need:
            self.unread += data[need:]
            data = data[:need]
        if data:
            self._parts.append(data)
            self._need = need = need - len(data)
            self.is_request_complete = not need

    def take_body(self) -> bytes:
        """See :class:`ServerCodec`."""
        parts, self._parts = self._parts, []
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def encode_continue(self) -> bytes:
        """Return nothing: the fast parser leaves requests with ``Expect`` to h11."""
        return b""

    def begin(self, status: int, headers: Headers, *, is_last: bool) -> bytes:
        """See :class:`ServerCodec`. Raises :exc:`ValueError` for a field that contains a line feed."""
        lines = [_STATUS_LINES.get(status) or _build_status_line(status)]
        lines += [_join_field(field) for field in headers]
        head, end = b"\r\n".join(lines), b"\r\n\r\n"
        # One count of the result instead of a check of each field: response splitting (RFC 9110 §5.5).
        if head.count(b"\n") != len(headers):
            raise ValueError("a header field contains a line feed")
        if status in (204, 304):
            self._length = 0  # no body, whatever the fields say (RFC 9112 §6.3, rule 1)
        # Searched in the bytes, where no value contains a line end: a fifth of the cost of looking at each name.
        elif (at := head.rfind(b"\r\ncontent-length: ")) >= 0:
            self._length = int(head[at + 18 :].partition(b"\r")[0])
        else:
            end = b"\r\ntransfer-encoding: chunked\r\n\r\n"
        if self._is_head:
            self._length = None  # no body follows, whatever the head says (RFC 9110 §9.3.2)
        # An incomplete request is answered before its body was read, and the rest of it will not be read.
        if is_last or not self.is_request_complete or not self._keeps_alive:
            self._keeps_alive = False
            end = end[:-2] + b"connection: close\r\n\r\n"
        return head + end

    def encode(self, data: bytes) -> bytes:
        """See :class:`ServerCodec`."""
        if self._is_head:
            return b""
        if self._length is None:
            # A chunk of size 0 would end the body.
            return b"%x\r\n%b\r\n" % (len(data), data) if data else b""
        self._length -= len(data)
        if self._length < 0:
            raise BodyMismatch("the body is longer than its content-length")
        return data

    def begin_raw_body(self, content_length: int | None) -> bool:
        """See :class:`ServerCodec`."""
        if self._is_head or (content_length is None) != (self._length is None):
            return False  # the client was told of another framing than the raw body has
        if content_length is not None:
            self._length = 0  # the caller counts
        return True

    def end(self) -> bytes:
        """See :class:`ServerCodec`."""
        if self._length:
            raise BodyMismatch("the body is shorter than its content-length")
        # HTTP/1.1 connections persist unless either side says "close" (RFC 9112 §9.3), as ``begin`` did for a request
        # that was not read to its end: the rest of it would be taken for the next one.
        self.is_reusable = self._keeps_alive
        return b"0\r\n\r\n" if self._length is None and not self._is_head else b""


class _RawBytes:
    """An object with the size of some data but without the data: all that h11 needs to count a body."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size


class H11Codec:
    """The codec for any other request. Chunked bodies are checked by :mod:`cgw.wire.chunked` before h11 reads them."""

    def __init__(self, head: RequestHead, connection: h11.Connection) -> None:
        self._head = head
        self._h11 = connection
        self._scanner = ChunkScanner() if head.header(b"transfer-encoding") is not None else None
        self._after_body = b""
        self._parts: list[bytes] = []
        self._announced_bytes = int(head.header(b"content-length") or 0)
        self._is_ended = False
        self._has_length = False
        self.is_request_complete = False
        self.is_close_delimited = False
        self._pull()

    @property
    def body_bytes(self) -> int:
        """See :class:`ServerCodec`."""
        return self._announced_bytes if self._scanner is None else self._scanner.body_bytes

    @property
    def is_chunked_request(self) -> bool:
        """See :class:`ServerCodec`."""
        return self._scanner is not None

    @property
    def wants_continue(self) -> bool:
        """See :class:`ServerCodec`."""
        return self._h11.they_are_waiting_for_100_continue

    @property
    def unread(self) -> bytes:
        """See :class:`ServerCodec`."""
        return self._h11.trailing_data[0] + self._after_body

    @property
    def is_reusable(self) -> bool:
        """See :class:`ServerCodec`."""
        return self._is_ended and self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE

    def feed(self, data: bytes) -> None:
        """See :class:`ServerCodec`."""
        if self._scanner is not None:
            try:
                used = self._scanner.feed(data)
            except ChunkedFramingError as error:
                raise Refusal(400, f"malformed request: {error}", must_close=True) from None
            # h11 gets nothing beyond the body: what follows is kept apart for the next exchange.
            data, self._after_body = data[:used], data[used:]
        self._h11.receive_data(data)
        self._pull()

    def _pull(self) -> None:
        while not self.is_request_complete:
            try:
                event = self._h11.next_event()
            except h11.RemoteProtocolError as error:
                text = f"malformed request: {describe_violation(error)}"
                raise Refusal(400, text, must_close=True) from None
            if isinstance(event, h11.Data):
                self._parts.append(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                self.is_request_complete = True
            else:
                return

    def take_body(self) -> bytes:
        """See :class:`ServerCodec`."""
        parts, self._parts = self._parts, []
        return b"".join(parts)

    def encode_continue(self) -> bytes:
        """See :class:`ServerCodec`."""
        return self._h11.send(h11.InformationalResponse(status_code=100, headers=[])) or b""

    def begin(self, status: int, headers: Headers, *, is_last: bool) -> bytes:
        """See :class:`ServerCodec`."""
        fields = list(headers)
        # h11 adds "close" for HTTP/1.0 and for requests that ask for it; a body that was not read is for us to see.
        if is_last or not self.is_request_complete:
            fields.append((b"connection", b"close"))
        # HTTP/1.0 has no chunks: without a length h11 ends the body by closing the connection.
        self._has_length = any(name == b"content-length" for name, _ in fields)
        self.is_close_delimited = self._head.http_version == b"1.0" and not self._has_length
        response = h11.Response(status_code=status, headers=fields, reason=status_phrase(status))
        return self._h11.send(response) or b""

    def encode(self, data: bytes) -> bytes:
        """See :class:`ServerCodec`."""
        if self._head.method == b"HEAD":
            return b""
        try:
            return self._h11.send(h11.Data(data=data)) or b""
        except h11.LocalProtocolError:
            raise BodyMismatch("the body is longer than its content-length") from None

    def begin_raw_body(self, content_length: int | None) -> bool:
        """See :class:`ServerCodec`."""
        if (content_length is None) == self._has_length:
            return False  # the client was told of another framing than the raw body has
        if content_length is not None:
            # h11 counts the body without seeing it: its documented way to use sendfile(2).
            self._h11.send_with_data_passthrough(h11.Data(data=cast("bytes", _RawBytes(content_length))))
            return True
        return self._head.http_version == b"1.1"

    def end(self) -> bytes:
        """See :class:`ServerCodec`."""
        try:
            data = self._h11.send(h11.EndOfMessage()) or b""
        except h11.LocalProtocolError:
            raise BodyMismatch("the body is shorter than its content-length") from None
        self._is_ended = True
        return data
