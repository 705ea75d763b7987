"""The work of ``cgw token check`` and ``cgw actors list``: asking the sources of the settings, and printing actors."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec
import trio

from cgw.actors.policies import ANONYMOUS, STATIC
from cgw.actors.source import NotFromSource, TooManyUnknownTokens
from cgw.cli.tables import Column, render_table
from cgw.durations import format_duration
from cgw.errors import CgwError, StoreUnavailable
from cgw.lifetime import open_background_task
from cgw.model import Actor, RateLimit
from cgw.redis.embedded import find_embedded_redis, open_embedded_redis
from cgw.redis.opening import open_redis
from cgw.service.build import build_static_source, build_upstream_tls
from cgw.service.settings import Settings
from cgw.service.sources import OpenedSources, check_source_settings, open_sources

T = TypeVar("T")

TIMEOUT_SECONDS = 5.0
"""No request waits for these calls, so they may take longer than the gateway's own."""

MAX_ACTORS = 10_000
LIST_SECONDS = 60.0
"""The bounds of a list from Redis."""

_LIMIT_COLUMNS = (Column("feature"), Column("quota"), Column("short-term rate"), Column("at once"), Column("models"))
_ACTOR_COLUMNS = (
    Column("source"),
    Column("id"),
    Column("name"),
    Column("access"),
    Column("quotas"),
    Column("fetched"),
)

_SETTINGS_BY_PREFIX = {
    "sgd_": "tokens of Sourcegraph.com's users need CODY_GATEWAY_DOTCOM_ACCESS_TOKEN",
    "slk_": "tokens of instances need CODY_GATEWAY_ENTERPRISE_PORTAL_URL or CODY_GATEWAY_DOTCOM_ACCESS_TOKEN",
    "cgw_": "tokens of static actors need CODY_GATEWAY_ACTORS_FILE, and an entry in it",
    "sgp_": "this is an access token of Sourcegraph: `cgw token derive --from access-token` makes the gateway's of it",
}


class UnknownToken(CgwError):
    """No source knows the token."""


def check_token(settings: Settings, token: str, *, as_json: bool, width: int) -> None:
    """Print what the gateway with ``settings`` makes of ``token``.

    Raises :exc:`~cgw.errors.CgwError` for a token that it would refuse, or cannot decide on.
    """

    async def ask(opened: OpenedSources) -> Actor:
        try:
            return await opened.sources.get(token)
        except NotFromSource:
            raise UnknownToken(_explain_unknown(token)) from None
        except TooManyUnknownTokens as error:  # not from a single command
            raise UnknownToken(str(error)) from None

    actor = _use_sources(settings, ask)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(_describe(actor)), indent=2))
        return
    for title, text in (
        ("source", actor.source),
        ("actor", actor.id if actor.name in ("", actor.id) else f"{actor.id}, {actor.name}"),
        ("access", _write_access(actor)),
        ("known", _write_age(settings, actor)),
    ):
        click.echo(f"{title:<8}{text}")
    rows = [_write_limit(feature.value, limit) for feature, limit in actor.rate_limits.items()]
    if not rows:
        click.echo("no feature has a limit, so each request gets 403")
        return
    click.echo()
    click.echo(render_table(_LIMIT_COLUMNS, rows, is_terminal=sys.stdout.isatty(), width=width), nl=False)


def list_actors(settings: Settings, *, source: str | None, as_json: bool, width: int) -> None:
    """Print the actors of local sources, and those of other sources that Redis keeps.

    Raises :exc:`~cgw.errors.CgwError` when they cannot be read.
    """

    async def ask(opened: OpenedSources) -> tuple[list[Actor], bool]:
        actors: list[Actor] = []
        is_complete = True
        for one in opened.sources.listers:
            if source is None or one.name == source:
                listed = await one.list_actors(max_actors=MAX_ACTORS, seconds=LIST_SECONDS)
                actors += sorted(listed.actors, key=lambda actor: actor.id)
                is_complete = is_complete and listed.is_complete
        return actors, is_complete

    actors, is_complete = _use_sources(settings, ask)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode([_describe(actor) for actor in actors]), indent=2))
    else:
        rows = [_write_row(actor) for actor in actors]
        click.echo(render_table(_ACTOR_COLUMNS, rows, is_terminal=sys.stdout.isatty(), width=width), nl=False)
    # On standard error: a program that reads the list or table finds nothing but rows.
    if not is_complete:
        click.echo("cgw: warning: Redis keeps more actors than are listed", err=True)
    elif not actors:
        click.echo("no actors are known: see CODY_GATEWAY_ACTORS_FILE, or docs/sourcegraph.md", err=True)


