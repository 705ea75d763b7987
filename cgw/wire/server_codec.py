"""A server's side of one HTTP/1.1 exchange, as bytes: a request's body in, a response out. Sans-I/O.

Two implementations: :class:`PlainCodec` for requests whose head is plain (:mod:`cgw.wire.plain_heads`), and
:class:`H11Codec` for all others: HTTP/1.0, chunked requests, ``Expect: 100-continue``.
"""

from __future__ import annotations

from typing import Protocol, cast

import h11

from cgw.errors import CgwError, Headers, Refusal
from cgw.wire.chunked import ChunkedFramingError, ChunkScanner
from cgw.wire.heads import describe_violation, parse_request_head, status_phrase
from cgw.wire.messages import RequestHead
from cgw.wire.plain_heads import parse_plain_request, says_close


class BodyMismatch(CgwError):
    """A response's body is not as long as its head says: it must not look complete."""


class ServerCodec(Protocol):
    """One exchange. Requests: ``feed`` until ``is_request_complete``, then ``take_body``. Responses: ``begin``,
    ``encode`` and ``end`` return the bytes to send."""

    @property
    def is_request_complete(self) -> bool:
        """Whether the whole body is there."""
        ...

    @property
    def body_bytes(self) -> int:
        """The body's size as far as it is known: announced, or received."""
        ...

    @property
    def wants_continue(self) -> bool:
        """Whether the client waits for a 100 before it sends the body."""
        ...

    @property
    def unread(self) -> bytes:
        """What came after the request."""
        ...

    @property
    def is_reusable(self) -> bool:
        """Whether the connection can carry another exchange after the response's end."""
        ...

    @property
    def is_close_delimited(self) -> bool:
        """Whether the response's end is the connection's."""
        ...

    def feed(self, data: bytes) -> None:
        """Take the next bytes. Raises :exc:`~cgw.errors.Refusal` 400."""
        ...

    def take_body(self) -> bytes:
        """The whole body; once."""
        ...

    def encode_continue(self) -> bytes:
        """A 100 response."""
        ...

    def begin(self, status: int, headers: Headers, *, is_last: bool) -> bytes:
        """A response's head. Without a ``content-length`` among ``headers`` the body is framed here."""
        ...

    def encode(self, data: bytes) -> bytes:
        """The next bytes of the body, framed."""
        ...

    def pass_raw(self, content_length: int | None) -> bool:
        """The body will be sent without ``encode``, as its own chunks or with its length; whether that can be."""
        ...

    def end(self) -> bytes:
        """What ends the body. Raises :exc:`BodyMismatch`."""
        ...


def parse_request(data: bytes) -> tuple[RequestHead, ServerCodec]:
    """Parse one whole head, through its blank line. Raises :exc:`~cgw.errors.Refusal` 400, 414 or 431."""
    head = parse_plain_request(data)
    if head is not None:
        return head, PlainCodec(head)
    connection = h11.Connection(h11.SERVER)
    head = parse_request_head(data, connection)
    return head, H11Codec(head, connection)


class PlainCodec:
    """For a plain HTTP/1.1 request, counted or without body."""

    wants_continue = False
    is_close_delimited = False

    def __init__(self, head: RequestHead) -> None:
        self._parts: list[bytes] = []
        self._need = int(head.header(b"content-length") or 0)
        self._keeps_alive = not says_close(head)
        self._length: int | None = None
        self._is_ended = False
        self.body_bytes = self._need
        self.unread = b""

    @property
    def is_request_complete(self) -> bool:
        """See :class:`ServerCodec`."""
        return self._need == 0

    @property
    def is_reusable(self) -> bool:
        """See :class:`ServerCodec`."""
        return self._is_ended and self._keeps_alive and self._need == 0

    def feed(self, data: bytes) -> None:
        """See :class:`ServerCodec`."""
        if len(data) > self._need:
            self.unread += data[self._need :]
            data = data[: self._need]
        if data:
            self._parts.append(data)
            self._need -= len(data)

    def take_body(self) -> bytes:
        """See :class:`ServerCodec`."""
        parts, self._parts = self._parts, []
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def encode_continue(self) -> bytes:
        """Never called: the request has no ``Expect``."""
        return b""

    def begin(self, status: int, headers: Headers, *, is_last: bool) -> bytes:
        """See :class:`ServerCodec`. Raises :exc:`ValueError` for a field that holds a line end."""
        lines = [b"HTTP/1.1 %d %b" % (status, status_phrase(status))]
        for name, value in headers:
            lines.append(b"%b: %b" % (name, value))
            if name == b"content-length":
                self._length = int(value)
        if self._length is None and status not in (204, 304):
            lines.append(b"transfer-encoding: chunked")
        elif self._length is None:
            self._length = 0
        if is_last or self._need or not self._keeps_alive:
            self._keeps_alive = False
            lines.append(b"connection: close")
        head = b"\r\n".join([*lines, b"\r\n"])
        if head.count(b"\n") != len(lines) + 1:
            raise ValueError("a header field holds a line end")
        return head

    def encode(self, data: bytes) -> bytes:
        """See :class:`ServerCodec`."""
        if self._length is None:
            return b"%x\r\n%b\r\n" % (len(data), data) if data else b""
        self._length -= len(data)
        if self._length < 0:
            raise BodyMismatch("the body is longer than its content-length")
        return data

    def pass_raw(self, content_length: int | None) -> bool:
        """See :class:`ServerCodec`."""
        if content_length is not None:
            self._length = 0
        return True

    def end(self) -> bytes:
        """See :class:`ServerCodec`."""
        if self._length:
            raise BodyMismatch("the body is shorter than its content-length")
        self._is_ended = True
        return b"0\r\n\r\n" if self._length is None else b""


class _Bytes:
    """So many bytes, of which h11 needs to know no more."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size


class H11Codec:
    """For any request that h11 accepts, chunked ones read strictly (:mod:`cgw.wire.chunked`)."""

    def __init__(self, head: RequestHead, connection: h11.Connection) -> None:
        self._head = head
        self._h11 = connection
        self._scanner = ChunkScanner() if head.header(b"transfer-encoding") is not None else None
        self._after_body = b""
        self._parts: list[bytes] = []
        self._announced_bytes = int(head.header(b"content-length") or 0)
        self._is_ended = False
        self.is_request_complete = False
        self.is_close_delimited = False
        self._pull()

    @property
    def body_bytes(self) -> int:
        """See :class:`ServerCodec`."""
        return self._announced_bytes if self._scanner is None else self._scanner.body_bytes

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
        if is_last or not self.is_request_complete:
            fields.append((b"connection", b"close"))
        has_length = any(name == b"content-length" for name, _ in fields)
        self.is_close_delimited = self._head.http_version == b"1.0" and not has_length
        response = h11.Response(status_code=status, headers=fields, reason=status_phrase(status))
        return self._h11.send(response) or b""

    def encode(self, data: bytes) -> bytes:
        """See :class:`ServerCodec`."""
        try:
            return self._h11.send(h11.Data(data=data)) or b""
        except h11.LocalProtocolError:
            raise BodyMismatch("the body is longer than its content-length") from None

    def pass_raw(self, content_length: int | None) -> bool:
        """See :class:`ServerCodec`."""
        if content_length is not None:
            # h11 keeps count of the body without seeing it, as it offers for sendfile(2).
            self._h11.send_with_data_passthrough(h11.Data(data=cast("bytes", _Bytes(content_length))))
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
