"""A server of HTTP/1.1 connections with a handler of the test's own in the place of exchanges."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import trio
from attrs import define, field

from cgw.errors import Refusal
from cgw.providers.error_styles import ReferenceErrors
from cgw.transport.client_side import ClientLimits, ClientSide
from cgw.transport.connection_callbacks import ConnectionCallbacks
from cgw.transport.deadlines import DeadlineKeeper
from cgw.transport.hangup_watch import HangupWatch
from cgw.transport.http1_connection import Http1Connection
from cgw.transport.listeners import open_listeners
from cgw.transport.server import AcceptedConnection, Server
from cgw.transport.serving_scope import ServingScope
from tests.support.raw_client import RawClient
from tests.support.waiting import wait_until

ERRORS = ReferenceErrors()
HEAD = b"POST /fast HTTP/1.1\r\nHost: x\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"

Handler = Callable[[ClientSide], Awaitable[None]]


async def echo(client: ClientSide) -> None:
    """Answer with the target and the body, or with the refusal that reading the body raised."""
    try:
        body = await client.receive_body()
    except Refusal as refusal:
        assert refusal.must_close
        client.close_after_response()
        headers, body = ERRORS.render(refusal)
        await client.send_response(refusal.status, headers, body)
    else:
        await client.send_response(200, [(b"content-type", b"text/plain")], client.head.target + b" " + body)


@define
class Engine:
    """A running server."""

    handler: Handler
    limits: ClientLimits
    options: Mapping[str, Any]
    server: Server = field(init=False)
    connections: list[Http1Connection] = field(factory=list)
    hangups: HangupWatch = field(factory=HangupWatch)
    deadlines: DeadlineKeeper = field(factory=DeadlineKeeper)
    handled: int = 0
    scope: ServingScope | None = None  # of the last request
    is_draining: bool = False

    @property
    def port(self) -> int:
        return self.server.port

    async def serve_connection(self, accepted: AcceptedConnection) -> None:
        callbacks = ConnectionCallbacks(
            limits=self.limits,
            handle=self.handle,
            render_refusal=lambda refusal, path, request_id: ERRORS.render(refusal, request_id),
            is_draining=lambda: self.is_draining,
            deadlines=self.deadlines,
            hangups=self.hangups,
            **self.options,
        )
        connection = Http1Connection(accepted, callbacks)
        self.connections.append(connection)
        await connection.serve()

    async def handle(self, client: ClientSide, scope: ServingScope) -> None:
        self.handled += 1
        self.scope = scope
        await self.handler(client)

    def drain(self) -> None:
        """Stop keeping connections alive, as :mod:`cgw.gateway.http_engine` does."""
        self.is_draining = True
        for connection in self.connections:
            connection.drain()


@asynccontextmanager
async def open_engine(
    handler: Handler = echo, limits: ClientLimits | None = None, **options: Any
) -> AsyncIterator[Engine]:
    """Serve connections on a free port. At the end every client must have left, and no connection may remain.

    ``options`` are more arguments of :class:`~cgw.transport.connection_callbacks.ConnectionCallbacks`.
    """
    engine = Engine(handler, limits or ClientLimits(), options)
    engine.server = Server(await open_listeners("127.0.0.1", 0))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.server.run, engine.serve_connection)
        nursery.start_soon(engine.hangups.run)
        nursery.start_soon(engine.deadlines.run)
        try:
            yield engine
            await wait_until(lambda: engine.server.connection_count == 0)
        finally:
            nursery.cancel_scope.cancel()
    engine.hangups.close()


async def read_refusal(client: RawClient, status: int) -> str:
    """Read a refusal, check that it is JSON and the last answer on its connection, and return its text."""
    answer = await client.read_answer()
    assert answer.status == status
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["connection"] == "close"
    assert await client.read_end() == b""
    text: str = answer.json()["error"]
    return text
