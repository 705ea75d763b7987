"""The values that nothing else counts, their bounds, and snapshots that no part can spoil."""

from __future__ import annotations

import threading
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families as parse_text

from cgw.telemetry import metrics as module
from cgw.telemetry.metrics import (
    OTHER,
    CountSet,
    Distribution,
    Histogram,
    HistogramValue,
    Metric,
    MetricKind,
    MetricReading,
    Metrics,
    counter,
    gauge,
)
from cgw.telemetry.metrics_text import render_metrics
from tests.support.prometheus import parse_openmetrics

SECONDS = Metric("test_seconds", MetricKind.HISTOGRAM, "Seconds.", ("route",), bounds=(1.0, 2.0, 5.0))
THINGS = counter("test_things", 'Things, "quoted" and \\ escaped.', "kind")
LEVEL = gauge("test_level", "A level.")

TRACE = "0af7651916cd43dd8448eb211c80319c"


@given(st.lists(st.floats(min_value=0, max_value=1e6)))
def test_a_value_is_in_the_first_bucket_that_holds_it(values: list[float]) -> None:
    """The cumulative count of a bound is the number of values up to and including it."""
    distribution = Distribution(SECONDS.bounds)
    for value in values:
        distribution.observe(value)
    read = distribution.read()
    for index, bound in enumerate(SECONDS.bounds):
        assert sum(read.counts[: index + 1]) == sum(value <= bound for value in values)
    assert sum(read.counts) == len(values)
    assert read.sum == pytest.approx(sum(values))


def test_label_sets_are_bounded_and_counted() -> None:
    """Beyond the bound, all further label sets are one, and each new one is counted as collapsed."""
    histogram, counts = Histogram(SECONDS, max_series=3), CountSet(THINGS, max_series=3)
    for number in range(10):
        histogram.find(f"/{number}").observe(1)
        counts.find(str(number)).value += 1
    assert {reading.labels for reading in histogram.read()} == {("/0",), ("/1",), ("/2",), (OTHER,)}
    readings = {reading.labels: reading.value for reading in counts.read()}
    assert readings == {("0",): 1, ("1",): 1, ("2",): 1, (OTHER,): 7}
    assert histogram.collapsed == counts.collapsed == 7


def build_readings() -> list[MetricReading]:
    """One reading of each kind, with an exemplar, and labels that need escaping."""
    distribution = Distribution(SECONDS.bounds)
    distribution.observe(0.5)
    distribution.traced.append((TRACE, 1.5, 1_700_000_000.5))
    distribution.count_gathered()
    distribution.observe(7)
    return [
        SECONDS.read(0, "/a")._replace(value=distribution.read()),
        THINGS.read(3, 'a "kind"\n\\'),
        LEVEL.read(True),
        THINGS.read(4, "b"),  # not beside the other one: the format wants them together
    ]


def test_the_text_format_is_what_prometheus_reads() -> None:
    """prometheus_client's parser gets back the numbers, cumulative buckets, and labels as they were."""
    families = {
        family.name: family for family in parse_text(render_metrics(build_readings(), is_openmetrics=False).decode())
    }
    buckets = {s.labels["le"]: s.value for s in families["test_seconds"].samples if s.name == "test_seconds_bucket"}
    assert buckets == {"1.0": 1, "2.0": 2, "5.0": 2, "+Inf": 3}
    others = {s.name: s.value for s in families["test_seconds"].samples if s.name != "test_seconds_bucket"}
    assert others == {"test_seconds_count": 3, "test_seconds_sum": 9}
    assert {(s.name, s.labels["kind"], s.value) for s in families["test_things"].samples} == {
        ("test_things_total", 'a "kind"\n\\', 3),
        ("test_things_total", "b", 4),
    }
    assert families["test_level"].type == "gauge"


def test_openmetrics_has_exemplars() -> None:
    """The strict parser takes the text, and the bucket of the traced value has its trace, value and time."""
    text = render_metrics(build_readings(), is_openmetrics=True).decode()
    (family,) = [family for family in parse_openmetrics(text) if family.name == "test_seconds"]
    exemplars = {s.labels["le"]: s.exemplar for s in family.samples if s.exemplar is not None}
    assert list(exemplars) == ["2.0"]
    assert exemplars["2.0"].labels == {"trace_id": TRACE}
    assert exemplars["2.0"].value == 1.5
    assert str(exemplars["2.0"].timestamp).startswith("1700000000.5")
    assert TRACE not in render_metrics(build_readings(), is_openmetrics=False).decode()


async def test_a_bug_in_one_part_hides_only_its_own_numbers(caplog: pytest.LogCaptureFixture) -> None:
    """The other parts are read, and the bug is logged once, however many scrapes follow."""

    def fail() -> Iterable[MetricReading]:
        yield LEVEL.read(1)
        raise RuntimeError("a bug")

    metrics = Metrics()
    metrics.add(fail, lambda: [THINGS.read(1, "a")])
    metrics.add_blocking(fail)
    for _ in range(3):
        assert [reading.metric for reading in await metrics.take_all()] == [THINGS]
    assert sum("cannot be read" in message for message in caplog.messages) == 1


async def test_a_disk_that_hangs_hides_only_what_is_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """While files cannot be read, they keep their last reading, and no thread is added per scrape."""
    monkeypatch.setattr(module, "BLOCKING_SECONDS", 0.05)
    hangs, is_over, calls = threading.Event(), threading.Event(), []

    def read_disk() -> Iterable[MetricReading]:
        calls.append(threading.get_ident())
        if hangs.is_set():
            is_over.wait(10)
        return [LEVEL.read(len(calls))]

    metrics = Metrics()
    metrics.add(lambda: [THINGS.read(1, "a")])
    metrics.add_blocking(read_disk)
    first = await metrics.take_all()
    hangs.set()
    later = [await metrics.take_all() for _ in range(3)]
    is_over.set()
    assert first == [THINGS.read(1, "a"), LEVEL.read(1)]
    assert later == [first] * 3
    assert len(calls) == 2


def test_a_histogram_reading_does_not_change() -> None:
    """What was read stays as it was, whatever is observed after that: it is rendered in another thread."""
    distribution = Distribution((1.0,))
    read = distribution.read()
    distribution.observe(1)
    assert read == HistogramValue((0, 0), 0.0)
