"""The lines that a start leaves in the log: what is served, from what, and what is missing."""

from __future__ import annotations

import logging
from collections import defaultdict

from cgw import __version__
from cgw.providers.embeddings.route import EmbeddingsRoute
from cgw.providers.pass_routes import PassRoute
from cgw.providers.registry import list_providers
from cgw.service.check import list_host_checks, run_checks
from cgw.service.lifecycle import Service, build_url
from cgw.service.settings import Settings
from cgw.service.sources import has_remote_source

logger = logging.getLogger("cgw.service")


def log_start(service: Service) -> None:
    """Log providers with their routes, actors, store and event log, what is missing, and last version and address."""
    settings = service.settings
    _log_providers(service)
    _log_actors(service)
    endpoint = settings.redis.endpoint
    logger.info("limits are counted in %s", "the embedded store" if endpoint is None else f"Redis at {endpoint}")
    sinks = " and ".join(sink.name for sink in service.shipping.statistics())
    logger.info("usage events are kept in %s%s", service.events_folder, sinks and f", and shipped to {sinks}")
    if service.admin_port is not None:
        logger.info("the admin port is %s", build_url(settings.admin.host, service.admin_port))
    logger.info("cgw %s is serving on %s", __version__, service.url)


def _log_providers(service: Service) -> None:
    paths = defaultdict(list)
    for dialect in service.dialects:
        if isinstance(dialect, EmbeddingsRoute):
            logger.info("embeddings by %s are at POST %s", ", ".join(dialect.embedders), dialect.path)
            continue
        if isinstance(dialect, PassRoute):
            text = "provider %s passes %s unread: all callers share its account there"
            logger.info(text, dialect.provider, dialect.pattern)
            continue
        paths[dialect.provider].append(dialect.path)
    # One provider is enough: that others have no key is worth a warning only if all are without.
    level = logging.INFO if paths else logging.WARNING
    for provider in list_providers(service.settings.providers):
        if provider.name in paths:
            url = service.settings.providers[provider.name].api_url
            logger.info("provider %s at %s serves POST %s", provider.name, url, ", ".join(paths[provider.name]))
        else:
            logger.log(level, "provider %s has no routes: %s is not set", provider.name, provider.access_token_variable)


def _log_actors(service: Service) -> None:
    actors = service.settings.actors
    has_remote = has_remote_source(service.settings)
    if actors.file is None and not actors.allow_anonymous and not has_remote:
        logger.warning(
            "nobody may use the gateway: set CODY_GATEWAY_ACTORS_FILE, CODY_GATEWAY_DOTCOM_ACCESS_TOKEN, "
            "CODY_GATEWAY_ENTERPRISE_PORTAL_URL or CODY_GATEWAY_ALLOW_ANONYMOUS"
        )
        return
    parts = [] if actors.file is None else [f"{service.actor_count} actors from {actors.file}"]
    if has_remote:
        parts.append(f"those that {_name_remote_sources(service.settings)} knows")
    if actors.allow_anonymous:
        parts.append("callers without a token, as one actor")
    logger.info("access is for %s", " and ".join(parts))


def _name_remote_sources(settings: Settings) -> str:
    names = [] if settings.dotcom.access_token is None else [settings.dotcom.api_url]
    names += [] if settings.portal.url is None else [settings.portal.url]
    return " or ".join(names)


async def log_unreachable_hosts(settings: Settings) -> None:
    """Log a warning for each host of a provider, or of the webhook, that cannot be reached now. Bounded in time.

    Beside serving and not before it, so that an outage elsewhere delays no start. Raises nothing.
    """
    try:
        findings = await run_checks(list_host_checks(settings))
    except Exception:
        # It is only advice: whatever is wrong with it must not end the service.
        logger.exception("the hosts of the providers could not be checked")
        return
    for finding in findings:
        logger.warning("%s", finding)
