"""The end of an answer: what completes it goes out once the exchange is recorded."""

from __future__ import annotations

from contextlib import suppress

import trio

from cgw.errors import ClientGone, Refusal
from cgw.transport.client_side import ClientSide
from cgw.transport.relay import RelayOutcome

REST_SECONDS = 1.0
"""How long HTTP's end of an answer is awaited after the API's last event."""


async def send_end(client: ClientSide, answer: RelayOutcome) -> None:
    """Send what completes ``answer`` for the client: HTTP's end, or the API's last event where that comes first.

    Raises :exc:`~cgw.errors.ClientGone`.
    """
    if answer.resume is None:
        await client.finish(answer.held_back)
    else:
        await client.send_chunk(answer.held_back)
        await client.flush()  # the last event of a raw body is kept there


async def cut_off(client: ClientSide, answer: RelayOutcome | None) -> None:
    """Send what came of an answer that broke off, and make sure that it does not look complete. Raises nothing."""
    if answer is not None:
        with suppress(ClientGone):  # how it broke off is what counts
            await client.send_chunk(answer.held_back)
            await client.flush()
    client.break_off()


async def relay_rest(client: ClientSide, answer: RelayOutcome | Refusal | None) -> None:
    """Relay what follows the API's last event: HTTP's end, as a rule, by which both connections can be kept.

    The answer is complete: neither a client that leaves now, nor an upstream that is slow to end or breaks off changes
    that. So cancellation does not end the waiting, but :data:`REST_SECONDS` do. Where the client has a part of a chunk
    by then, its connection is closed. Raises :exc:`~cgw.errors.ClientGone`.
    """
    if not isinstance(answer, RelayOutcome) or answer.resume is None:
        return
    held_back = b""
    with trio.move_on_after(REST_SECONDS, shield=True):
        held_back = (await answer.resume()).held_back
    # Not behind a part of a chunk: the client would wait for the rest of it, with the end in its place.
    if not client.is_broken_off:
        await client.finish(held_back)
