"""Terminal output: progress during a run, tables of its results."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal

from attrs import frozen
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.results import Measurement, Results, read_metric

if TYPE_CHECKING:
    from benchmarks.bytecodes.measure import Counts

__all__ = ["COLUMNS", "MetricColumn", "columns_of", "print_bytecodes", "print_results", "show_progress"]


@frozen
class MetricColumn:
    """A metric as a table column: its dotted name, a title with the unit, and the number of decimals."""

    metric: str
    title: str
    decimals: int = 0

    def show(self, value: float | None) -> str:
        return "" if value is None else f"{value:,.{self.decimals}f}"


COLUMNS = (
    MetricColumn("cpu_us_per_event", "CPU µs/event", 1),
    MetricColumn("cpu_us_per_request", "CPU µs/request"),
    MetricColumn("events_per_second", "events/s"),
    MetricColumn("requests_per_second", "requests/s"),
    MetricColumn("latency_us.p50", "event p50 µs"),
    MetricColumn("latency_us.p99", "event p99 µs"),
    MetricColumn("first_byte_us.p50", "first byte p50 µs"),
    MetricColumn("first_byte_us.p99", "first byte p99 µs"),
    MetricColumn("duration_us.mean", "mean µs"),
    MetricColumn("direct_us", "direct µs"),
    MetricColumn("added_us", "added µs"),
    MetricColumn("told_overhead_us", "metric µs"),
    MetricColumn("told_ratio", "metric ÷ added", 2),
    MetricColumn("rss_kib_per_stream", "KiB/stream", 1),
    MetricColumn("rss_growth_kib", "memory growth KiB"),
    MetricColumn("upstream_closed_ms.p50", "closed p50 ms", 2),
    MetricColumn("upstream_closed_ms.p99", "closed p99 ms", 2),
    MetricColumn("upstream_never_closed", "never closed"),
    MetricColumn("pairs_per_second", "pairs/s"),
    MetricColumn("cpu_us_per_pair", "CPU µs/pair", 1),
    MetricColumn("store_cpu_us_per_pair", "store CPU µs/pair", 1),
    *(
        MetricColumn(f"{what}_us.{percentile}", f"{what} {percentile} µs")
        for what in ("pair", "call")
        for percentile in ("p50", "p99")
    ),
    MetricColumn("recorded_per_second", "recorded/s"),
    MetricColumn("shipped_per_second", "shipped/s"),
    MetricColumn("cpu_us_per_recorded", "CPU µs/usage event", 1),
    MetricColumn("record_us.p50", "record p50 µs", 1),
    MetricColumn("record_us.p99", "record p99 µs", 1),
)

BY_SCENARIO = {
    "steady": ("cpu_us_per_event", "latency_us.p50", "latency_us.p99", "events_per_second"),
    "throughput": ("cpu_us_per_event", "latency_us.p50", "latency_us.p99", "events_per_second"),
    "tls": ("cpu_us_per_event", "latency_us.p50", "latency_us.p99", "events_per_second"),
    "flood": ("events_per_second", "cpu_us_per_event"),
    "slow-reader": ("latency_us.p50", "latency_us.p99", "cpu_us_per_event", "rss_growth_kib"),
    "requests": ("requests_per_second", "cpu_us_per_request", "first_byte_us.p50", "first_byte_us.p99"),
    "first-byte": ("first_byte_us.p50", "first_byte_us.p99", "cpu_us_per_request"),
    "large-prompt": ("first_byte_us.p50", "first_byte_us.p99", "cpu_us_per_request"),
    "churn": ("first_byte_us.p50", "first_byte_us.p99", "cpu_us_per_request", "requests_per_second"),
    "idle": ("rss_kib_per_stream", "rss_growth_kib"),
    "http2": ("cpu_us_per_event", "latency_us.p50", "latency_us.p99", "events_per_second"),
    "short-streams": (
        *("cpu_us_per_event", "first_byte_us.p50", "first_byte_us.p99", "latency_us.p50", "latency_us.p99"),
        "events_per_second",
    ),
    "autocomplete": (
        *("cpu_us_per_request", "first_byte_us.p50", "first_byte_us.p99", "latency_us.p50", "latency_us.p99"),
        "requests_per_second",
    ),
    "telemetry": ("cpu_us_per_request", "cpu_us_per_event", "first_byte_us.p50", "first_byte_us.p99"),
    "overhead": ("told_ratio", "told_overhead_us", "added_us", "duration_us.mean", "direct_us", "requests_per_second"),
    "limits": (
        *("pairs_per_second", "cpu_us_per_pair", "store_cpu_us_per_pair"),
        *(f"{what}_us.{percentile}" for what in ("pair", "call") for percentile in ("p50", "p99")),
    ),
    "events": (
        *("record_us.p50", "record_us.p99", "cpu_us_per_recorded", "recorded_per_second", "shipped_per_second"),
    ),
    "cancel": ("upstream_closed_ms.p50", "upstream_closed_ms.p99", "upstream_never_closed", "cpu_us_per_request"),
}


def columns_of(scenario: str) -> list[MetricColumn]:
    """Return the columns of a scenario's tables, the most important first."""
    by_name = {column.metric: column for column in COLUMNS}
    return [by_name[name] for name in BY_SCENARIO.get(scenario, by_name)]


