"""The ids by which one request is found again: in its answer, the log, events, traces and error reports. Pure.

Each request gets a trace of its own, whatever its caller says: the port is public, and a caller must not be able to
write into a trace of ours. The caller's context is kept as a link (https://www.w3.org/TR/trace-context/).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping

import msgspec

from cgw.errors import Headers

FindHeader = Callable[[bytes], bytes | None]

REQUEST_ID_FIELD = b"x-cgw-request-id"
TRACE_FIELD = b"x-trace"
SPAN_FIELD = b"x-trace-span"

# Version 00; a later one may go on after the flags (§3.2.4 there), and ff is never valid.
_TRACEPARENT = re.compile(rb"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
# https://cloud.google.com/trace/docs/trace-context#legacy-http-header
_CLOUD_TRACE = re.compile(rb"(?!0{32})([0-9a-fA-F]{32})/(\d{1,20})(?:;o=(\d))?")
_SAMPLED = 1
_CALLER_FIELDS = (b"traceparent", b"x-cloud-trace-context", b"x-sourcegraph-should-trace")
_NO_FIELDS: Mapping[bytes, bytes] = {}
_TRUE = (b"true", b"t", b"1")  # as Go's strconv.ParseBool, by which the reference reads X-Sourcegraph-Should-Trace


class CallerContext(msgspec.Struct, frozen=True, gc=False):
    """The span of the caller that a request says it belongs to. Ids are lower-case hexadecimal."""

    trace_id: str
    span_id: str
    is_sampled: bool


class RequestTrace(msgspec.Struct, frozen=True, gc=False):
    """The ids of one request. ``trace_id`` (32 hexadecimal digits) is its request id, too; ``span_id`` has 16.

    ``is_wanted`` tells whether the caller asks for the request to be traced.
    """

    trace_id: str
    span_id: str
    caller: CallerContext | None = None
    is_wanted: bool = False

    def build_fields(self) -> list[tuple[bytes, bytes]]:
        """Return the header fields by which the client learns the ids."""
        trace_id = self.trace_id.encode("ascii")
        return [(REQUEST_ID_FIELD, trace_id), (TRACE_FIELD, trace_id), (SPAN_FIELD, self.span_id.encode("ascii"))]


def begin_trace(index: Mapping[bytes, bytes] = _NO_FIELDS) -> RequestTrace:
    """Return new ids for a request; ``index`` are its header fields by name, none where it has no valid head.

    The ids are random, not secret: whoever knows one can do nothing with it.
    """
    ids = random.getrandbits(192).to_bytes(24).hex()
    if index.keys().isdisjoint(_CALLER_FIELDS):
        return RequestTrace(ids[:32], ids[32:])
    caller = read_caller(index.get)
    asked = index.get(b"x-sourcegraph-should-trace")
    # What a caller says of this request counts more than that it samples its own trace.
    is_wanted = (caller is not None and caller.is_sampled) if asked is None else asked.lower() in _TRUE
    return RequestTrace(ids[:32], ids[32:], caller, is_wanted)


def read_caller(find_header: FindHeader) -> CallerContext | None:
    """Return the caller's context: ``traceparent``, else ``X-Cloud-Trace-Context``; ``None`` if neither is valid."""
    value = find_header(b"traceparent")
    if value is not None and (match := _TRACEPARENT.fullmatch(value)) is not None:
        version, trace_id, span_id, flags, rest = match.groups()
        if rest is None or version != b"00":
            return CallerContext(trace_id.decode(), span_id.decode(), bool(int(flags, 16) & _SAMPLED))
    value = find_header(b"x-cloud-trace-context")
    if value is not None and (match := _CLOUD_TRACE.fullmatch(value)) is not None:
        span = int(match[2])
        if 0 < span < 2**64:
            return CallerContext(match[1].decode().lower(), f"{span:016x}", match[3] == b"1")
    return None


def build_traceparent(trace: RequestTrace, *, is_sampled: bool) -> bytes:
    """Return the value of ``traceparent`` for a request that cgw makes on behalf of ``trace`` (§3.2 there)."""
    return f"00-{trace.trace_id}-{trace.span_id}-{'01' if is_sampled else '00'}".encode("ascii")


OWN_FIELDS = frozenset([REQUEST_ID_FIELD, TRACE_FIELD, SPAN_FIELD])
"""Fields that an upstream's answer cannot set: they would contradict cgw's own."""


def add_trace(headers: Headers, trace: RequestTrace) -> list[tuple[bytes, bytes]]:
    """Return ``headers`` and the fields of ``trace``."""
    return [*headers, *trace.build_fields()]
