"""The scenario ``limits``: a short run of every client against a real store, and the check of the store's counts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from benchmarks.cases import SMOKE, LimitsCase
from benchmarks.compare import compare_results
from benchmarks.goals import check_goals
from benchmarks.limits.clients import CLIENTS
from benchmarks.limits.measure import find_miscounts, judge_report, measure_limits, run_store
from benchmarks.limits.workload import ClientReport, Order, Tally, Window, ask_reservation, build_actors, build_group
from benchmarks.machine import pick_cores
from benchmarks.results import Metrics, Results
from benchmarks.runner import RunPlan
from benchmarks.subjects.known import known_subjects
from cgw.limits.reservations import Reservation, ReservationIds
from cgw.limits.scripts import load_scripts

Make = Callable[..., Results]


@pytest.fixture
def store() -> Iterator[tuple[int, Path]]:
    """A server for one test: its pid and its socket."""
    with run_store(pick_cores().load) as (child, socket):
        yield child.pid, socket


@pytest.fixture
def connection(store: tuple[int, Path]) -> Iterator[redis.Redis]:
    """A connection to it."""
    with redis.Redis(unix_socket_path=str(store[1])) as connection:
        yield connection


def admit(connection: redis.Redis, limits: int) -> Reservation:
    """Admit a request of the first actor."""
    reservation = ask_reservation(build_group(build_actors()[0], limits), ReservationIds())
    call = reservation.build_admit(load_scripts())
    assert connection.eval(call.script.text, len(call.keys), *call.keys, *call.args)[0] == 1
    return reservation


def settle(connection: redis.Redis, reservation: Reservation, *, is_charged: bool) -> None:
    call = reservation.build_settle(load_scripts(), is_charged=is_charged)
    connection.eval(call.script.text, len(call.keys), *call.keys, *call.args)


def charge(count: int) -> list[int]:
    """Return the report of a client that charged only the first actor."""
    return [count] + [0] * (len(build_actors()) - 1)


@pytest.mark.parametrize("limits", [1, 3, 6])
@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_is_measured_and_its_count_is_right(client: str, limits: int, tmp_path: Path) -> None:
    """Rate, latencies and CPU of client and store are present and plausible; the store counted every pair."""
    case = LimitsCase(callers=30, limits=limits, warm_ms=50, window_ms=150)

    metrics = measure_limits(client, case, pick_cores(), tmp_path)

    assert metrics.failed is None
    assert metrics.pairs_per_second is not None
    assert metrics.pair_us is not None
    assert metrics.call_us is not None
    assert metrics.pair_us.count >= metrics.pairs_per_second * metrics.window_seconds > 0
    assert metrics.call_us.count == 2 * metrics.pair_us.count
    assert 0 < metrics.call_us.p50 <= metrics.pair_us.p50 <= metrics.pair_us.p99
    assert metrics.cpu_us_per_pair is not None
    assert metrics.store_cpu_us_per_pair is not None
    assert metrics.store_us_per_call is not None
    assert metrics.cpu_us_per_pair > 0
    # A script alone is less than all that the store does for a pair.
    assert 0 < metrics.store_us_per_call < metrics.store_cpu_us_per_pair


def test_a_client_that_ends_is_a_failed_measurement(tmp_path: Path) -> None:
    """A client that cannot run is reported with its last output, and the suite continues."""
    case = LimitsCase(callers=1, limits=1, warm_ms=1, window_ms=1)

    metrics = measure_limits("no-such-client", case, pick_cores(), tmp_path)

    assert metrics.failed is not None
    assert "KeyError" in metrics.failed


@pytest.mark.parametrize("limits", [1, 3, 6])
def test_what_was_charged_is_what_the_store_counts(connection: redis.Redis, limits: int) -> None:
    """Every quota and rate counts exactly the charged pairs, and not the refunded ones."""
    for is_charged in (True, True, False, True):
        settle(connection, admit(connection, limits), is_charged=is_charged)

    assert find_miscounts(connection, limits, charge(3)) == []
    wrong = find_miscounts(connection, limits, charge(4))
    assert "cgw:{static:bench-0}:chat_completions:quota is 3, not 4" in wrong


def test_what_was_not_settled_is_found(connection: redis.Redis) -> None:
    """A pair that was admitted and never settled is reported: its slot is taken and its reservation is left."""
    settle(connection, admit(connection, 3), is_charged=True)
    admit(connection, 3)

    miscounts = find_miscounts(connection, 3, charge(2))

    assert miscounts == [
        "cgw:{static:bench-0}:chat_completions:in_flight is 1, not 0",
        "1 keys besides the limits' are left",
    ]


def test_a_client_with_a_wrong_count_fails(store: tuple[int, Path], connection: redis.Redis) -> None:
    """A report with one pair more than the store counted is a failure; the same report without it is not."""
    order = Order(str(store[1]), store[0], callers=3, limits=3, warm_ms=50, window_ms=500)
    report = CLIENTS["redis-py-threads"](order)
    assert judge_report(report, connection, 3).failed is None

    report.charged[1] += 1

    failed = judge_report(report, connection, 3).failed
    assert failed is not None
    assert failed.startswith("the store does not count what was charged: cgw:{static:bench-1}:chat_completions:quota")


def test_a_caller_that_starves_raises_the_latency() -> None:
    """A pair in progress when the window closes counts for latency but not for the rate; earlier pairs for neither."""
    window, tally = Window(Order("", 0, callers=2, limits=3, warm_ms=0, window_ms=0)), Tally()
    now = time.perf_counter_ns()
    tally.note(0, now - 1000, now - 1000, now)
    window.open()
    tally.note(0, now, now, now)
    starved_since = time.perf_counter_ns()
    window.close()
    tally.note(1, starved_since - 10**9, starved_since, starved_since)
    late = time.perf_counter_ns()
    tally.note(1, late, late, late)

    report: ClientReport = window.report([tally])

    assert report.pairs == 1
    assert report.pair.count == 2
    assert report.pair.maximum >= 10**9
    assert sum(report.charged) == 4


def test_limits_have_subjects_of_their_own() -> None:
    """The scenario does not measure gateways, and others do not measure its clients."""
    from benchmarks.binaries import python_tools
    from benchmarks.scenarios import SCENARIOS

    cases = [case for name in ("steady", "limits") for case in SCENARIOS[name].build(SMOKE)]
    plan = RunPlan(
        cases=cases,
        subjects={"direct": None, "cgw": known_subjects()["cgw"]},
        clients=list(CLIENTS),
        rounds=1,
        profile="smoke",
        command="",
        tools=python_tools(),
    )

    assert plan.names_for(cases[0]) == ["direct", "cgw"]
    assert plan.names_for(cases[-1]) == ["cgw", "redis-py-threads", "redis-py-trio", "redis-py-asyncio"]
    assert plan.steps == 2 + 3 * 4


def pairs(rate: float) -> Metrics:
    return Metrics(pairs_per_second=rate, cpu_us_per_pair=1e6 / rate)


def test_goals_of_limits(make_results: Make) -> None:
    """The rate is the highest of all numbers of callers; the ratio is to redis-py in threads."""
    results = make_results(
        [
            ("limits", {"callers": 50, "limits": 3}, "cgw", pairs(9000)),
            ("limits", {"callers": 50, "limits": 3}, "redis-py-threads", pairs(3000)),
            ("limits", {"callers": 500, "limits": 3}, "cgw", pairs(12_000)),
            ("limits", {"callers": 500, "limits": 3}, "redis-py-threads", pairs(2400)),
            ("limits", {"callers": 500, "limits": 1}, "cgw", pairs(90_000)),
        ]
    )

    verdicts = {v.goal.title: (v.measured, v.is_met) for v in check_goals(results) if v.measured is not None}

    assert verdicts == {
        "admit + settle pairs/s, 3 limits, at the best number of callers": (12_000, True),
        "admit + settle pairs/s, 3 limits, 50 callers, to redis-py in threads": (3.0, False),
        "admit + settle pairs/s, 3 limits, 500 callers, to redis-py in threads": (5.0, True),
    }


def test_limits_are_compared_to_redis_py(make_results: Make) -> None:
    """In one comparison, gateways have Go as the reference, and cgw's limiter has redis-py in threads."""

    def run(rate: float) -> Results:
        case = {"callers": 50, "limits": 3}
        return make_results(
            [
                ("steady", {"streams": 50, "rate": 50}, "cgw", Metrics(cpu_us_per_event=50)),
                ("steady", {"streams": 50, "rate": 50}, "go", Metrics(cpu_us_per_event=50)),
                ("limits", case, "cgw", pairs(rate)),
                ("limits", case, "redis-py-threads", pairs(3000)),
            ]
        )

    changes = compare_results(run(12_000), run(6000))

    worse = {(change.metric, change.reference): change.worse for change in changes}
    assert worse == {
        ("cpu_us_per_event", "go"): 0.0,
        ("cpu_us_per_pair", "redis-py-threads"): pytest.approx(1.0),
        ("pairs_per_second", "redis-py-threads"): pytest.approx(1.0),
    }
