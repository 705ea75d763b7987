"""Building the gateway's parts from the settings. Nothing runs yet."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from cgw import __version__
from cgw.actors.anonymous import AnonymousSource
from cgw.actors.refresh import Refresher
from cgw.actors.source import Source, Sources
from cgw.actors.static import load_static_actors
from cgw.config.kinds import Secret
from cgw.control.app import ControlApp
from cgw.control.hypercorn_engine import HypercornEngine
from cgw.errors import ConfigError
from cgw.events.event_log import EventLog
from cgw.gateway.http_engine import HttpEngine
from cgw.gateway.parts import Gateway
from cgw.gateway.routes import Routes
from cgw.limits.alerts import AlertQueue
from cgw.limits.limiter import Limiter, LimiterOptions
from cgw.limits.offline.outage import WhenDown
from cgw.providers.dialect import Dialect
from cgw.providers.error_styles import ReferenceErrors
from cgw.redis.opening import Store
from cgw.service.settings import Settings
from cgw.transport.client_side import ClientLimits
from cgw.transport.flat_relay import FlatRelay
from cgw.transport.upstream import UpstreamDeadlines, UpstreamPool, build_tls_context


def build_gateway(
    settings: Settings,
    sources: Sources,
    tls_context: ssl.SSLContext,
    redis: Store,
    alerts: AlertQueue,
    event_log: EventLog,
) -> Gateway:
    """Return what all exchanges share."""
    return Gateway(
        sources=sources,
        refresher=Refresher(sources),
        limiter=Limiter(redis, build_limiter_options(settings), on_alert=alerts.put),
        pool=UpstreamPool(tls_context, build_deadlines(settings)),
        relay=FlatRelay(
            tick_seconds=settings.upstream.relay_tick_seconds,
            silence_seconds=settings.upstream.silence_timeout_seconds,
            stall_seconds=settings.server.client_stall_timeout_seconds,
        ),
        event_log=event_log,
        timeout_seconds=settings.upstream.request_timeout_seconds,
        max_timeout_seconds=settings.upstream.max_timeout_seconds,
    )


def build_engines(
    settings: Settings, gateway: Gateway, dialects: Sequence[Dialect], redis: Store
) -> tuple[HttpEngine, HypercornEngine]:
    """Return the engine of the provider routes, and the one that it hands all other connections to."""
    limits = build_client_limits(settings)
    routes = Routes({dialect.path.encode("ascii"): dialect for dialect in dialects})
    errors = ReferenceErrors()
    control_app = ControlApp(
        gateway=gateway,
        routes=routes,
        limits=limits,
        errors=errors,
        version=__version__,
        diagnostics_secret=_reveal(settings.server.diagnostics_secret),
        check_store=redis.check,
    )
    hypercorn_engine = HypercornEngine(control_app, limits)
    http_engine = HttpEngine(gateway, routes, limits, errors=errors, hand_over=hypercorn_engine.serve_connection)
    return http_engine, hypercorn_engine


def build_sources(settings: Settings) -> Sources:
    """Return the sources of actors that the settings name, in the order in which they are asked.

    Blocks to read the actors file. Raises :exc:`~cgw.errors.ConfigError` with every problem in it.
    """
    actors = settings.actors
    percentage, interval_ms = actors.concurrency_percentage, actors.concurrency_interval_ms
    sources: list[Source] = []
    if actors.allow_anonymous:
        # Without this source a request without a token gets 401: nobody was recognised, so nobody can be forbidden.
        sources.append(AnonymousSource(percentage=percentage, interval_ms=interval_ms))
    if actors.file is not None:
        sources.append(load_static_actors(actors.file, percentage=percentage, interval_ms=interval_ms))
    return Sources(sources)


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
