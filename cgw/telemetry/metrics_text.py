"""Prometheus' text format and OpenMetrics, rendered by prometheus_client from readings.

Blocks for some 7 µs per sample, so it is called in a thread. Imports prometheus_client, which takes 60 ms: imported
when the first scrape comes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate

from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar as FamilyExemplar

from cgw.telemetry.metrics import Exemplar, HistogramValue, Metric, MetricReading

TEXT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"


def render_metrics(readings: Iterable[MetricReading], *, is_openmetrics: bool) -> bytes:
    """Return the exposition of ``readings``; exemplars only in OpenMetrics, as the text format has none."""
    families = _Families(readings)
    # prometheus_client's own types leave this encoder out.
    encode: Callable[[Collector], bytes] = generate_openmetrics if is_openmetrics else generate_latest
    return encode(families)


class _Families(Collector):
    """The registry that prometheus_client's encoders ask: one family per metric, in the order of the readings."""

    def __init__(self, readings: Iterable[MetricReading]) -> None:
        self._families: dict[Metric, Family] = {}
        for reading in readings:
            self._add(reading)

    def _add(self, reading: MetricReading) -> None:
        metric = reading.metric
        family = self._families.get(metric)
        if family is None:
            family = self._families[metric] = Family(metric.name, metric.help, metric.kind.value)
        labels = dict(zip(metric.labels, reading.labels, strict=True))
        if reading.worker:
            labels["worker"] = reading.worker
        if isinstance(reading.value, HistogramValue):
            _add_histogram(family, labels, metric.bounds, reading.value)
        else:
            family.add_sample(metric.sample_name, labels, reading.value)

    def collect(self) -> Iterator[Family]:
        """Return the families."""
        return iter(self._families.values())


def _add_histogram(family: Family, labels: dict[str, str], bounds: tuple[float, ...], value: HistogramValue) -> None:
    exemplars = value.exemplars or (None,) * len(value.counts)
    total = 0
    les = (*(str(float(bound)) for bound in bounds), "+Inf")
    for le, total, exemplar in zip(les, accumulate(value.counts), exemplars, strict=True):
        family.add_sample(f"{family.name}_bucket", {**labels, "le": le}, total, exemplar=_build_exemplar(exemplar))
    family.add_sample(f"{family.name}_count", labels, total)
    family.add_sample(f"{family.name}_sum", labels, value.sum)


def _build_exemplar(exemplar: Exemplar | None) -> FamilyExemplar | None:
    if exemplar is None:
        return None
    return FamilyExemplar({"trace_id": exemplar.trace_id}, exemplar.value, exemplar.at)
