"""An upstream that plays scripts, in the form of every provider's API, over HTTP/1.1.

It needs no key and no network, sends each token when it is due, records every request, and detects within milliseconds
that its peer has closed the connection, also while it waits for the next token.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import format_datetime
from functools import partial
from typing import Any

import h11
import trio
from attrs import define, field

from cgw.errors import Headers
from cgw.testing.script import EVERY_MODEL, Breakage, Script, ScriptedAnswer
from cgw.testing.scripted_counts import ScriptedMessageCount
from cgw.testing.scripted_dialects import RequestError, ScriptedChat, ScriptedDialect, ScriptedMessages
from cgw.testing.scripted_gemini import ScriptedGemini
from cgw.testing.scripted_responses import ScriptedResponses
from cgw.testing.scripted_texts import ScriptedComplete, ScriptedText
from cgw.testing.scripted_vectors import ScriptedEmbeddings, ScriptedModerations
from cgw.transport.sockets import send_reset_on_close
from cgw.wire.messages import find_header

MAX_BODY_BYTES = 64 * 2**20
MAX_PIPELINED_BYTES = 64 * 2**10
_RECEIVE_BYTES = 64 * 2**10


class _Broken(Exception):
    """The connection is over: the peer closed it, or the script breaks it off."""


@define(eq=False)
class SeenRequest:
    """One whole request that reached the upstream, and the progress of its answer.

    Times are :func:`trio.current_time` seconds, ``None`` until they are known. ``peer_closed_at`` is set only if the
    peer closed the connection before the whole answer was sent. ``connection`` numbers connections from 1: equal
    numbers mean that a connection was reused. ``answer`` is the whole one, sent or not. ``headers`` have names in lower
    case and contain API keys; neither they nor the body are in ``repr``.
    """

    connection: int
    method: str
    target: str
    headers: Headers = field(repr=False)
    body: bytes = field(repr=False)
    http_version: str
    received_at: float
    status: int | None = None
    answer: ScriptedAnswer | None = field(default=None, repr=False)
    events_sent: int = 0
    answered_at: float | None = None
    peer_closed_at: float | None = None
    is_over: bool = False
    _changes: trio.lowlevel.ParkingLot = field(factory=trio.lowlevel.ParkingLot, repr=False)

    def header(self, name: str) -> str | None:
        """Return the value of the first header called ``name`` (lower case), or ``None``."""
        value = find_header(self.headers, name.encode())
        return None if value is None else value.decode("latin-1")

    def json(self) -> Any:
        """Decode the body as JSON."""
        return json.loads(self.body)

    async def wait_events_sent(self, count: int) -> None:
        """Wait until ``count`` pieces of the body (events of a stream) have been sent, or the exchange is over."""
        await self._wait(lambda: self.events_sent >= count or self.is_over)

    async def wait_over(self) -> None:
        """Wait until the whole answer has been sent, the peer has closed, or the script has broken it off."""
        await self._wait(lambda: self.is_over)

    async def _wait(self, is_true: Callable[[], bool]) -> None:
        await trio.lowlevel.checkpoint()  # also when there is nothing to wait for, as in Trio's own API
        while not is_true():
            await self._changes.park()

    def wake_waiters(self) -> None:
        """Make tasks that wait on this request check their condition again."""
        self._changes.unpark_all()


class ScriptedUpstream:
    """A running scripted upstream: its URL, its scripts, and the requests that it received."""

    def __init__(self, scripts: Mapping[str, Script], keep_requests: int | None) -> None:
        self.url = ""
        """The base URL, without a trailing slash: ``http://127.0.0.1:12345``."""
        self.scripts = dict(scripts)
        """Scripts by model name; ``"*"`` is for all other models. May be changed while the upstream runs."""
        self.requests: list[SeenRequest] = []
        """The newest ``keep_requests`` requests (all by default), oldest first."""
        self.request_count = 0
        """The number of all requests received."""
        self.connection_count = 0
        """The number of all connections accepted."""
        self.open_connections = 0
        """The number of connections that are open now."""
        self._keep_requests = keep_requests
        self._responses = ScriptedResponses()
        self._dialects: tuple[ScriptedDialect, ...] = (
            ScriptedMessages(),
            ScriptedChat(),
            self._responses,
            ScriptedComplete(),
            ScriptedText(has_usage=False),
            ScriptedEmbeddings(),
            ScriptedModerations(),
            # Fireworks' API, below its base URL.
            ScriptedChat("/inference/v1/chat/completions"),
            ScriptedText("/inference/v1/completions"),
            ScriptedGemini(),
            ScriptedMessageCount(),
        )
        self._changes = trio.lowlevel.ParkingLot()

    async def wait_request(self, count: int = 1) -> SeenRequest:
        """Wait until ``count`` requests have been received since the start; return the newest."""
        await trio.lowlevel.checkpoint()
        while self.request_count < count:
            await self._changes.park()
        return self.requests[-1]

    async def serve_connection(self, stream: trio.abc.HalfCloseableStream) -> None:
        """Answer requests on ``stream`` until either side closes it. The peer cannot cause an exception."""
        self.connection_count += 1
        self.open_connections += 1
        try:
            await _ScriptedConnection(self, stream, self.connection_count).serve()
        except (_Broken, trio.BrokenResourceError):
            pass  # the peer has closed the connection, or the script breaks it off here: an ordinary end
        finally:
            self.open_connections -= 1
            # Without waiting: this also runs when the upstream is cancelled.
            await trio.aclose_forcefully(stream)

    def record_request(self, request: SeenRequest) -> None:
        """Record a whole request."""
        self.request_count += 1
        self.requests.append(request)
        if self._keep_requests is not None:
            # A tour that serves for hours must not keep every body in memory.
            del self.requests[: -self._keep_requests]
        self._changes.unpark_all()

    def answer(self, request: SeenRequest) -> ScriptedAnswer:
        """Return the answer to ``request``, from the current scripts. No I/O."""
        path = request.target.partition("?")[0]
        dialect = next((dialect for dialect in self._dialects if dialect.matches(path)), None)
        serial = self.request_count
        if dialect is None and path.startswith(f"{self._responses.path}/"):
            return self._answer_stored(path, request, serial)
        if dialect is None:
            # An unknown path gets an error in the format that its client probably understands.
            is_anthropic = path.startswith("/v1/messages") or request.header("anthropic-version") is not None
            dialect = self._dialects[0 if is_anthropic else 1]
            return dialect.render_error(404, f"Invalid URL ({request.method} {path})", serial)
        if request.method != "POST":
            refused = dialect.render_error(405, f"Not allowed to {request.method} on {path}.", serial)
            return ScriptedAnswer(405, (*refused.headers, (b"allow", b"POST")), refused.pieces)
        return self._answer_post(dialect, request, serial)

    def _answer_stored(self, path: str, request: SeenRequest, serial: int) -> ScriptedAnswer:
        """Answer a request about a stored response, or for the tokens of one that is not asked for yet."""
        dialect = self._responses
        if dialect.read_key(dict(request.headers)) not in {script.api_key for script in self.scripts.values()}:
            return dialect.render_error(401, "invalid API key", serial)
        answer = dialect.answer_stored(request.method, path, request.body, serial)
        return answer or dialect.render_error(404, f"Invalid URL ({request.method} {path})", serial)

    def _answer_post(self, dialect: ScriptedDialect, request: SeenRequest, serial: int) -> ScriptedAnswer:
        headers = dict(request.headers)
        key = dialect.read_key(headers)
        # As in the real APIs, the key is checked before the body, so a bad body with a bad key gets 401.
        if key not in {script.api_key for script in self.scripts.values()}:
            return dialect.render_error(401, "invalid API key" if key else "no API key was given", serial)
        try:
            body = dialect.complete_body(request.target, _parse_body(request.body))
            if not isinstance(body.get("model"), str):
                raise RequestError("model: Field required", "model")
            script = self.scripts.get(body["model"], self.scripts.get(EVERY_MODEL))
            if script is None:
                message, code = f"model: {body['model']}", "model_not_found"
                return dialect.render_error(404, message, serial, code=code, param="model")
            # Once more, now that the model is known: each script may have a key of its own.
            if key != script.api_key:
                return dialect.render_error(401, "invalid API key", serial)
            dialect.check(headers, body)
        except RequestError as error:
            return dialect.render_error(400, error.message, serial, param=error.param)
        if script.status == 200:
            return dialect.render_answer(script, body, serial)
        refused = dialect.render_error(script.status, script.error_message, serial)
        extra = tuple((name.lower().encode(), value.encode()) for name, value in script.error_headers)
        head_at = script.head_delay_seconds
        return ScriptedAnswer(script.status, (*refused.headers, *extra), refused.pieces, head_at_seconds=head_at)


