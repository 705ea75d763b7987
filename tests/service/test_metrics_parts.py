"""Every figure that a part of the service counts is a metric."""

from __future__ import annotations

import attrs
import pytest

from cgw.actors.fetched.cached_source import CacheStatistics
from cgw.actors.refresh import RefreshStatistics
from cgw.actors.sync import SyncStatistics
from cgw.events.options import EventLogStatistics
from cgw.events.shipping.options import SinkStatistics
from cgw.flagging.flagger import FlaggingStatistics
from cgw.gateway.http_engine import EngineStatistics
from cgw.limits.alerts import AlertStatistics
from cgw.limits.limiter import LimiterStatistics
from cgw.redis.store import RedisStatistics
from cgw.resolver import ResolverStatistics
from cgw.service.metrics import list_all_metrics
from cgw.telemetry import metrics_catalogue as catalogue
from cgw.telemetry.export_thread import ExportStatistics
from cgw.telemetry.line_writer import LogStatistics
from cgw.telemetry.metrics import MetricKind
from cgw.telemetry.sentry import ReportStatistics
from cgw.transport.flat_relay import RelayStatistics
from cgw.transport.server import ServerStatistics
from cgw.transport.upstream import PoolStatistics

# With the fields that are read in another way: as labels, or as a metric of their own.
PARTS: list[tuple[catalogue.Fields, type[attrs.AttrsInstance], set[str]]] = [
    (catalogue.SERVER, ServerStatistics, set()),
    (catalogue.ENGINE, EngineStatistics, set()),
    (catalogue.RELAY, RelayStatistics, set()),
    (catalogue.POOL, PoolStatistics, set()),
    (catalogue.LIMITER, LimiterStatistics, {"refused"}),
    (catalogue.ALERTS, AlertStatistics, set()),
    (catalogue.REDIS, RedisStatistics, set()),
    (catalogue.EVENT_LOG, EventLogStatistics, set()),
    (catalogue.SINK, SinkStatistics, {"name", "trouble"}),
    (catalogue.RESOLVER, ResolverStatistics, set()),
    (catalogue.REFRESHER, RefreshStatistics, set()),
    (catalogue.SOURCE, CacheStatistics, set()),
    (catalogue.SYNC, SyncStatistics, set()),
    (catalogue.LOG, LogStatistics, set()),
    (catalogue.FLAGGING, FlaggingStatistics, set()),
    (catalogue.EXPORT, ExportStatistics, set()),
    (catalogue.ERROR_REPORTS, ReportStatistics, set()),
]


@pytest.mark.parametrize(("metrics", "statistics", "others"), PARTS, ids=lambda value: getattr(value, "__name__", ""))
def test_every_figure_is_a_metric(
    metrics: catalogue.Fields, statistics: type[attrs.AttrsInstance], others: set[str]
) -> None:
    """A field that is added to a snapshot, or renamed, has to be named in the catalogue."""
    assert set(metrics) | others == {field.name for field in attrs.fields(statistics)}


def test_names_and_labels_are_by_the_rules() -> None:
    """Names are unique, also OpenTelemetry's; labels name no actor, token, key or address."""
    metrics = list_all_metrics()
    for names in ([metric.name for metric in metrics], [metric.otel_name for metric in metrics if metric.otel_name]):
        assert len(set(names)) == len(names)
    labels = {label for metric in metrics for label in metric.labels}
    assert not labels & {"actor", "actor_id", "token", "key", "address", "client", "user", "path"}
    for metric in metrics:
        assert list(metric.bounds) == sorted(set(metric.bounds))
        assert bool(metric.bounds) == (metric.kind is MetricKind.HISTOGRAM)
        assert len(metric.otel_labels) in (0, len(metric.labels))
