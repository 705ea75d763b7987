"""The engine of the public port: every connection of a client, and every request on it, runs here.

A POST to a provider route runs as an exchange; every other request is ``serve_other``'s (the control app), which
returns the status of its response.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable

import trio
from attrs import frozen

from cgw.errors import Refusal
from cgw.gateway.embeddings import EmbeddingsExchange
from cgw.gateway.exchange import Exchange
from cgw.gateway.free import FreeExchange
from cgw.gateway.parts import Gateway
from cgw.gateway.passing import PassExchange
from cgw.gateway.relayed_embeddings import RelayedEmbeddingsExchange
from cgw.gateway.request_log import RefusalLog, build_control_record
from cgw.gateway.routes import Routes
from cgw.model import Feature
from cgw.providers.dialect import Dialect, ErrorStyle
from cgw.providers.embeddings.route import EmbeddingsRoute
from cgw.providers.pass_routes import PassRoute
from cgw.providers.route import FreeRoute
from cgw.telemetry.current_request import served_trace
from cgw.telemetry.exchange_record import Outcome, begin_times
from cgw.transport.body_budget import BodyBudget
from cgw.transport.client_address import AddressBound, TrustedProxies
from cgw.transport.client_side import ClientLimits, ClientSide
from cgw.transport.connection_callbacks import ConnectionCallbacks
from cgw.transport.deadlines import DeadlineKeeper
from cgw.transport.hangup_watch import HangupWatch
from cgw.transport.http1_connection import Http1Connection
from cgw.transport.http2_connection import Http2Callbacks, Http2Connection
from cgw.transport.overload import REFUSAL, OverloadControl
from cgw.transport.server import AcceptedConnection
from cgw.transport.serving_scope import ServingScope
from cgw.transport.sockets import Transport
from cgw.wire.heads import encode_kept_response
from cgw.wire.messages import RequestHead
from cgw.wire.trace_context import REQUEST_ID_FIELD

CONTROL_PREFIX = b"/-/"
"""Routes below it are answered under any load: whoever watches the service must see it."""


_KINDS: tuple[tuple[type, type[Exchange]], ...] = (
    (EmbeddingsRoute, EmbeddingsExchange),
    (FreeRoute, FreeExchange),
    (PassRoute, PassExchange),
)
"""The exchanges of dialects that need one of their own."""

DEFAULT_BUFFERED_BYTES = 512 * 1024 * 1024


@frozen
class EngineStatistics:
    """Exchanges ``in_flight``, HTTP/2 connections and bytes of large bodies now; requests ``shed`` since the start."""

    in_flight: int
    shed: int
    http2_connections: int
    buffered_bytes: int


class HttpEngine:
    """Serves clients' connections while ``hangups.run``, ``deadlines.run`` and ``refusals.run`` run.

    At most ``max_exchanges`` at once (``None``: all).
    """

    def __init__(
        self,
        gateway: Gateway,
        routes: Routes,
        limits: ClientLimits,
        *,
        serve_other: Callable[[ClientSide], Awaitable[int | None]],
        overload: OverloadControl,
        max_exchanges: int | None = None,
        trusted: TrustedProxies | None = None,
        addresses: AddressBound | None = None,
        tls_context: Callable[[], ssl.SSLContext | None] = lambda: None,
        budget: BodyBudget | None = None,
        has_http2: bool = True,
    ) -> None:
        trusted, budget = trusted or TrustedProxies(), budget or BodyBudget(DEFAULT_BUFFERED_BYTES)
        self._gateway = gateway
        self._routes = routes
        self._serve_other = serve_other
        self._overload = overload
        self._budget = budget
        self._max_exchanges = max_exchanges
        self._http2_connections: set[Http2Connection] = set()
        self._in_flight = gateway.in_flight
        self._shed = 0
        self._kinds: dict[int, type[Exchange]] = {}  # by the id of the dialect, which lives as long as its route
        self._encoded_shed: dict[ErrorStyle, tuple[bytes, bytes]] = {}  # what precedes the id, and what follows it
        self.is_draining = False
        self.hangups = HangupWatch()
        self.deadlines = DeadlineKeeper()
        self.refusals = RefusalLog(gateway.readers)
        self._callbacks = ConnectionCallbacks(
            limits=limits,
            handle=self.handle,
            render_refusal=routes.render_refusal,
            is_draining=lambda: self.is_draining,
            note_refused=self.refusals.note,
            check_load=self.check_load,
            encode_shed=self.encode_shed,
            serve_http2=self._serve_http2 if has_http2 else None,
            hangups=self.hangups,
            deadlines=self.deadlines,
            trusted=trusted,
            addresses=addresses or AddressBound(None),
            tls_context=tls_context,
            budget=budget,
        )
        self._http2_callbacks = Http2Callbacks(
            limits=limits,
            handle=self._handle_http2,
            render_refusal=routes.render_refusal,
            is_draining=lambda: self.is_draining,
            deadlines=self.deadlines,
            note_refused=self.refusals.note,
            trusted=trusted,
            budget=budget,
        )

    def serve_connection(self, accepted: AcceptedConnection) -> Awaitable[None]:
        """Serve one connection to its end. Cancel-safe; the socket is closed in any case."""
        return Http1Connection(accepted, self._callbacks).serve()

    async def _serve_http2(self, transport: Transport, data: bytes, peer: str) -> None:
        connection = Http2Connection(transport, data, peer, self._http2_callbacks)
        self._http2_connections.add(connection)
        try:
            await connection.serve()
        finally:
            self._http2_connections.discard(connection)

    async def _handle_http2(self, client: ClientSide, scope: ServingScope) -> None:
        refusal = self.check_load(client.head)
        if refusal is None:
            await self.handle(client, scope)
        else:
            headers, body = self._routes.render_refusal(refusal, client.head.path, client.head.trace.trace_id)
            await client.send_response(refusal.status, [*headers, *refusal.headers], body)

    def handle(self, client: ClientSide, scope: ServingScope) -> Awaitable[None]:
        """Serve one request, in ``scope``."""
        head = client.head
        served_trace.set(head.trace)
        dialect = self._routes.find_exchange(head)
        if dialect is None:
            return self._serve_and_log(client)
        kind = self._kinds.get(id(dialect)) or self._choose_kind(dialect)
        return kind(self._gateway, dialect, client, scope).run()

    def _choose_kind(self, dialect: Dialect) -> type[Exchange]:
        kind = RelayedEmbeddingsExchange if dialect.default_feature is Feature.EMBEDDINGS else Exchange
        for kind_of_route, own_kind in _KINDS:
            if isinstance(dialect, kind_of_route):
                kind = own_kind
        self._kinds[id(dialect)] = kind
        return kind

    async def _serve_and_log(self, client: ClientSide) -> None:
        times, outcome, status = begin_times(trio.current_time()), Outcome.SHUTDOWN, None
        try:
            status = await self._serve_other(client)
            outcome = Outcome.CLIENT_GONE if status is None else Outcome.OK if status < 400 else Outcome.REFUSED
        finally:
            head, peer, sent_bytes = client.head, client.peer, client.bytes_sent
            self._gateway.readers(build_control_record(head, peer, outcome, status, times, sent_bytes))

    def check_load(self, head: RequestHead) -> Refusal | None:
        """Return the refusal of a request that is not to be served now, before anything else of it is looked at."""
        if head.path.startswith(CONTROL_PREFIX):  # the target may be in absolute form (RFC 9112 §3.2.2)
            return None
        is_full = self._max_exchanges is not None and self._in_flight.count >= self._max_exchanges
        if not is_full and not self._overload.must_shed():
            return None
        self._shed += 1
        self._overload.note_refused()
        return REFUSAL

    def encode_shed(self, head: RequestHead) -> bytes:
        """Return the whole response to a request that was shed, for a connection that is kept.

        Encoded once per dialect, but for the id: under a flood this is what most of the clients get.
        """
        errors = self._routes.find_errors(head.path)
        encoded = self._encoded_shed.get(errors)
        if encoded is None:
            headers, body = errors.render(REFUSAL)
            response = encode_kept_response(REFUSAL.status, [*headers, *REFUSAL.headers], body)
            status_line, _, rest = response.partition(b"\r\n")
            encoded = self._encoded_shed[errors] = b"%b\r\n%b: " % (status_line, REQUEST_ID_FIELD), b"\r\n" + rest
        return encoded[0] + head.trace.trace_id.encode("ascii") + encoded[1]

    def statistics(self) -> EngineStatistics:
        """Return a snapshot of the counters."""
        return EngineStatistics(
            self._in_flight.count, self._shed, len(self._http2_connections), self._budget.used_bytes
        )

    def drain(self) -> None:
        """End connections that wait for a request, and let each of the others end after its present one."""
        self.is_draining = True
        for connection in list(self._callbacks.connections):
            connection.drain()
        for http2_connection in list(self._http2_connections):
            http2_connection.drain()
