"""Requests to upstreams through a pool, without a gateway around it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from cgw.errors import UpstreamTimeout
from cgw.transport.upstream import UpstreamPool, UpstreamResponse
from cgw.wire.messages import Origin, ResponseHead, UpstreamRequest

OK = b"HTTP/1.1 200 OK\r\n"
HELLO = OK + b"content-length: 5\r\n\r\nhello"


def build_request(port: int, *, scheme: str = "http", host: str = "127.0.0.1", body: bytes = b"{}") -> UpstreamRequest:
    return UpstreamRequest(Origin(scheme, host, port), b"/v1", ((b"content-type", b"application/json"),), body)


@asynccontextmanager
async def open_response(pool: UpstreamPool, request: UpstreamRequest) -> AsyncIterator[UpstreamResponse]:
    """Yield the response to ``request`` once its head is there, and give it back in the end."""
    with trio.move_on_after(pool.deadlines.head_seconds) as scope:
        response = await pool.open(request)
    if scope.cancelled_caught:
        raise UpstreamTimeout(f"no response head within {pool.deadlines.head_seconds:g} seconds")
    try:
        yield response
    finally:
        pool.give_back(response)


async def fetch(pool: UpstreamPool, request: UpstreamRequest) -> tuple[ResponseHead, bytes]:
    """Return the head and the body of a whole response."""
    async with open_response(pool, request) as response:
        body = b""
        while (chunk := await response.receive_chunk()) is not None:
            body += chunk
        return response.head, body
