"""ASGI scopes that every server provides: an HTTP request's as a request head, and the lifespan."""

from __future__ import annotations

from cgw.transport.asgi_host import TRACE_EXTENSION, Receive, Scope, Send
from cgw.wire.messages import RequestHead


def build_request_head(scope: Scope) -> RequestHead:
    """Return an ASGI HTTP scope as a request head."""
    target = bytes(scope.get("raw_path") or scope["path"].encode("utf-8"))
    if scope["query_string"]:
        target += b"?" + scope["query_string"]
    headers = tuple((bytes(name).lower(), bytes(value)) for name, value in scope["headers"])
    trace = (scope.get("extensions") or {}).get(TRACE_EXTENSION)
    method, http_version = scope["method"].encode("ascii"), scope["http_version"].encode("ascii")
    return RequestHead(method, target, headers, http_version, trace=trace)


async def run_lifespan(receive: Receive, send: Send) -> None:
    """Answer the lifespan protocol: the service opens and closes everything itself."""
    while (message := await receive())["type"] == "lifespan.startup":
        await send({"type": "lifespan.startup.complete"})
    if message["type"] == "lifespan.shutdown":
        await send({"type": "lifespan.shutdown.complete"})
