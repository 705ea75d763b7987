"""The second engine: Hypercorn on connections that the hot engine hands over.

Hypercorn is right but leaves some things open (measured on 0.18): it does not tell its app of a hang-up behind a
pipelined request, nor while it waits in a write; it cannot break a response off; it shields its writes without a
deadline. What stands here closes these gaps from outside, with its public attributes only.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, cast

import trio
from hypercorn.config import Config
from hypercorn.events import RawData
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.utils import wrap_app

from cgw.control.hypercorn_logging import HypercornLogger
from cgw.transport.client_side import ClientLimits
from cgw.transport.hangup import wait_hangup_behind_data
from cgw.transport.replay import ReplayedStream

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

CONNECTION_KEY = "cgw.connection"
"""Where an ASGI scope's ``state`` holds the :class:`HandedConnection`."""

HTTP2_INTERNAL_ERROR = 2
"""RFC 9113 §7."""


class HandedConnection:
    """One connection that Hypercorn serves, as exchanges under the ASGI adapter see it.

    ``gone`` is set once the client has closed its side, whatever Hypercorn is doing.
    """

    def __init__(self, stream: ReplayedStream) -> None:
        self._stream = stream
        self._server: TCPServer | None = None
        self._server_scope = trio.CancelScope()
        self._exchange_count = 0
        self._exchange_ended = trio.Event()
        self.gone = trio.Event()

    async def serve(self, server: TCPServer) -> None:
        """Let ``server`` serve the connection until it ends, or the client has left and its exchanges are over."""
        self._server = server
        with self._server_scope:
            await server.run()

    @contextmanager
    def exchange(self) -> Iterator[None]:
        """Count an exchange as under way: Hypercorn is not ended before it is concluded."""
        self._exchange_count += 1
        try:
            yield
        finally:
            self._exchange_count -= 1
            self._exchange_ended.set()

    async def watch(self) -> None:
        """Set ``gone`` when the client leaves, and end Hypercorn: it may wait for ever behind a pipelined request."""
        await wait_hangup_behind_data(self._stream.socket.fileno())
        self.gone.set()
        while self._exchange_count:
            self._exchange_ended = trio.Event()
            await self._exchange_ended.wait()
        self._server_scope.cancel()

    async def break_off(self, scope: Scope) -> None:
        """Cut the response of ``scope`` so that its client cannot take it for complete.

        In HTTP/2 its stream is reset and the others go on; in HTTP/1.1 the connection is closed.
        """
        protocol = None if self._server is None else self._server.protocol.protocol
        if not isinstance(protocol, H2Protocol):
            self._stream.abort(reset=scope["http_version"] == "1.0")
            self._server_scope.cancel()
            return
        for stream_id, stream in list(protocol.streams.items()):
            if getattr(stream, "scope", None) is scope:
                protocol.connection.reset_stream(stream_id, error_code=HTTP2_INTERNAL_ERROR)
                await protocol.send(RawData(data=protocol.connection.data_to_send()))
                return


class HypercornEngine:
    """Serves handed-over connections with ``app``, until they end or the engine drains."""

    def __init__(self, app: AsgiApp, limits: ClientLimits) -> None:
        self._config = _build_config(limits)
        self._app = wrap_app(cast("Any", app), self._config.wsgi_max_body_size, "asgi")
        self._context = WorkerContext(None)

    async def serve_connection(self, stream: ReplayedStream, connection_nursery: trio.Nursery) -> None:
        """Serve one connection to its end. Cancel-safe; Hypercorn closes the stream."""
        connection = HandedConnection(stream)
        # The connection is its own state: every ASGI scope on it gets a shallow copy of this mapping.
        server = TCPServer(self._app, self._config, self._context, {CONNECTION_KEY: connection}, cast("Any", stream))
        connection_nursery.start_soon(connection.watch)
        await connection.serve(server)

    async def drain(self) -> None:
        """Close idle connections; let each of the others end after the requests that are under way."""
        await self._context.terminated.set()


def _build_config(limits: ClientLimits) -> Config:
    config = Config()
    config.h11_max_incomplete_size = limits.max_head_bytes
    config.h2_max_header_list_size = limits.max_head_bytes
    config.keep_alive_timeout = limits.keep_alive_timeout_seconds
    config.include_server_header = False
    config.logger_class = HypercornLogger
    config.errorlog = logging.getLogger("cgw.control")  # with its default Hypercorn writes to stderr itself
    # Frames of one request's body that may wait for the app; it always reads, see cgw.control.adapter.
    config.max_app_queue_size = 64
    return config
