"""The results of a run: a JSON file, and queries for reports, comparisons and goals."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from benchmarks.histogram import Histogram

__all__ = [
    "SCHEMA",
    "Distribution",
    "Machine",
    "Measurement",
    "Metrics",
    "Results",
    "ResultsError",
    "case_key",
    "read_metric",
]

SCHEMA = "cgw-benchmarks/1"
"""Change it when a file of the old schema would be read wrongly. New optional metrics need no new schema."""


class ResultsError(Exception):
    """A results file cannot be read, or does not contain the data that was asked for."""


class Distribution(Struct, kw_only=True, omit_defaults=True):
    """Percentiles in the unit of the metric's name. Their histogram is in nanoseconds."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    p999: float
    max: float
    histogram: Histogram | None = None

    @classmethod
    def of(
        cls, histogram: Histogram, nanoseconds_per_unit: int, *, keeps_histogram: bool = True
    ) -> Distribution | None:
        """Summarise ``histogram``; ``None`` when it is empty."""
        if not histogram.count:
            return None

        def read(percent: float) -> float:
            return histogram.percentile(percent) / nanoseconds_per_unit

        return cls(
            count=histogram.count,
            mean=histogram.mean / nanoseconds_per_unit,
            p50=read(50),
            p90=read(90),
            p99=read(99),
            p999=read(99.9),
            max=histogram.maximum / nanoseconds_per_unit,
            histogram=histogram if keeps_histogram else None,
        )


class Metrics(Struct, kw_only=True, omit_defaults=True):
    """The figures of one measurement, ``None`` where they do not apply. CPU is that of all the subject's processes."""

    window_seconds: float = 0.0
    events_per_second: float | None = None
    offered_events_per_second: float | None = None
    requests_per_second: float | None = None
    cpu_us_per_event: float | None = None
    cpu_us_per_request: float | None = None
    pairs_per_second: float | None = None
    """A pair is an admit and its settle."""
    cpu_us_per_pair: float | None = None
    store_cpu_us_per_pair: float | None = None
    store_us_per_call: float | None = None
    """The store's own count of the script's run time, without reading the command and writing the answer."""
    store_share: float | None = None
    """The share of its core that the store used: near 1, the store limits pairs/s, not the client."""
    pair_us: Distribution | None = None
    call_us: Distribution | None = None
    """``admit_us`` and ``settle_us`` merged."""
    admit_us: Distribution | None = None
    settle_us: Distribution | None = None
    recorded_per_second: float | None = None
    """Usage events."""
    shipped_per_second: float | None = None
    """Usage events recorded and taken by the sink, until it has all of them."""
    cpu_us_per_recorded: float | None = None
    record_us: Distribution | None = None
    """Building and recording one usage event: what it costs its exchange."""
    cpu_share: float | None = None
    """The share of one core, 0 to 1."""
    cpu_share_by_process: dict[str, float] = {}
    load_share: float | None = None
    """The share of one core that upstream and load generator used: near 1, they limit the figures."""
    latency_us: Distribution | None = None
    first_byte_us: Distribution | None = None
    duration_us: Distribution | None = None
    upstream_late_us: Distribution | None = None
    """How late the fake upstream itself sent events. Their timestamps are later by as much, so latency excludes it."""
    direct_us: float | None = None
    """The mean duration of the same exchanges without the subject, measured before and after it."""
    added_us: float | None = None
    """The mean duration of exchanges without ``direct_us``: the subject's overhead, as its clients see it."""
    told_overhead_us: float | None = None
    """The mean overhead that the subject's own metric tells of the same exchanges."""
    told_ratio: float | None = None
    """``told_overhead_us`` divided by ``added_us``."""
    upstream_closed_ms: Distribution | None = None
    upstream_never_closed: int | None = None
    rss_kib: float | None = None
    rss_kib_per_stream: float | None = None
    pss_kib_per_stream: float | None = None
    rss_growth_kib: float | None = None
    saturated: bool = False
    """The subject did not carry the offered load: its latencies are those of a growing queue."""
    errors: dict[str, int] = {}
    failed: str | None = None


