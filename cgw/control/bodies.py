"""Bodies of requests to control routes."""

from __future__ import annotations

from cgw.errors import Refusal
from cgw.transport.asgi_host import Receive
from cgw.wire.messages import RequestHead


async def receive_body(head: RequestHead, receive: Receive, max_bytes: int) -> bytes:
    """Return the whole body. Raises :exc:`~cgw.errors.Refusal` (413, or 400 for one that broke off). Cancel-safe."""
    announced = head.header(b"content-length") or b""
    if announced.isdigit() and int(announced) > max_bytes:
        raise _build_too_large(max_bytes)  # before it is read
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise Refusal(400, "the request's body is incomplete", must_close=True)
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > max_bytes:
            raise _build_too_large(max_bytes)
        if not message.get("more_body", False):
            return b"".join(parts)


def _build_too_large(max_bytes: int) -> Refusal:
    return Refusal(413, f"the body must be at most {max_bytes} bytes", code="too_large", must_close=True)
