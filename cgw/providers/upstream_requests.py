"""Requests to upstreams: the endpoint, the headers that cgw sends itself, and those of a client that are passed on."""

from __future__ import annotations

from attrs import evolve, field, frozen

from cgw import __version__
from cgw.errors import Headers
from cgw.wire.messages import (
    Origin,
    RequestHead,
    UpstreamRequest,
    encode_fields,
    encode_head_start,
    find_header,
    parse_base_url,
)

USER_AGENT = (b"user-agent", b"cgw/" + __version__.encode("ascii"))

_COMMON: Headers = (
    (b"content-type", b"application/json"),
    # Usage is read from the relayed bytes, which therefore must not be compressed.
    (b"accept-encoding", b"identity"),
    USER_AGENT,
)


def secret_value(secret: str, what: str) -> bytes:
    """Return ``secret`` as a header's value.

    Raises :exc:`ValueError` that begins with ``what`` and does not contain the secret, if it cannot be one.
    """
    # RFC 9110 §5.5: line breaks would end the field, and spaces around a value are not part of it.
    if not secret or not secret.isascii() or not secret.isprintable() or secret != secret.strip():
        raise ValueError(f"{what} must be printable ASCII without spaces around it")
    return secret.encode("ascii")


@frozen
class _ConstantFields:
    """Header fields that every request of one kind has. ``head_start`` is the encoded head up to ``content-length``,
    ``after_target`` the part of it behind the target."""

    headers: Headers
    head_start: bytes
    after_target: bytes


@frozen
class Endpoint:
    """One upstream URL, with its header fields encoded once. ``repr`` does not show them, because they have the key."""

    origin: Origin
    target: bytes
    own_fields: Headers = field(repr=False)
    """The header fields besides those that all endpoints have: the key, for example."""
    _json_fields: _ConstantFields = field(repr=False)
    _stream_fields: _ConstantFields = field(repr=False)

    @classmethod
    def parse(cls, api_url: str, path: str, headers: Headers) -> Endpoint:
        """Return the endpoint at ``path`` below a base URL, which gets ``headers`` besides cgw's own.

        Raises :exc:`ValueError` for a base URL that is not valid.
        """
        origin, base_path = parse_base_url(api_url)
        target = (base_path + path).encode("ascii")

        def encode(accept: bytes) -> _ConstantFields:
            fields = (*_COMMON, (b"accept", accept), *headers)
            start = encode_head_start(b"POST", target, origin, encode_fields(fields))
            return _ConstantFields(fields, start, start.removeprefix(b"POST " + target))

        return cls(origin, target, headers, encode(b"application/json"), encode(b"text/event-stream"))

    def add_fields(self, headers: Headers) -> Endpoint:
        """Return the endpoint with ``headers`` behind those of its requests, encoded once."""

        def add(own: _ConstantFields) -> _ConstantFields:
            encoded = encode_fields(headers)
            return _ConstantFields((*own.headers, *headers), own.head_start + encoded, own.after_target + encoded)

        return evolve(self, json_fields=add(self._json_fields), stream_fields=add(self._stream_fields))

    def build_request(
        self, body: bytes, *, is_stream: bool, suffix: bytes = b"", query: bytes = b"", headers: Headers = ()
    ) -> UpstreamRequest:
        """Build a POST of ``body`` with ``headers`` besides the endpoint's; ``query`` has no question mark.

        ``suffix`` is added to the path; it must be percent-encoded. Raises :exc:`ValueError` if ``suffix``, ``query``
        or ``headers`` contain a line feed.
        """
        own = self._stream_fields if is_stream else self._json_fields
        fields, target, start = own.headers, self.target, own.head_start
        if suffix or query:
            target += suffix + (b"?" + query if query else b"")
            if b"\n" in target:
                raise ValueError("the target of the upstream request contains a line feed")
            start = b"POST %b%b" % (target, own.after_target)
        if headers:
            fields = (*fields, *headers)
            start += encode_fields(headers)
        return UpstreamRequest(self.origin, target, fields, body, b"POST", start)


def select_headers(head: RequestHead, names: frozenset[bytes], defaults: Headers = ()) -> Headers:
    """Return a client's header fields that are in ``names``, and those of ``defaults`` that it did not send."""
    # The usual case: a few look-ups instead of a pass over all fields.
    for name in names:
        if head.header(name) is not None:
            break
    else:
        return defaults
    chosen = tuple(item for item in head.headers if item[0] in names)
    return (*chosen, *(item for item in defaults if find_header(chosen, item[0]) is None))


def query_of(head: RequestHead) -> bytes:
    """Return the query of the client's target, without its question mark."""
    return head.target.partition(b"?")[2]
