"""The end of an answer: what completes it goes out once the exchange is recorded."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio

from cgw.errors import ClientGone, Refusal
from cgw.gateway.journal import Journal
from cgw.transport.client_side import ClientSide
from cgw.transport.relay import RelayEnd, RelayOutcome

REST_SECONDS = 1.0
"""How long HTTP's end of an answer is awaited after the API's last event."""

LATE_END_SECONDS = 5.0
"""How long the end of an answer may take that came in the moment in which its time was over."""


async def release(client: ClientSide, answer: RelayOutcome | Refusal | None, journal: Journal) -> None:
    """Send what completes ``answer`` for the client: HTTP's end, or the API's last event where that comes first.

    An answer that broke off, or never came (``None``), is made to look incomplete; one that is a refusal is raised.
    Raises :exc:`~cgw.errors.ClientGone`.
    """
    if isinstance(answer, Refusal):
        raise answer
    if answer is None or answer.end is not RelayEnd.COMPLETE:
        await _cut_off(client, answer)
        return
    if answer.resume is None:
        await client.finish(answer.held_back)
    else:
        await client.send_chunk(answer.held_back)
        await client.flush()  # the last event of a raw body is kept there
    journal.finished()


async def _cut_off(client: ClientSide, answer: RelayOutcome | None) -> None:
    """Send what came of an answer that broke off, and make sure that it does not look complete. Raises nothing."""
    if answer is not None:
        with suppress(ClientGone):  # how it broke off is what counts
            await client.send_chunk(answer.held_back)
            await client.flush()
    client.break_off()


async def relay_rest(client: ClientSide, resume: Callable[[], Awaitable[RelayOutcome]]) -> None:
    """Relay what follows the API's last event: HTTP's end, as a rule, by which both connections can be kept.

    The answer is complete: neither a client that leaves now, nor an upstream that is slow to end or breaks off changes
    that. So cancellation does not end the waiting, but :data:`REST_SECONDS` do. Where the client has a part of a chunk
    by then, its connection is closed. Raises :exc:`~cgw.errors.ClientGone`.
    """
    held_back = b""
    with trio.move_on_after(REST_SECONDS, shield=True):
        held_back = (await resume()).held_back
    # Not behind a part of a chunk: the client would wait for the rest of it, with the end in its place.
    if not client.is_broken_off:
        await client.finish(held_back)


async def end_late(ending: Awaitable[None]) -> None:
    """Await what ends an answer that came in the moment in which its time was over, although that has cancelled it.

    Raises what ``ending`` does, and :exc:`~cgw.errors.ClientGone` for a client that takes :data:`LATE_END_SECONDS`.
    """
    with trio.move_on_after(LATE_END_SECONDS, shield=True) as late_scope:
        await ending
    if late_scope.cancelled_caught:
        raise ClientGone
