"""One measurement of the scenario ``events``: a recording process on one core, a collector on the other."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from benchmarks.binaries import REPOSITORY
from benchmarks.cases import EventsCase
from benchmarks.events import recorder
from benchmarks.histogram import Histogram
from benchmarks.machine import Cores
from benchmarks.processes import Child, ChildError
from benchmarks.results import Distribution, Metrics
from benchmarks.subjects.base import Subject
from benchmarks.subjects.own import Cgw

__all__ = ["RecorderReport", "can_be_measured", "judge_report", "measure_events"]

START_SECONDS = 10.0


class RecorderReport(Struct):
    """A recorder's report. ``nanoseconds`` are pairs of a time that an event took, and how many took it."""

    window_ns: int
    cpu_ns: int
    recorded: int
    in_window: int
    shipped_seconds: float
    nanoseconds: list[tuple[int, int]]


def can_be_measured(subject: Subject | None, case: EventsCase) -> bool:
    """Return whether ``subject`` is a cgw, without settings of its own, that can ship where the case does."""
    if not isinstance(subject, Cgw) or subject.environ:
        return False
    return case.sink == "none" or (subject.checkout / "cgw" / "events" / "shipping").is_dir()


def measure_events(subject: Subject | None, case: EventsCase, cores: Cores, directory: Path) -> Metrics:
    """Record and ship with the cgw of ``subject``. Failures, above all a lost event, are in ``Metrics.failed``."""
    assert isinstance(subject, Cgw)
    try:
        with tempfile.TemporaryDirectory(dir=directory) as folder, _run_collector(case, cores.load, directory) as child:
            url = "" if child is None else f"http://127.0.0.1:{_ask(child)[0]}/events"
            report = _run_recorder(subject, case, url, cores.subject, Path(folder) / "events", directory)
            return judge_report(report, case, None if child is None else _count(child))
    except ChildError as error:
        return Metrics(failed=str(error))


@contextlib.contextmanager
def _run_collector(case: EventsCase, cores: Sequence[int], directory: Path) -> Iterator[Child | None]:
    if case.sink == "none":
        yield None
        return
    command = [sys.executable, "-m", "benchmarks.events.collector"]
    log = directory / "collector.log"
    with Child("collector", command, cores=cores, log=log, has_pipes=True, cwd=REPOSITORY) as child:
        yield child


def _ask(child: Child) -> list[int]:
    line = child.read_line(time.monotonic() + START_SECONDS)
    return [int(word) for word in line.removeprefix("port ").split()]


def _count(child: Child) -> tuple[int, int]:
    child.send_line("")
    events, distinct = _ask(child)
    return events, distinct


def _run_recorder(
    subject: Cgw, case: EventsCase, url: str, cores: Sequence[int], folder: Path, directory: Path
) -> RecorderReport:
    order = {
        "checkout": str(subject.checkout),
        "folder": str(folder),
        "url": url,
        "rate": case.rate,
        "warm_ms": case.warm_ms,
        "window_ms": case.window_ms,
    }
    command = [sys.executable, recorder.__file__, msgspec.json.encode(order).decode()]
    # The script's own folder stays off the path, so that nothing but cgw is found by the suite's names.
    environ = {**os.environ, "PYTHONPATH": str(subject.checkout), "PYTHONSAFEPATH": "1"}
    deadline = time.monotonic() + (case.warm_ms + case.window_ms) / 1000 + recorder.SHIP_SECONDS + START_SECONDS
    log = directory / f"events-{subject.name}.log"
    with Child(subject.name, command, cores=cores, environ=environ, log=log, has_pipes=True, cwd=directory) as child:
        return msgspec.json.decode(child.read_line(deadline), type=RecorderReport)


def judge_report(report: RecorderReport, case: EventsCase, arrived: tuple[int, int] | None) -> Metrics:
    """Return the figures of a report; ``arrived`` counts the collector's events, and how many are different.

    They count as failed if the collector lacks an event that was recorded.
    """
    seconds = report.window_ns / 1e9
    times = (took for took, count in report.nanoseconds for _ in range(count))
    metrics = Metrics(
        window_seconds=seconds,
        recorded_per_second=report.in_window / seconds,
        record_us=Distribution.of(Histogram.of(times), 1000, keeps_histogram=False),
        cpu_share=report.cpu_ns / report.window_ns,
    )
    if not report.in_window:
        metrics.failed = "no event was recorded while the window was open"
        return metrics
    metrics.cpu_us_per_recorded = report.cpu_ns / 1000 / report.in_window
    if arrived is not None:
        if not case.rate:  # at a rate, it is the rate that is shipped
            metrics.shipped_per_second = report.recorded / report.shipped_seconds
        events, distinct = arrived
        if distinct != report.recorded:
            metrics.failed = f"of {report.recorded} events {distinct} arrived"
        elif events != distinct:
            metrics.errors["sent twice"] = events - distinct
    return metrics