def print_results(results: Results, console: Console) -> None:
    """Print a table for each case: medians over the rounds, and the first column's ratio of cgw to each subject."""
    for scenario, case in results.cases:
        console.print(_table(results, scenario, case))
    for reason in dict.fromkeys(m.metrics.failed for m in results.measurements if m.metrics.failed):
        console.print(f"failed: {reason}", markup=False, highlight=False)
    for name, reason in results.left_out.items():
        console.print(f"left out: {name}: {reason}", markup=False, highlight=False)


def _table(results: Results, scenario: str, case: str) -> Table:
    columns = columns_of(scenario)
    ours = next((name for name in results.subjects if name.startswith("cgw")), None)
    table = Table(title=f"{scenario} {case}".strip(), title_justify="left", title_style="bold")
    table.add_column("subject")
    for column in columns:
        table.add_column(column.title, justify="right")
    if ours:
        table.add_column(f"{ours} ÷ it", justify="right")
    table.add_column("notes")
    for subject in results.subjects:
        measured = list(results.select(scenario, case, subject))
        if not measured:
            continue
        row = [column.show(results.median(scenario, case, subject, column.metric)) for column in columns]
        if ours:
            ratio = None
            if subject != ours:
                ratio = results.ratio(scenario, case, ours, subject, columns[0].metric)
            row.append("" if ratio is None else f"{ratio:.2f}")
        table.add_row(subject, *row, describe_problems(results, scenario, case, subject))
    return table


def describe_problems(results: Results, scenario: str, case: str, subject: str) -> str:
    """Return notes that qualify a row: failures, errors, saturation."""
    measured = list(results.select(scenario, case, subject))
    notes = []
    failed = [m.metrics.failed for m in measured if m.metrics.failed]
    if failed:
        notes.append(f"failed {len(failed)}×")
    if results.is_saturated(scenario, case, subject):
        notes.append("saturated")
    errors: dict[str, int] = {}
    for measurement in measured:
        for name, count in measurement.metrics.errors.items():
            errors[name] = errors.get(name, 0) + count
    if errors:
        notes.append(", ".join(f"{count} {name}" for name, count in errors.items()))
    shares = [m.metrics.load_share for m in measured if m.metrics.load_share is not None]
    if shares and max(shares) > 0.9:
        notes.append("the load's core was full")
    if any((m.metrics.store_share or 0) > 0.9 for m in measured):
        notes.append("the store's core was full")
    return "; ".join(notes)


def print_bytecodes(counts: Counts, by: Literal["file", "function"], top: int) -> None:
    """Print the totals of one exchange, and the ``top`` rows with the most bytecodes. Lines that a script can read."""
    rows = counts.group(by)
    print(f"{counts.bytecodes:.0f} bytecodes in {counts.frames:.0f} frames for each of {counts.exchanges} exchanges")
    for row in rows[:top]:
        name = row.file if by == "file" else f"{row.file}:{row.line} {row.function}"
        print(f"{row.bytecodes:8.1f} {row.frames:6.1f}  {name}")


@contextlib.contextmanager
def show_progress(
    console: Console, steps: int
) -> Iterator[tuple[Callable[[str], None], Callable[[Measurement], None]]]:
    """Yield two functions: one announces the next step, one reports a measurement.

    Shows a progress bar in a terminal, and plain lines elsewhere.
    """
    if not console.is_terminal:
        done = 0

        def print_measured(measurement: Measurement) -> None:
            nonlocal done
            done += 1
            case = " ".join(f"{name}={value}" for name, value in measurement.parameters.items())
            text = f"[{done}/{steps}] round {measurement.round} {measurement.scenario} {case} {measurement.subject}: "
            console.print(text + _summarise(measurement), markup=False, highlight=False, soft_wrap=True)

        yield lambda text: None, print_measured
        return
    # `auto_refresh` would start a thread, which takes CPU time from the load on the same core.
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, auto_refresh=False, transient=True) as progress:
        task = progress.add_task("starting", total=steps)

        def show_step(text: str) -> None:
            progress.update(task, description=text)
            progress.refresh()

        def show_measured(measurement: Measurement) -> None:
            progress.advance(task)
            if measurement.metrics.failed:
                progress.console.print(f"{measurement.subject}: {measurement.metrics.failed}", markup=False)

        yield show_step, show_measured


def _summarise(measurement: Measurement) -> str:
    metrics = measurement.metrics
    if metrics.failed:
        return f"FAILED: {metrics.failed}"
    values = ((column, read_metric(metrics, column.metric)) for column in columns_of(measurement.scenario))
    text = ", ".join(f"{column.show(value)} {column.title}" for column, value in values if value is not None)
    return text + (f" (errors: {metrics.errors})" if metrics.errors else "")
