"""The scenario ``events``: a short run of each case, and the check that every event arrived."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from benchmarks.binaries import python_tools
from benchmarks.cases import SMOKE, EventsCase
from benchmarks.events.measure import RecorderReport, can_be_measured, judge_report, measure_events
from benchmarks.machine import pick_cores
from benchmarks.runner import RunPlan
from benchmarks.scenarios import SCENARIOS
from benchmarks.subjects.known import known_subjects
from benchmarks.subjects.own import Cgw


@pytest.mark.parametrize("rate", [500, 0])
@pytest.mark.parametrize("sink", ["none", "http"])
def test_recording_and_shipping_are_measured(rate: int, sink: Literal["none", "http"], tmp_path: Path) -> None:
    """Cost on the request path, CPU and rates are present and plausible; a sink has every event in the end."""
    case = EventsCase(rate=rate, sink=sink, warm_ms=50, window_ms=200)

    metrics = measure_events(Cgw(), case, pick_cores(), tmp_path)

    assert metrics.failed is None
    assert metrics.recorded_per_second is not None
    assert metrics.record_us is not None
    assert metrics.cpu_us_per_recorded is not None
    assert 0 < metrics.record_us.p50 <= metrics.record_us.p99
    assert metrics.record_us.count == round(metrics.recorded_per_second * metrics.window_seconds) > 0
    assert metrics.cpu_us_per_recorded > 0
    has_rate = metrics.shipped_per_second is not None and metrics.shipped_per_second > 0
    assert has_rate == (sink == "http" and not rate)


def test_a_recorder_that_ends_is_a_failed_measurement(tmp_path: Path) -> None:
    """A folder without cgw is reported, although another cgw is installed, and the suite continues."""
    case = EventsCase(rate=0, sink="none", warm_ms=1, window_ms=1)

    metrics = measure_events(Cgw(checkout=tmp_path), case, pick_cores(), tmp_path)

    assert metrics.failed is not None
    assert f"there is no cgw in {tmp_path}" in metrics.failed


def test_a_lost_event_is_a_failed_measurement() -> None:
    """One event that did not arrive fails a measurement; one that arrived twice is told."""
    case = EventsCase(rate=0, sink="http", warm_ms=0, window_ms=1000)
    report = RecorderReport(10**9, 10**8, recorded=100, in_window=90, shipped_seconds=2.0, nanoseconds=[(1000, 90)])

    metrics = judge_report(report, case, (101, 100))
    assert (metrics.failed, metrics.errors, metrics.shipped_per_second) == (None, {"sent twice": 1}, 50)
    assert judge_report(report, case, (100, 99)).failed == "of 100 events 99 arrived"
    report.in_window = 0
    assert judge_report(report, case, (100, 100)).failed == "no event was recorded while the window was open"


def test_checkouts_of_cgw_are_the_subjects(tmp_path: Path) -> None:
    """Other gateways and cgw's own variants have no figures of their own; an earlier cgw cannot ship."""
    cases = list(SCENARIOS["events"].build(SMOKE))
    known = known_subjects()
    plan = RunPlan(
        cases=cases,
        subjects={"direct": None, "go": known["go"], "cgw-tick0": known["cgw-tick0"], "cgw": known["cgw"]},
        rounds=1,
        profile="smoke",
        command="",
        tools=python_tools(),
    )
    assert [plan.names_for(case) for case in cases] == [["cgw"]] * 4
    earlier = Cgw("before", checkout=tmp_path)
    assert [can_be_measured(earlier, case) for case in cases if isinstance(case, EventsCase)] == [True, False] * 2
