"""HTTP/2 header fields as request heads, checked as strictly as those of HTTP/1.1 (:mod:`cgw.wire.heads`).

A request that is malformed by RFC 9113 §8 raises :exc:`MalformedFields` and gets a stream error. A well-formed one that
is not served (a target that is not a path, too many fields) raises :exc:`~cgw.errors.Refusal` and gets an answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from cgw.errors import CgwError, Headers, Refusal
from cgw.wire.heads import HOP_BY_HOP, MAX_HEADER_FIELDS, MAX_TARGET_BYTES
from cgw.wire.messages import RequestHead

Fields = Iterable[tuple[bytes, bytes]]

FIELD_OVERHEAD_BYTES = 32
"""Overhead per field in the size of a header list (RFC 9113 §6.5.2)."""

_CONNECTION_SPECIFIC = frozenset([b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"])
_PSEUDO_FIELDS = frozenset([b":method", b":scheme", b":authority", b":path"])
_SINGLE = frozenset([b"content-length", b"host", b"expect"])

_METHOD = re.compile(rb"[-!#$%&'*+.^_`|~0-9A-Za-z]{1,32}")
# Upper case is malformed in a name (RFC 9113 §8.2.1).
_NAME = re.compile(rb"[-!#$%&'*+.^_`|~0-9a-z]+")
# As in cgw.wire.plain_heads: no control characters but TAB, no white space at either end (RFC 9113 §8.2.1).
_VALUE = re.compile(rb"(?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?")
_PATH = re.compile(rb"/[\x21-\x7e]*")
# A host and a port; no user (RFC 9113 §8.3.1).
_AUTHORITY = re.compile(rb"[-A-Za-z0-9._~!$&'()*+,;=%:\[\]]+")
_LENGTH = re.compile(rb"[0-9]{1,18}")


class MalformedFields(CgwError):
    """The header block makes the message malformed (RFC 9113 §8.1.1): a stream error of type PROTOCOL_ERROR."""


def parse_request_fields(fields: Fields, max_head_bytes: int) -> RequestHead:
    """Build a request head; ``:authority`` becomes its ``host`` field, and cookies are joined.

    Raises :exc:`MalformedFields`, and :exc:`~cgw.errors.Refusal` 400, 414 or 431.
    """
    pseudo, regular = _split(fields)
    if len(regular) > MAX_HEADER_FIELDS:
        raise Refusal(431, f"the request has more than {MAX_HEADER_FIELDS} header fields")
    size = sum(len(name) + len(value) + FIELD_OVERHEAD_BYTES for name, value in (*pseudo.items(), *regular))
    if size > max_head_bytes:
        raise Refusal(431, f"the request head is larger than {max_head_bytes} bytes")
    target = _check_pseudo_fields(pseudo)
    host = _read_host(pseudo, regular)
    # te speaks of this connection only; host is the first field now.
    rest = _join_cookies([field for field in regular if field[0] not in (b"host", b"te")])
    return RequestHead(pseudo[b":method"], target, ((b"host", host), *rest), b"2")


def sketch_head(fields: Fields) -> RequestHead:
    """Return a head with no more than the method and path of a request that was refused, as far as it has them."""
    pseudo = {name: value for name, value in fields if name in _PSEUDO_FIELDS}
    path = pseudo.get(b":path", b"")[:MAX_TARGET_BYTES]
    # What is no path may be a token, and the path is logged.
    return RequestHead(pseudo.get(b":method", b"GET"), path if path.startswith(b"/") else b"/", (), b"2")


def read_content_length(head: RequestHead) -> int | None:
    """Return the content-length of a head from :func:`parse_request_fields`, or ``None``."""
    value = head.header(b"content-length")
    return None if value is None else int(value)


def check_trailers(fields: Fields) -> None:
    """Raise :exc:`MalformedFields` unless ``fields`` are valid trailers (RFC 9113 §8.1)."""
    pseudo, _ = _split(fields)
    if pseudo:
        raise MalformedFields("trailers with a pseudo-header field")


def select_response_fields(status: int, headers: Headers) -> list[tuple[bytes, bytes]]:
    """Return a response's fields for HTTP/2: ``:status`` first, lower-case names, no hop-by-hop fields.

    Raises :exc:`ValueError` for a name or value with characters that must not be sent, such as line ends.
    """
    fields = [(b":status", b"%d" % status)]
    for name, value in headers:
        lower = name.lower()
        if lower in HOP_BY_HOP:
            continue
        if not _NAME.fullmatch(lower) or not _VALUE.fullmatch(value.strip(b" \t")):
            raise ValueError("a header field holds a character that must not be sent")
        fields.append((lower, value.strip(b" \t")))
    return fields


def _split(fields: Fields) -> tuple[dict[bytes, bytes], list[tuple[bytes, bytes]]]:
    """Check each field; return the pseudo-header fields, and the regular ones in order."""
    pseudo: dict[bytes, bytes] = {}
    regular: list[tuple[bytes, bytes]] = []
    for name, value in fields:
        if not _VALUE.fullmatch(value):
            raise MalformedFields("a field's value with a character that is not allowed")
        if name.startswith(b":"):
            if regular or name not in _PSEUDO_FIELDS or name in pseudo:
                raise MalformedFields("a pseudo-header field that is unknown, twice there, or not at the beginning")
            pseudo[name] = value
        else:
            _check_field(name, value)
            regular.append((name, value))
    return pseudo, regular


def _check_field(name: bytes, value: bytes) -> None:
    if not _NAME.fullmatch(name):
        raise MalformedFields("a field's name with a character that is not allowed")
    if name in _CONNECTION_SPECIFIC or (name == b"te" and value.lower() != b"trailers"):
        raise MalformedFields("a field of one connection (RFC 9113 §8.2.2)")
    if name == b"content-length" and not _LENGTH.fullmatch(value):
        raise MalformedFields("a content-length that is not a number")


def _check_pseudo_fields(pseudo: dict[bytes, bytes]) -> bytes:
    """Check method, scheme and path (RFC 9113 §8.3.1; §8.5 for CONNECT); return the path."""
    method, scheme, path = pseudo.get(b":method"), pseudo.get(b":scheme"), pseudo.get(b":path")
    if method is None or not _METHOD.fullmatch(method):
        raise MalformedFields("no method, or not a valid one")
    # Its form differs: no scheme and no path. It must be handled before those are required.
    if method == b"CONNECT":
        if scheme is not None or path is not None:
            raise MalformedFields("CONNECT with a scheme or a path")
        raise Refusal(400, "CONNECT is not served")
    if not scheme or not path:
        raise MalformedFields("no scheme or no path")
    if scheme.lower() not in (b"http", b"https"):
        raise Refusal(400, "malformed request: the scheme must be http or https")
    if len(path) > MAX_TARGET_BYTES:
        raise Refusal(414, f"the request target is longer than {MAX_TARGET_BYTES} bytes")
    # Upstreams get the target in an HTTP/1.1 request line, which a space would end (request smuggling).
    if not _PATH.fullmatch(path) and (method, path) != (b"OPTIONS", b"*"):
        raise Refusal(400, "malformed request: the path must begin with / and hold only visible ASCII characters")
    return path


def _read_host(pseudo: dict[bytes, bytes], regular: list[tuple[bytes, bytes]]) -> bytes:
    singles = [name for name, _ in regular if name in _SINGLE]
    if len(singles) != len(set(singles)):
        raise MalformedFields("a field twice that may be there once")
    host = next((value for name, value in regular if name == b"host"), None)
    # Both may be there only if they agree: otherwise two parsers could route by different names.
    authority = pseudo.get(b":authority", host)
    if authority is None:
        raise Refusal(400, "malformed request: neither :authority nor host")
    if host is not None and host != authority:
        raise MalformedFields(":authority and host differ")
    if not _AUTHORITY.fullmatch(authority):
        raise Refusal(400, "malformed request: the authority must be a host and, at most, a port")
    return authority


def _join_cookies(fields: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Join cookie fields, which HTTP/2 clients may split for better compression (RFC 9113 §8.2.3)."""
    cookies = [value for name, value in fields if name == b"cookie"]
    if len(cookies) < 2:
        return fields
    return [field for field in fields if field[0] != b"cookie"] + [(b"cookie", b"; ".join(cookies))]