def _use_sources(settings: Settings, work: Callable[[OpenedSources], Awaitable[T]]) -> T:
    """Run ``work`` with the sources that a gateway with ``settings`` has."""
    check_source_settings(settings)
    static_source, tls_context = build_static_source(settings), build_upstream_tls(settings)

    async def run() -> T:
        async with AsyncExitStack() as stack:
            url = await stack.enter_async_context(_find_redis(settings))
            store = await stack.enter_async_context(
                open_redis(url, timeout_seconds=TIMEOUT_SECONDS, connect_timeout_seconds=TIMEOUT_SECONDS)
            )
            opened = await stack.enter_async_context(open_sources(settings, static_source, store, tls_context))
            for source in opened.sources.runners:
                await stack.enter_async_context(open_background_task(source.run))
            # Tasks that start in the same turn run in any order; after a second turn, all of them have begun.
            for _ in range(2):
                await trio.lowlevel.checkpoint()
            return await work(opened)

    try:
        return trio.run(run)
    except BaseExceptionGroup as errors:
        # Trio's nurseries wrap Ctrl-C in a group; the command line expects it by itself.
        if errors.subgroup(KeyboardInterrupt) is None:
            raise
        raise KeyboardInterrupt from None


@asynccontextmanager
async def _find_redis(settings: Settings) -> AsyncIterator[str]:
    """Yield the URL of the Redis that the gateway uses; of an empty one for this command alone where there is none."""
    if settings.redis.endpoint is not None:
        yield settings.redis.endpoint.reveal()
        return
    try:
        url = await find_embedded_redis(settings.data.directory)
    except StoreUnavailable:
        # No gateway is running: then the sources are asked without what it had kept.
        with tempfile.TemporaryDirectory(prefix="cgw-") as folder:
            async with open_embedded_redis(Path(folder)) as url:
                yield url
        return
    yield url


def _explain_unknown(token: str) -> str:
    for prefix, hint in _SETTINGS_BY_PREFIX.items():
        if token.startswith(prefix):
            return f"no source knows the token: {hint}"
    return "no source knows the token: it begins with none of slk_, sgd_, cgw_, and the actors file does not list it"


# --- text for people ------------------------------------------------------------------------------------------------


def _write_access(actor: Actor) -> str:
    if actor.access_enabled:
        return "on"
    granted = [path for path, is_granted in actor.endpoint_access.items() if is_granted]
    return "off: 403" + (f", except for {', '.join(granted)}" if granted and actor.id else "")


def _write_age(settings: Settings, actor: Actor) -> str:
    if actor.source == STATIC:
        return f"from {settings.actors.file}, as it is now"
    if actor.source == ANONYMOUS:
        return "built in"
    if actor.last_updated is None:
        return "since an unknown time"
    age = format_duration(max(0, round((datetime.now(UTC) - actor.last_updated).total_seconds())))
    text = f"fetched {age} ago, {actor.last_updated:%Y-%m-%d %H:%M:%S}Z"
    return f"{text}; the source cannot be asked now, so this may be out of date" if actor.is_stale else text


def _write_limit(feature: str, limit: RateLimit) -> tuple[str, ...]:
    return (
        feature,
        _write_quota(limit),
        f"{limit.concurrent_requests:,} requests per {format_duration(limit.concurrent_interval_ms / 1000)}",
        "–" if limit.max_in_flight is None else f"{limit.max_in_flight:,}",
        ", ".join(limit.allowed_models),
    )


def _write_quota(limit: RateLimit) -> str:
    return f"{limit.limit:,} {limit.unit} per {format_duration(limit.interval_ms / 1000)}"


def _write_row(actor: Actor) -> tuple[str, ...]:
    quotas = "; ".join(f"{feature.value} {_write_quota(limit)}" for feature, limit in actor.rate_limits.items())
    fetched = "" if actor.last_updated is None else f"{actor.last_updated:%Y-%m-%d %H:%M:%S}Z"
    return actor.source, actor.id, actor.name, "on" if actor.access_enabled else "off", quotas, fetched


def _describe(actor: Actor) -> Mapping[str, Any]:
    """Return the actor for JSON; msgspec writes times as RFC 3339 and enums as their values."""
    limits: Mapping[str, Mapping[str, Any]] = {
        feature.value: {
            "limit": limit.limit,
            "unit": limit.unit,
            "interval_ms": limit.interval_ms,
            "concurrent_requests": limit.concurrent_requests,
            "concurrent_interval_ms": limit.concurrent_interval_ms,
            "max_in_flight": limit.max_in_flight,
            "allowed_models": limit.allowed_models,
        }
        for feature, limit in actor.rate_limits.items()
    }
    return {
        "source": actor.source,
        "id": actor.id,
        "name": actor.name,
        "access_enabled": actor.access_enabled,
        "endpoint_access": actor.endpoint_access,
        "limits": limits,
        "fetched": actor.last_updated,
        "is_stale": actor.is_stale,
    }
