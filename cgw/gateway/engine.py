"""The hot engine: connections of clients, the routes that are carried here, and the way over to the other engine."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import trio

from cgw.errors import Headers, Refusal
from cgw.gateway.exchange import Services, run_exchange
from cgw.providers.dialect import Dialect, ErrorStyle
from cgw.transport.client import ClientLimits
from cgw.transport.connection import Connection, ConnectionService
from cgw.transport.hot_client import HotClient
from cgw.transport.replay import ReplayedStream
from cgw.transport.sockets import BUFFER_BYTES
from cgw.wire.messages import RequestHead

HandOver = Callable[[ReplayedStream, trio.Nursery], Awaitable[None]]


class Routes:
    """The hot routes: each path belongs to one dialect, and carries POST."""

    def __init__(self, dialects: Mapping[bytes, Dialect]) -> None:
        self._dialects = dict(dialects)

    def find(self, path: bytes) -> Dialect | None:
        """The dialect of ``path``, or ``None``."""
        return self._dialects.get(path)

    def is_hot(self, head: RequestHead) -> bool:
        """Whether a request is carried by the hot engine."""
        return head.method == b"POST" and head.path in self._dialects


class HotEngine:
    """Serves clients' connections. ``hand_over`` is the other engine's, for whatever is not hot."""

    def __init__(
        self,
        services: Services,
        routes: Routes,
        limits: ClientLimits,
        *,
        errors: ErrorStyle,
        hand_over: HandOver,
    ) -> None:
        self._services = services
        self._routes = routes
        self._limits = limits
        self._errors = errors
        self._hand_over = hand_over
        self._connections: set[Connection] = set()
        self._is_draining = False
        self._buffer = bytearray(BUFFER_BYTES)

    async def serve_connection(self, stream: trio.SocketStream, connection_nursery: trio.Nursery) -> None:
        """Serve one connection to its end. Cancel-safe; the stream is closed in every case."""

        async def hand_over(replayed: ReplayedStream) -> None:
            await self._hand_over(replayed, connection_nursery)

        service = ConnectionService(
            buffer=self._buffer,
            limits=self._limits,
            is_hot=self._routes.is_hot,
            handle=self._handle,
            hand_over=hand_over,
            render_refusal=self._render_refusal,
            is_draining=lambda: self._is_draining,
        )
        connection = Connection(stream, service)
        self._connections.add(connection)
        try:
            await connection.serve()
        finally:
            self._connections.discard(connection)

    async def _handle(self, client: HotClient) -> None:
        dialect = self._routes.find(client.head.path)
        if dialect is None:
            raise RuntimeError("is_hot let a request through that has no route")
        await run_exchange(self._services, dialect, client)

    def _render_refusal(self, refusal: Refusal) -> tuple[Headers, bytes]:
        return self._errors.render(refusal)

    def drain(self) -> None:
        """End connections that wait for a request, and let each of the others end after its present exchange."""
        self._is_draining = True
        for connection in list(self._connections):
            if connection.is_idle:
                connection.idle_scope.cancel()
