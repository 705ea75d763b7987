"""The listener, and the nursery that every client's connection lives in."""

from __future__ import annotations

import logging
import socket
from collections.abc import Awaitable, Callable
from functools import partial

import trio
from attrs import define, field

ServeConnection = Callable[[trio.SocketStream, trio.Nursery], Awaitable[None]]

logger = logging.getLogger("cgw.server")


@define(eq=False)
class Server:
    """Accepts connections and serves each in a nursery of its own, until it drains.

    ``drained`` is set once accepting has stopped and every connection has ended.
    """

    listeners: list[trio.SocketListener]
    _accepting_scope: trio.CancelScope = field(factory=trio.CancelScope, init=False)
    _serving_scope: trio.CancelScope = field(factory=trio.CancelScope, init=False)
    is_draining: bool = field(default=False, init=False)
    connection_count: int = field(default=0, init=False)
    drained: trio.Event = field(factory=trio.Event, init=False)

    @property
    def port(self) -> int:
        """The port that was bound: the one that was asked for, or, for 0, the one that was free."""
        return int(self.listeners[0].socket.getsockname()[1])

    async def run(self, serve_connection: ServeConnection) -> None:
        """Serve until :meth:`stop_accepting` was called and all connections have ended, or until cancelled.

        ``serve_connection`` gets each stream and its connection's nursery; the stream is closed when it returns.
        """
        try:
            with self._serving_scope:
                async with trio.open_nursery() as connections_nursery:
                    with self._accepting_scope:
                        await trio.serve_listeners(
                            partial(self._serve_stream, serve_connection),
                            self.listeners,
                            handler_nursery=connections_nursery,
                        )
        finally:
            for listener in self.listeners:
                listener.socket.close()
            self.drained.set()

    def stop_accepting(self) -> None:
        """Close the port. Connections go on; the service tells the idle ones to end."""
        self.is_draining = True
        self._accepting_scope.cancel()
        for listener in self.listeners:
            listener.socket.close()

    def cut(self) -> None:
        """End the connections that are left, under way or not."""
        self._serving_scope.cancel()

    async def _serve_stream(self, serve_connection: ServeConnection, stream: trio.SocketStream) -> None:
        self.connection_count += 1
        try:
            async with trio.open_nursery() as connection_nursery:
                await serve_connection(stream, connection_nursery)
                connection_nursery.cancel_scope.cancel()
        except* OSError as group:
            logger.warning("a connection ended with an error: %s", group.exceptions[0])
        except* Exception:
            # One connection's bug must not end the others; it is an error that somebody has to look at.
            logger.exception("a connection failed")
        finally:
            self.connection_count -= 1
            stream.socket.close()


async def open_listeners(host: str, port: int, *, backlog: int = 2048) -> list[trio.SocketListener]:
    """Listen on ``host`` (a name, an address, or ``""`` for all). Raises :exc:`OSError` when the port is taken."""
    listeners = await trio.open_tcp_listeners(port, host=host or None, backlog=backlog)
    for listener in listeners:
        # Accepted sockets inherit it: an answer's last, small segment never waits for an acknowledgement.
        listener.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listeners
