"""What the requests to all upstreams have in common: where they go, and the headers that cgw itself sends."""

from __future__ import annotations

from attrs import field, frozen

from cgw import __version__
from cgw.errors import Headers
from cgw.wire.messages import Origin, RequestHead, UpstreamRequest, find_header, parse_base_url

_COMMON: Headers = (
    (b"content-type", b"application/json"),
    # Usage is read from the body as it passes by, so it has to come uncompressed.
    (b"accept-encoding", b"identity"),
    (b"user-agent", b"cgw/" + __version__.encode("ascii")),
)


def secret_value(secret: str, what: str) -> bytes:
    """``secret`` as a header's value. Raises :exc:`ValueError`, without the secret, if it cannot be one."""
    if not secret or not secret.isascii() or not secret.isprintable() or secret != secret.strip():
        raise ValueError(f"{what} must be printable ASCII without spaces around it")
    return secret.encode("ascii")


@frozen
class Endpoint:
    """One upstream URL, with its headers made once. ``repr`` never shows them, as they hold the key."""

    origin: Origin
    target: bytes
    _json_headers: Headers = field(repr=False)
    _stream_headers: Headers = field(repr=False)

    @classmethod
    def parse(cls, api_url: str, path: str, headers: Headers) -> Endpoint:
        """The endpoint at ``path`` below a base URL. Raises :exc:`ValueError` for a URL that is none."""
        origin, base_path = parse_base_url(api_url)
        return cls(
            origin,
            (base_path + path).encode("ascii"),
            (*_COMMON, (b"accept", b"application/json"), *headers),
            (*_COMMON, (b"accept", b"text/event-stream"), *headers),
        )

    def build_request(
        self, body: bytes, *, is_stream: bool, query: bytes = b"", headers: Headers = ()
    ) -> UpstreamRequest:
        """A POST of ``body``, with ``headers`` besides its own; ``query`` is without its question mark."""
        own = self._stream_headers if is_stream else self._json_headers
        target = self.target + b"?" + query if query else self.target
        return UpstreamRequest(self.origin, target, (*own, *headers) if headers else own, body)


def select_headers(head: RequestHead, names: frozenset[bytes], defaults: Headers = ()) -> Headers:
    """Those of a client's header fields that may go upstream, and ``defaults`` for what it did not send."""
    chosen = tuple(item for item in head.headers if item[0] in names)
    return (*chosen, *(item for item in defaults if find_header(chosen, item[0]) is None))


def query_of(head: RequestHead) -> bytes:
    """The query of the client's target, without its question mark."""
    return head.target.partition(b"?")[2]
