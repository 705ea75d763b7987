"""The fast parser of heads: two regular expressions, at a tenth of the cost of h11.

It reads the heads that nearly all peers send: HTTP/1.1, every line well-formed, only one way to read the framing. For
all others it returns ``None``, and h11 parses or refuses them. A property test checks that both read alike.
"""

from __future__ import annotations

import re

from cgw.wire.messages import RequestHead, ResponseHead

MAX_FIELDS = 100
"""The most header fields; more are left to h11, and to the limit in :mod:`cgw.wire.heads`."""

# The grammar of RFC 9112 §3 to §5 and RFC 9110 §5. All quantifiers are possessive: matching never backtracks, so no
# head, however it is made, costs more than one pass.
_NAME = rb"[-!#$%&'*+.^_`|~0-9A-Za-z]++"
_VALUE = rb"[\x21-\x7e\x80-\xff]++(?:[ \t]++[\x21-\x7e\x80-\xff]++)*+"
_LINE = rb"%b:[ \t]*+(?:%b)?+[ \t]*+\r\n" % (_NAME, _VALUE)
_LINES = rb"((?:%b){0,%d}+)\r\n" % (_LINE, MAX_FIELDS)
_REQUEST = re.compile(rb"([A-Z]{1,16}+) ([\x21-\x7e]{1,8192}+) HTTP/1\.1\r\n" + _LINES)
# 1xx is left out: it precedes the final response, and h11 keeps track of that.
_RESPONSE = re.compile(rb"HTTP/1\.1 ([2-5][0-9][0-9])(?: [^\x00-\x08\x0a-\x1f\x7f]*+)?+\r\n" + _LINES)
_FIELD = re.compile(rb"(%b):[ \t]*+(%b|)[ \t]*+\r\n" % (_NAME, _VALUE))
# 18 digits fit in 64 bits. A list ("5, 5") or a sign does not match.
_LENGTH = re.compile(rb"[0-9]{1,18}")

_FRAMING = frozenset([b"content-length", b"transfer-encoding", b"connection", b"host", b"expect", b"upgrade"])
"""Fields that decide about framing or the connection. Each may occur once; a head that repeats one is left to h11."""


def parse_fast_request(data: bytes) -> RequestHead | None:
    """Parse ``data``, one head through its blank line; return ``None`` when h11 has to.

    Read are requests with one ``Host``, at most one ``Content-Length``, and no ``Transfer-Encoding``, ``Expect`` or
    ``Upgrade``.
    """
    match = _REQUEST.fullmatch(data)
    if match is None or match[1] == b"CONNECT":
        return None
    headers = [(name.lower(), value) for name, value in _FIELD.findall(match[3])]
    names = [name for name, _ in headers if name in _FRAMING]
    if names.count(b"host") != 1 or len(names) != len(set(names)):
        return None
    if b"transfer-encoding" in names or b"expect" in names or b"upgrade" in names:
        return None
    head = RequestHead(match[1], match[2], tuple(headers))
    return head if _has_valid_length(head) else None


def parse_fast_response(data: bytes) -> ResponseHead | None:
    """Parse ``data``, one head through its blank line; return ``None`` when h11 has to.

    Read are final responses whose body is chunked, without other codings, or has a content length.
    """
    match = _RESPONSE.fullmatch(data)
    if match is None:
        return None
    headers = [(name.lower(), value) for name, value in _FIELD.findall(match[2])]
    names = [name for name, _ in headers if name in _FRAMING]
    if len(names) != len(set(names)):
        return None
    head = ResponseHead(int(match[1]), tuple(headers))
    # These have no body, whatever their fields say (RFC 9112 §6.3, rule 1).
    if head.status in (204, 304):
        return None
    coding = head.header(b"transfer-encoding")
    if coding is None:
        return head if b"content-length" in names and _has_valid_length(head) else None
    # With both fields, RFC 9112 §6.3, rule 3, makes it a possible smuggling attempt.
    return head if coding.lower() == b"chunked" and b"content-length" not in names else None


def _has_valid_length(head: RequestHead | ResponseHead) -> bool:
    value = head.header(b"content-length")
    return value is None or _LENGTH.fullmatch(value) is not None


def has_connection_close(head: RequestHead | ResponseHead) -> bool:
    """Return whether a ``Connection`` field has the token ``close`` (RFC 9112 §9.6)."""
    for name, value in head.headers:
        if name == b"connection" and b"close" in [token.strip().lower() for token in value.split(b",")]:
            return True
    return False
