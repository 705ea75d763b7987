"""Requests to upstreams through a pool, without a gateway around it."""

from __future__ import annotations

from cgw.transport.upstream import UpstreamPool
from cgw.wire.messages import Origin, ResponseHead, UpstreamRequest

OK = b"HTTP/1.1 200 OK\r\n"
HELLO = OK + b"content-length: 5\r\n\r\nhello"


def build_request(port: int, *, scheme: str = "http", host: str = "127.0.0.1", body: bytes = b"{}") -> UpstreamRequest:
    return UpstreamRequest(Origin(scheme, host, port), b"/v1", ((b"content-type", b"application/json"),), body)


async def fetch(pool: UpstreamPool, request: UpstreamRequest) -> tuple[ResponseHead, bytes]:
    """Return the head and the body of a whole response."""
    async with pool.open_response(request) as response:
        body = b""
        while (chunk := await response.receive_chunk()) is not None:
            body += chunk
        return response.head, body
