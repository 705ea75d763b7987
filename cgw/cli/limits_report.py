"""The work of ``cgw limits``: finding the store and the actors by the settings, and printing how the limits stand."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import attrs
import click
import msgspec
import trio

from cgw.actors.anonymous import AnonymousSource
from cgw.actors.policies import POLICIES
from cgw.actors.static import load_static_actors
from cgw.cli.tables import Column, format_figure, render_table
from cgw.durations import format_duration
from cgw.limits.claims import bound_in_flight
from cgw.limits.maintenance import Activity, LimitMaintenance
from cgw.limits.readings import LimitReading
from cgw.model import Actor, Feature
from cgw.redis.embedded import find_embedded_redis
from cgw.redis.opening import open_redis
from cgw.service.settings import Settings

T = TypeVar("T")

CONNECT_SECONDS = 5.0
LEAST_TIMEOUT_SECONDS = 5.0
"""No request waits for these calls, so they may take longer than the gateway's own."""

_COLUMNS = (
    Column("source"),
    Column("feature"),
    Column("limit"),
    Column("size"),
    Column("used", is_figure=True),
    Column("remaining", is_figure=True),
    Column("unused again"),
    Column("alerts"),
)


def show(
    settings: Settings, actor_id: str, *, feature: Feature | None, source: str | None, as_json: bool, width: int
) -> None:
    """Print how the limits of an actor stand. Raises :exc:`~cgw.errors.CgwError` when that is unknown."""

    async def read(maintenance: LimitMaintenance) -> list[LimitReading]:
        return await maintenance.read(actor_id, feature=feature, source=source)

    readings = _use_store(settings, read)
    if as_json:
        _print_json(readings)
        return
    cells = [_write_cells(reading) for reading in readings]
    click.echo(render_table(_COLUMNS, cells, is_terminal=sys.stdout.isatty(), width=width), nl=False)


def show_active(settings: Settings, *, feature: Feature | None, source: str | None, as_json: bool, width: int) -> None:
    """Print the limits that are used now, of all actors. Raises :exc:`~cgw.errors.CgwError` when that is unknown."""

    async def read(maintenance: LimitMaintenance) -> Activity:
        return await maintenance.read_active(feature=feature, source=source)

    activity = _use_store(settings, read)
    if as_json:
        _print_json(activity.readings)
    else:
        columns = (_COLUMNS[0], Column("actor"), *_COLUMNS[1:])
        cells = []
        for reading in activity.readings:
            name, *others = _write_cells(reading)
            cells.append((name, reading.actor, *others))
        click.echo(render_table(columns, cells, is_terminal=sys.stdout.isatty(), width=width), nl=False)
    # On standard error: a program that reads the list or table finds nothing but rows.
    for problem in activity.problems:
        click.echo(f"cgw: warning: {problem}", err=True)
    if not activity.is_complete:
        click.echo("cgw: warning: there are more actors with activity than are listed; name one with --actor", err=True)
    elif not activity.readings:
        click.echo("no limits are used now", err=True)


def _print_json(readings: Sequence[LimitReading]) -> None:
    # msgspec writes times as RFC 3339 and enums as their values.
    rows = [attrs.asdict(reading) for reading in readings]
    click.echo(msgspec.json.format(msgspec.json.encode(rows), indent=2))


def reset(
    settings: Settings, actor_id: str, *, feature: Feature | None, source: str | None, has_in_flight: bool
) -> None:
    """Reset the limits of an actor, and print which were used. Raises :exc:`~cgw.errors.CgwError` when it can't."""

    async def write(maintenance: LimitMaintenance) -> list[LimitReading]:
        return await maintenance.reset(actor_id, feature=feature, source=source, has_in_flight=has_in_flight)

    used = _use_store(settings, write)
    for reading in used:
        click.echo(_describe_reset(reading))
    click.echo(f"{len(used)} limit{'' if len(used) == 1 else 's'} reset{'' if used else ': none was used'}")


