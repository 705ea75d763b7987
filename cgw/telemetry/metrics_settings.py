"""Settings of pushed metrics. What traces and metrics share is in :class:`~cgw.telemetry.settings.OtlpSettings`."""

from __future__ import annotations

import re

from attrs import frozen

from cgw.config.declare import setting
from cgw.config.kinds import API_URL, Kind, Secret, choice, duration
from cgw.telemetry.settings import PAIRS_SECRET

_ANY_INTERVAL = duration(least=1.0, most=3600.0)
_INTERVAL: Kind[float] = Kind(
    # OpenTelemetry's durations are in milliseconds.
    lambda text: _ANY_INTERVAL.parse(f"{text}ms" if re.fullmatch("[0-9]{1,9}", text) else text),
    _ANY_INTERVAL.show,
)


@frozen
class MetricsPushSettings:
    """Pushing metrics, besides /-/metrics: to the collector or the project of Google Cloud that traces go to."""

    exporter: str = setting(
        "OTEL_METRICS_EXPORTER",
        choice("otlp", "none"),
        "otlp",
        "otlp pushes metrics wherever a receiver is set: a collector, or a project of Google Cloud.",
    )
    endpoint: str | None = setting(
        "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", API_URL, None, "The whole URL for metrics, instead of the base URL."
    )
    headers: Secret | None = setting(
        "OTEL_EXPORTER_OTLP_METRICS_HEADERS", PAIRS_SECRET, None, "Those for metrics, instead."
    )
    interval_seconds: float = setting(
        "OTEL_METRIC_EXPORT_INTERVAL",
        _INTERVAL,
        60.0,
        "The time between two pushes; a number without a unit is in milliseconds.",
    )
