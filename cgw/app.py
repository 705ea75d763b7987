"""Putting the rooms together: the service, its start, its drain, its end.

The order of lifetimes is the order of the ``async with`` statements: clients' connections end first, then the Redis
links, then the spool, then the embedded store. So whatever an exchange has still to record or to settle finds both.
"""

from __future__ import annotations

import gc
import logging
import signal
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import trio
from attrs import frozen

from cgw import __version__
from cgw.actors.anonymous import AnonymousSource
from cgw.actors.refresh import Refresher
from cgw.actors.source import Source, Sources
from cgw.actors.static import load_static_actors
from cgw.config import Secret, Settings
from cgw.control.app import ControlApp
from cgw.control.engine import ControlEngine
from cgw.errors import ConfigError, StoreUnavailable
from cgw.events.spool import Spool, open_spool
from cgw.gateway.engine import HotEngine, Routes
from cgw.gateway.exchange import Services
from cgw.limits.limiter import Limiter, LimiterOptions
from cgw.limits.notices import Notifier
from cgw.limits.outage import WhenDown
from cgw.observe.logs import open_logging
from cgw.providers.dialect import Dialect
from cgw.providers.error_styles import ReferenceErrors
from cgw.providers.models import ANTHROPIC_MODELS, OPENAI_MODELS
from cgw.providers.registry import AnthropicProvider, OpenAIProvider, build_dialects
from cgw.transport.client import ClientLimits
from cgw.transport.flat_relay import FlatRelay
from cgw.transport.redis_links import Store, open_redis
from cgw.transport.server import Server, open_listeners
from cgw.transport.upstream import UpstreamDeadlines, UpstreamPool, build_tls_context

EXIT_OK = 0

CUT_SECONDS = 15.0
"""How long connections that are cut at the end of a drain may take to record and settle."""

SWITCH_SECONDS = 0.0005
"""How long one thread may keep the interpreter from another that wants it."""

GC_THRESHOLDS = (10_000, 10, 10)
"""Allocations, and collections of younger generations, before each generation is collected; see :mod:`gc`."""

SPOOL_NAME = "events.sqlite"

logger = logging.getLogger("cgw.service")


@frozen
class Service:
    """A running gateway. ``url`` is where its port is; ``spool_path`` where its usage events are."""

    settings: Settings
    server: Server
    hot_engine: HotEngine
    control_engine: ControlEngine
    services: Services
    redis: Store
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
    tls_context = _load_tls(settings)
    build = partial(_assemble, settings, build_dialects_of(settings), build_sources(settings), tls_context)
    _make_data_dir(settings.store.data_dir)
    async with AsyncExitStack() as stack:
        listeners = await _listen(settings)
        for listener in listeners:
            stack.callback(listener.socket.close)
        redis_url = await _choose_redis(stack, settings)
        spool = await stack.enter_async_context(open_spool(settings.store.data_dir / SPOOL_NAME))
        redis = await stack.enter_async_context(
            open_redis(redis_url, timeout_seconds=settings.store.redis_timeout_seconds)
        )
        webhook = await _open_webhook(stack, settings, tls_context)
        notifier = Notifier(webhook, settings.limits.dotcom_api_url)
        service = build(Server(listeners), redis, notifier, spool)
        stack.callback(service.services.relay.close)
        async with trio.open_nursery() as service_nursery:
            service_nursery.start_soon(notifier.run)
            service_nursery.start_soon(service.services.limiter.run)
            service_nursery.start_soon(service.services.refresher.run)
            service_nursery.start_soon(service.services.pool.run_reaper)
            service_nursery.start_soon(service.services.relay.run)
            service_nursery.start_soon(service.server.run, service.hot_engine.serve_connection)
            try:
                yield service
            finally:
                # Exchanges end before the services that they use: cutting them is bounded by their own deadlines.
                with trio.CancelScope(shield=True, deadline=trio.current_time() + CUT_SECONDS):
                    service.server.cut()
                    await service.server.drained.wait()
                service_nursery.cancel_scope.cancel()