def _parse_body(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except ValueError as error:
        raise RequestError("We could not parse the JSON body of your request.") from error
    if not isinstance(value, dict):
        raise RequestError("The body of your request must be a JSON object.")
    return value


class _ScriptedConnection:
    """One connection: h11 as the server, one request after the other."""

    def __init__(self, upstream: ScriptedUpstream, stream: trio.abc.HalfCloseableStream, number: int) -> None:
        self._upstream = upstream
        self._stream = stream
        self._number = number
        self._h11 = h11.Connection(h11.SERVER)
        # Set before the last bytes of an answer are sent: the peer may read them and close before `send_all` returns.
        self._is_ending = False

    async def serve(self) -> None:
        while True:
            try:
                request = await self._receive_request()
            except h11.RemoteProtocolError as error:
                await self._refuse(error)
                return
            if request is None:
                return
            self._upstream.record_request(request)
            try:
                request.answer = self._upstream.answer(request)
                await self._play(request.answer, request)
            finally:
                # Also when the peer is gone or the upstream is cancelled: tests wait for it.
                request.is_over = True
                request.wake_waiters()
            # HTTP/1.0, or `connection: close` from the peer.
            if self._h11.our_state is h11.MUST_CLOSE:
                await self._close_gently()
                return
            self._h11.start_next_cycle()

    async def _receive_request(self) -> SeenRequest | None:
        """Return the next whole request, or ``None`` if the peer has closed the connection."""
        event = await self._next_event()
        if not isinstance(event, h11.Request):
            return None
        body = bytearray()
        while not isinstance(part := await self._next_event(), h11.EndOfMessage):
            if not isinstance(part, h11.Data):  # h11 raises for a peer that closes early: no other event is expected
                raise _Broken
            body += part.data
            if len(body) > MAX_BODY_BYTES:
                raise h11.RemoteProtocolError("request body too large", error_status_hint=413)
        return SeenRequest(
            connection=self._number,
            method=event.method.decode("ascii"),
            target=event.target.decode("latin-1"),
            headers=tuple(event.headers),
            body=bytes(body),
            http_version=event.http_version.decode("ascii"),
            received_at=trio.current_time(),
        )

    async def _next_event(self) -> h11.Event:
        while True:
            if self._h11.they_are_waiting_for_100_continue:  # RFC 9110 §10.1.1
                await self._send(h11.InformationalResponse(status_code=100, headers=[]))
            event = self._h11.next_event()
            if isinstance(event, h11.Event):
                return event
            self._h11.receive_data(bytes(await self._stream.receive_some(_RECEIVE_BYTES)))

    async def _refuse(self, error: h11.RemoteProtocolError) -> None:
        """Answer a malformed request, and close the connection (RFC 9112 §9.6)."""
        # In any other state a response has begun already, and h11 would not let another one follow.
        if self._h11.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        text = b"This is not a valid HTTP/1.1 request.\n"
        headers = [("content-type", "text/plain"), ("content-length", str(len(text))), ("connection", "close")]
        await self._send(h11.Response(status_code=error.error_status_hint, headers=headers))
        await self._send(h11.Data(data=text))
        await self._send(h11.EndOfMessage())
        await self._close_gently()

    async def _close_gently(self) -> None:
        """Half-close, and discard input for up to a second.

        Closing a socket with unread input sends RST, which can destroy the answer before the peer has read it.
        """
        with trio.move_on_after(1):
            await self._stream.send_eof()
            while await self._stream.receive_some(_RECEIVE_BYTES):
                pass

    async def _play(self, answer: ScriptedAnswer, request: SeenRequest) -> None:
        """Send the parts of ``answer`` when they are due.

        Raises :exc:`_Broken` if the peer closes the connection or the script breaks it off.
        """
        self._is_ending = False
        async with trio.open_nursery() as nursery:
            # Reads while the answer is sent: otherwise a close would be noticed only by a failing send, after a delay
            # until the next token and a round trip.
            nursery.start_soon(self._watch_peer, request, nursery.cancel_scope)
            try:
                if await self._perform(answer, request):
                    request.answered_at = trio.current_time()
            except trio.BrokenResourceError:
                self._peer_closed(request)
            nursery.cancel_scope.cancel()  # ends the watcher
        if request.answered_at is None:
            raise _Broken

    async def _watch_peer(self, request: SeenRequest, answer_scope: trio.CancelScope) -> None:
        """Cancel ``answer_scope`` when the peer closes. Bytes of a pipelined request are kept, up to a bound."""
        pipelined_bytes = 0
        # Beyond the bound nothing is read until the next request is due: TCP's flow control stops the peer.
        while pipelined_bytes < MAX_PIPELINED_BYTES:
            try:
                data = bytes(await self._stream.receive_some(_RECEIVE_BYTES))
            except trio.BrokenResourceError:
                data = b""
            if not data:
                if not self._is_ending:
                    self._peer_closed(request)
                    answer_scope.cancel()
                return
            # h11 keeps it until start_next_cycle().
            self._h11.receive_data(data)
            pipelined_bytes += len(data)

    def _peer_closed(self, request: SeenRequest) -> None:
        if request.peer_closed_at is None:
            request.peer_closed_at = trio.current_time()

    async def _perform(self, answer: ScriptedAnswer, request: SeenRequest) -> bool:
        """Send head and body. Returns ``False`` if the connection must now be broken off."""
        await trio.sleep_until(request.received_at + answer.head_at_seconds)
        headers = [*answer.headers, (b"date", format_datetime(datetime.now(UTC), usegmt=True).encode())]
        # Without a length h11 picks chunked framing for HTTP/1.1, and the end of the connection for HTTP/1.0.
        if answer.has_length:
            headers.append((b"content-length", str(answer.body_bytes).encode()))
        await self._send(h11.Response(status_code=answer.status, headers=headers))
        request.status = answer.status
        is_chunked = not answer.has_length and request.http_version == "1.1"
        for piece in answer.pieces:
            if answer.breakage is not None and request.events_sent >= answer.break_after_pieces:
                break
            # A chunked body ends with the last chunk, sent below; any other with its last piece.
            self._is_ending = not is_chunked and piece is answer.pieces[-1]
            await self._send_piece(request.received_at + piece.at_seconds, piece.data, request)
        if answer.breakage in (Breakage.RESET, Breakage.CLOSE):
            if answer.breakage is Breakage.RESET and isinstance(self._stream, trio.SocketStream):
                # Takes effect when serve_connection() closes the stream.
                send_reset_on_close(self._stream.socket)
            return False
        self._is_ending = True
        await self._send(h11.EndOfMessage())
        return True

    async def _send_piece(self, due: float, data: bytes, request: SeenRequest) -> None:
        if due > trio.current_time():
            await trio.sleep_until(due)
        await self._send(h11.Data(data=data))
        request.events_sent += 1
        request.wake_waiters()

    async def _send(self, event: h11.Event) -> None:
        data = self._h11.send(event)
        if data:
            await self._stream.send_all(data)


@asynccontextmanager
async def open_scripted_upstream(
    scripts: Script | Mapping[str, Script],
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    keep_requests: int | None = None,
) -> AsyncIterator[ScriptedUpstream]:
    """Serve ``scripts`` on ``host`` and ``port`` (0: any free port) while the block runs.

    A mapping has scripts by model name, with ``"*"`` for all other models; a single script is for all models.
    ``keep_requests`` bounds the number of recorded requests (default: no bound). Leaving the block, also by
    cancellation, closes every connection. Raises :exc:`OSError` when the port is taken.
    """
    by_model = {EVERY_MODEL: scripts} if isinstance(scripts, Script) else scripts
    upstream = ScriptedUpstream(by_model, keep_requests)
    # Open before the block begins: connections are accepted by the kernel from here on.
    listeners = await trio.open_tcp_listeners(port, host=host)
    bound_port = listeners[0].socket.getsockname()[1]  # one listener: an address, not a name with several
    upstream.url = f"http://{f'[{host}]' if ':' in host else host}:{bound_port}"
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(trio.serve_listeners, upstream.serve_connection, listeners))
        try:
            yield upstream
        finally:
            nursery.cancel_scope.cancel()
