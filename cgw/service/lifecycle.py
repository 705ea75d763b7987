"""The running service: what it opens, in which order, and how it drains and ends.

Lifetimes end in the reverse of their order here: clients' connections first, then the background tasks that exchanges
use, then the Redis links, the event log and the embedded server. So an exchange that ends late still finds what it
needs to record and to settle.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from ssl import SSLContext
from typing import Any

import trio
from attrs import frozen

from cgw.control.hypercorn_engine import HypercornEngine
from cgw.errors import ConfigError
from cgw.events.event_log import open_event_log
from cgw.events.options import EventLogOptions
from cgw.gateway.http_engine import HttpEngine
from cgw.gateway.parts import Gateway
from cgw.lifetime import open_background_task
from cgw.limits.alerts import AlertQueue
from cgw.providers.registry import build_dialects
from cgw.redis.opening import Store, open_redis
from cgw.service.build import build_engines, build_gateway, build_sources, build_upstream_tls
from cgw.service.settings import Settings
from cgw.transport.server import Server, open_listeners

CUT_SECONDS = 15.0
"""How long connections that are cut at the end of a drain may take to record and settle."""

EVENTS_NAME = "events"

logger = logging.getLogger("cgw.service")


@frozen
class Service:
    """A running gateway. ``events_folder`` is where its usage events are."""

    settings: Settings
    server: Server
    http_engine: HttpEngine
    hypercorn_engine: HypercornEngine
    gateway: Gateway
    redis: Store
    events_folder: Path

    @property
    def port(self) -> int:
        """The port that is served."""
        return self.server.port

    @property
    def url(self) -> str:
        """The base URL that is served, for clients on this machine."""
        host = self.settings.server.host
        if host in ("0.0.0.0", "", "::"):
            host = "127.0.0.1"
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    async def drain(self, timeout_seconds: float) -> bool:
        """Stop accepting, end idle connections, let exchanges finish, and cut those that are left at the deadline.

        Returns whether all finished in time.
        """
        self.server.stop_accepting()
        self.http_engine.drain()
        await self.hypercorn_engine.drain()
        with trio.move_on_after(timeout_seconds):
            await self.server.drained.wait()
            return True
        logger.warning("cutting %d connections that did not finish in time", self.server.connection_count)
        self.server.cut()
        with trio.move_on_after(CUT_SECONDS):
            await self.server.drained.wait()
        return False


@asynccontextmanager
async def open_service(settings: Settings) -> AsyncIterator[Service]:
    """Run the gateway while the block runs; at its end, drained or not, everything is closed in order.

    Raises :exc:`~cgw.errors.ConfigError` with every problem, or :exc:`~cgw.errors.StoreUnavailable`, when it cannot
    start.
    """
    tls_context = build_upstream_tls(settings)
    dialects, sources = build_dialects(settings.providers), build_sources(settings)
    data_dir = settings.data.directory
    _create_data_dir(data_dir)
    async with AsyncExitStack() as stack:
        listeners = await _listen(settings)
        for listener in listeners:
            stack.callback(listener.socket.close)
        redis_url = await _choose_redis(stack, settings)
        events_folder = data_dir / EVENTS_NAME
        event_log = await stack.enter_async_context(open_event_log(events_folder, EventLogOptions(settings.events)))
        redis = await stack.enter_async_context(open_redis(redis_url, timeout_seconds=settings.redis.timeout_seconds))
        webhook = await _open_webhook(stack, settings, tls_context)
        alerts = AlertQueue(webhook, settings.limits.dotcom_api_url)
        gateway = build_gateway(settings, sources, tls_context, redis, alerts, event_log)
        stack.callback(gateway.relay.close)
        http_engine, hypercorn_engine = build_engines(settings, gateway, dialects, redis)
        server = Server(listeners)
        background = (alerts.run, gateway.limiter.run, gateway.refresher.run, gateway.pool.run, gateway.relay.run)
        for run in background:
            await stack.enter_async_context(open_background_task(run))
        await stack.enter_async_context(open_background_task(partial(server.run, http_engine.serve_connection)))
        try:
            yield Service(settings, server, http_engine, hypercorn_engine, gateway, redis, events_folder)
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + CUT_SECONDS):
                server.cut()
                await server.drained.wait()


async def _open_webhook(
    stack: AsyncExitStack, settings: Settings, tls_context: SSLContext
) -> Callable[[Mapping[str, Any]], Awaitable[None]] | None:
    """Return the function that posts a usage alert to Slack; ``None`` where no webhook is set."""
    url = settings.limits.slack_webhook_url
    if url is None:
        return None
    from cgw.telemetry.slack import open_slack_webhook  # imports httpx, which takes 100 ms

    webhook = await stack.enter_async_context(open_slack_webhook(url.reveal(), tls_context=tls_context))
    return webhook.post


async def _choose_redis(stack: AsyncExitStack, settings: Settings) -> str:
    """Return the URL of the Redis that the settings name, or of an embedded server that lives as long as ``stack``."""
    if settings.redis.endpoint is not None:
        return settings.redis.endpoint.reveal()
    from cgw.redis.embedded import open_embedded_redis  # not needed beside a server of the operator's

    return await stack.enter_async_context(open_embedded_redis(settings.data.directory))


async def _listen(settings: Settings) -> list[trio.SocketListener]:
    host, port = settings.server.host, settings.server.port
    try:
        return await open_listeners(host, port)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError([f"cannot listen on {host}:{port}: {reason}; see PORT and CODY_GATEWAY_HOST"]) from None


def _create_data_dir(data_dir: Path) -> None:
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError([f"CODY_GATEWAY_DATA_DIR: cannot create {data_dir}: {error.strerror}"]) from None
