"""The project's performance goals, checked against a results file."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from attrs import frozen
from rich.console import Console
from rich.table import Table

from benchmarks.results import Results, case_key

__all__ = ["GOALS", "Goal", "Verdict", "check_goals", "print_goals"]

Question = Callable[[Results], float | None]
LITELLM = ("litellm", "litellm-messages", "litellm-raw")


@frozen
class Goal:
    """A figure (``question`` returns ``None`` if the run does not have it) and its bound."""

    title: str
    question: Question
    bound: float
    unit: str = "×"
    is_upper: bool = True


@frozen
class Verdict:
    """A goal and the measured value. ``is_met`` is ``None`` when the run did not measure it."""

    goal: Goal
    measured: float | None

    @property
    def is_met(self) -> bool | None:
        if self.measured is None:
            return None
        return self.measured <= self.goal.bound if self.goal.is_upper else self.measured >= self.goal.bound


def check_goals(results: Results) -> list[Verdict]:
    """Check all goals, in order."""
    return [Verdict(goal, goal.question(results)) for goal in GOALS]


def print_goals(verdicts: list[Verdict], console: Console) -> None:
    table = Table(title="goals (medians over rounds; ratios within each round)", title_justify="left")
    table.add_column("goal")
    for title in ("measured", "bound", "met"):
        table.add_column(title, justify="right")
    for verdict in verdicts:
        measured, bound = describe_verdict(verdict)
        met = {True: "[green]yes[/]", False: "[red]NO[/]", None: "not measured"}[verdict.is_met]
        table.add_row(verdict.goal.title, measured, bound, met)
    console.print(table)


def describe_verdict(verdict: Verdict) -> tuple[str, str]:
    """Return the measured value and the bound, with their unit."""
    goal = verdict.goal
    sign = "≤" if goal.is_upper else "≥"
    measured = "" if verdict.measured is None else f"{_number(verdict.measured)} {goal.unit}"
    return measured, f"{sign} {_number(goal.bound)} {goal.unit}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}" if value < 10 else f"{value:.1f}"


# --- questions
def _steady(streams: int) -> tuple[str, str]:
    return "steady", case_key({"streams": streams, "rate": 50})


THROUGHPUT = "throughput", case_key({"streams": 100, "rate": 200})
FLOOD = "flood", case_key({"streams": 100, "burst": 1})
SATURATED = "requests", case_key({"connections": 32})
OBSERVED = "telemetry", case_key({"connections": 32})
OBSERVED_STREAMS = "telemetry", case_key({"streams": 200, "rate": 50})
FIRST_BYTE = "first-byte", ""
IDLE = "idle", case_key({"streams": 1000})
TLS = "tls", case_key({"streams": 200, "rate": 50})
SHORT_STREAMS = "short-streams", case_key({"streams": 200, "events": 100})


def _protocol(name: str) -> tuple[str, str]:
    return "http2", case_key({"protocol": name, "streams": 200, "rate": 50})


def _limits(callers: int) -> tuple[str, str]:
    return "limits", case_key({"callers": callers, "limits": 3})


def _cancel(phase: str) -> tuple[str, str]:
    return "cancel", case_key({"phase": phase})


def _value(case: tuple[str, str], metric: str, subject: str = "cgw") -> Question:
    return lambda results: results.median(*case, subject, metric)


def _ratio(case: tuple[str, str], metric: str, reference: str, subject: str = "cgw") -> Question:
    return lambda results: results.ratio(*case, subject, reference, metric)


def _ratio_to_any(
    case: tuple[str, str], metric: str, references: tuple[str, ...], choose: Callable[[list[float]], float]
) -> Question:
    """Ask for the ratio to the strongest of the references, picked by ``choose``."""

    def ask(results: Results) -> float | None:
        ratios = [results.ratio(*case, "cgw", reference, metric) for reference in references]
        found = [ratio for ratio in ratios if ratio is not None]
        return choose(found) if found else None

    return ask


def _difference(case: tuple[str, str], metric: str, less: str) -> Question:
    """Ask for cgw's value minus that of ``less`` in the same round."""

    def ask(results: Results) -> float | None:
        ours, theirs = (results.by_round(*case, subject, metric) for subject in ("cgw", less))
        differences = [ours[number] - theirs[number] for number in ours if number in theirs]
        return statistics.median(differences) if differences else None

    return ask


def _added_ratio(case: tuple[str, str], metric: str, subject: str, reference: str) -> Question:
    """Ask for the ratio of latencies after subtracting that of ``direct`` in the same round."""

    def ask(results: Results) -> float | None:
        ours, theirs, base = (results.by_round(*case, name, metric) for name in (subject, reference, "direct"))
        ratios = [
            (ours[number] - base[number]) / (theirs[number] - base[number])
            for number in ours
            # A reference faster than direct is noise, and would make the ratio negative.
            if number in theirs and number in base and theirs[number] > base[number]
        ]
        return statistics.median(ratios) if ratios else None

    return ask


def _ratio_of_cases(case: tuple[str, str], reference: tuple[str, str], metric: str) -> Question:
    """Ask for the ratio of cgw's values in two cases of the same round."""

    def ask(results: Results) -> float | None:
        values, base = (results.by_round(*where, "cgw", metric) for where in (case, reference))
        ratios = [values[number] / base[number] for number in values if base.get(number)]
        return statistics.median(ratios) if ratios else None

    return ask


