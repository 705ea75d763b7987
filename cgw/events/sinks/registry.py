"""The sinks that there are: one line each. A sink's module is imported when it is opened."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from attrs import evolve, frozen

from cgw.errors import ConfigError
from cgw.events.settings import ShippingSettings
from cgw.events.shipping.options import ShipperOptions
from cgw.events.sinks.sink import Sink

logger = logging.getLogger("cgw.events")

# The settings of the whole service, of a type above this layer: a sink reads the groups that it declares itself.
Settings = Any


@frozen
class SinkKind:
    """One kind of sink.

    ``is_set`` says whether the settings name its place, by which it is chosen; ``place`` is the variable without which
    it cannot be, ``""`` where it needs none. ``open`` opens it, and raises :exc:`~cgw.errors.ConfigError`.
    ``adjust`` changes how events are batched.
    """

    name: str
    is_set: Callable[[Settings], bool]
    place: str
    open: Callable[[Settings, ssl.SSLContext], AbstractAsyncContextManager[Sink]]
    adjust: Callable[[ShippingSettings, ShipperOptions], ShipperOptions] = lambda settings, options: options


def _open_stdout(settings: Settings, tls_context: ssl.SSLContext) -> AbstractAsyncContextManager[Sink]:
    from cgw.events.sinks.stdout import open_stdout_sink

    return open_stdout_sink()


def _open_http(settings: Settings, tls_context: ssl.SSLContext) -> AbstractAsyncContextManager[Sink]:
    from cgw.events.sinks.http import open_http_sink

    return open_http_sink(settings.http_sink, tls_context)


def _open_bigquery(settings: Settings, tls_context: ssl.SSLContext) -> AbstractAsyncContextManager[Sink]:
    from cgw.events.sinks.bigquery.sink import open_bigquery_sink

    return open_bigquery_sink(settings.bigquery)


def adjust_for_bigquery(settings: ShippingSettings, options: ShipperOptions) -> ShipperOptions:
    """Return the options with the reference's own settings of BigQuery's batches (its §11.1)."""
    batch_events = max(1, settings.bigquery_buffer_size)
    workers = settings.bigquery_buffer_workers or max(1, settings.bigquery_buffer_size // 10)
    return evolve(options, batch_events=batch_events, max_in_flight=workers)


SINKS: Sequence[SinkKind] = (
    SinkKind("stdout", lambda settings: False, "", _open_stdout, lambda _, options: evolve(options, max_in_flight=1)),
    SinkKind(
        "bigquery",
        lambda settings: settings.bigquery.project_id is not None,
        "CODY_GATEWAY_BIGQUERY_PROJECT_ID",
        _open_bigquery,
        adjust_for_bigquery,
    ),
    SinkKind("http", lambda settings: settings.http_sink.url is not None, "CODY_GATEWAY_EVENTS_HTTP_URL", _open_http),
)


def choose_sinks(settings: Settings) -> list[SinkKind]:
    """Return the sinks that the settings name, or, where they name none, those whose place is set.

    Raises :exc:`~cgw.errors.ConfigError` for one that is named without its place.
    """
    named: ShippingSettings = settings.shipping
    if not named.sinks:
        return [kind for kind in SINKS if kind.is_set(settings)]
    chosen = [kind for kind in SINKS if kind.name in named.sinks]
    problems = [
        f"CODY_GATEWAY_EVENTS_SINKS: {kind.name} also needs {kind.place}: set it, or take {kind.name} out"
        for kind in chosen
        if kind.place and not kind.is_set(settings)
    ]
    if problems:
        raise ConfigError(problems)
    for kind in SINKS:
        if kind not in chosen and kind.is_set(settings):
            logger.warning("%s is set, but CODY_GATEWAY_EVENTS_SINKS does not name %s", kind.place, kind.name)
    return chosen


def build_options(kind: SinkKind, settings: ShippingSettings) -> ShipperOptions:
    """Return how events are batched for a sink."""
    options = ShipperOptions(
        batch_events=settings.batch_events,
        batch_bytes=settings.batch_bytes,
        age_seconds=settings.batch_age_seconds,
        max_in_flight=settings.workers,
    )
    return kind.adjust(settings, options)
