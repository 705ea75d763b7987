"""Putting the rooms together: the service, its start, its drain, its end.

The order of lifetimes is the order of the ``async with`` statements: clients' connections end first, then the Redis
links, then the spool, then the embedded store. So whatever an exchange has still to record or to settle finds both.
"""

from __future__ import annotations

import logging
import signal
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import trio
from attrs import frozen

from cgw import __version__
from cgw.actors.anonymous import AnonymousSource
from cgw.actors.source import Source, Sources
from cgw.actors.static import load_static_actors
from cgw.config import Settings
from cgw.control.app import ControlApp
from cgw.control.engine import ControlEngine
from cgw.errors import ConfigError
from cgw.events.spool import open_spool
from cgw.gateway.engine import HotEngine, Routes
from cgw.gateway.exchange import Services
from cgw.limits.limiter import Limiter
from cgw.observe.logs import open_logging
from cgw.providers.error_styles import REFERENCE_ERRORS
from cgw.providers.registry import build_dialects
from cgw.transport.client import ClientLimits
from cgw.transport.redis_embedded import open_embedded_redis
from cgw.transport.redis_links import Redis, open_redis
from cgw.transport.server import Server, open_listeners
from cgw.transport.upstream import UpstreamDeadlines, UpstreamPool, build_tls_context

EXIT_OK = 0
EXIT_FAILURE = 1

CUT_SECONDS = 15.0
"""How long connections that are cut at the end of a drain may take to record and settle."""

SPOOL_NAME = "events.sqlite"

logger = logging.getLogger("cgw.service")


@frozen
class Service:
    """A running gateway. ``url`` is where its port is; ``spool_path`` where its usage events are."""

    settings: Settings
    server: Server
    hot_engine: HotEngine
    control_engine: ControlEngine
    pool: UpstreamPool
    redis: Redis
    spool_path: Path

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
        """Stop accepting, end idle connections, and let exchanges finish; cut those that are left in the end.

        Returns whether all finished in time.
        """
        self.server.stop_accepting()
        self.hot_engine.drain()
        await self.control_engine.drain()
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

    Raises :exc:`~cgw.errors.ConfigError` when it cannot start, with every problem.
    """
    dialects = build_dialects_of(settings)
    sources = build_sources(settings)
    tls_context = _load_tls_context(settings)
    _make_data_dir(settings.store.data_dir)
    spool_path = settings.store.data_dir / SPOOL_NAME
    limits = build_client_limits(settings)
    async with AsyncExitStack() as stack:
        listeners = await _listen(settings)
        stack.callback(lambda: [listener.socket.close() for listener in listeners])
        redis_url = await _choose_redis(stack, settings)
        spool = await stack.enter_async_context(open_spool(spool_path))
        redis = await stack.enter_async_context(
            open_redis(redis_url, timeout_seconds=settings.store.redis_timeout_seconds)
        )
        pool = UpstreamPool(tls_context, build_deadlines(settings))
        services = Services(
            sources=sources,
            limiter=Limiter(redis),
            pool=pool,
            spool=spool,
            timeout_seconds=settings.upstream.request_timeout_seconds,
            max_timeout_seconds=settings.upstream.max_timeout_seconds,
        )
        routes = Routes({dialect.path.encode("ascii"): dialect for dialect in dialects})
        secret = settings.server.diagnostics_secret
        control_app = ControlApp(
            services=services,
            routes=routes,
            limits=limits,
            errors=REFERENCE_ERRORS,
            version=__version__,
            diagnostics_secret=None if secret is None else secret.reveal(),
            check_store=redis.check,
        )
        control_engine = ControlEngine(control_app, limits)
        hot_engine = HotEngine(
            services, routes, limits, errors=REFERENCE_ERRORS, hand_over=control_engine.serve_connection
        )
        server = Server(listeners, hot_engine.serve_connection)
        service = Service(settings, server, hot_engine, control_engine, pool, redis, spool_path)
        async with trio.open_nursery() as service_nursery:
            service_nursery.start_soon(pool.run_reaper)
            service_nursery.start_soon(server.run)
            try:
                yield service
            finally:
                # Exchanges end before the services that they use: cutting them is bounded by their own deadlines.
                with trio.CancelScope(shield=True, deadline=trio.current_time() + CUT_SECONDS):
                    server.cut()
                    await server.drained.wait()
                service_nursery.cancel_scope.cancel()


def build_dialects_of(settings: Settings) -> tuple[Dialect, ...]:
    """The dialects of all providers that have a key; what is missing is logged, by name."""
    raise NotImplementedError


def run_service(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; the exit status. This is ``cgw serve``."""
    logs = settings.logs
    with open_logging(sys.stderr, level=logs.level, format=logs.format, secrets=_secrets(settings)):
        for warning in settings.warnings:
            logger.warning("%s", warning)
        try:
            trio.run(_serve_until_signal, settings)
        except ConfigError as error:
            for problem in error.problems:
                print(f"cgw: {problem}", file=sys.stderr)
            return EXIT_FAILURE
    return EXIT_OK