async def list_known_actors(settings: Settings) -> list[Actor]:
    """Return the actors of local sources, with the limits that a gateway with these settings enforces.

    Blocks to read a file. Raises :exc:`~cgw.errors.ConfigError` with every problem in the actors file.
    """
    actors = settings.actors
    percentage, interval_ms = actors.concurrency_percentage, actors.concurrency_interval_ms
    known: list[Actor] = []
    if actors.allow_anonymous:
        anonymous = AnonymousSource(percentage=percentage, interval_ms=interval_ms)
        known.append(await anonymous.get(""))
    if actors.file is not None:
        known += load_static_actors(actors.file, percentage=percentage, interval_ms=interval_ms).actors
    # As in Limiter: the operator's bound applies where an actor has none of its own.
    most = settings.limits.max_in_flight
    return [
        attrs.evolve(
            actor, rate_limits={feature: bound_in_flight(limit, most) for feature, limit in actor.rate_limits.items()}
        )
        for actor in known
    ]


def _use_store(settings: Settings, work: Callable[[LimitMaintenance], Awaitable[T]]) -> T:
    """Run ``work`` on the store that the gateway uses, with the actors of local sources."""

    async def run() -> T:
        known = await list_known_actors(settings)
        endpoint = settings.redis.endpoint
        # As in the gateway: without REDIS_ENDPOINT, the store is the embedded one of the data directory.
        url = await find_embedded_redis(settings.data.directory) if endpoint is None else endpoint.reveal()
        # The gateway's own deadline (0.1 s by default) is for requests that wait.
        timeout_seconds = max(settings.redis.timeout_seconds, LEAST_TIMEOUT_SECONDS)
        async with open_redis(url, timeout_seconds=timeout_seconds, connect_timeout_seconds=CONNECT_SECONDS) as store:
            return await work(LimitMaintenance(store, known, tuple(POLICIES)))

    try:
        return trio.run(run)
    except BaseExceptionGroup as errors:
        # Trio's nurseries wrap Ctrl-C in a group; the command line expects it by itself.
        if errors.subgroup(KeyboardInterrupt) is None:
            raise
        raise KeyboardInterrupt from None


# --- text for people ------------------------------------------------------------------------------------------------


def _write_cells(reading: LimitReading) -> tuple[str, ...]:
    return (
        reading.source,
        reading.feature.value,
        reading.name.replace("_", " "),
        _write_size(reading),
        format_figure(reading.used),
        format_figure(reading.remaining),
        _write_unused_again(reading),
        _write_alert(reading),
    )


def _write_size(reading: LimitReading) -> str:
    """``1,000 requests per 24h``, ``20 requests at once``."""
    if reading.limit is None:
        return "–"
    unit = "" if reading.unit is None else f" {reading.unit}"
    when = "at once" if reading.interval_ms is None else f"per {format_duration(reading.interval_ms / 1000)}"
    return f"{reading.limit:,}{unit} {when}"


def _write_unused_again(reading: LimitReading) -> str:
    if reading.unused_in_ms is None or reading.unused_at is None:
        return "–"
    if reading.unused_in_ms == 0:
        return "now"
    # Rounded up, so that the limit is unused by then.
    seconds = -(-reading.unused_in_ms // 1000)
    return f"{reading.unused_at:%Y-%m-%d %H:%M:%S}Z, in {format_duration(seconds)}"


def _write_alert(reading: LimitReading) -> str:
    """Write the percentage of the last alert, and the interval, which begins with its first alert."""
    if reading.alert_percent is None or reading.alert_until is None:
        return ""
    since = "" if reading.alert_since is None else f", since {reading.alert_since:%Y-%m-%d %H:%M:%S}Z"
    return f"{reading.alert_percent} % sent{since}, again from {reading.alert_until:%Y-%m-%d %H:%M:%S}Z"


def _describe_reset(reading: LimitReading) -> str:
    """``static acme chat_completions quota: 12 of 1,000 requests per 24h used``."""
    name = f"{reading.source} {reading.actor} {reading.feature} {reading.name.replace('_', ' ')}"
    if reading.used is None:
        return f"{name}: the value of its key could not be read"
    limit = "" if reading.limit is None else f" of {_write_size(reading)}"
    alert = "" if reading.alert_percent is None else f"; alert of {reading.alert_percent} % had been sent"
    return f"{name}: {reading.used:,}{limit} used{alert}"
