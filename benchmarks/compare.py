"""Comparison of two runs by ratios to a reference within each run. Absolute figures of two runs cannot be compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from attrs import frozen
from rich.console import Console
from rich.table import Table

from benchmarks.results import Results, ResultsError

__all__ = ["Change", "compare_results", "pick_references", "print_changes"]

HIGHER_IS_BETTER = {"events_per_second", "requests_per_second", "pairs_per_second"}
METRICS = (
    "cpu_us_per_event",
    "cpu_us_per_request",
    "latency_us.p50",
    "first_byte_us.p50",
    "rss_kib_per_stream",
    "upstream_closed_ms.p50",
    "cpu_us_per_pair",
    "pair_us.p50",
    "cpu_us_per_recorded",
    "record_us.p50",
)
TAILS = ("latency_us.p99", "first_byte_us.p99", "upstream_closed_ms.p99", "pair_us.p99")
RATES = {"flood": "events_per_second", "requests": "requests_per_second", "limits": "pairs_per_second"}
"""Scenarios whose rate is the subject's maximum. In all others it is the offered rate."""
REFERENCES = ("go", "nginx", "haproxy", "direct")
LIMITS_REFERENCES = ("redis-py-threads", "redis-py-trio", "redis-py-asyncio")
"""For the scenario ``limits``, which does not measure gateways."""


@frozen
class Change:
    """A metric's ratio to the reference in both runs."""

    scenario: str
    case: str
    subject: str
    metric: str
    reference: str
    before: float
    after: float

    @property
    def worse(self) -> float:
        """The relative change for the worse: 0.1 for 10 %, negative for an improvement."""
        if self.metric in HIGHER_IS_BETTER:
            return self.before / self.after - 1 if self.after else float("inf")
        return self.after / self.before - 1 if self.before else float("inf")


def pick_references(before: Results, after: Results) -> list[str]:
    """Return the first of go, nginx, haproxy and direct that both runs have, and the first of redis-py's clients.

    Raises :exc:`ResultsError` if both runs have none of them.
    """
    common = set(before.subjects) & set(after.subjects)
    found = [next((name for name in names if name in common), None) for names in (REFERENCES, LIMITS_REFERENCES)]
    chosen = [name for name in found if name is not None]
    if not chosen:
        names = ", ".join(REFERENCES + LIMITS_REFERENCES)
        raise ResultsError(f"the runs share none of {names} as a reference for ratios; name one with --reference")
    return chosen


def compare_results(
    before: Results,
    after: Results,
    *,
    reference: str | None = None,
    subjects: Sequence[str] | None = None,
    with_tails: bool = False,
) -> list[Change]:
    """Return the changes of all metrics that both runs have for a subject and its reference.

    By default, ``subjects`` are those whose names begin with ``cgw``. Raises :exc:`ResultsError` when there is
    nothing to compare.
    """
    references = [reference] if reference else pick_references(before, after)
    common = [name for name in before.subjects if name in after.subjects]
    names = list(subjects) if subjects else [name for name in common if name.startswith("cgw")]
    missing = [name for name in (*names, *references) if name not in common]
    if missing:
        raise ResultsError(f"not in both runs: {', '.join(missing)}")
    metrics = METRICS + TAILS if with_tails else METRICS
    changes = [
        change
        for chosen in references
        for change in _find_changes(before, after, chosen, [name for name in names if name != chosen], metrics)
    ]
    if not changes:
        raise ResultsError("the runs have no case of these subjects in common")
    return changes


def _find_changes(
    before: Results, after: Results, reference: str, subjects: Sequence[str], metrics: Sequence[str]
) -> Iterator[Change]:
    for scenario, case in before.cases:
        rate = RATES.get(scenario)
        for subject in subjects:
            for metric in (*metrics, *((rate,) if rate else ())):
                first = before.ratio(scenario, case, subject, reference, metric)
                second = after.ratio(scenario, case, subject, reference, metric)
                if first is not None and second is not None:
                    yield Change(scenario, case, subject, metric, reference, first, second)


def print_changes(changes: Sequence[Change], tolerance: float, console: Console) -> bool:
    """Print a table. Returns ``True`` if a change is worse than the tolerance."""
    references = " and ".join(dict.fromkeys(change.reference for change in changes))
    table = Table(title=f"ratios to {references}, before and after", title_justify="left")
    for title in ("scenario", "subject", "metric"):
        table.add_column(title)
    for title in ("before", "after", "change", ""):
        table.add_column(title, justify="right")
    for change in changes:
        verdict = ""
        if change.worse > tolerance:
            verdict = "[red]WORSE[/]"
        elif change.worse < -tolerance:
            verdict = "[green]better[/]"
        name = f"{change.scenario} {change.case}".strip()
        relative = change.after / change.before - 1 if change.before else float("inf")
        table.add_row(
            *(name, change.subject, change.metric),
            *(f"{change.before:.3f}", f"{change.after:.3f}", f"{relative:+.1%}", verdict),
        )
    console.print(table)
    return any(change.worse > tolerance for change in changes)
