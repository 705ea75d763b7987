"""Carrying a response's body to the client, unchanged and without delay, on one of two paths.

The plain path goes through h11 on both sides. It is correct for every framing, and the measure that the other one is
held against. The flat path (:mod:`cgw.transport.flat_relay`) passes bytes as they are, where both sides frame alike.
"""

from __future__ import annotations

import enum
import socket
from collections.abc import Callable

import trio
from attrs import frozen

from cgw.errors import ClientGone, UpstreamError, UpstreamTimeout
from cgw.transport.client_side import ClientSide
from cgw.transport.flat_relay import Carried, Ending, FlatRelay
from cgw.transport.upstream import UpstreamResponse
from cgw.wire.framers import Framer, Standing
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


async def relay_response(
    flat: FlatRelay,
    response: UpstreamResponse,
    client: ClientSide,
    window: BodyWindowCollector,
    *,
    content_length: int | None,
    on_first_chunk: Callable[[float], None],
) -> RelayOutcome:
    """Pass a body on by the flat path where that can be, and by the plain one otherwise, or from where it has to.

    As :func:`relay_body` in all else.
    """
    framer = flat.choose_framer(response.head, content_length, window)
    sock = None if framer is None else client.pass_raw(content_length)
    if framer is not None and sock is not None:
        outcome = await _relay_raw(flat, response, client, framer, sock, window, on_first_chunk)
        if outcome is not None:
            return outcome
    return await relay_body(response, client, window, content_length=content_length, on_first_chunk=on_first_chunk)


async def _relay_raw(
    flat: FlatRelay,
    response: UpstreamResponse,
    client: ClientSide,
    framer: Framer,
    sock: socket.socket,
    window: BodyWindowCollector,
    on_first_chunk: Callable[[float], None],
) -> RelayOutcome | None:
    """The flat path; ``None`` where the plain one has to go on."""
    unread = response.connection.take_unread()
    passable, standing = framer.follow(unread, len(unread))
    if window.total_bytes:
        on_first_chunk(trio.current_time())
    if standing is Standing.OPEN or passable:
        # A body that is whole already leaves together with its head, when it is released.
        await client.send_raw(unread[:passable], window.total_bytes - len(framer.held_body))
    if standing is Standing.OPEN:
        carried = await flat.carry(
            response.connection.transport, sock, framer, None if window.total_bytes else on_first_chunk
        )
    else:
        carried = Carried.of_standing(standing, framer)
    client.raw_passed(window.total_bytes - len(framer.held_body), is_stalled=carried.ending is Ending.STALLED)
    return _conclude_raw(carried, response, client, framer)


def _conclude_raw(
    carried: Carried, response: UpstreamResponse, client: ClientSide, framer: Framer
) -> RelayOutcome | None:
    if carried.ending is Ending.COMPLETE:
        response.end_of_raw_body(framer.surplus_bytes)
        return RelayOutcome(RelayEnd.COMPLETE, held_back=framer.held_body)
    if carried.ending is Ending.UNUSUAL:
        response.connection.go_on_after(carried.held)
        return None
    if carried.ending is Ending.BROKEN:
        return RelayOutcome(RelayEnd.BROKEN, error=carried.reason)
    if carried.ending is Ending.SILENT:
        return RelayOutcome(RelayEnd.TIMED_OUT, error=carried.reason)
    client.break_off()
    raise ClientGone


async def relay_body(
    response: UpstreamResponse,
    client: ClientSide,
    window: BodyWindowCollector,
    *,
    content_length: int | None,
    on_first_chunk: Callable[[float], None],
) -> RelayOutcome:
    """Pass each chunk on as it comes, until the body ends or breaks.

    What would tell the client that the body is complete is held back: the end of a chunked body, or the last chunk
    of one with a ``content_length``. ``window`` sees every byte. Raises :exc:`~cgw.errors.ClientGone`.
    """
    try:
        while (chunk := await response.receive_chunk()) is not None:
            if not window.total_bytes:
                on_first_chunk(trio.current_time())
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
