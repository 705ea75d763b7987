"""A loopback server with a handler of the test's own, which plays bytes and faults."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import h11
import trio

Handler = Callable[[trio.SocketStream], Awaitable[None]]


@asynccontextmanager
async def open_raw_server(handler: Handler) -> AsyncIterator[int]:
    """Run ``handler`` on each connection while the block runs; yields the port.

    A peer that leaves ends only its own handler; every socket is closed after its handler.
    """

    async def serve(stream: trio.SocketStream) -> None:
        try:
            await handler(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            stream.socket.close()

    async with trio.open_nursery() as server_nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        server_nursery.start_soon(trio.serve_listeners, serve, listeners)
        try:
            yield listeners[0].socket.getsockname()[1]
        finally:
            server_nursery.cancel_scope.cancel()


async def read_request(stream: trio.SocketStream) -> tuple[h11.Request, bytes] | None:
    """Read the next whole request; ``None`` at the end of the connection. Pipelining is not supported."""
    connection = h11.Connection(h11.SERVER)
    request: h11.Request | None = None
    body = b""
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(bytes(await stream.receive_some(65536)))
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage) and request is not None:
            return request, body
        else:
            return None
