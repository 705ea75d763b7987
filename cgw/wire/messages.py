"""Heads of requests and responses: records that the clients' and the upstreams' side share."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import urlsplit

from attrs import define, field

from cgw.errors import Headers
from cgw.wire.trace_context import FindHeader, RequestTrace, begin_trace

DEFAULT_PORTS = {"http": 80, "https": 443}


class Origin(NamedTuple):
    """The origin of an upstream: scheme (``http`` or ``https``), host name or address, port."""

    # A tuple, because pools look it up for each request: its hash is computed in C.

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

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority.decode('ascii')}"


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


def index_headers(headers: Headers) -> dict[bytes, bytes]:
    """Return the value of each field by its name; of several fields of one name, that of the first."""
    return dict(headers[::-1])


def path_of(target: bytes) -> bytes:
    """Return a target's path, without its query and, of an absolute-form target (RFC 9112 §3.2.2), its authority."""
    path = target.partition(b"?")[0]
    if not path.startswith(b"/") and b"://" in path:
        path = b"/" + path.partition(b"://")[2].partition(b"/")[2]
    return path


# These are made for every exchange. They are not frozen, although nothing changes them: setting the fields of a frozen
# class costs several times as much.


@define(init=False)
class RequestHead:
    """The head of a client's request. Header names are in lower case; ``http_version`` is like ``b"1.1"``.

    ``index`` is what :func:`index_headers` returns for ``headers``, for callers that have it already; likewise
    ``path`` and ``trace``.
    """

    method: bytes
    target: bytes
    headers: Headers = field(repr=False)
    http_version: bytes
    path: bytes = field(repr=False, eq=False)
    """What :func:`path_of` returns for the target."""
    header: FindHeader = field(repr=False, eq=False)
    """Returns the value of the first field of a name (lower case), or ``None``."""
    trace: RequestTrace = field(repr=False, eq=False)
    """The ids of the request: new ones, unless they are given."""
    arrived_at: float = field(repr=False, eq=False)
    """The Unix time at which its first bytes came, 0.0 where that is unknown. Set by the connection."""

    def __init__(
        self,
        method: bytes,
        target: bytes,
        headers: Headers,
        http_version: bytes = b"1.1",
        index: dict[bytes, bytes] | None = None,
        path: bytes | None = None,
        trace: RequestTrace | None = None,
    ) -> None:
        self.method = method
        self.target = target
        self.headers = headers
        self.http_version = http_version
        self.path = path_of(target) if path is None else path
        if index is None:
            index = index_headers(headers)
        # The dictionary's own method: a look-up costs no call of a Python function.
        self.header = index.get
        self.trace = begin_trace(index) if trace is None else trace
        self.arrived_at = 0.0


@define(init=False)
class ResponseHead:
    """The head of an upstream's final response. Header names are in lower case. ``index`` is as in a request's head."""

    status: int
    headers: Headers
    http_version: bytes
    reason: bytes
    header: FindHeader = field(repr=False, eq=False)
    """Returns the value of the first field of a name (lower case), or ``None``."""

    def __init__(
        self,
        status: int,
        headers: Headers,
        http_version: bytes = b"1.1",
        reason: bytes = b"",
        index: dict[bytes, bytes] | None = None,
    ) -> None:
        self.status = status
        self.headers = headers
        self.http_version = http_version
        self.reason = reason
        self.header = (index_headers(headers) if index is None else index).get


@define
class UpstreamRequest:
    """A whole request to an upstream. ``headers`` lack ``host`` and ``content-length``, which are added on sending.

    ``head_start`` is what :func:`encode_head_start` returns for the other fields, if the sender is to save that.
    """

    origin: Origin
    target: bytes
    headers: Headers = field(repr=False)
    body: bytes = field(repr=False)
    method: bytes = b"POST"
    head_start: bytes | None = field(default=None, repr=False, eq=False)


def add_field(request: UpstreamRequest, name: bytes, value: bytes) -> UpstreamRequest:
    """Return ``request`` with one more field. Raises :exc:`ValueError` if it contains a line feed."""
    added, start = ((name, value),), request.head_start
    start = None if start is None else start + encode_fields(added)
    headers = (*request.headers, *added)
    return UpstreamRequest(request.origin, request.target, headers, request.body, request.method, start)


def encode_fields(headers: Headers) -> bytes:
    """Encode field lines. Raises :exc:`ValueError` for a field that contains a line feed."""
    lines = b"".join([b"%b: %b\r\n" % item for item in headers])
    # One count of the result instead of a check of each field: request splitting (RFC 9110 §5.5).
    if lines.count(b"\n") != len(headers):
        raise ValueError("a header field of the upstream request contains a line feed")
    return lines


def encode_head_start(method: bytes, target: bytes, origin: Origin, fields: bytes) -> bytes:
    """Encode a head up to its ``content-length``; ``fields`` are encoded. Raises :exc:`ValueError` for a line feed."""
    line = b"%b %b HTTP/1.1\r\nhost: %b\r\n" % (method, target, origin.authority)
    if line.count(b"\n") != 2:
        raise ValueError("the target of the upstream request contains a line feed")
    return line + fields


def encode_upload_head(request: UpstreamRequest, body_bytes: int | None) -> bytes:
    """Encode the head of a request whose body follows: of ``body_bytes``, or chunked if that is ``None``.

    Raises as :func:`encode_head` does.
    """
    start = encode_head_start(request.method, request.target, request.origin, encode_fields(request.headers))
    framing = b"transfer-encoding: chunked" if body_bytes is None else b"content-length: %d" % body_bytes
    return b"%b%b\r\n\r\n" % (start, framing)


def encode_head(request: UpstreamRequest) -> bytes:
    """Encode the head of a request, with ``host`` and ``content-length``.

    Raises :exc:`ValueError` if a field or the target contains a line feed.
    """
    start = request.head_start
    if start is None:
        start = encode_head_start(request.method, request.target, request.origin, encode_fields(request.headers))
    return b"%bcontent-length: %d\r\n\r\n" % (start, len(request.body))
