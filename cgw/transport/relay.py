"""Relaying a response's body to the client, unchanged and without delay, on one of two paths.

The fallback path (:func:`relay_body`) goes through h11 on both sides, and is correct for every framing. The fast path
(:mod:`cgw.transport.flat_relay`) forwards raw bytes, where upstream and client use the same framing::

    relay_response ──> fast path ── something unusual ──> fallback path ──> RelayOutcome
          │                └── the body has ended ────────────────────────────────^
          └── the fast path is not possible ───────────> fallback path
"""

from __future__ import annotations

import enum
from collections.abc import Callable

import trio
from attrs import frozen

from cgw.errors import ClientGone, UpstreamError, UpstreamTimeout
from cgw.transport.client_side import ClientSide, RawBody
from cgw.transport.flat_relay import FlatRelay
from cgw.transport.flat_stream import StreamEnd, StreamOutcome
from cgw.transport.upstream import UpstreamResponse
from cgw.wire.framers import Framer, FramerState
from cgw.wire.windows import BodyWindowCollector


class RelayEnd(enum.Enum):
    """The ways in which the upstream's body can end."""

    COMPLETE = "complete"
    BROKEN = "broken"
    TIMED_OUT = "timed out"


@frozen
class RelayOutcome:
    """The end of a relay. ``held_back`` is to be sent once the exchange is recorded; ``error`` is for logs."""

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
    is_stream: bool,
    on_first_chunk: Callable[[float], None],
) -> RelayOutcome:
    """Relay a body on the fast path where possible, otherwise, or from where it has to, on the fallback path.

    ``client.send_head`` was called before. A head that was kept goes out with the first data, that of a stream
    (``is_stream``) without waiting for any. What completes the body for the client is held back: the end of a chunked
    body, or the last bytes of one with a ``content_length``. ``window`` gets the whole payload; ``on_first_chunk`` is
    called once, with Trio's time, and possibly in another thread. Raises :exc:`~cgw.errors.ClientGone`.
    """
    framer = flat.choose_framer(response.head, content_length, window)
    # Asked for only with a framer: from here on the client's codec expects raw bytes.
    raw_body = None if framer is None else client.begin_raw_body(content_length)
    if framer is not None and raw_body is not None:
        outcome = await _relay_raw(flat, response, client, framer, raw_body, window, on_first_chunk)
        if outcome is not None:
            return outcome
    elif is_stream:
        await client.flush_head()
    return await relay_body(response, client, window, content_length=content_length, on_first_chunk=on_first_chunk)


async def _relay_raw(
    flat: FlatRelay,
    response: UpstreamResponse,
    client: ClientSide,
    framer: Framer,
    raw_body: RawBody,
    window: BodyWindowCollector,
    on_first_chunk: Callable[[float], None],
) -> RelayOutcome | None:
    """Relay on the fast path; return ``None`` when the fallback path has to continue."""
    unread = response.connection.take_unread()
    # Whatever was read together with the head comes before what is still in the socket.
    passable, state = framer.feed(unread, len(unread))
    if window.total_bytes:
        on_first_chunk(trio.current_time())
    if passable or state is not FramerState.COMPLETE:
        # With the head, if that was kept. A body that is complete already and is held as a whole goes out later.
        await raw_body.send(unread[:passable], window.total_bytes - len(framer.held_body))
    if state is FramerState.OPEN:
        stream_outcome = await flat.forward(
            response.connection.transport, raw_body.sock, framer, None if window.total_bytes else on_first_chunk
        )
    else:
        stream_outcome = StreamOutcome.from_framer(state, framer)
    # Before the outcome is looked at: ``bytes_sent`` and the need for a reset must be right in every case.
    raw_body.note_sent(window.total_bytes - len(framer.held_body), is_stalled=stream_outcome.end is StreamEnd.STALLED)
    return _conclude_raw(stream_outcome, response, client, framer)


def _conclude_raw(
    stream_outcome: StreamOutcome, response: UpstreamResponse, client: ClientSide, framer: Framer
) -> RelayOutcome | None:
    match stream_outcome.end:
        case StreamEnd.COMPLETE:
            response.end_raw_body(framer.surplus_bytes)
            # Of a chunked body nothing: its end is encoded by ``client.finish``.
            return RelayOutcome(RelayEnd.COMPLETE, held_back=framer.held_body)
        case StreamEnd.UNUSUAL:
            response.connection.continue_with(stream_outcome.held)
            return None
        case StreamEnd.BROKEN:
            return RelayOutcome(RelayEnd.BROKEN, error=stream_outcome.reason)
        case StreamEnd.SILENT:
            return RelayOutcome(RelayEnd.TIMED_OUT, error=stream_outcome.reason)
        case StreamEnd.STALLED | StreamEnd.CLIENT_GONE:
            # The last write may have ended in the middle of a chunk: the connection can only be cut.
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
    """Relay a body on the fallback path: forward each chunk as it comes, until the body ends or breaks.

    Arguments, result and exceptions are as for :func:`relay_response`.
    """
    try:
        while (chunk := await response.receive_chunk()) is not None:
            if not window.total_bytes:
                on_first_chunk(trio.current_time())
            window.feed(chunk)
            # A body with a length has no other end than its last bytes, so these are held back.
            if content_length is not None and window.total_bytes >= content_length:
                await _receive_end(response)
                return RelayOutcome(RelayEnd.COMPLETE, held_back=chunk)
            await client.send_chunk(chunk)
    except UpstreamTimeout as error:
        return RelayOutcome(RelayEnd.TIMED_OUT, error=str(error))
    except UpstreamError as error:
        return RelayOutcome(RelayEnd.BROKEN, error=str(error))
    return RelayOutcome(RelayEnd.COMPLETE)


async def _receive_end(response: UpstreamResponse) -> None:
    """Have h11 report the end of a body of which all bytes are there, so that the connection can be kept."""
    while await response.receive_chunk() is not None:
        continue
