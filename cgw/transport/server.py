"""The listener of a port, and the nursery of its clients' connections."""

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
    """Accepts connections and serves each in a nursery of its own.

    ``drained`` is set once accepting has stopped and every connection has ended::

        run() ──> accepting ── stop_accepting() ──> draining ── last connection ends, or cut() ──> drained
    """

    listeners: list[trio.SocketListener]
    _accepting_scope: trio.CancelScope = field(factory=trio.CancelScope, init=False)
    _serving_scope: trio.CancelScope = field(factory=trio.CancelScope, init=False)
    is_draining: bool = field(default=False, init=False)
    connection_count: int = field(default=0, init=False)
    drained: trio.Event = field(factory=trio.Event, init=False)

    @property
    def port(self) -> int:
        """The port that was bound; when 0 was asked for, the one that the system chose."""
        return int(self.listeners[0].socket.getsockname()[1])

    async def run(self, serve_connection: ServeConnection) -> None:
        """Serve until :meth:`stop_accepting` was called and all connections have ended, or until cancelled.

        ``serve_connection`` is called with each stream and its connection's nursery. When it returns, the nursery is
        cancelled and the stream is closed.
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
        """Close the port. Open connections continue; ending the idle ones is for the caller."""
        self.is_draining = True
        self._accepting_scope.cancel()
        # Not only when run() ends: a port that is open but not accepted from would let clients wait in its backlog.
        for listener in self.listeners:
            listener.socket.close()

    def cut(self) -> None:
        """End the connections that are left, whatever they are doing."""
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
            # The boundary of a connection: a bug that one of them meets must not end the others.
            logger.exception("a connection failed")
        finally:
            self.connection_count -= 1
            # Not aclose(), which is a checkpoint: this must not wait, nor be cancelled.
            stream.socket.close()


async def open_listeners(host: str, port: int, *, backlog: int = 2048) -> list[trio.SocketListener]:
    """Listen on ``host``: a name, an address, or ``""`` for all. Raises :exc:`OSError`, as when the port is in use."""
    listeners = await trio.open_tcp_listeners(port, host=host or None, backlog=backlog)
    for listener in listeners:
        # Inherited by accepted sockets. With Nagle's algorithm each small event would wait for an acknowledgement.
        listener.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listeners
