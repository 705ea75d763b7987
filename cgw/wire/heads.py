"""Checks of request heads beyond those of h11, and the choice of header fields that are forwarded.

h11 is lenient on purpose where a gateway must not be: heads that two parsers could read differently are refused, so
that nobody can disagree about where a request ends (request smuggling, RFC 9112 §11.2). Limits are checked before
anything is parsed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from http import HTTPStatus

import h11

from cgw.errors import Headers, Refusal, UpstreamProtocolError
from cgw.wire.messages import RequestHead, ResponseHead
from cgw.wire.trace_context import OWN_FIELDS

HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""The first bytes of an HTTP/2 connection with prior knowledge (RFC 9113 §3.4)."""

MAX_TARGET_BYTES = 8192
"""The longest request target that is accepted; RFC 9112 §3 recommends at least 8000."""

MAX_HEADER_FIELDS = 100
"""The most header fields that a request may have."""

_REQUEST_LINE = re.compile(rb"([A-Za-z]{1,20}) {1,8}(?:https?://[^/?\s]{0,255})?(/[^?#\s]*)")

HOP_BY_HOP = frozenset(
    [
        b"connection",
        b"proxy-connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    ]
)
"""Fields that concern one connection only: RFC 9110 §7.6.1, and the older ones that Go's ``ReverseProxy`` drops."""

NOT_PASSED_ON = HOP_BY_HOP | OWN_FIELDS | {b"set-cookie", b"alt-svc"}
"""Fields of an upstream's response that are not forwarded: cookies and alternative services belong to its own host; and
cgw sets those that it sets."""

FIRST_ERROR_STATUS = 400
"""From here on a status is an error (RFC 9110 §15.5)."""

_PHRASES = {status.value: status.phrase.encode("ascii") for status in HTTPStatus}

_HEAD_END = re.compile(rb"\n\r?\n")
_LONE_LINE_END = re.compile(rb"(?<!\r)\n|\r(?!\n)")
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_FOLDED_LINE = re.compile(rb"\r\n[ \t]")


def find_head_end(data: bytes | bytearray) -> int:
    """Return the index just past the blank line that ends a head, or −1 while the head is incomplete.

    A bare LF counts as a line end here, so that a malformed head is refused without waiting for more of it.
    """
    match = _HEAD_END.search(data)
    return -1 if match is None else match.end()


def parse_request_head(data: bytes, connection: h11.Connection) -> RequestHead:
    """Check one whole head (through its blank line), feed it to the h11 ``connection``, and return it.

    Raises :exc:`~cgw.errors.Refusal` 400, 414 or 431, each with ``must_close``.
    """
    _check_octets(data)
    connection.receive_data(data)
    try:
        event = connection.next_event()
    except h11.RemoteProtocolError as error:
        raise _malformed(describe_violation(error)) from None
    if not isinstance(event, h11.Request):
        raise _malformed("the request head is incomplete")
    head = RequestHead(event.method, event.target, tuple(event.headers), event.http_version)
    _check_framing(head)
    return head


def describe_violation(error: h11.ProtocolError) -> str:
    """Return h11's message without the data that it quotes, which may be long, and may contain a token."""
    return str(error).partition(": bytearray(")[0]


def _check_octets(data: bytes) -> None:
    # h11 accepts a bare LF as a line end; other parsers take it for a part of the value (RFC 9112 §2.2).
    if _LONE_LINE_END.search(data):
        raise _malformed("lines of the head must end in CR LF")
    if b"\x00" in data:
        raise _malformed("the head contains a NUL byte")
    # obs-fold: RFC 9112 §5.2 lets a server refuse it; h11 would join the lines.
    if _FOLDED_LINE.search(data):
        raise _malformed("folded header lines (obs-fold) are not accepted")
    request_line = data[: data.index(b"\r\n")]
    parts = request_line.split(b" ")
    if len(parts) != 3 or not parts[2].startswith(b"HTTP/1."):
        raise _malformed("the request line must read METHOD TARGET HTTP/1.1")
    if len(parts[1]) > MAX_TARGET_BYTES:
        raise Refusal(414, f"the request target is longer than {MAX_TARGET_BYTES} bytes", must_close=True)
    # Besides the fields, the request line and the blank line end in CR LF.
    if data.count(b"\r\n") - 2 > MAX_HEADER_FIELDS:
        raise Refusal(431, f"the request has more than {MAX_HEADER_FIELDS} header fields", must_close=True)


def _check_framing(head: RequestHead) -> None:
    codings = [value for name, value in head.headers if name == b"transfer-encoding"]
    if not codings:
        return
    if [coding.lower() for coding in codings] != [b"chunked"]:
        raise _malformed("the only transfer coding that is accepted is chunked")
    # RFC 9112 §6.1 and §6.3, rule 3, allow to refuse both of these; proxies have been tricked with either.
    if head.header(b"content-length") is not None:
        raise _malformed("a request must not have both content-length and transfer-encoding")
    if head.http_version == b"1.0":
        raise _malformed("an HTTP/1.0 request must not have a transfer-encoding")


def _malformed(reason: str) -> Refusal:
    return Refusal(400, f"malformed request: {reason}", must_close=True)


def select_response_headers(headers: Headers, replaced: Iterable[bytes] = ()) -> list[tuple[bytes, bytes]]:
    """Return the fields of an upstream's response that are forwarded to the client, in their order.

    Left out are hop-by-hop fields, those that ``Connection`` names, cookies, ``alt-svc``, and those in ``replaced``
    (lower case).
    """
    dropped = NOT_PASSED_ON.union(replaced)
    named = [value for name, value in headers if name == b"connection"]
    if named:
        tokens = (token.strip().lower() for value in named for token in value.split(b","))
        # Not the length: without it the client would read another framing than the body is sent with (RFC 9110 §7.6.1
        # forbids to name a field that is meant for all recipients, but who attacks does not mind).
        dropped = dropped.union(token for token in tokens if token and token != b"content-length")
    return [field for field in headers if field[0] not in dropped]


def check_response_head(head: ResponseHead) -> None:
    """Check a response head that h11 accepted, which is lenient where a gateway must not be.

    Raises :exc:`~cgw.errors.UpstreamProtocolError` for what the client's parser could read in another way: a status
    outside of 200 to 599, control characters in a field, a length beside a transfer coding (RFC 9112 §6.3, rule 3), a
    coding other than ``chunked``, or one in HTTP/1.0 (§6.1).
    """
    if not 200 <= head.status <= 599:
        raise UpstreamProtocolError(f"the upstream sent the status {head.status}")
    codings = [value.lower() for name, value in head.headers if name == b"transfer-encoding"]
    has_length = head.header(b"content-length") is not None
    if codings and (codings != [b"chunked"] or has_length or head.http_version == b"1.0"):
        raise UpstreamProtocolError("the upstream's response has an ambiguous framing")
    if any(_CONTROL.search(value) for _, value in head.headers):
        raise UpstreamProtocolError("the upstream sent a header field with control characters")


def status_phrase(status: int) -> bytes:
    """Return the reason phrase of a status; empty for one that has none, such as 529 (RFC 9112 §4 allows that)."""
    return _PHRASES.get(status, b"")


def encode_kept_response(status: int, headers: Headers, body: bytes) -> bytes:
    """Encode a response after which the connection is kept.

    It has no date, so that it can be kept and sent again: with a 5xx status it is optional (RFC 9110 §6.6.1).
    """
    lines = [b"HTTP/1.1 %d %b" % (status, status_phrase(status))]
    lines += [b"%b: %b" % field for field in (*headers, (b"content-length", b"%d" % len(body)))]
    return b"\r\n".join([*lines, b"", body])


def find_request_line(data: bytes) -> tuple[bytes, bytes]:
    """Return method and path of the request line that malformed ``data`` begins with, empty where there is none."""
    # Strict: what is no path may be a token, and the path is logged.
    match = _REQUEST_LINE.match(data, 0, MAX_TARGET_BYTES)
    return (match[1], match[2]) if match is not None else (b"", b"")
