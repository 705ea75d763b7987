"""Relaying a response's body to the client, unchanged and without delay, on one of two paths.

The fallback path (:func:`relay_body`) goes through h11 on both sides, and is correct for every framing. The fast path
(:mod:`cgw.transport.flat_relay`) forwards raw bytes, where upstream and client use the same framing::

    relay_response ──> fast path ── something unusual ──> fallback path ──> RelayOutcome
          │                └── the body has ended ────────────────────────────────^
          └── the fast path is not possible ───────────> fallback path

An answer with a content length that came as a whole, together with its head, needs neither of them.

Both stop before the data that completes the answer for the client: the end of the body, or the API's last event where
that comes first. Then the exchange is recorded, that data is sent, and ``RelayOutcome.resume`` relays the rest.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable
from functools import partial

import trio
from attrs import define, field

from cgw.errors import ClientGone, UpstreamError, UpstreamTimeout
from cgw.transport.client_side import ClientSide, RawBody
from cgw.transport.flat_relay import FlatRelay
from cgw.transport.flat_stream import StreamEnd, StreamOutcome
from cgw.transport.upstream import UpstreamResponse
from cgw.wire.framers import Framer, FramerState
from cgw.wire.heads import FIRST_ERROR_STATUS
from cgw.wire.windows import BodyWindowCollector


class RelayEnd(enum.Enum):
    """The ways in which the upstream's body can end."""

    COMPLETE = "complete"
    BROKEN = "broken"
    TIMED_OUT = "timed out"


@define  # not frozen: one is made for every exchange, and setting the fields of a frozen class costs several times more
class RelayOutcome:
    """The end of a relay. ``error`` is for logs.

    ``held_back`` is payload that is to be sent once the exchange is recorded, also if the answer broke off; raw data is
    kept by the client's side instead. With ``resume`` the API's last event has come, but not HTTP's end of the body:
    what follows is relayed by calling it, after ``held_back`` was sent. ``ended_at`` is when the last of it came (by
    Trio's clock), ``None`` where that is not known, or the upstream may have had to wait for the client.
    """

    end: RelayEnd
    held_back: bytes = b""
    error: str | None = None
    resume: Callable[[], Awaitable[RelayOutcome]] | None = None
    ended_at: float | None = field(default=None, eq=False)


