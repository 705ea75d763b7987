"""Checks of what the settings name on the network: Redis, the providers' hosts, the webhook."""

from __future__ import annotations

import ssl
from contextlib import suppress
from functools import partial
from urllib.parse import urlsplit

import trio
from attrs import field, frozen

from cgw.errors import ConfigError, StoreUnavailable, explain_os_error
from cgw.events.sinks.bigquery.sink import open_unchecked_sink
from cgw.events.sinks.sink import SinkUnavailable
from cgw.providers.registry import list_providers
from cgw.redis.embedded import find_embedded_redis, find_server
from cgw.redis.opening import open_redis
from cgw.service.build import build_upstream_tls
from cgw.service.findings import Finding, Severity, explain_problems, parse_finding
from cgw.service.settings import Settings

REDIS_CONNECT_SECONDS = 3.0
BIGQUERY_SECONDS = 8.0
"""Less than a check may take: on a machine without a login, Google's library looks for one for 12 s."""

_DEFAULT_PORTS = {"http": 80, "https": 443}


async def check_redis(settings: Settings) -> list[Finding]:
    """Check that the Redis of the settings answers; without one, that there is a server to run."""
    endpoint, variable = settings.redis.endpoint, "REDIS_ENDPOINT"
    if endpoint is None:
        return _check_embedded_server()
    remedy = "start it, or correct the address, its password or certificate"
    try:
        async with open_redis(
            endpoint.reveal(),
            timeout_seconds=settings.redis.timeout_seconds,
            connect_timeout_seconds=REDIS_CONNECT_SECONDS,
        ) as store:
            await store.check()
    except ConfigError as error:
        return explain_problems(variable, error, remedy)
    except StoreUnavailable as error:
        return [Finding(variable, str(error), remedy, Severity.OUTAGE)]
    return []


def _check_embedded_server() -> list[Finding]:
    try:
        find_server()
    except ConfigError as error:
        return explain_problems("REDIS_ENDPOINT", error, "install one, or name a server of your own")
    return []


async def check_bigquery(settings: Settings) -> list[Finding]:
    """Check that the BigQuery table can be reached with the credentials there are, and that it takes events."""
    table, variable = settings.bigquery, "CODY_GATEWAY_BIGQUERY_PROJECT_ID"
    try:
        async with open_unchecked_sink(table, send_seconds=BIGQUERY_SECONDS) as sink:
            problems = await sink.find_problems()
    except ConfigError as error:
        return [parse_finding(problem) for problem in error.problems]
    except SinkUnavailable as error:
        return [parse_finding(f"{variable}: {error}", Severity.OUTAGE)]
    return [
        Finding(variable, f"the table {table.table_name}: {problem.wrong}", problem.remedy, Severity.OUTAGE)
        for problem in problems
    ]


async def check_data_dir_is_free(settings: Settings) -> list[Finding]:
    """Check that no other gateway runs its embedded store in the data directory."""
    directory = settings.data.directory
    if settings.redis.endpoint is not None:
        return []  # only an embedded store needs the directory for itself
    with suppress(StoreUnavailable):
        await find_embedded_redis(directory)
        wrong = f"data directory {directory} is in use by another cgw"
        remedy = "end that cgw, name another directory, or set REDIS_ENDPOINT for both"
        return [Finding("CODY_GATEWAY_DATA_DIR", wrong, remedy)]
    return []


@frozen
class Target:
    """A host that cgw connects to: its URL, and the variable that it comes from."""

    variable: str
    url: str = field(repr=False)  # a webhook's path is secret


async def check_host(target: Target, settings: Settings) -> list[Finding]:
    """Check that the host of ``target`` resolves, accepts a connection, and has a certificate that is trusted.

    Sends no request, and so no key. ``CODY_GATEWAY_UPSTREAM_CONNECT_TIMEOUT`` bounds it.
    """
    parts = urlsplit(target.url)
    host, port = parts.hostname or "", parts.port or _DEFAULT_PORTS[parts.scheme]
    report = partial(Finding, target.variable, severity=Severity.OUTAGE)
    with trio.move_on_after(settings.upstream.connect_timeout_seconds):
        try:
            await trio.socket.getaddrinfo(host, port)
        except OSError as error:
            return [report(f"cannot resolve {host}: {explain_os_error(error)}", "correct the name, or mend DNS here")]
        try:
            stream = await trio.open_tcp_stream(host, port)
        except OSError as error:
            wrong = f"cannot connect to {host}:{port}: {explain_os_error(error)}"
            return [report(wrong, "correct the URL, or let this machine connect there (route, firewall)")]
        async with stream:
            return await _check_certificate(stream, host, report, settings) if parts.scheme == "https" else []
    wrong = f"no connection to {host}:{port} within {settings.upstream.connect_timeout_seconds:g} s"
    return [report(wrong, "correct the URL, or let this machine connect there (route, firewall, DNS)")]


async def _check_certificate(
    stream: trio.SocketStream, host: str, report: partial[Finding], settings: Settings
) -> list[Finding]:
    try:
        context = await trio.to_thread.run_sync(build_upstream_tls, settings, abandon_on_cancel=True)
    except ConfigError:
        return []  # the CA file has a finding of its own
    try:
        await trio.SSLStream(stream, context, server_hostname=host).do_handshake()
    except (trio.BrokenResourceError, ssl.SSLError, OSError) as error:
        wrong = f"TLS with {host} failed: {explain_os_error(error)}"
        return [report(wrong, "correct the URL, or name the CA in CODY_GATEWAY_UPSTREAM_CA_FILE")]
    return []


def list_targets(settings: Settings) -> list[Target]:
    """Return the hosts that the settings name: of providers with a key, embeddings, sources, webhook, and events."""
    targets = [
        Target(provider.api_url_variable, settings.providers[provider.name].api_url)
        for provider in list_providers(settings.providers)
        if settings.providers[provider.name].access_token is not None and settings.providers[provider.name].api_url
    ]
    if settings.embeddings.sourcegraph_api_token is not None:
        variable = "CODY_GATEWAY_SOURCEGRAPH_EMBEDDINGS_API_URL"
        targets.append(Target(variable, settings.embeddings.sourcegraph_api_url))
    if settings.dotcom.access_token is not None:
        targets.append(Target("CODY_GATEWAY_DOTCOM_API_URL", settings.dotcom.api_url))
    if settings.portal.url is not None:
        sams = settings.sams
        targets.append(Target("CODY_GATEWAY_ENTERPRISE_PORTAL_URL", settings.portal.url))
        targets.append(Target("SAMS_API_URL" if sams.api_url else "SAMS_URL", sams.api_url or sams.url))
    webhook = settings.limits.slack_webhook_url
    if webhook is not None:
        variable = "CODY_GATEWAY_ACTOR_RATE_LIMIT_NOTIFY_SLACK_WEBHOOK_URL"
        targets.append(Target(variable, webhook.reveal()))
    if settings.http_sink.url is not None:
        targets.append(Target("CODY_GATEWAY_EVENTS_HTTP_URL", settings.http_sink.url.reveal()))
    return targets
