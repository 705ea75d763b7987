"""The HTTP/1.1 engine: serves clients' connections, and hands those that it cannot serve to the other engine."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from cgw.errors import Headers, Refusal
from cgw.gateway.exchange import run_exchange
from cgw.gateway.parts import Gateway
from cgw.gateway.routes import Routes
from cgw.providers.dialect import ErrorStyle
from cgw.transport.client_side import ClientLimits
from cgw.transport.http1_client import Http1Client
from cgw.transport.http1_connection import ConnectionCallbacks, Http1Connection
from cgw.transport.replay import ReplayedStream
from cgw.transport.sockets import BUFFER_BYTES

HandOver = Callable[[ReplayedStream, trio.Nursery], Awaitable[None]]


class HttpEngine:
    """Serves clients' connections. ``hand_over`` takes a connection whose next request is not for a provider route."""

    def __init__(
        self,
        gateway: Gateway,
        routes: Routes,
        limits: ClientLimits,
        *,
        errors: ErrorStyle,
        hand_over: HandOver,
    ) -> None:
        self._gateway = gateway
        self._routes = routes
        self._limits = limits
        self._errors = errors
        self._hand_over = hand_over
        self._connections: set[Http1Connection] = set()
        self._is_draining = False
        self._buffer = bytearray(BUFFER_BYTES)

    async def serve_connection(self, stream: trio.SocketStream, connection_nursery: trio.Nursery) -> None:
        """Serve one connection to its end. Cancel-safe; the stream is closed in every case."""

        async def hand_over(replayed: ReplayedStream) -> None:
            await self._hand_over(replayed, connection_nursery)

        service = ConnectionCallbacks(
            buffer=self._buffer,
            limits=self._limits,
            is_fast_path=self._routes.is_fast_path,
            handle=self._handle,
            hand_over=hand_over,
            render_refusal=self._render_refusal,
            is_draining=lambda: self._is_draining,
        )
        connection = Http1Connection(stream, service)
        self._connections.add(connection)
        try:
            await connection.serve()
        finally:
            self._connections.discard(connection)

    async def _handle(self, client: Http1Client) -> None:
        dialect = self._routes.find(client.head.path)
        if dialect is None:
            raise RuntimeError("a request without a provider route was taken for the fast path")
        await run_exchange(self._gateway, dialect, client)

    def _render_refusal(self, refusal: Refusal) -> tuple[Headers, bytes]:
        return self._errors.render(refusal)

    def drain(self) -> None:
        """End connections that wait for a request, and let each of the others end after its present exchange."""
        self._is_draining = True
        for connection in list(self._connections):
            if connection.is_idle:
                connection.idle_scope.cancel()
