"""The running service: what it opens, in which order, and how it drains and ends.

Lifetimes end in the reverse of their order here: clients' connections first, then the background tasks that exchanges
use, then the Redis links; then what is recorded is shipped, and the event log and the embedded server end. So an
exchange that ends late still finds what it needs to record and to settle, and its event is shipped with the others.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from ssl import SSLContext
from typing import Any

import trio
from attrs import frozen

from cgw.actors.sync import SyncWorker
from cgw.control.status import Phase, ServiceStatus
from cgw.errors import ConfigError, StoreUnavailable
from cgw.events.event_log import EventLog, open_event_log
from cgw.events.options import EventLogOptions
from cgw.events.shipping.shipping import Shipping, open_shipping
from cgw.events.sinks.registry import build_options, choose_sinks
from cgw.gateway.http_engine import HttpEngine
from cgw.gateway.parts import Gateway
from cgw.lifetime import open_background_task
from cgw.limits.alerts import AlertQueue
from cgw.limits.limiter import Limiter
from cgw.providers.dialect import Dialect
from cgw.redis.opening import Store, open_redis
from cgw.resolver import open_resolver
from cgw.service.build import (
    build_all_dialects,
    build_control_app,
    build_engine,
    build_gateway,
    build_overload_control,
    build_reloads,
    build_routes,
    build_server,
    build_server_tls,
    build_static_source,
    build_sync_worker,
    build_upstream_tls,
    open_flagger,
)
from cgw.service.metrics import ServiceParts, add_collectors
from cgw.service.ports import build_url, is_activated, open_admin_port, open_public_port
from cgw.service.settings import Settings
from cgw.service.signals import Reload
from cgw.service.sources import check_source_settings, open_sources
from cgw.service.telemetry import ProcessReports, Telemetry, open_telemetry
from cgw.telemetry.call_spans import CallTracer
from cgw.telemetry.traces import Tracing
from cgw.transport.client_address import AddressBound
from cgw.transport.overload import OverloadControl
from cgw.transport.server import Server

CUT_SECONDS = 15.0
"""The time that connections which are cut at the end of a drain may take to record and settle."""

EVENTS_NAME = "events"

logger = logging.getLogger("cgw.service")


@frozen
class Service:
    """A running gateway.

    ``dialects`` are those of its provider routes; ``actor_count`` is that of the actors file at the start.
    ``events_folder`` is where its usage events are; ``reloads`` are what SIGHUP reads again. ``admin_port`` and
    ``tracing`` are ``None`` where they are off.
    """

    settings: Settings
    host: str
    server: Server
    http_engine: HttpEngine
    gateway: Gateway
    redis: Store
    dialects: Sequence[Dialect]
    actor_count: int
    events_folder: Path
    status: ServiceStatus
    reloads: Sequence[Reload]
    admin_port: int | None
    tracing: Tracing | None
    shipping: Shipping

    @property
    def port(self) -> int:
        """The port that is served."""
        return self.server.port

    @property
    def url(self) -> str:
        """The base URL that is served, for clients on this machine."""
        scheme = "http" if self.settings.tls.cert_file is None else "https"
        return build_url(self.host, self.port, scheme)

    async def drain(self, timeout_seconds: float, *, delay_seconds: float = 0) -> bool:
        """Fail readiness, close the port ``delay_seconds`` later, let exchanges finish, and cut those that are left.

        ``timeout_seconds`` count from the closing of the port. Returns whether all finished in time. :meth:`cut` ends
        every phase at once.

            SERVING ──► DRAINING: readyz 503, all is served ──delay──► port closed, connections end one by one ──► cut
        """
        self.status.phase = Phase.DRAINING
        with trio.move_on_after(delay_seconds):
            # Load balancers need some probes to notice; until then they still send requests, which are served.
            await self.server.drained.wait()
        self.server.stop_accepting()
        self.http_engine.drain()
        with trio.move_on_after(timeout_seconds):
            await self.server.drained.wait()
            return True
        logger.warning("cutting %d connections that did not finish in time", self.server.connection_count)
        self.server.cut()
        with trio.move_on_after(CUT_SECONDS):
            await self.server.drained.wait()
        return False

    def cut(self) -> None:
        """Close the port and end every connection now, and do not wait for events to be shipped."""
        self.server.cut()
        self.shipping.cut()


@asynccontextmanager
async def open_service(settings: Settings, reports: ProcessReports | None = None) -> AsyncIterator[Service]:
    """Run the gateway while the block runs; at its end, drained or not, everything is closed in order.

    Raises :exc:`~cgw.errors.ConfigError` with every problem, or :exc:`~cgw.errors.StoreUnavailable`, when it cannot
    start. What may mend itself does not keep it from starting: a Redis that is away, a full disk.
    """
    tls_context = build_upstream_tls(settings)
    dialects, static_source = build_all_dialects(settings), build_static_source(settings)
    routes = build_routes(dialects, settings)
    server_tls = build_server_tls(settings)
    check_source_settings(settings)
    data_dir = settings.data.directory
    _create_data_dir(data_dir)
    status = ServiceStatus()
    async with AsyncExitStack() as stack:
        # First, and so closed last: everything below connects by host names.
        resolver = await stack.enter_async_context(open_resolver())
        # Closed after all exchanges have ended, so that the last ones are traced and counted.
        telemetry = await open_telemetry(stack, settings, reports or ProcessReports())
        # A shared port is opened last: the kernel gives a listener its part of the connections from the first moment,
        # and they would wait for the start, or be reset if it fails.
        listeners = [] if settings.server.reuse_port else await open_public_port(stack, settings)
        redis_url = await _choose_redis(stack, settings)
        event_log, shipping = await _open_events(stack, settings, tls_context)
        redis = await stack.enter_async_context(
            open_redis(redis_url, timeout_seconds=settings.redis.timeout_seconds, may_be_away=True)
        )
        webhook = await _open_webhook(stack, settings, tls_context, telemetry.tracer)
        alerts = AlertQueue(webhook, settings.dotcom.api_url)
        opened = await stack.enter_async_context(
            open_sources(settings, static_source, redis, tls_context, telemetry.tracer)
        )
        flagger = await open_flagger(settings, redis)
        gateway = build_gateway(settings, opened.sources, tls_context, redis, alerts, event_log, flagger, telemetry)
        stack.callback(gateway.relay.close)
        sync_worker = build_sync_worker(settings, opened.sources, redis)
        control_app = build_control_app(
            settings, gateway, routes, redis, status, opened, sync_worker, shipping, telemetry
        )
        overload = build_overload_control(settings)
        addresses = AddressBound(settings.overload.max_connections_per_address)
        http_engine = build_engine(settings, gateway, routes, control_app, overload, server_tls, addresses)
        stack.callback(http_engine.hangups.close)
        await _start_background(stack, gateway, alerts, overload, http_engine, sync_worker, telemetry)
        await _find_out_about_redis(redis, gateway.limiter)
        # Opened before the public port is served, and so closed after it: operators can watch the drain.
        admin_port = await open_admin_port(stack, settings, control_app)
        listeners = listeners or await open_public_port(stack, settings)
        server = build_server(settings, listeners, addresses)
        parts = ServiceParts(
            gateway, http_engine, server, redis, alerts, overload, resolver, status, sync_worker, telemetry.exchanges,
            telemetry.loop_lag, telemetry.process.log, settings.events.max_bytes, telemetry.exporters, shipping,
        )  # fmt: skip
        add_collectors(telemetry.metrics, parts)
        await _begin_serving(stack, server, http_engine, gateway.limiter, status)
        try:
            yield Service(
                settings=settings,
                host=str(listeners[0].socket.getsockname()[0]) if is_activated(settings) else settings.server.host,
                server=server,
                http_engine=http_engine,
                gateway=gateway,
                redis=redis,
                dialects=dialects,
                actor_count=0 if static_source is None else len(static_source.actors),
                events_folder=event_log.folder,
                status=status,
                reloads=build_reloads(static_source, server_tls),
                admin_port=admin_port,
                tracing=telemetry.tracing,
                shipping=shipping,
            )
        finally:
            await _cut(server, status)


async def _begin_serving(
    stack: AsyncExitStack, server: Server, http_engine: HttpEngine, limiter: Limiter, status: ServiceStatus
) -> None:
    status.public_port = server.port
    await stack.enter_async_context(open_background_task(partial(server.run, http_engine.serve_connection)))
    await _become_ready(stack, limiter, status)


async def _cut(server: Server, status: ServiceStatus) -> None:
    """End the connections that are left, for at most :data:`CUT_SECONDS`, whatever cancels the service."""
    status.phase = Phase.DRAINING
    with trio.CancelScope(shield=True, deadline=trio.current_time() + CUT_SECONDS):
        server.cut()
        await server.drained.wait()


async def _start_background(
    stack: AsyncExitStack,
    gateway: Gateway,
    alerts: AlertQueue,
    overload: OverloadControl,
    http_engine: HttpEngine,
    sync_worker: SyncWorker | None,
    telemetry: Telemetry,
) -> None:
    """Start what runs beside the connections, each in a nursery of its own. They end in reverse, with ``stack``."""
    for run in (
        telemetry.process.log_level.run,
        telemetry.readers.run,
        alerts.run,
        gateway.limiter.run,
        *(source.run for source in gateway.sources.runners),
        *(() if sync_worker is None else (sync_worker.run,)),
        gateway.refresher.run,
        gateway.repeats.run,
        gateway.flagger.recorder.run,
        gateway.pool.run,
        gateway.relay.run,
        overload.run,
        telemetry.loop_lag.run,
        http_engine.hangups.run,
        http_engine.deadlines.run,
        http_engine.refusals.run,
    ):
        await stack.enter_async_context(open_background_task(run))


async def _find_out_about_redis(redis: Store, limiter: Limiter) -> None:
    """Begin with an outage if Redis is away: the first request must not be the one to find out."""
    if redis.statistics().links_up:
        return  # no PING, which might be late only because everything starts at once
    try:
        await redis.check()
    except StoreUnavailable as error:
        limiter.outage.failed(error)


async def _become_ready(stack: AsyncExitStack, limiter: Limiter, status: ServiceStatus) -> None:
    """Pass readiness: now, or once Redis is there, if without it every request would be refused."""
    if limiter.serves_without_redis or not limiter.outage.is_on:
        status.phase = Phase.SERVING
        return

    async def wait_for_redis() -> None:
        await limiter.outage.wait_over()
        if status.phase is Phase.STARTING:  # it may drain by now
            status.phase = Phase.SERVING

    await stack.enter_async_context(open_background_task(wait_for_redis))


async def _open_webhook(
    stack: AsyncExitStack, settings: Settings, tls_context: SSLContext, tracer: CallTracer | None
) -> Callable[[Mapping[str, Any]], Awaitable[None]] | None:
    """Return the function that posts a usage alert to Slack; ``None`` where no webhook is set."""
    url = settings.limits.slack_webhook_url
    if url is None:
        return None
    from cgw.telemetry.slack import open_slack_webhook  # imports httpx, which takes 100 ms

    webhook = await stack.enter_async_context(open_slack_webhook(url.reveal(), tls_context=tls_context, tracer=tracer))
    return webhook.post


async def _open_events(stack: AsyncExitStack, settings: Settings, tls_context: SSLContext) -> tuple[EventLog, Shipping]:
    """Open the event log, and ship its events to the sinks; ``stack`` closes all after a last attempt to ship."""
    kinds = choose_sinks(settings)
    options = EventLogOptions(settings.events, [kind.name for kind in kinds])
    event_log = await stack.enter_async_context(open_event_log(settings.data.directory / EVENTS_NAME, options))
    sinks = [
        (await stack.enter_async_context(kind.open(settings, tls_context)), build_options(kind, settings.shipping))
        for kind in kinds
    ]
    drain_seconds = settings.shipping.drain_timeout_seconds
    shipping = await stack.enter_async_context(open_shipping(event_log, sinks, drain_timeout_seconds=drain_seconds))
    return event_log, shipping


async def _choose_redis(stack: AsyncExitStack, settings: Settings) -> str:
    """Return the URL of the Redis that the settings name, or of an embedded server that lives as long as ``stack``."""
    if settings.redis.endpoint is not None:
        return settings.redis.endpoint.reveal()
    from cgw.redis.embedded import open_embedded_redis  # not needed beside a server of the operator's

    return await stack.enter_async_context(open_embedded_redis(settings.data.directory))


def _create_data_dir(data_dir: Path) -> None:
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError([f"CODY_GATEWAY_DATA_DIR: cannot create {data_dir}: {error.strerror}"]) from None
