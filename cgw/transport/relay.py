"""The plain path: carrying a response's body to the client through h11 on both sides, unchanged and without delay.

It is correct for every framing, and the measure that any faster path is held against.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

from attrs import frozen

from cgw.errors import UpstreamError, UpstreamTimeout
from cgw.transport.client import ClientSide
from cgw.transport.upstream import UpstreamResponse
from cgw.wire.windows import BodyWindowCollector


class RelayEnd(enum.Enum):
    """How the upstream's body ended."""

    COMPLETE = "complete"
    BROKEN = "broken"
    TIMED_OUT = "timed out"


@frozen
class RelayOutcome:
    """What the relay came to. ``held_back`` is what the client has still to get once the exchange is on record."""

    end: RelayEnd
    held_back: bytes = b""
    error: str | None = None


async def relay_body(
    response: UpstreamResponse,
    client: ClientSide,
    window: BodyWindowCollector,
    *,
    content_length: int | None,
    on_first_chunk: Callable[[], None],
) -> RelayOutcome:
    """Pass each chunk on as it comes, until the body ends or breaks.

    What would tell the client that the body is complete is held back: the end of a chunked body, or the last chunk
    of one with a ``content_length``. ``window`` sees every byte. Raises :exc:`~cgw.errors.ClientGone`.
    """
    try:
        while (chunk := await response.receive_chunk()) is not None:
            if not window.total_bytes:
                on_first_chunk()
            window.feed(chunk)
            if content_length is not None and window.total_bytes >= content_length:
                await _wait_end(response)
                return RelayOutcome(RelayEnd.COMPLETE, held_back=chunk)
            await client.send_chunk(chunk)
    except UpstreamTimeout as error:
        return RelayOutcome(RelayEnd.TIMED_OUT, error=str(error))
    except UpstreamError as error:
        return RelayOutcome(RelayEnd.BROKEN, error=str(error))
    return RelayOutcome(RelayEnd.COMPLETE)


async def _wait_end(response: UpstreamResponse) -> None:
    """Take the end of a counted body, which is there already, so that the connection can be kept."""
    while await response.receive_chunk() is not None:
        continue