def _assemble(
    settings: Settings,
    dialects: Sequence[Dialect],
    sources: Sources,
    tls_context: ssl.SSLContext,
    server: Server,
    redis: Store,
    notifier: Notifier,
    spool: Spool,
) -> Service:
    """The service's parts, each knowing those that it needs; nothing runs yet."""
    limits = build_client_limits(settings)
    services = Services(
        sources=sources,
        refresher=Refresher(sources),
        limiter=Limiter(redis, build_limiter_options(settings), on_notice=notifier.notify),
        pool=UpstreamPool(tls_context, build_deadlines(settings)),
        relay=FlatRelay(
            tick_seconds=settings.upstream.relay_tick_seconds,
            silence_seconds=settings.upstream.silence_timeout_seconds,
            stall_seconds=settings.server.client_stall_timeout_seconds,
        ),
        spool=spool,
        timeout_seconds=settings.upstream.request_timeout_seconds,
        max_timeout_seconds=settings.upstream.max_timeout_seconds,
    )
    routes = Routes({dialect.path.encode("ascii"): dialect for dialect in dialects})
    errors = ReferenceErrors()
    control_app = ControlApp(
        services=services,
        routes=routes,
        limits=limits,
        errors=errors,
        version=__version__,
        diagnostics_secret=_reveal(settings.server.diagnostics_secret),
        check_store=redis.check,
    )
    control_engine = ControlEngine(control_app, limits)
    hot_engine = HotEngine(services, routes, limits, errors=errors, hand_over=control_engine.serve_connection)
    return Service(settings, server, hot_engine, control_engine, services, redis, settings.store.data_dir / SPOOL_NAME)


async def _open_webhook(
    stack: AsyncExitStack, settings: Settings, tls_context: ssl.SSLContext
) -> Callable[[Mapping[str, Any]], Awaitable[None]] | None:
    """What sends a notice to Slack; ``None`` where there is no webhook."""
    url = settings.limits.slack_webhook_url
    if url is None:
        return None
    from cgw.observe.slack import open_slack_webhook  # httpx is not needed without

    webhook = await stack.enter_async_context(open_slack_webhook(url.reveal(), tls_context=tls_context))
    return webhook.post


async def _choose_redis(stack: AsyncExitStack, settings: Settings) -> str:
    """The URL of the store that the settings name, or of an embedded one that lives as long as ``stack``."""
    if settings.store.redis_endpoint is not None:
        return settings.store.redis_endpoint.reveal()
    from cgw.transport.redis_embedded import open_embedded_redis  # not needed beside a server of the operator's

    return await stack.enter_async_context(open_embedded_redis(settings.store.data_dir))


async def _listen(settings: Settings) -> list[trio.SocketListener]:
    host, port = settings.server.host, settings.server.port
    try:
        return await open_listeners(host, port)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError([f"cannot listen on {host}:{port}: {reason}; see PORT and CODY_GATEWAY_HOST"]) from None


def _make_data_dir(data_dir: Path) -> None:
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError([f"CODY_GATEWAY_DATA_DIR: cannot make {data_dir}: {error.strerror}"]) from None


def _load_tls(settings: Settings) -> ssl.SSLContext:
    ca_file = settings.upstream.ca_file
    try:
        return build_tls_context(None if ca_file is None else str(ca_file))
    except OSError as error:
        raise ConfigError([f"CODY_GATEWAY_UPSTREAM_CA_FILE: cannot use {ca_file}: {error.strerror}"]) from None


def build_client_limits(settings: Settings) -> ClientLimits:
    """What clients may do, as the settings say."""
    server = settings.server
    return ClientLimits(
        max_head_bytes=server.max_head_bytes,
        max_body_bytes=server.max_body_bytes,
        header_timeout_seconds=server.header_timeout_seconds,
        body_timeout_seconds=server.body_timeout_seconds,
        keep_alive_timeout_seconds=server.keep_alive_timeout_seconds,
        stall_timeout_seconds=server.client_stall_timeout_seconds,
    )


def build_limiter_options(settings: Settings) -> LimiterOptions:
    """How limits are held, as the settings say."""
    limits = settings.limits
    bounds = {"anthropic": settings.anthropic.max_in_flight, "openai": settings.openai.max_in_flight}
    return LimiterOptions(
        when_down=cast(WhenDown, limits.when_redis_down),
        max_in_flight=limits.max_in_flight,
        provider_max_in_flight={provider: most for provider, most in bounds.items() if most is not None},
        heartbeat_seconds=limits.heartbeat_seconds,
        notify_thresholds=limits.notify_thresholds,
    )


def build_deadlines(settings: Settings) -> UpstreamDeadlines:
    """How long upstreams may take, as the settings say."""
    upstream = settings.upstream
    return UpstreamDeadlines(
        connect_seconds=upstream.connect_timeout_seconds,
        head_seconds=upstream.head_timeout_seconds,
        silence_seconds=upstream.silence_timeout_seconds,
    )


