"""The transport package alone as a gateway: connection, pool and relay, without actors, limits and events.

What an exchange costs is measured against it. ``python -m cgw.testing.bare_relay PORT UPSTREAM_PORT`` serves it.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from attrs import define, field

from cgw.allocator import keep_freed_memory
from cgw.errors import Refusal, UpstreamError, UpstreamTimeout
from cgw.transport.client_side import ClientLimits, ClientSide
from cgw.transport.connection_callbacks import ConnectionCallbacks
from cgw.transport.deadlines import DeadlineKeeper
from cgw.transport.flat_relay import FlatRelay
from cgw.transport.hangup_watch import HangupWatch
from cgw.transport.http1_connection import Http1Connection
from cgw.transport.listeners import open_listeners
from cgw.transport.relay import RelayEnd, relay_body, relay_response
from cgw.transport.server import AcceptedConnection, Server
from cgw.transport.serving_scope import ServingScope
from cgw.transport.upstream import UpstreamDeadlines, UpstreamPool, UpstreamResponse, build_tls_context
from cgw.wire.heads import select_response_headers
from cgw.wire.messages import Origin, UpstreamRequest
from cgw.wire.windows import BodyWindowCollector


@define
class BareGateway:
    """A running gateway to one origin. ``refusals`` are those that were answered, in order."""

    port: int
    pool: UpstreamPool
    server: Server
    refusals: list[Refusal] = field(factory=list)


@asynccontextmanager
async def open_bare_gateway(
    origin: Origin,
    *,
    port: int = 0,
    limits: ClientLimits | None = None,
    deadlines: UpstreamDeadlines | None = None,
    pool: UpstreamPool | None = None,
    flat: FlatRelay | None = None,
    stops_with_client: bool = False,
) -> AsyncIterator[BareGateway]:
    """Relay every POST to ``origin`` while the block runs: on the fallback path, or with ``flat`` on the fast path.

    With ``stops_with_client`` each exchange watches its client and ends when it leaves, as real ones do.
    """
    pool = pool or UpstreamPool(build_tls_context(None), deadlines or UpstreamDeadlines())
    limits = limits or ClientLimits()

    async def handle(client: ClientSide, scope: ServingScope) -> None:
        try:
            body = await client.receive_body()
            request = UpstreamRequest(origin, client.head.target, (), body)
            if stops_with_client:
                await forward_until_gone(client, request, pool, flat)
            else:
                await forward(client, request, pool, flat)
        except Refusal as refusal:
            gateway.refusals.append(refusal)
            await client.send_response(refusal.status, (), refusal.message.encode())

    async def serve_connection(accepted: AcceptedConnection) -> None:
        await Http1Connection(accepted, callbacks).serve()

    hangups, keeper = HangupWatch(), DeadlineKeeper()
    callbacks = ConnectionCallbacks(
        limits=limits,
        handle=handle,
        render_refusal=lambda refusal, path, request_id: ((), refusal.message.encode()),
        is_draining=lambda: False,
        deadlines=keeper,
        hangups=hangups,
    )
    server = Server(await open_listeners("127.0.0.1", port))
    gateway = BareGateway(server.port, pool, server)
    async with trio.open_nursery() as service_nursery:
        service_nursery.start_soon(server.run, serve_connection)
        service_nursery.start_soon(pool.run)
        service_nursery.start_soon(hangups.run)
        service_nursery.start_soon(keeper.run)
        if flat is not None:
            service_nursery.start_soon(flat.run)
        try:
            yield gateway
        finally:
            service_nursery.cancel_scope.cancel()
    hangups.close()


async def forward(client: ClientSide, request: UpstreamRequest, pool: UpstreamPool, flat: FlatRelay | None) -> None:
    """Relay one answer as an exchange does, without limits and events."""
    window = BodyWindowCollector()
    try:
        async with _open_response(pool, request) as response:
            head = response.head
            chunked = head.header(b"transfer-encoding") is not None
            length = None if chunked else head.header(b"content-length")
            fields = select_response_headers(head.headers, [b"content-length"] if chunked else [])
            await client.send_head(head.status, fields, is_stream=flat is None)
            content_length = None if length is None else int(length)
            if flat is None:
                outcome = await relay_body(
                    response, client, window, content_length=content_length, on_first_chunk=lambda at: None
                )
            else:
                outcome = await relay_response(
                    flat,
                    response,
                    client,
                    window,
                    content_length=content_length,
                    is_stream=True,
                    on_first_chunk=lambda at: None,
                )
    except UpstreamError as error:
        raise Refusal(502, str(error)) from None
    if outcome.end is RelayEnd.COMPLETE:
        await client.finish(outcome.held_back)
    else:
        client.break_off()


@asynccontextmanager
async def _open_response(pool: UpstreamPool, request: UpstreamRequest) -> AsyncIterator[UpstreamResponse]:
    with trio.move_on_after(pool.deadlines.head_seconds) as head_scope:
        response = await pool.open(request)
    if head_scope.cancelled_caught:
        raise UpstreamTimeout(f"no response head within {pool.deadlines.head_seconds:g} seconds")
    try:
        yield response
    finally:
        pool.give_back(response)


async def forward_until_gone(
    client: ClientSide, request: UpstreamRequest, pool: UpstreamPool, flat: FlatRelay | None
) -> None:
    """Like :func:`forward`, but end when the client leaves."""
    client_scope = trio.CancelScope()

    async def watch() -> None:
        await client.wait_gone()
        client_scope.cancel()

    async with trio.open_nursery() as exchange_nursery:
        exchange_nursery.start_soon(watch)
        with client_scope:
            await forward(client, request, pool, flat)
        exchange_nursery.cancel_scope.cancel()
    if client_scope.cancelled_caught:
        client.break_off()


async def serve(port: int, upstream_port: int) -> None:
    """Relay every POST to a server on this machine, on the fast path, until cancelled; HTTP's own fields pass.

    Bodies may be as large as a gateway's.
    """
    origin = Origin("http", "127.0.0.1", upstream_port)
    async with open_bare_gateway(origin, port=port, flat=FlatRelay()):
        await trio.sleep_forever()


if __name__ == "__main__":
    keep_freed_memory()  # as the whole gateway does
    trio.run(serve, int(sys.argv[1]), int(sys.argv[2]))