async def relay_response(
    flat: FlatRelay | None,
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
    (``is_stream``) without waiting for any. What completes the answer for the client is held back: the API's last event
    if ``window`` looks for that, the end of a chunked body, or the last bytes of one with a ``content_length``.
    ``window`` gets the whole payload; ``on_first_chunk`` is called once, with Trio's time, and possibly in another
    thread. Without ``flat``, all goes on the fallback path. Raises :exc:`~cgw.errors.ClientGone`.
    """
    unread_bytes = response.connection.unread_bytes
    if (
        flat is not None
        and content_length
        and content_length <= unread_bytes
        and response.head.status < FIRST_ERROR_STATUS
    ):
        # A short answer came as a whole, together with its head: there is nothing to relay but this.
        body = response.connection.take_unread()[:content_length]
        on_first_chunk(response.arrived_at)
        window.feed(body)
        response.end_raw_body(unread_bytes - content_length)
        return RelayOutcome(RelayEnd.COMPLETE, held_back=body, ended_at=response.arrived_at)
    framer = None if flat is None else flat.choose_framer(response.head, content_length, window)
    # Asked for only with a framer: from here on the client's codec expects raw bytes.
    raw_body = None if framer is None else client.begin_raw_body(content_length)
    if flat is not None and framer is not None and raw_body is not None:
        raw = _RawRelay(flat, response, client, framer, raw_body, window, on_first_chunk, content_length)
        # Whatever was read together with the head comes before what is still in the socket.
        return await raw.run(response.connection.take_unread())
    if is_stream:
        await client.flush()
    return await relay_body(response, client, window, content_length=content_length, on_first_chunk=on_first_chunk)


class _RawRelay:
    """A body on the fast path."""

    def __init__(
        self,
        flat: FlatRelay,
        response: UpstreamResponse,
        client: ClientSide,
        framer: Framer,
        raw_body: RawBody,
        window: BodyWindowCollector,
        on_first_chunk: Callable[[float], None],
        content_length: int | None,
    ) -> None:
        self._flat = flat
        self._response = response
        self._client = client
        self._framer = framer
        self._raw_body = raw_body
        self._window = window
        self._on_first_chunk = on_first_chunk
        self._content_length = content_length

    async def run(self, unread: bytes) -> RelayOutcome:
        """Relay ``unread``, and then what comes, up to what completes the answer."""
        framer, window = self._framer, self._window
        had_begun = window.total_bytes > 0
        passable, state = framer.feed(unread, len(unread))
        if window.total_bytes and not had_begun:
            self._on_first_chunk(self._response.arrived_at)
        if passable or state is not FramerState.COMPLETE:
            # With the head, if that was kept. A body that is complete already and is held as a whole goes out later.
            await self._raw_body.send(unread[:passable], self._count_passed())
        if state is FramerState.OPEN:
            outcome = await self._forward()
        else:
            outcome = StreamOutcome.from_framer(state, framer, self._response.arrived_at)
        # Before the outcome is looked at: ``bytes_sent`` and the need for a reset must be right in every case.
        self._raw_body.note_sent(self._count_passed(), is_stalled=outcome.end is StreamEnd.STALLED)
        return await self._conclude(outcome)

    async def _forward(self) -> StreamOutcome:
        note_first = None if self._window.total_bytes else self._on_first_chunk
        unsent_bytes = 0

        def note_unsent(size: int) -> None:
            nonlocal unsent_bytes
            unsent_bytes = size

        try:
            return await self._flat.forward(
                self._response.connection.transport, self._raw_body.sock, self._framer, note_first, note_unsent
            )
        except trio.Cancelled:
            # For the log: most of a stream may have gone out by the time when its client leaves.
            self._raw_body.note_sent(max(self._count_passed() - unsent_bytes, 0))
            if unsent_bytes:
                self._client.break_off()
            self._break_off_within_chunk()
            raise

    def _break_off_within_chunk(self) -> None:
        """Break off where the client has the beginning of a chunk: no end of the body can follow on that."""
        if not self._framer.is_at_boundary:
            self._client.break_off()

    def _count_passed(self) -> int:
        self._window.fold()
        return self._window.total_bytes - self._framer.final_payload_bytes

    async def _conclude(self, outcome: StreamOutcome) -> RelayOutcome:
        framer, response = self._framer, self._response
        match outcome.end:
            case StreamEnd.COMPLETE:
                response.end_raw_body(framer.surplus_bytes)
                self._keep_final()  # the end of a chunked body is not in it, and is encoded by ``client.finish``
                return RelayOutcome(RelayEnd.COMPLETE, ended_at=outcome.at)
            case StreamEnd.FINAL:
                self._keep_final()
                return RelayOutcome(RelayEnd.COMPLETE, resume=partial(self.run, framer.held), ended_at=outcome.at)
            case StreamEnd.UNUSUAL:
                response.connection.continue_with(outcome.held)
                has_become_final = bool(self._framer.final) and self._window.is_final
                self._keep_final()
                if has_become_final:
                    return RelayOutcome(RelayEnd.COMPLETE, resume=self._go_on)
                # What is kept now is part of the API's last event, and goes out with the rest of it.
                return await self._go_on()
            case StreamEnd.BROKEN | StreamEnd.SILENT:
                self._keep_final()  # part of the API's last event, at most: it does not complete the answer
                self._break_off_within_chunk()
                end = RelayEnd.BROKEN if outcome.end is StreamEnd.BROKEN else RelayEnd.TIMED_OUT
                return RelayOutcome(end, error=outcome.reason)
            case StreamEnd.STALLED | StreamEnd.CLIENT_GONE:
                # The last write may have ended in the middle of a chunk: the connection can only be cut.
                self._client.break_off()
                raise ClientGone

    async def _go_on(self) -> RelayOutcome:
        """Continue on the fallback path."""
        length, note_first = self._content_length, self._on_first_chunk
        response, client, window = self._response, self._client, self._window
        return await relay_body(response, client, window, content_length=length, on_first_chunk=note_first)

    def _keep_final(self) -> None:
        """Leave the data that completes the answer to the client's side, which sends it once it is told to."""
        framer = self._framer
        self._raw_body.keep(framer.final, framer.final_payload_bytes)
        framer.final, framer.final_payload_bytes = b"", 0


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
    has_been_final, held = window.is_final, b""
    try:
        while (chunk := await response.receive_chunk()) is not None:
            arrived_at = None  # of later chunks: it may have been the client that they waited for
            if not window.total_bytes:
                arrived_at = response.connection.find_arrival()
                on_first_chunk(arrived_at)
            window.feed(chunk)
            # A body with a length has no other end than its last bytes, so these are held back.
            if content_length is not None and window.total_bytes >= content_length:
                await _receive_end(response)
                return RelayOutcome(RelayEnd.COMPLETE, held_back=held + chunk, ended_at=arrived_at)
            if not window.is_ending or has_been_final:
                await client.send_chunk(chunk)
                continue
            held += chunk
            if window.is_final:
                resume = partial(
                    relay_body, response, client, window, content_length=content_length, on_first_chunk=on_first_chunk
                )
                return RelayOutcome(RelayEnd.COMPLETE, held_back=held, resume=resume, ended_at=arrived_at)
    except UpstreamTimeout as error:
        return RelayOutcome(RelayEnd.TIMED_OUT, held, str(error))
    except UpstreamError as error:
        return RelayOutcome(RelayEnd.BROKEN, held, str(error))
    return RelayOutcome(RelayEnd.COMPLETE, held_back=held)


async def _receive_end(response: UpstreamResponse) -> None:
    """Have h11 report the end of a body of which all bytes are there, so that the connection can be kept."""
    while await response.receive_chunk() is not None:
        continue
