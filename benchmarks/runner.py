"""A run: rounds of cases of subjects, interleaved, so that changes of the machine's speed affect all subjects alike."""

from __future__ import annotations

import datetime
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from attrs import frozen

from benchmarks.binaries import REPOSITORY, Tools
from benchmarks.cases import AnyCase, EventsCase, GatewayCase, LimitsCase, OverheadCase
from benchmarks.events.measure import can_be_measured, measure_events
from benchmarks.gateway_bench import GatewayBench
from benchmarks.limits.measure import measure_limits
from benchmarks.machine import describe_machine, pick_cores
from benchmarks.overhead import has_metric, measure_overhead
from benchmarks.processes import pinned
from benchmarks.results import SCHEMA, Measurement, Metrics, Results
from benchmarks.subjects.base import MissingSubjectError, Subject
from benchmarks.subjects.known import DIRECT

__all__ = ["RunPlan", "find_subjects", "read_commit", "run_plan"]


@frozen(kw_only=True)
class RunPlan:
    """The measurements to make.

    ``subjects`` are gateways by name, in order; ``None`` is no gateway at all. ``clients`` are the subjects of the
    scenario ``limits``.
    """

    cases: Sequence[AnyCase]
    subjects: dict[str, Subject | None]
    clients: Sequence[str] = ()
    rounds: int
    profile: str
    command: str
    tools: Tools

    @property
    def steps(self) -> int:
        return self.rounds * sum(len(self.names_for(case)) for case in self.cases)

    @property
    def seconds(self) -> float:
        """The estimated duration when no subject is saturated."""
        return self.rounds * sum(len(self.names_for(case)) * (case.seconds + 0.3) for case in self.cases)

    def names_for(self, case: AnyCase) -> list[str]:
        """Return the names of the subjects measured in ``case``."""
        if isinstance(case, LimitsCase):
            return list(self.clients)
        if isinstance(case, OverheadCase):
            return [name for name, subject in self.subjects.items() if has_metric(subject)]
        if isinstance(case, EventsCase):
            return [name for name, subject in self.subjects.items() if can_be_measured(subject, case)]
        return [name for name, subject in self.subjects.items() if can_run(subject, case)]


def can_run(subject: Subject | None, case: GatewayCase) -> bool:
    """Return whether ``subject`` can be measured in ``case``.

    A TLS upstream needs a subject that can be configured for it, and HTTP/2 one that serves it in clear text. Neither
    can be measured with ``direct``: the load generator speaks no TLS, and the upstream no HTTP/2.
    """
    if subject is None:
        return not case.is_tls and not case.is_http2
    return (subject.has_tls or not case.is_tls) and (subject.has_http2 or not case.is_http2)


def find_subjects(
    names: Sequence[str], known: dict[str, Subject]
) -> tuple[dict[str, Subject | None], dict[str, str], dict[str, str]]:
    """Return the installed subjects of ``names``, their versions, and the reasons why others are left out.

    Raises :exc:`KeyError` for an unknown name.
    """
    found: dict[str, Subject | None] = {}
    versions: dict[str, str] = {}
    left_out: dict[str, str] = {}
    for name in dict.fromkeys(names):
        if name == DIRECT:
            found[name] = None
            continue
        subject = known[name]
        try:
            versions[name] = subject.version()
        except MissingSubjectError as error:
            left_out[name] = str(error)
        else:
            found[name] = subject
    return found, versions, left_out


def run_plan(
    plan: RunPlan,
    versions: dict[str, str],
    left_out: dict[str, str],
    on_step: Callable[[str], None],
    on_measured: Callable[[Measurement], None],
) -> Results:
    """Make all measurements of ``plan``. ``on_step`` is called before each one, ``on_measured`` with its result.

    Ctrl-C ends the run early: the measurements so far are returned.
    """
    cores = pick_cores()
    results = Results(
        schema=SCHEMA,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=plan.command,
        commit=read_commit(),
        profile=plan.profile,
        rounds=plan.rounds,
        tools=plan.tools.description,
        machine=describe_machine(cores),
        versions=versions,
        left_out=dict(left_out),
        measurements=[],
    )
    with (
        pinned(cores.load),  # keeps this process off the subject's core
        tempfile.TemporaryDirectory(prefix="cgw-bench-") as directory,
        GatewayBench(plan.tools, cores, Path(directory)) as bench,
    ):
        try:
            _measure_all(plan, bench, results, on_step, on_measured)
        except KeyboardInterrupt:
            results.left_out["(interrupted)"] = f"after {len(results.measurements)} of {plan.steps} measurements"
    return results


def _measure_all(
    plan: RunPlan,
    bench: GatewayBench,
    results: Results,
    on_step: Callable[[str], None],
    on_measured: Callable[[Measurement], None],
) -> None:
    for round_number in range(1, plan.rounds + 1):
        for case in plan.cases:
            for name in _rotated(plan.names_for(case), round_number):
                if name in results.left_out:
                    continue
                text = " ".join(f"{key}={value}" for key, value in case.parameters.items())
                on_step(f"round {round_number} of {plan.rounds}: {case.scenario} {text} · {name}")
                try:
                    metrics = _measure(plan, bench, name, case)
                except MissingSubjectError as error:
                    results.left_out[name] = str(error)
                    continue
                measurement = Measurement(
                    scenario=case.scenario,
                    parameters=case.parameters,
                    subject=name,
                    round=round_number,
                    metrics=metrics,
                )
                results.measurements.append(measurement)
                on_measured(measurement)


def _measure(plan: RunPlan, bench: GatewayBench, name: str, case: AnyCase) -> Metrics:
    if isinstance(case, LimitsCase):
        return measure_limits(name, case, bench.cores, bench.directory)
    if isinstance(case, EventsCase):
        return measure_events(plan.subjects[name], case, bench.cores, bench.directory)
    if isinstance(case, OverheadCase):
        return measure_overhead(plan.subjects[name], case, bench)
    return bench.measure(plan.subjects[name], case)


def _rotated(names: list[str], round_number: int) -> list[str]:
    """Return ``names`` rotated, so that each round starts with another subject."""
    start = (round_number - 1) % len(names) if names else 0
    return names[start:] + names[:start]


def read_commit() -> str:
    """Return the commit, with ``+changes`` if the work tree differs from it; ``unknown`` without git."""
    try:
        commit = _git("rev-parse", "HEAD")
        changes = _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return commit + ("+changes" if changes else "")


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(REPOSITORY), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
