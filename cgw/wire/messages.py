"""Heads of requests and responses: records that the clients' and the upstreams' side share."""

from __future__ import annotations

from urllib.parse import urlsplit

from attrs import field, frozen

from cgw.errors import Headers

DEFAULT_PORTS = {"http": 80, "https": 443}


@frozen
class Origin:
    """The origin of an upstream: scheme (``http`` or ``https``), host name or address, port."""

    scheme: str
    host: str
    port: int

    @property
    def authority(self) -> bytes:
        """The value of the ``Host`` field (RFC 9110 §7.2), without the port where it is the scheme's default."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        if DEFAULT_PORTS[self.scheme] == self.port:
            return host.encode("ascii")
        return f"{host}:{self.port}".encode("ascii")


def parse_base_url(url: str) -> tuple[Origin, str]:
    """Split an API's base URL into its origin and its path without a trailing slash (``""`` for none).

    Raises :exc:`ValueError`, with a message for the operator, unless it is an http(s) URL with a host and without
    user, query or fragment.
    """
    parts = urlsplit(url)
    if parts.scheme not in DEFAULT_PORTS or not parts.hostname:
        raise ValueError(f"must be an http:// or https:// URL with a host, not {url!r}")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError("must have no user, query or fragment")
    # An IPv6 address has colons, and is not a name for IDNA to encode.
    host = parts.hostname.encode("idna").decode("ascii") if ":" not in parts.hostname else parts.hostname
    port = parts.port if parts.port is not None else DEFAULT_PORTS[parts.scheme]
    return Origin(parts.scheme, host, port), parts.path.rstrip("/")


def find_header(headers: Headers, name: bytes) -> bytes | None:
    """Return the value of the first field called ``name`` (lower case), or ``None``."""
    for key, value in headers:
        if key == name:
            return value
    return None


@frozen
class RequestHead:
    """The head of a client's request. Header names are in lower case; ``http_version`` is like ``b"1.1"``."""

    method: bytes
    target: bytes
    headers: Headers = field(repr=False)
    http_version: bytes = b"1.1"

    @property
    def path(self) -> bytes:
        """The target's path, without its query and, of an absolute-form target (RFC 9112 §3.2.2), its authority."""
        path = self.target.partition(b"?")[0]
        if not path.startswith(b"/") and b"://" in path:
            path = b"/" + path.partition(b"://")[2].partition(b"/")[2]
        return path

    def header(self, name: bytes) -> bytes | None:
        """Return the value of the first field called ``name`` (lower case), or ``None``."""
        return find_header(self.headers, name)


@frozen
class ResponseHead:
    """The head of an upstream's final response. Header names are in lower case."""

    status: int
    headers: Headers
    http_version: bytes = b"1.1"
    reason: bytes = b""

    def header(self, name: bytes) -> bytes | None:
        """Return the value of the first field called ``name`` (lower case), or ``None``."""
        return find_header(self.headers, name)


@frozen
class UpstreamRequest:
    """A whole request to an upstream. ``headers`` lack ``host`` and ``content-length``, which are added on sending."""

    origin: Origin
    target: bytes
    headers: Headers = field(repr=False)
    body: bytes = field(repr=False)
    method: bytes = b"POST"
