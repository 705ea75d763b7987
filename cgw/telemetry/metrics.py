"""Metrics: declarations, the few values that nothing else counts, and snapshots of all of them.

Most numbers are counted anyway, by the class that does the work, which returns them from ``statistics()``. Here they
are only read, when somebody asks::

    statistics() of each part ──┐
    Histogram, Counter ─────────┼── Metrics.take(), in the Trio thread: numbers are copied ── list of readings
    files, /proc ───────────────┘   and read in a thread                                          │
                                               metrics_text (a scrape), metrics_push (OTLP): rendered in a thread

So a metric costs the request path nothing but the addition. Everything belongs to the Trio thread, and needs no lock.
"""

from __future__ import annotations

import enum
import logging
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import NamedTuple

import trio
from attrs import frozen

OTHER = "other"
"""The value of labels beyond a bound."""

MAX_SERIES = 200
"""Label sets of one metric; further ones become one, with :data:`OTHER` for each label, and are counted. A scrape with
all series full is rendered in 0.1 s of CPU time, beside the streams that are served."""

BLOCKING_SECONDS = 1.0

logger = logging.getLogger("cgw.metrics")


class MetricKind(enum.StrEnum):
    """The type of a metric, in Prometheus' words."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@frozen(eq=False)
class Metric:
    """The declaration of a metric.

    ``name`` is Prometheus' name, for a counter without ``_total``. ``otel_name`` is OpenTelemetry's, by its semantic
    conventions or the reference's, where it differs; ``unit`` is in UCUM, as OpenTelemetry has it (``s``, ``By``).
    ``bounds`` are the upper bounds of a histogram's buckets, ascending, without infinity.
    """

    name: str
    kind: MetricKind
    help: str
    labels: tuple[str, ...] = ()
    unit: str = ""
    bounds: tuple[float, ...] = ()
    otel_name: str = ""
    otel_labels: tuple[str, ...] = ()

    def read(self, value: float, *labels: str) -> MetricReading:
        """Return a reading of this metric, with a value for each of its labels."""
        return MetricReading(self, labels, value)

    @property
    def sample_name(self) -> str:
        """The name that queries use; a histogram's without ``_bucket``, ``_sum`` and ``_count``."""
        return f"{self.name}_total" if self.kind is MetricKind.COUNTER else self.name


class Exemplar(NamedTuple):
    """One observation of a bucket: the trace that it belongs to, its value, and its time in Unix seconds."""

    trace_id: str
    value: float
    at: float


@frozen
class HistogramValue:
    """The state of a histogram: a count per bucket (not cumulative), one more than bounds, and the sum."""

    counts: tuple[int, ...]
    sum: float
    exemplars: tuple[Exemplar | None, ...] = ()


class MetricReading(NamedTuple):
    """The value of one metric for one set of labels, now; ``worker`` is the process, where a scrape has several."""

    metric: Metric
    labels: tuple[str, ...]
    value: float | HistogramValue
    worker: str = ""


Collect = Callable[[], Iterable[MetricReading]]


def counter(name: str, help: str, *labels: str, otel_name: str = "", unit: str = "") -> Metric:
    """Declare a counter; ``name`` is without ``_total``."""
    return Metric(name, MetricKind.COUNTER, help, labels, unit=unit, otel_name=otel_name)


def gauge(name: str, help: str, *labels: str, otel_name: str = "", unit: str = "") -> Metric:
    """Declare a gauge."""
    return Metric(name, MetricKind.GAUGE, help, labels, unit=unit, otel_name=otel_name)


TracedValue = tuple[str, float, float]
"""A value with its trace: the fields of an :class:`Exemplar`, which is made of it when somebody asks."""


