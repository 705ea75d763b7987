"""A small HTTP/1.1 server of whole answers, for scripted services that speak JSON."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import h11
import trio
from attrs import field, frozen

from cgw.errors import Headers
from cgw.lifetime import open_background_task
from cgw.wire.messages import find_header

_RECEIVE_BYTES = 64 * 2**10


@frozen
class JsonCall:
    """One whole request. ``connection`` numbers connections from 1. Headers and body are not in ``repr``: secrets."""

    connection: int
    method: str
    target: str
    headers: Headers = field(repr=False)
    body: bytes = field(repr=False)

    def header(self, name: str) -> str | None:
        """Return the value of the first header called ``name`` (lower case), or ``None``."""
        value = find_header(self.headers, name.encode())
        return None if value is None else value.decode("latin-1")

    def json(self) -> Any:
        """Decode the body as JSON."""
        return json.loads(self.body)


@frozen
class JsonAnswer:
    """A whole answer, sent ``delay_seconds`` after its request. ``content`` is encoded as JSON unless it is bytes.

    With ``is_broken`` the connection is closed instead.
    """

    content: Any = None
    status: int = 200
    headers: Headers = ((b"content-type", b"application/json"),)
    delay_seconds: float = 0.0
    is_broken: bool = False

    @property
    def body(self) -> bytes:
        """The bytes of the body."""
        return self.content if isinstance(self.content, bytes) else json.dumps(self.content).encode()


Handler = Callable[[JsonCall], Awaitable[JsonAnswer]]


@asynccontextmanager
async def open_json_server(handle: Handler) -> AsyncIterator[str]:
    """Answer requests by ``handle`` while the block runs; yield the base URL, on a free port of loopback."""
    count = 0

    async def serve(stream: trio.SocketStream) -> None:
        nonlocal count
        count += 1
        try:
            await _serve_connection(stream, handle, count)
        except (trio.BrokenResourceError, trio.ClosedResourceError, h11.RemoteProtocolError):
            await trio.aclose_forcefully(stream)

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")

    async def run() -> None:
        await trio.serve_listeners(serve, listeners)

    async with open_background_task(run):
        yield f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"


async def _serve_connection(stream: trio.SocketStream, handle: Handler, number: int) -> None:
    connection = h11.Connection(h11.SERVER)
    async with stream:
        while True:
            request, body = None, b""
            while not isinstance(event := connection.next_event(), (h11.EndOfMessage, h11.ConnectionClosed)):
                if event is h11.NEED_DATA:
                    connection.receive_data(await stream.receive_some(_RECEIVE_BYTES))
                elif isinstance(event, h11.Request):
                    request = event
                elif isinstance(event, h11.Data):
                    body += event.data
            if request is None:
                return
            method, target = request.method.decode(), request.target.decode()
            answer = await handle(JsonCall(number, method, target, tuple(request.headers), body))
            await trio.sleep(answer.delay_seconds)
            if answer.is_broken:
                return
            data = answer.body
            headers = [*answer.headers, (b"content-length", b"%d" % len(data))]
            for part in (h11.Response(status_code=answer.status, headers=headers), h11.Data(data), h11.EndOfMessage()):
                await stream.send_all(connection.send(part) or b"")
            if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                return
            connection.start_next_cycle()
