"""Invented runs, whose ratios and medians are known."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from benchmarks.histogram import Histogram
from benchmarks.results import SCHEMA, Distribution, Machine, Measurement, Metrics, Results

Row = tuple[str, Mapping[str, int | str], str, Metrics]


@pytest.fixture
def make_results() -> Callable[..., Results]:
    """Return a function that builds results from rounds, each a list of (scenario, parameters, subject, metrics)."""

    def make(*rounds: list[Row]) -> Results:
        return Results(
            schema=SCHEMA,
            date="2026-01-02T03:04:05+00:00",
            command="python -m benchmarks",
            commit="0123456789abcdef",
            profile="short",
            rounds=len(rounds),
            tools="C",
            machine=Machine(
                cpu="A <CPU>",
                cores=2,
                memory_mib=4096,
                kernel="Linux 6",
                python="3.11.7",
                subject_cores=[1],
                load_cores=[0],
            ),
            versions={"cgw": "cgw 0.1.0"},
            left_out={"portkey": "no such <package>"},
            measurements=[
                Measurement(
                    scenario=scenario, parameters=dict(parameters), subject=subject, round=number, metrics=metrics
                )
                for number, rows in enumerate(rounds, 1)
                for scenario, parameters, subject, metrics in rows
            ],
        )

    return make


@pytest.fixture
def spread() -> Callable[..., Distribution]:
    """Return a function that builds a distribution of times in microseconds."""

    def make(*microseconds: int) -> Distribution:
        made = Distribution.of(Histogram.of(value * 1000 for value in microseconds), 1000)
        assert made is not None
        return made

    return make