class Distribution:
    """A histogram for one set of labels. An observation takes 0.3 µs: prometheus_client's takes 1, for its lock.

    Values that come in batches are appended to ``gathered``, or to ``traced``, and counted at once, in a third of the
    time. The last traced value of a bucket is its exemplar.
    """

    __slots__ = ("_bounds", "_counts", "_exemplars", "_sum", "gathered", "traced")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._exemplars: dict[int, TracedValue] = {}
        self._sum = 0.0
        self.gathered: list[float] = []
        self.traced: list[TracedValue] = []

    def observe(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def count_gathered(self) -> None:
        """Count the values that have gathered."""
        # Loops, because map() over bisect_left and a Counter take longer.
        bounds, counts = self._bounds, self._counts
        if self.gathered:
            for value in self.gathered:
                counts[bisect_left(bounds, value)] += 1
            self._sum += sum(self.gathered)
            self.gathered.clear()
        if self.traced:
            total, exemplars = 0.0, self._exemplars
            for traced in self.traced:
                value = traced[1]
                bucket = bisect_left(bounds, value)
                counts[bucket] += 1
                exemplars[bucket] = traced
                total += value
            self._sum += total
            self.traced.clear()

    def read(self) -> HistogramValue:
        """Return a copy of the state."""
        exemplars = self._exemplars
        found = [Exemplar(*exemplars[bucket]) if bucket in exemplars else None for bucket in range(len(self._counts))]
        return HistogramValue(tuple(self._counts), self._sum, tuple(found) if exemplars else ())


class Histogram:
    """A histogram for all sets of labels, of which there are at most :data:`MAX_SERIES`."""

    def __init__(self, metric: Metric, *, max_series: int = MAX_SERIES) -> None:
        self.metric = metric
        self.collapsed = 0
        self._max_series = max_series
        self._children: dict[tuple[str, ...], Distribution] = {}

    def find(self, *labels: str) -> Distribution:
        """Return the histogram of one set of labels, for repeated use."""
        return self._children.get(labels) or self._add(labels)

    def _add(self, labels: tuple[str, ...]) -> Distribution:
        if labels and len(self._children) >= self._max_series:
            self.collapsed += 1
            labels = (OTHER,) * len(labels)
        return self._children.setdefault(labels, Distribution(self.metric.bounds))

    def read(self) -> Iterator[MetricReading]:
        """Return the readings of all sets of labels."""
        for labels, child in self._children.items():
            yield MetricReading(self.metric, labels, child.read())


class Count:
    """A counter, or a gauge that goes up and down, for one set of labels."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0


class CountSet:
    """A counter or gauge for all sets of labels, of which there are at most :data:`MAX_SERIES`."""

    def __init__(self, metric: Metric, *, max_series: int = MAX_SERIES) -> None:
        self.metric = metric
        self.collapsed = 0
        self._max_series = max_series
        self._children: dict[tuple[str, ...], Count] = {}

    def find(self, *labels: str) -> Count:
        """Return the count of one set of labels, for repeated use."""
        return self._children.get(labels) or self._add(labels)

    def _add(self, labels: tuple[str, ...]) -> Count:
        if labels and len(self._children) >= self._max_series:
            self.collapsed += 1
            labels = (OTHER,) * len(labels)
        return self._children.setdefault(labels, Count())

    def read(self) -> Iterator[MetricReading]:
        """Return the readings of all sets of labels."""
        for labels, child in self._children.items():
            yield MetricReading(self.metric, labels, child.value)


def read_fields(metrics: Mapping[str, Metric], statistics: object, *labels: str) -> Iterator[MetricReading]:
    """Return the readings of a ``statistics()`` snapshot, whose fields ``metrics`` names."""
    for name, metric in metrics.items():
        yield metric.read(float(getattr(statistics, name)), *labels)


class Metrics:
    """Everything that can be read. Made when the service starts, and filled by its parts."""

    def __init__(self) -> None:
        self._collectors: list[Collect] = []
        self._blocking: list[Collect] = []
        self._failed: set[Collect] = set()
        self._limiter = trio.CapacityLimiter(1)
        self._last_blocking: list[MetricReading] = []

    def add(self, *collectors: Collect) -> None:
        """Have ``collectors`` called in the Trio thread; each must be quick: it may copy numbers, and must not wait."""
        self._collectors.extend(collectors)

    def add_blocking(self, *collectors: Collect) -> None:
        """Have ``collectors`` called in some thread, where they may read files; they must be safe to call there."""
        self._blocking.extend(collectors)

    def take(self) -> list[MetricReading]:
        """Return a reading of everything that the Trio thread owns. Never raises."""
        return self._take(self._collectors)

    async def take_all(self) -> list[MetricReading]:
        """Return a reading of everything. Never raises; cancel-safe.

        What has to be read from files is as it was last where the disk takes more than :data:`BLOCKING_SECONDS`: the
        other numbers are needed most when something hangs.
        """
        with trio.move_on_after(BLOCKING_SECONDS):
            self._last_blocking = await trio.to_thread.run_sync(
                self._take, self._blocking, abandon_on_cancel=True, limiter=self._limiter
            )
        return [*self.take(), *self._last_blocking]

    def _take(self, collectors: Iterable[Collect]) -> list[MetricReading]:
        return list(chain.from_iterable(map(self._collect, collectors)))

    def _collect(self, collect: Collect) -> list[MetricReading]:
        try:
            return list(collect())
        except Exception:
            # The boundary between one part and all others: a bug in one must not hide the numbers of the rest, which
            # are needed most when something is wrong. Logged once, as scrapes repeat it each few seconds.
            if collect not in self._failed:
                self._failed.add(collect)
                logger.exception("the metrics of one part cannot be read; the others are unaffected")
            return []