class Measurement(Struct, kw_only=True):
    """One subject in one case of a scenario, in one round."""

    scenario: str
    parameters: dict[str, int | float | str | bool]
    subject: str
    round: int
    metrics: Metrics


class Machine(Struct, kw_only=True):
    """The machine of a run."""

    cpu: str
    cores: int
    memory_mib: int
    kernel: str
    python: str
    subject_cores: list[int]
    load_cores: list[int]


class Results(Struct, kw_only=True):
    """A whole run. ``left_out`` has the reason for each subject that was asked for but not measured."""

    schema: str
    date: str
    command: str
    commit: str
    profile: str
    rounds: int
    tools: str
    machine: Machine
    versions: dict[str, str]
    left_out: dict[str, str]
    measurements: list[Measurement]

    @classmethod
    def read(cls, path: Path) -> Results:
        """Read a file. Raises :exc:`ResultsError` when it is missing, not JSON, or of another schema."""
        try:
            results = msgspec.json.decode(path.read_bytes(), type=cls)
        except OSError as error:
            raise ResultsError(f"{path} cannot be read: {error.strerror}") from error
        except msgspec.MsgspecError as error:
            raise ResultsError(f"{path} is not a results file: {error}") from error
        if results.schema != SCHEMA:
            raise ResultsError(f"{path} has the schema {results.schema}; this version reads only {SCHEMA}")
        return results

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Written beside it and renamed: an interrupted write leaves no half file under the final name.
        part = path.with_suffix(".part")
        part.write_bytes(msgspec.json.encode(self))
        part.replace(path)

    @property
    def subjects(self) -> list[str]:
        """Names in the order of their first measurement."""
        return list(dict.fromkeys(measurement.subject for measurement in self.measurements))

    @property
    def cases(self) -> list[tuple[str, str]]:
        """Scenario and parameters (as text) of all cases, in order."""
        return list(dict.fromkeys((m.scenario, case_key(m.parameters)) for m in self.measurements))

    def select(self, scenario: str, case: str | None = None, subject: str | None = None) -> Iterator[Measurement]:
        for measurement in self.measurements:
            is_asked = case in (None, case_key(measurement.parameters)) and subject in (None, measurement.subject)
            if measurement.scenario == scenario and is_asked:
                yield measurement

    def by_round(self, scenario: str, case: str, subject: str, metric: str) -> dict[int, float]:
        """Return the metric's value by round, without rounds where it is absent or the measurement failed."""
        found = {}
        for measurement in self.select(scenario, case, subject):
            value = read_metric(measurement.metrics, metric)
            if value is not None and not measurement.metrics.failed:
                found[measurement.round] = value
        return found

    def median(self, scenario: str, case: str, subject: str, metric: str) -> float | None:
        values = self.by_round(scenario, case, subject, metric).values()
        return statistics.median(values) if values else None

    def ratio(self, scenario: str, case: str, subject: str, reference: str, metric: str) -> float | None:
        """Return the median over rounds of subject / reference, both from the same round."""
        ours = self.by_round(scenario, case, subject, metric)
        theirs = self.by_round(scenario, case, reference, metric)
        ratios = [ours[number] / theirs[number] for number in ours if theirs.get(number)]
        return statistics.median(ratios) if ratios else None

    def is_saturated(self, scenario: str, case: str, subject: str) -> bool:
        """Return whether the subject was saturated in most rounds."""
        flags = [m.metrics.saturated for m in self.select(scenario, case, subject)]
        return sum(flags) * 2 > len(flags)


def case_key(parameters: dict[str, Any]) -> str:
    """Return parameters as text, for example ``streams=200 rate=50``; ``""`` without parameters."""
    return " ".join(f"{name}={value}" for name, value in parameters.items())


def read_metric(metrics: Metrics, name: str) -> float | None:
    """Return a metric by its dotted name, for example ``latency_us.p99``; ``None`` where it is absent."""
    value: Any = metrics
    for part in name.split("."):
        value = getattr(value, part, None)
        if value is None:
            return None
    return float(value)