def build_sources(settings: Settings) -> Sources:
    """The sources of actors that the settings name, in the order in which they are asked.

    Raises :exc:`~cgw.errors.ConfigError` for an actors file that is not as it should be.
    """
    actors = settings.actors
    percentage, interval_ms = actors.concurrency_percentage, actors.concurrency_interval_ms
    sources: list[Source] = []
    if actors.allow_anonymous:
        # Without it a request without a token is from nobody: 401. The reference says 403 then, as if it knew who.
        sources.append(AnonymousSource(is_allowed=True, percentage=percentage, interval_ms=interval_ms))
    if actors.file is not None:
        sources.append(load_static_actors(actors.file, percentage=percentage, interval_ms=interval_ms))
    return Sources(sources)


def build_dialects_of(settings: Settings) -> tuple[Dialect, ...]:
    """The dialects of all providers that have a key."""
    anthropic, openai = settings.anthropic, settings.openai
    return build_dialects(
        AnthropicProvider(
            api_url=anthropic.api_url,
            access_token=_reveal(anthropic.access_token),
            models=anthropic.allowed_models or ANTHROPIC_MODELS,
            max_tokens_cap=anthropic.max_tokens_to_sample,
        ),
        OpenAIProvider(
            api_url=openai.api_url,
            access_token=_reveal(openai.access_token),
            models=openai.allowed_models or OPENAI_MODELS,
            organization=openai.org_id,
        ),
    )


def _reveal(secret: Secret | None) -> str | None:
    return None if secret is None else secret.reveal()


def list_secrets(settings: Settings) -> list[str]:
    """Every secret that the settings hold, for the log's mask."""
    secrets = (
        settings.anthropic.access_token,
        settings.openai.access_token,
        settings.server.diagnostics_secret,
        settings.store.redis_endpoint,
        settings.limits.slack_webhook_url,
    )
    return [secret.reveal() for secret in secrets if secret is not None]


def log_start(service: Service) -> None:
    """Say what is served, from where, and what is not and why."""
    settings = service.settings
    for provider, token in (("anthropic", settings.anthropic.access_token), ("openai", settings.openai.access_token)):
        if token is None:
            variable = f"CODY_GATEWAY_{provider.upper()}_ACCESS_TOKEN"
            logger.warning("provider %s has no routes: %s is not set", provider, variable)
    if settings.actors.file is None and not settings.actors.allow_anonymous:
        logger.warning("nobody may use the gateway: set CODY_GATEWAY_ACTORS_FILE or CODY_GATEWAY_ALLOW_ANONYMOUS")
    logger.info("usage events are kept in %s", service.spool_path)
    logger.info("cgw %s is serving on %s", __version__, service.url)


def _spare_garbage_collection() -> None:
    """Keep what start-up has left out of every later collection, and collect less often.

    A full collection that walks all modules takes some 20 ms, which every stream would feel as a gap.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


async def _cut_on_signal(signals: AsyncIterator[int], service: Service) -> None:
    """Who asks a second time does not want to wait."""
    number = await anext(signals)
    logger.info("%s again: cutting what is left", signal.Signals(number).name)
    service.server.cut()


async def _serve_until_signal(settings: Settings) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with open_service(settings) as service:
            log_start(service)
            _spare_garbage_collection()
            number = await anext(signals)
            seconds = settings.server.drain_timeout_seconds
            logger.info("%s: draining for up to %g seconds", signal.Signals(number).name, seconds)
            async with trio.open_nursery() as drain_nursery:
                drain_nursery.start_soon(_cut_on_signal, signals, service)
                await service.drain(seconds)
                drain_nursery.cancel_scope.cancel()
    logger.info("ended")


def run_service(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; the exit status. This is ``cgw serve``.

    Raises :exc:`~cgw.errors.ConfigError`, with a sentence for each thing that keeps it from starting.
    """
    # The relay's thread must not wait for long when the Trio thread is at a long piece of Python (default: 5 ms).
    sys.setswitchinterval(SWITCH_SECONDS)
    logs = settings.logs
    is_terminal = {"text": True, "json": False}.get(logs.format)
    with open_logging(
        sys.stderr,
        is_terminal=is_terminal,
        has_colour=sys.stderr.isatty() and logs.no_color is None,
        level=logs.level,
        secrets=list_secrets(settings),
    ):
        for warning in settings.warnings:
            logger.warning("%s", warning)
        try:
            trio.run(_serve_until_signal, settings)
        except* (ConfigError, StoreUnavailable) as errors:
            raise ConfigError([problem for error in _leaves(errors) for problem in _problems(error)]) from None
    return EXIT_OK


def _problems(error: BaseException) -> tuple[str, ...]:
    return error.problems if isinstance(error, ConfigError) else (str(error),)


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
