"""The fast parser of heads: a dictionary of known lines and a regular expression, at a fraction of the cost of h11.

It reads the heads that nearly all peers send: HTTP/1.1, every line well-formed, only one way to read the framing. For
all others it returns ``None``, and h11 parses or refuses them. A property test checks that both read alike.
"""

from __future__ import annotations

import re

from cgw.wire.messages import RequestHead, ResponseHead, index_headers

MAX_FIELDS = 100
"""The most header fields; more are left to h11, and to the limit in :mod:`cgw.wire.heads`."""

MAX_KNOWN_LINES = 1024
"""The most lines that are remembered, in about half a megabyte."""

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

_FRAMING = frozenset([b"content-length", b"transfer-encoding", b"connection", b"host", b"expect", b"upgrade"])
"""Fields that decide about framing or the connection. Each may occur once; a head that repeats one is left to h11."""

_SECRET = frozenset(
    [b"authorization", b"proxy-authorization", b"x-api-key", b"x-goog-api-key", b"cookie", b"set-cookie"]
)
"""Fields whose lines are not remembered, as they hold secrets."""

Fields = tuple[tuple[bytes, bytes], ...]

# Peers repeat nearly all of their lines with every message: one look-up replaces the parsing of a line.
_known_lines: dict[bytes, tuple[bytes, bytes]] = {}


def parse_fast_request(data: bytes) -> RequestHead | None:
    """Parse ``data``, one head through its blank line; return ``None`` when h11 has to.

    Read are requests with one ``Host``, at most one ``Content-Length``, and no ``Transfer-Encoding``, ``Expect`` or
    ``Upgrade``.
    """
    lines = data.split(b"\r\n")
    start = _REQUEST_LINE.fullmatch(lines[0])
    parsed = None if start is None or start[1] == b"CONNECT" else _parse_fields(lines)
    if start is None or parsed is None:
        return None
    headers, index = parsed
    if b"host" not in index or b"transfer-encoding" in index or b"expect" in index or b"upgrade" in index:
        return None
    return RequestHead(start[1], start[2], headers, index=index)


def parse_fast_response(data: bytes) -> ResponseHead | None:
    """Parse ``data``, one head through its blank line; return ``None`` when h11 has to.

    Read are final responses whose body is chunked, without other codings, or has a content length.
    """
    lines = data.split(b"\r\n")
    start = _STATUS_LINE.fullmatch(lines[0])
    # 204 and 304 have no body, whatever their fields say (RFC 9112 §6.3, rule 1).
    parsed = None if start is None or start[1] in (b"204", b"304") else _parse_fields(lines)
    if start is None or parsed is None:
        return None
    headers, index = parsed
    coding = index.get(b"transfer-encoding")
    # With both fields, RFC 9112 §6.3, rule 3, makes it a possible smuggling attempt.
    if (coding is None) is (b"content-length" not in index) or (coding is not None and coding.lower() != b"chunked"):
        return None
    return ResponseHead(int(start[1]), headers, index=index)


def _parse_fields(lines: list[bytes]) -> tuple[Fields, dict[bytes, bytes]] | None:
    """Return the header fields, and the value of each by its name; ``None`` when h11 has to parse the head.

    ``lines`` are all of a head, split at CR LF: those of the fields are between the first one and two empty ones.
    """
    if len(lines) > MAX_FIELDS + 3 or lines[-2:] != [b"", b""]:
        return None
    known = _known_lines
    headers = []
    for line in lines[1:-2]:
        pair = known.get(line) or _parse_line(line)
        if pair is None:
            return None
        headers.append(pair)
    index = dict(headers)
    if len(index) != len(headers):
        names = [name for name, _ in headers if name in _FRAMING]
        if len(names) != len(set(names)):
            return None
        index = index_headers(headers)
    length = index.get(b"content-length")
    # 18 digits fit in 64 bits. A list ("5, 5") or a sign is not read here.
    if length is not None and not (length.isdigit() and len(length) <= 18):
        return None
    return tuple(headers), index


def _parse_line(line: bytes) -> tuple[bytes, bytes] | None:
    """Parse one field line, and remember it; return ``None`` for one that is not well-formed."""
    match = _FIELD_LINE.fullmatch(line)
    if match is None:
        return None
    pair = (match[1].lower(), match[2])
    if len(line) <= _MAX_KNOWN_LINE_BYTES and pair[0] not in _SECRET:
        if len(_known_lines) >= MAX_KNOWN_LINES:
            # Begin again rather than keep what is there: lines with dates and ids would fill the dictionary for good,
            # and those that repeat are back with the next message.
            _known_lines.clear()
        _known_lines[line] = pair
    return pair


def has_connection_close(head: RequestHead | ResponseHead) -> bool:
    """Return whether a ``Connection`` field has the token ``close`` (RFC 9112 §9.6)."""
    if head.header(b"connection") is None:
        return False
    values = [value for name, value in head.headers if name == b"connection"]
    if values == [b"keep-alive"]:
        return False
    return any(token.strip().lower() == b"close" for value in values for token in value.split(b","))
