"""Requests of the tests: the four completion routes, as raw bytes and as bodies."""

from __future__ import annotations

import json
from typing import Any

import trio

from tests.support.gateway import ANTHROPIC_MODEL, OPENAI_MODEL, TOKEN

ROUTES = {
    "/v1/completions/anthropic-messages": ANTHROPIC_MODEL,
    "/v1/completions/openai": OPENAI_MODEL,
    "/anthropic/v1/messages": ANTHROPIC_MODEL,
    "/openai/v1/chat/completions": OPENAI_MODEL,
}
"""A model for each POST route."""

HEADERS = {"authorization": f"Bearer {TOKEN}", "x-sourcegraph-feature": "chat_completions"}


def build_body(path: str, *, stream: bool = True, **more: Any) -> dict[str, Any]:
    """Return a small, valid body for the route at ``path``."""
    message = {"role": "user", "content": "Good day"}
    return {"model": ROUTES[path], "max_tokens": 50, "stream": stream, "messages": [message], **more}


def build_request(path: str, *, stream: bool = True, version: str = "1.1", **more: Any) -> bytes:
    """Return the bytes of a request for the route at ``path``."""
    body = json.dumps(build_body(path, stream=stream, **more)).encode()
    fields = "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items())
    head = f"POST {path} HTTP/{version}\r\nhost: gateway\r\n{fields}content-length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def read_until(stream: trio.SocketStream, mark: bytes) -> bytes:
    """Receive up to and including ``mark``, or up to the end."""
    data = b""
    while mark not in data:
        more = await stream.receive_some(65536)
        if not more:
            break
        data += more
    return data


async def read_to_end(stream: trio.SocketStream) -> bytes:
    """Receive everything up to the end of the connection."""
    data = b""
    while more := await stream.receive_some(65536):
        data += more
    return data