def _overhead_error(results: Results) -> float | None:
    """Return by how much the metric is off the load generator's figure, in the worst case."""
    cases = [case for scenario, case in results.cases if scenario == "overhead"]
    ratios = [results.median("overhead", case, "cgw", "told_ratio") for case in cases]
    return max((abs(ratio - 1) for ratio in ratios if ratio is not None), default=None)


def _best_pairs(results: Results) -> float | None:
    """Return cgw's pairs/s with 3 limits, at the number of callers where they are highest."""
    cases = [case for scenario, case in results.cases if scenario == "limits" and case.endswith(" limits=3")]
    medians = [results.median("limits", case, "cgw", "pairs_per_second") for case in cases]
    return max((median for median in medians if median is not None), default=None)


CPU = "cpu_us_per_event"

GOALS = (
    Goal("CPU/event, 200 streams × 50/s, to Go", _ratio(_steady(200), CPU, "go"), 0.8),
    Goal("CPU/event, 200 streams × 50/s, to nginx", _ratio(_steady(200), CPU, "nginx"), 1.25),
    Goal("event latency p50, 200 streams", _value(_steady(200), "latency_us.p50"), 1300, "µs"),
    Goal("event latency p99, 200 streams", _value(_steady(200), "latency_us.p99"), 3000, "µs"),
    Goal("CPU/event, 20,000 events/s, to Go", _ratio(THROUGHPUT, CPU, "go"), 0.75),
    Goal("CPU/event, 20,000 events/s, to nginx", _ratio(THROUGHPUT, CPU, "nginx"), 1.0),
    Goal("CPU/event, 200 streams, tick 0, to Go", _ratio(_steady(200), CPU, "go", "cgw-tick0"), 1.05),
    Goal("CPU/event, 50 streams, to Go", _ratio(_steady(50), CPU, "go"), 0.9),
    Goal("CPU/event, 50 streams, tick 0, to Go", _ratio(_steady(50), CPU, "go", "cgw-tick0"), 0.9),
    Goal("CPU/event, 50 streams, to LiteLLM /v1/messages", _ratio(_steady(50), CPU, "litellm-messages"), 1 / 4),
    Goal("CPU/event, 50 streams, to Portkey", _ratio(_steady(50), CPU, "portkey"), 1 / 2.5),
    Goal(
        "added latency p50, 200 streams, tick 0, to Go",
        _added_ratio(_steady(200), "latency_us.p50", "cgw-tick0", "go"),
        1.1,
    ),
    Goal(
        "added latency p99, 200 streams, tick 0, to Go",
        _added_ratio(_steady(200), "latency_us.p99", "cgw-tick0", "go"),
        2.0,
    ),
    Goal("flooded events/s, to Go", _ratio(FLOOD, "events_per_second", "go"), 0.9, is_upper=False),
    Goal("first byte p50 over direct", _difference(FIRST_BYTE, "first_byte_us.p50", "direct"), 450, "µs"),
    Goal("first byte p50, to LiteLLM's best", _ratio_to_any(FIRST_BYTE, "first_byte_us.p50", LITELLM, max), 1 / 6),
    Goal("plain requests/s on a core", _value(SATURATED, "requests_per_second"), 3400, "/s", is_upper=False),
    Goal("CPU/request, plain, saturated", _value(SATURATED, "cpu_us_per_request"), 300, "µs"),
    Goal("plain requests/s, to Portkey", _ratio(SATURATED, "requests_per_second", "portkey"), 5.0, is_upper=False),
    Goal(
        "plain requests/s, to LiteLLM",
        _ratio_to_any(SATURATED, "requests_per_second", LITELLM, min),
        30.0,
        is_upper=False,
    ),
    Goal(
        "CPU/request with logs and traces, to none",
        _ratio(OBSERVED, "cpu_us_per_request", "cgw-silent", "cgw-traced"),
        1.08,
    ),
    Goal("CPU/event with logs and traces, to none", _ratio(OBSERVED_STREAMS, CPU, "cgw-silent", "cgw-traced"), 1.02),
    Goal("overhead by the metric, off what the load generator sees", _overhead_error, 0.1, "of it"),
    Goal("memory per open stream, 1000 idle", _value(IDLE, "rss_kib_per_stream"), 32.0, "KiB"),
    *(
        goal
        for phase in ("waiting", "streaming", "quiet")
        for goal in (
            Goal(
                f"client gone → upstream closed p99, {phase}", _value(_cancel(phase), "upstream_closed_ms.p99"), 3, "ms"
            ),
            Goal(f"upstream never closed, {phase}", _value(_cancel(phase), "upstream_never_closed"), 0, "of all"),
        )
    ),
    Goal("CPU/event, TLS upstream, to own plain", _ratio_of_cases(TLS, _steady(200), CPU), 1.3),
    Goal(
        "CPU/event, 200 streams over 4 HTTP/2 connections, to own HTTP/1.1",
        _ratio_of_cases(_protocol("h2"), _protocol("http1"), CPU),
        2.0,
    ),
    Goal("CPU/event, 200 streams of 100 events, to Go", _ratio(SHORT_STREAMS, CPU, "go"), 0.7),
    Goal("admit + settle pairs/s, 3 limits, at the best number of callers", _best_pairs, 10_000, "/s", is_upper=False),
    *(
        Goal(
            f"admit + settle pairs/s, 3 limits, {callers} callers, to redis-py in {where}",
            _ratio(_limits(callers), "pairs_per_second", client),
            4.0,
            is_upper=False,
        )
        for where, client in (("threads", "redis-py-threads"), ("Trio's threads", "redis-py-trio"))
        for callers in (50, 500)
    ),
)
