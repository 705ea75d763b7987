"""Serve accepted sockets with an engine that takes Trio streams."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from cgw.transport.server import AcceptedConnection, ServeConnection


def adapt_stream_engine(serve_stream: Callable[[trio.SocketStream, trio.Nursery], Awaitable[None]]) -> ServeConnection:
    """Return a function for :meth:`Server.run <cgw.transport.server.Server.run>` that calls ``serve_stream``."""

    async def serve_connection(accepted: AcceptedConnection) -> None:
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(accepted.sock))
        async with trio.open_nursery() as connection_nursery:
            await serve_stream(stream, connection_nursery)
            connection_nursery.cancel_scope.cancel()

    return serve_connection
