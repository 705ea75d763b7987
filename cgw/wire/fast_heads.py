"""The fast parser of heads: a dictionary of known lines and a regular expression, at a fraction of the cost of h11.

It reads the heads that nearly all peers send: HTTP/1.1, every line well-formed, only one way to read the framing. For
all others it returns ``None``, and h11 parses or refuses them. A property test checks that both read alike.
"""

from __future__ import annotations

import re
from typing import TypeVar

from cgw.wire.messages import RequestHead, ResponseHead, index_headers, path_of

MAX_FIELDS = 100
"""The most header fields; more are left to h11, and to the limit in :mod:`cgw.wire.heads`."""

PERSISTENT = (None, b"keep-alive")
"""Usual values of ``Connection`` that don't close it. Of a head that was read here, that field is the only one."""

MAX_KNOWN_LINES = 1024
"""The most lines of each kind that are remembered, in about half a megabyte."""

# Longer lines are rarely sent twice.
_MAX_KNOWN_LINE_BYTES = 128

# The grammar of RFC 9112 §3 to §5 and RFC 9110 §5. All quantifiers are possessive: matching never backtracks, so no
# head, however it is made, costs more than one pass.
_REQUEST_LINE = re.compile(rb"([A-Z]{1,16}+) ([\x21-\x7e]{1,8192}+) HTTP/1\.1")
# 1xx is left out: it precedes the final response, and h11 keeps track of that.
_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([2-5][0-9][0-9])(?: [^\x00-\x08\x0a-\x1f\x7f]*+)?+")
_FIELD_LINE = re.compile(
    rb"([-!#$%&'*+.^_`|~0-9A-Za-z]++):[ \t]*+([\x21-\x7e\x80-\xff]++(?:[ \t]++[\x21-\x7e\x80-\xff]++)*+|)[ \t]*+"
)

_TWO_EMPTY = [b"", b""]

_FRAMING = frozenset([b"content-length", b"transfer-encoding", b"connection", b"host", b"expect", b"upgrade"])
"""Fields that decide about framing or the connection. Each may occur once; a head that repeats one is left to h11."""

_SECRET = frozenset(
    [b"authorization", b"proxy-authorization", b"x-api-key", b"x-goog-api-key", b"cookie", b"set-cookie"]
)
"""Fields whose lines are not remembered, as they hold secrets."""

_NEEDS_H11 = frozenset([b"transfer-encoding", b"expect", b"upgrade"])
"""Fields of a request that change how it is read, or what it asks of the connection."""

_T = TypeVar("_T")
Field = tuple[bytes, bytes]
RequestLine = tuple[bytes, bytes, bytes]
"""Method, target and path."""


class _Unusual(Exception):
    """A line that h11 has to read."""


class _KnownLines(dict[bytes, Field]):
    """The name and value of each field line. Peers repeat nearly all of their lines with every message.

    The others are parsed by the look-up that misses them, so ``map`` reads all lines of a head in C but for those that
    are new or hold a secret. Raises :class:`_Unusual` for a line that is not well-formed.
    """

    def __missing__(self, line: bytes) -> Field:
        match = _FIELD_LINE.fullmatch(line)
        if match is None:
            raise _Unusual
        pair = name, value = match[1].lower(), match[2]
        # 18 digits fit in 64 bits. A list ("5, 5") or a sign is not read here.
        if name == b"content-length" and not (value.isdigit() and len(value) <= 18):
            raise _Unusual
        if name not in _SECRET:
            _remember(self, line, pair)
        return pair


class _KnownRequestLines(dict[bytes, RequestLine]):
    """The parts of each request line, but for those with a query, which may hold a key; otherwise as above."""

    def __missing__(self, line: bytes) -> RequestLine:
        match = _REQUEST_LINE.fullmatch(line)
        if match is None or match[1] == b"CONNECT":
            raise _Unusual
        parts = match[1], match[2], path_of(match[2])
        if b"?" not in match[2]:
            _remember(self, line, parts)
        return parts


class _KnownStatusLines(dict[bytes, int]):
    """The status of each status line; otherwise as above."""

    def __missing__(self, line: bytes) -> int:
        match = _STATUS_LINE.fullmatch(line)
        # 204 and 304 have no body, whatever their fields say (RFC 9112 §6.3, rule 1).
        if match is None or match[1] in (b"204", b"304"):
            raise _Unusual
        status = int(match[1])
        _remember(self, line, status)
        return status


def _remember(known: dict[bytes, _T], line: bytes, parsed: _T) -> None:
    if len(line) > _MAX_KNOWN_LINE_BYTES:
        return
    if len(known) >= MAX_KNOWN_LINES:
        # Begin again rather than keep what is there: lines with dates and ids would fill the dictionary for good, and
        # those that repeat are back with the next message.
        known.clear()
    known[line] = parsed


_known_lines = _KnownLines()
_known_request_lines = _KnownRequestLines()
_known_status_lines = _KnownStatusLines()
# Bound once: these look-ups are made for every head.
_read_line = _known_lines.__getitem__
_read_request_line = _known_request_lines.__getitem__
_read_status_line = _known_status_lines.__getitem__


def parse_fast_request(data: bytes) -> RequestHead | None:
    """Parse ``data``, one head through its blank line; return ``None`` when h11 has to.

    Read are requests with one ``Host``, at most one ``Content-Length``, and no ``Transfer-Encoding``, ``Expect`` or
    ``Upgrade``.
    """
    lines = data.split(b"\r\n")
    try:
        method, target, path = _read_request_line(lines[0])
        headers, index = _parse_fields(lines)
    except _Unusual:
        return None
    if b"host" not in index or not index.keys().isdisjoint(_NEEDS_H11):
        return None
    # By position, here and below: with keywords, making an object takes a longer way through the interpreter.
    return RequestHead(method, target, headers, b"1.1", index, path)


def parse_fast_response(data: bytes) -> ResponseHead | None:
    """Parse ``data``, one head through its blank line; return ``None`` when h11 has to.

    Read are final responses whose body is chunked, without other codings, or has a content length.
    """
    lines = data.split(b"\r\n")
    try:
        status = _read_status_line(lines[0])
        headers, index = _parse_fields(lines)
    except _Unusual:
        return None
    coding = index.get(b"transfer-encoding")
    # With both fields, RFC 9112 §6.3, rule 3, makes it a possible smuggling attempt.
    if coding is None:
        if b"content-length" not in index:
            return None
    elif b"content-length" in index or coding.lower() != b"chunked":
        return None
    return ResponseHead(status, headers, b"1.1", b"", index)


def _parse_fields(lines: list[bytes]) -> tuple[tuple[Field, ...], dict[bytes, bytes]]:
    """Return the header fields, and the value of each by its name; raise :class:`_Unusual` when h11 has to parse them.

    ``lines`` are all of a head, split at CR LF: those of the fields are between the first one and two empty ones.
    """
    if len(lines) > MAX_FIELDS + 3 or lines[-2:] != _TWO_EMPTY:
        raise _Unusual
    headers = (*map(_read_line, lines[1:-2]),)
    index = dict(headers)
    if len(index) != len(headers):
        names = [name for name, _ in headers if name in _FRAMING]
        if len(names) != len(set(names)):
            raise _Unusual
        index = index_headers(headers)
    return headers, index


def has_connection_close(head: RequestHead | ResponseHead) -> bool:
    """Return whether a ``Connection`` field has the token ``close`` (RFC 9112 §9.6)."""
    if head.header(b"connection") is None:
        return False
    values = [value for name, value in head.headers if name == b"connection"]
    return any(token.strip().lower() == b"close" for value in values for token in value.split(b","))
