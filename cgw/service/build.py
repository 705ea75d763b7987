"""Building the gateway's parts from the settings. Nothing runs yet."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import cast

import trio

from cgw import __version__
from cgw.actors.refresh import Refresher
from cgw.actors.source import Sources
from cgw.actors.static import StaticSource, load_static_actors
from cgw.actors.sync import SyncWorker
from cgw.config.describe import list_secrets
from cgw.config.kinds import Secret
from cgw.control.app import ControlApp
from cgw.control.attribution import Attribution
from cgw.control.maintenance import Maintenance
from cgw.control.metrics import MetricsRoute
from cgw.control.model_lists import ModelLists
from cgw.control.status import ServiceStatus
from cgw.errors import ConfigError
from cgw.events.event_log import EventLog
from cgw.events.repeats import RepeatedEvents
from cgw.events.shipping.shipping import Shipping
from cgw.flagging.flagger import Flagger
from cgw.flagging.recorder import PromptRecorder
from cgw.flagging.tokens import load_tokenizer
from cgw.gateway.http_engine import HttpEngine
from cgw.gateway.load import LoadTracker
from cgw.gateway.parts import Gateway
from cgw.gateway.routes import Routes
from cgw.gateway.stored import StoredObjects
from cgw.limits.alerts import AlertQueue
from cgw.limits.limiter import Limiter
from cgw.limits.offline.outage import WhenDown
from cgw.limits.options import LimiterOptions
from cgw.providers.dialect import Dialect
from cgw.providers.embeddings.build import build_embeddings_route, build_sdk_embeddings
from cgw.providers.error_styles import ReferenceErrors
from cgw.providers.fallback import build_fallbacks
from cgw.providers.registry import build_dialects, list_providers
from cgw.redis.opening import Store
from cgw.service.descriptors import choose_max_connections, read_descriptor_limit
from cgw.service.settings import Settings
from cgw.service.signals import Reload
from cgw.service.sources import OpenedSources
from cgw.service.telemetry import Telemetry
from cgw.telemetry.traces import Tracing
from cgw.transport.asgi_host import run_asgi_app
from cgw.transport.body_budget import BodyBudget
from cgw.transport.client_address import AddressBound, TrustedProxies
from cgw.transport.client_side import ClientLimits
from cgw.transport.flat_relay import FlatRelay
from cgw.transport.overload import OverloadControl
from cgw.transport.server import Server
from cgw.transport.server_tls import ServerTls
from cgw.transport.upstream import UpstreamDeadlines, UpstreamPool, build_tls_context
from cgw.wire.secret_filter import BodySecrets
from cgw.wire.trace_context import RequestTrace, build_traceparent

logger = logging.getLogger("cgw.service")


def build_gateway(
    settings: Settings,
    sources: Sources,
    tls_context: ssl.SSLContext,
    redis: Store,
    alerts: AlertQueue,
    event_log: EventLog,
    flagger: Flagger,
    telemetry: Telemetry,
) -> Gateway:
    """Return what all exchanges share."""
    return Gateway(
        sources=sources,
        refresher=Refresher(sources),
        limiter=Limiter(redis, build_limiter_options(settings), on_alert=alerts.put),
        pool=UpstreamPool(tls_context, build_deadlines(settings), secrets=BodySecrets.build(list_secrets(settings))),
        relay=FlatRelay(
            tick_seconds=settings.upstream.relay_tick_seconds,
            silence_seconds=settings.upstream.silence_timeout_seconds,
            stall_seconds=settings.server.client_stall_timeout_seconds,
        ),
        event_log=event_log,
        repeats=RepeatedEvents(event_log),
        flagger=flagger,
        readers=telemetry.readers,
        stored=StoredObjects(redis),
        timeout_seconds=settings.upstream.request_timeout_seconds,
        max_timeout_seconds=settings.upstream.max_timeout_seconds,
        load=LoadTracker(settings.upstream.unavailable_after),
        fallbacks=build_fallbacks(settings.providers),
        passes_account_fields=settings.upstream.passes_provider_headers,
        build_traceparent=partial(_build_traceparent, telemetry.tracing) if settings.traces.propagates else None,
    )


def _build_traceparent(tracing: Tracing | None, trace: RequestTrace) -> bytes:
    return build_traceparent(trace, is_sampled=tracing is not None and tracing.wants(trace))


async def open_flagger(settings: Settings, redis: Store) -> Flagger:
    """Return what examines prompts. Raises :exc:`~cgw.errors.ConfigError` if the tokenizer cannot be used."""
    rules, tokenizer = settings.flagging, None
    if rules.tokenizer_file is not None:
        tokenizer = await trio.to_thread.run_sync(load_tokenizer, rules.tokenizer_file)
    flagger = Flagger(rules, tokenizer, PromptRecorder(redis, rules.prompt_ttl_seconds))
    if (counting := flagger.describe_counting()) is not None:
        logger.log(logging.WARNING if rules.is_blocking else logging.INFO, "%s", counting)
    return flagger


def build_sync_worker(settings: Settings, sources: Sources, redis: Store) -> SyncWorker | None:
    """Return the worker that syncs the sources; ``None`` where none can be synced."""
    if not sources.syncers:
        return None
    return SyncWorker(sources.syncers, redis, interval_seconds=settings.actors.sync_interval_seconds)


def build_control_app(
    settings: Settings,
    gateway: Gateway,
    routes: Routes,
    redis: Store,
    status: ServiceStatus,
    opened: OpenedSources,
    sync_worker: SyncWorker | None,
    shipping: Shipping,
    telemetry: Telemetry,
) -> ControlApp:
    """Return the app of both ports."""
    maintenance = None
    if opened.introspection is None:
        logger.info("there are no /maintenance routes: SAMS_CLIENT_ID and SAMS_CLIENT_SECRET are not both set")
    else:
        maintenance = Maintenance(opened.introspection, gateway.flagger.recorder)
    return ControlApp(
        gateway=gateway,
        routes=routes,
        version=__version__,
        diagnostics_secret=_reveal(settings.server.diagnostics_secret),
        check_store=redis.check,
        describe_sinks=shipping.describe,
        status=status,
        attribution=Attribution(opened.dotcom if settings.dotcom.attribution else None),
        sync_worker=sync_worker,
        maintenance=maintenance,
        metrics=MetricsRoute(telemetry.take_scrape),
        log_level=telemetry.process.log_level,
        model_lists=ModelLists(list_providers(settings.providers), routes.dialects),
    )


def build_all_dialects(settings: Settings) -> tuple[Dialect, ...]:
    """Return the dialects of all provider routes, embeddings included.

    Raises :exc:`~cgw.errors.ConfigError` for base URLs and keys that cannot be used.
    """
    embeddings = build_embeddings_route(settings.embeddings, settings.providers)
    sdk_embeddings = build_sdk_embeddings(settings.embeddings, settings.providers)
    return (*build_dialects(settings.providers), *sdk_embeddings, *([] if embeddings is None else [embeddings]))


def build_routes(dialects: Sequence[Dialect], settings: Settings) -> Routes:
    """Return the provider routes."""
    providers = list_providers(settings.providers)
    return Routes(dialects, ReferenceErrors(), {provider.name: provider.sdk_errors for provider in providers})


def build_engine(
    settings: Settings,
    gateway: Gateway,
    routes: Routes,
    control_app: ControlApp,
    overload: OverloadControl,
    server_tls: ServerTls | None,
    addresses: AddressBound,
) -> HttpEngine:
    """Return the engine of the public port. ``addresses`` is shared with the server."""
    return HttpEngine(
        gateway,
        routes,
        build_client_limits(settings),
        serve_other=partial(run_asgi_app, control_app, render_refusal=routes.render_refusal),
        overload=overload,
        has_http2=settings.server.http2,
        max_exchanges=settings.overload.max_exchanges,
        budget=BodyBudget(settings.overload.max_buffered_bytes),
        tls_context=(lambda: None) if server_tls is None else server_tls.get_context,
        trusted=TrustedProxies(settings.server.trusted_proxies),
        addresses=addresses,
    )


def build_overload_control(settings: Settings) -> OverloadControl:
    """Return what sheds load."""
    overload = settings.overload
    return OverloadControl(target_seconds=overload.shed_target_seconds, interval_seconds=overload.shed_interval_seconds)


def build_server(settings: Settings, listeners: Sequence[trio.SocketListener], addresses: AddressBound) -> Server:
    """Return the server of the public port, with its bounds."""
    overload = settings.overload
    return Server(
        listeners,
        max_connections=choose_max_connections(overload.max_connections, read_descriptor_limit()),
        addresses=addresses,
        trusted=TrustedProxies(settings.server.trusted_proxies),
    )


def build_static_source(settings: Settings) -> StaticSource | None:
    """Return the source of the actors file; ``None`` where none is set.

    Blocks to read the file. Raises :exc:`~cgw.errors.ConfigError` with every problem in it.
    """
    actors = settings.actors
    if actors.file is None:
        return None
    return load_static_actors(
        actors.file, percentage=actors.concurrency_percentage, interval_ms=actors.concurrency_interval_ms
    )


def build_server_tls(settings: Settings) -> ServerTls | None:
    """Return the TLS of the public port; ``None`` where no certificate is set. Blocks to read the files.

    Raises :exc:`~cgw.errors.ConfigError` for files that cannot be used, or one without the other.
    """
    cert_file, key_file = settings.tls.cert_file, settings.tls.key_file
    if cert_file is None and key_file is None:
        return None
    if cert_file is None or key_file is None:
        raise ConfigError(["CODY_GATEWAY_TLS_CERT_FILE and CODY_GATEWAY_TLS_KEY_FILE must be set together"])
    return ServerTls(cert_file, key_file, has_http2=settings.server.http2)


def build_reloads(static_source: StaticSource | None, server_tls: ServerTls | None) -> list[Reload]:
    """Return what SIGHUP reads again, in order; the log level is added by the signals themselves."""
    reloads = []
    if static_source is not None:
        reloads.append(Reload("actors file", static_source.reload))
    if server_tls is not None:
        reloads.append(Reload("TLS certificate", server_tls.reload))
    return reloads


def build_upstream_tls(settings: Settings) -> ssl.SSLContext:
    """Return the TLS context of all upstreams. Blocks to read certificates.

    Raises :exc:`~cgw.errors.ConfigError` when the CA file cannot be used.
    """
    ca_file: Path | None = settings.upstream.ca_file
    try:
        return build_tls_context(None if ca_file is None else str(ca_file))
    except OSError as error:
        raise ConfigError([f"CODY_GATEWAY_UPSTREAM_CA_FILE: cannot use {ca_file}: {error.strerror}"]) from None


def build_client_limits(settings: Settings) -> ClientLimits:
    """Return what clients may send, and how long they may take."""
    server = settings.server
    return ClientLimits(
        max_head_bytes=server.max_head_bytes,
        max_body_bytes=server.max_body_bytes,
        max_upload_bytes=server.max_upload_bytes,
        header_timeout_seconds=server.header_timeout_seconds,
        body_timeout_seconds=server.body_timeout_seconds,
        keep_alive_timeout_seconds=server.keep_alive_timeout_seconds,
        stall_timeout_seconds=server.client_stall_timeout_seconds,
    )


def build_limiter_options(settings: Settings) -> LimiterOptions:
    """Return how limits are enforced."""
    limits = settings.limits
    bounds = {name: provider.max_in_flight for name, provider in settings.providers.items()}
    return LimiterOptions(
        when_down=cast(WhenDown, limits.when_redis_down),
        max_in_flight=limits.max_in_flight,
        provider_max_in_flight={name: bound for name, bound in bounds.items() if bound is not None},
        free_per_minute=limits.free_per_minute,
        heartbeat_seconds=limits.heartbeat_seconds,
        notify_thresholds=limits.notify_thresholds,
    )


def build_deadlines(settings: Settings) -> UpstreamDeadlines:
    """Return how long upstreams may take."""
    upstream = settings.upstream
    return UpstreamDeadlines(
        connect_seconds=upstream.connect_timeout_seconds,
        head_seconds=upstream.head_timeout_seconds,
        silence_seconds=upstream.silence_timeout_seconds,
    )


def _reveal(secret: Secret | None) -> str | None:
    return None if secret is None else secret.reveal()
