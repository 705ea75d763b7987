"""A request whose whole response is read before anything is done with it."""

from __future__ import annotations

import trio
from attrs import frozen

from cgw.errors import UpstreamProtocolError, UpstreamTimeout
from cgw.transport.upstream import UpstreamPool
from cgw.wire.heads import FIRST_ERROR_STATUS
from cgw.wire.messages import ResponseHead, UpstreamRequest

MAX_ERROR_BYTES = 16 * 1024
"""The most that is read of an error's body; the rest is cut off."""


@frozen
class WholeResponse:
    """A response that was read to its end, or an error of which the start was read."""

    head: ResponseHead
    body: bytes


async def fetch_whole(
    pool: UpstreamPool,
    request: UpstreamRequest,
    deadline: float,
    max_body_bytes: int,
    head_seconds: float,
) -> WholeResponse:
    """Send ``request`` and return the response with its body, of at most ``max_body_bytes``.

    Raises what :meth:`UpstreamPool.open` raises, :exc:`~cgw.errors.UpstreamTimeout` for a head, a pause or the whole
    that takes too long, and :exc:`~cgw.errors.UpstreamProtocolError` for a body that breaks off or is too large.
    Cancel-safe: the connection is closed at once.
    """
    has_head = False
    with trio.CancelScope(deadline=min(deadline, trio.current_time() + head_seconds)) as call_scope:
        response = await pool.open(request)
        call_scope.deadline, has_head = deadline, True
        try:
            parts, size, is_error = [], 0, response.head.status >= FIRST_ERROR_STATUS
            while (chunk := await response.receive_chunk()) is not None:
                parts.append(chunk)
                size += len(chunk)
                if is_error and size >= MAX_ERROR_BYTES:
                    break
                if size > max_body_bytes and not is_error:
                    raise UpstreamProtocolError(f"the upstream's response is larger than {max_body_bytes} bytes")
        finally:
            pool.give_back(response)
        return WholeResponse(response.head, b"".join(parts)[:MAX_ERROR_BYTES] if is_error else b"".join(parts))
    if not has_head and trio.current_time() < deadline:
        raise UpstreamTimeout(f"no response head within {head_seconds:g} seconds")
    raise UpstreamTimeout("the exchange's time was over")
