"""Opening the sources of actors that the settings name: one line for each in :data:`SOURCES`."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from urllib.parse import urlsplit

from attrs import frozen

from cgw import __version__
from cgw.actors.anonymous import AnonymousSource
from cgw.actors.dotcom.client import DotcomClient
from cgw.actors.dotcom.subscriptions import DotcomSubscriptions
from cgw.actors.dotcom.users import DotcomUsers
from cgw.actors.fetched.cached_source import CachedSource, CacheOptions, SourceParts
from cgw.actors.fetched.fetched_actor import ActorBuilder
from cgw.actors.fetched.redis_records import RedisRecords
from cgw.actors.fetched.synced_source import SyncedSource
from cgw.actors.fetched.token_shape import DOTCOM_USER_TOKEN, SUBSCRIPTION_TOKEN, TokenShape
from cgw.actors.policies import DOTCOM_USER, PRODUCT_SUBSCRIPTION
from cgw.actors.portal.introspection import SamsIntrospection
from cgw.actors.portal.sams import SamsTokens
from cgw.actors.portal.subscriptions import PortalSubscriptions
from cgw.actors.source import Source, Sources
from cgw.actors.static import StaticSource
from cgw.actors.web import WebClient, open_web_client
from cgw.errors import ConfigError
from cgw.limits.readings import examine_limits
from cgw.model import Actor, Feature
from cgw.redis.opening import Store
from cgw.service.settings import Settings
from cgw.telemetry.call_spans import CallTracer

USER_FRESH_SECONDS = 15 * 60.0
"""How long a user is used without asking Sourcegraph.com (the reference's §2.5)."""

SUBSCRIPTION_FRESH_SECONDS = 24 * 3600.0
"""The same of a product subscription (§2.7): syncing keeps it up to date."""

SUBSCRIPTION_COOLDOWN_SECONDS = 600.0
"""The least time between refreshes of a product subscription (§2.7)."""


@frozen
class SourceTools:
    """The parts that sources are built with. ``web`` is ``None`` where no setting names a source on the network."""

    settings: Settings
    static_source: StaticSource | None
    store: Store
    web: WebClient | None
    dotcom: DotcomClient | None

    def build_parts(self, name: str, shape: TokenShape, fresh_seconds: float, cooldown_seconds: float) -> SourceParts:
        """Return the parts of the source called ``name``, whose tokens have ``shape``."""
        actors = self.settings.actors
        return SourceParts(
            shape=shape,
            builder=ActorBuilder(
                name, percentage=actors.concurrency_percentage, interval_ms=actors.concurrency_interval_ms
            ),
            records=RedisRecords(
                self.store, name, ttl_seconds=actors.cache_ttl_seconds, is_indexed=name == PRODUCT_SUBSCRIPTION
            ),
            options=CacheOptions(
                fresh_seconds=min(fresh_seconds, actors.cache_ttl_seconds),
                ttl_seconds=actors.cache_ttl_seconds,
                cooldown_seconds=cooldown_seconds,
                fetches_per_minute=actors.unknown_tokens_per_address,
            ),
            on_interval_change=self._reset_usage,
        )

    async def _reset_usage(self, actor: Actor, features: Sequence[Feature]) -> None:
        await examine_limits(self.store, actor, features, "reset", has_in_flight=False)


@frozen
class OpenedSources:
    """The sources, and the clients of Sourcegraph.com and of SAMS where there are such."""

    sources: Sources
    dotcom: DotcomClient | None
    introspection: SamsIntrospection | None


@asynccontextmanager
async def open_sources(
    settings: Settings,
    static_source: StaticSource | None,
    store: Store,
    tls_context: ssl.SSLContext,
    tracer: CallTracer | None = None,
) -> AsyncIterator[OpenedSources]:
    """Open the sources for the length of the block, in the order in which they are asked."""
    async with AsyncExitStack() as stack:
        web = dotcom = introspection = None
        if has_remote_source(settings) or _is_sams_client(settings):
            web = await stack.enter_async_context(open_web_client(tls_context, tracer))
            dotcom = _build_dotcom_client(settings, web)
            introspection = _build_introspection(settings, web)
        tools = SourceTools(settings, static_source, store, web, dotcom)
        sources = Sources([source for build in SOURCES if (source := build(tools)) is not None])
        yield OpenedSources(sources, dotcom, introspection)


def _is_sams_client(settings: Settings) -> bool:
    return settings.sams.client_id is not None and settings.sams.client_secret is not None


def _build_introspection(settings: Settings, web: WebClient) -> SamsIntrospection | None:
    sams = settings.sams
    if sams.client_id is None or sams.client_secret is None:
        return None
    url = sams.api_url or sams.url
    return SamsIntrospection(web, url, client_id=sams.client_id, client_secret=sams.client_secret.reveal())


def _build_dotcom_client(settings: Settings, web: WebClient) -> DotcomClient | None:
    dotcom = settings.dotcom
    if dotcom.access_token is None:
        return None
    return DotcomClient(
        web,
        dotcom.api_url,
        access_token=dotcom.access_token.reveal(),
        user_agent=f"Cody-Gateway/{dotcom.environment} {__version__}",
        client_id=dotcom.client_id,
    )


def _build_anonymous(tools: SourceTools) -> Source | None:
    actors = tools.settings.actors
    if not actors.allow_anonymous:
        # Without this source a request without a token gets 401: nobody was recognised, so nobody can be forbidden.
        return None
    return AnonymousSource(percentage=actors.concurrency_percentage, interval_ms=actors.concurrency_interval_ms)


def _build_static(tools: SourceTools) -> Source | None:
    return tools.static_source


def _build_dotcom_users(tools: SourceTools) -> Source | None:
    if tools.dotcom is None:
        return None
    cooldown_seconds = tools.settings.dotcom.cooldown_seconds
    parts = tools.build_parts(DOTCOM_USER, DOTCOM_USER_TOKEN, USER_FRESH_SECONDS, cooldown_seconds)
    return CachedSource(DotcomUsers(tools.dotcom), parts)


def _build_subscriptions(tools: SourceTools) -> Source | None:
    parts = tools.build_parts(
        PRODUCT_SUBSCRIPTION, SUBSCRIPTION_TOKEN, SUBSCRIPTION_FRESH_SECONDS, SUBSCRIPTION_COOLDOWN_SECONDS
    )
    settings, web = tools.settings, tools.web
    if settings.portal.url is not None and web is not None:
        sams = settings.sams
        if sams.client_id is None or sams.client_secret is None:
            raise ConfigError(_list_problems(settings))
        tokens = SamsTokens(
            web, sams.api_url or sams.url, client_id=sams.client_id, client_secret=sams.client_secret.reveal()
        )
        return SyncedSource(PortalSubscriptions(web, settings.portal.url, tokens), parts)
    if tools.dotcom is not None:
        return SyncedSource(DotcomSubscriptions(tools.dotcom, is_internal=settings.dotcom.internal_mode), parts)
    return None


SOURCES: Sequence[Callable[[SourceTools], Source | None]] = (
    _build_anonymous,
    _build_static,
    _build_dotcom_users,
    _build_subscriptions,
)
"""The reference's order (§2.1), with the static file after the anonymous source."""


def has_remote_source(settings: Settings) -> bool:
    """Return whether a source on the network is set."""
    return settings.dotcom.access_token is not None or settings.portal.url is not None


def check_source_settings(settings: Settings) -> None:
    """Raise :exc:`~cgw.errors.ConfigError` with every reason why the sources cannot be opened.

    Each has the form ``variable: what is wrong: what to do``.
    """
    problems = _list_problems(settings)
    if problems:
        raise ConfigError(problems)


def _list_problems(settings: Settings) -> list[str]:
    problems = []
    sams = settings.sams
    if settings.portal.url is not None:
        for name, value in (("SAMS_CLIENT_ID", sams.client_id), ("SAMS_CLIENT_SECRET", sams.client_secret)):
            if value is None:
                problems.append(
                    f"{name}: is not set, and CODY_GATEWAY_ENTERPRISE_PORTAL_URL is: set it, or unset that one"
                )
    if settings.portal.url is not None and settings.dotcom.internal_mode:
        # Without this, a gateway for development would serve every customer.
        problems.append(
            "CODY_GATEWAY_DOTCOM_INTERNAL_MODE: cannot be used with CODY_GATEWAY_ENTERPRISE_PORTAL_URL, since the "
            "portal does not tell the tags of licences: unset one of them"
        )
    for name, url in (
        ("CODY_GATEWAY_DOTCOM_API_URL", settings.dotcom.api_url if settings.dotcom.access_token else None),
        ("CODY_GATEWAY_ENTERPRISE_PORTAL_URL", settings.portal.url),
        (
            "SAMS_API_URL" if sams.api_url else "SAMS_URL",
            (sams.api_url or sams.url) if settings.portal.url or _is_sams_client(settings) else None,
        ),
    ):
        if url is not None and not _is_private(url):
            problems.append(f"{name}: must begin with https:// since tokens are sent there: correct it")
    return problems


def _is_private(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "https" or parts.hostname in ("localhost", "127.0.0.1", "::1")
