"""Whole runs of the smallest scenarios, with the real tools on loopback."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.binaries import REPOSITORY
from benchmarks.histogram import bucket_index
from benchmarks.results import Results

TOOLS = [
    "python",
    pytest.param("c", marks=pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")),
]
# Forwards bytes in both directions, which is enough for a subject.
RELAY = REPOSITORY / "tests" / "benchmarks" / "tcp_relay.py"


def run_suite(*arguments: str, cache: Path | None = None) -> subprocess.CompletedProcess[str]:
    environ = {"PATH": "/usr/bin:/bin:/usr/sbin", "HOME": "/nonexistent", "CGW_BENCH_CACHE": str(cache or "")}
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=REPOSITORY,
        env=environ,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.parametrize("tools", TOOLS)
def test_a_run_measures_what_the_upstream_sent(tools: str, tmp_path: Path) -> None:
    """No stream of three scenarios breaks, times are plausible, and a JSON file and a report are written."""
    path = tmp_path / "results.json"
    done = run_suite(
        *("--profile", "smoke", "--scenario", "steady,requests,cancel", "--subjects", "direct"),
        *("--tools", tools, "-o", str(path)),
        cache=tmp_path / "cache",
    )

    assert done.returncode == 0, done.stderr
    results = Results.read(path)
    assert results.subjects == ["direct"]
    assert [scenario for scenario, _ in results.cases] == ["steady", "requests", "requests", *["cancel"] * 3]
    assert [m.metrics.errors for m in results.measurements] == [{}] * 6
    assert [m.metrics.failed for m in results.measurements] == [None] * 6
    steady = results.measurements[0].metrics
    assert steady.events_per_second == pytest.approx(100, rel=0.3)
    assert steady.latency_us is not None
    assert 0 < steady.latency_us.p50 <= steady.latency_us.p99 <= steady.latency_us.max
    histogram = steady.latency_us.histogram
    assert histogram is not None
    assert histogram.buckets[-1][0] == bucket_index(histogram.maximum)
    assert sum(count for _, count in histogram.buckets) == histogram.count
    for measurement in results.select("cancel"):
        assert measurement.metrics.upstream_never_closed == 0
        assert measurement.metrics.upstream_closed_ms is not None
    assert path.with_suffix(".html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize("tools", TOOLS)
def test_mixed_and_multiplexed_exchanges_are_measured(tools: str, tmp_path: Path) -> None:
    """Short streams, a mix of requests, and HTTP/2 through cgw: no exchange breaks, and each case has its figures."""
    path = tmp_path / "results.json"
    done = run_suite(
        *("--profile", "smoke", "--scenario", "http2,short-streams,autocomplete", "--subjects", "direct,cgw"),
        *("--tools", tools, "--no-report", "-o", str(path)),
        cache=tmp_path / "cache",
    )

    assert done.returncode == 0, done.stderr
    results = Results.read(path)
    assert [m.metrics.failed for m in results.measurements] == [None] * len(results.measurements)
    direct = [m for m in results.measurements if m.subject == "direct"]
    assert [m.scenario for m in direct] == ["http2", *["short-streams"] * 3, "autocomplete"]
    assert [m.metrics.errors for m in direct] == [{}] * 5
    # On a busy machine cgw sheds requests (status), and the users may have no connection left (overflow).
    errors = {name for measurement in results.measurements for name in measurement.metrics.errors}
    assert errors <= {"status", "overflow"}
    for protocol in ("http1", "h2"):
        metrics = next(results.select("http2", f"protocol={protocol} streams=2 rate=50", "cgw")).metrics
        assert metrics.cpu_us_per_event is not None
        assert metrics.latency_us is not None
    mixed = next(results.select("autocomplete", subject="cgw")).metrics
    assert mixed.cpu_us_per_request is not None
    assert mixed.first_byte_us is not None
    assert next(results.select("short-streams", subject="cgw")).metrics.cpu_us_per_event is not None
    events = next(results.select("autocomplete", subject="direct")).metrics.latency_us
    # 100 requests a second with 44.4 events each: a mean of 0.4 × 1 + 0.4 × 35 + 0.2 × 150.
    assert events is not None
    assert events.count == pytest.approx(0.3 * 100 * 44.4, rel=0.35)


def test_a_command_as_subject_is_measured_and_ended(tmp_path: Path) -> None:
    """A proxy named on the command line is started, measured with its CPU, and ended."""
    path = tmp_path / "results.json"
    command = f"{sys.executable} {RELAY} {{port}} {{upstream_host}} {{upstream_port}} {tmp_path}"
    done = run_suite(
        *("--profile", "smoke", "--scenario", "steady,idle", "--subjects", "direct", "--subject", f"mine={command}"),
        *("--tools", "python", "--no-report", "-o", str(path)),
    )

    assert done.returncode == 0, done.stderr
    results = Results.read(path)
    measured = next(results.select("steady", subject="mine")).metrics
    assert measured.failed is None
    assert measured.errors == {}
    assert measured.cpu_us_per_event is not None
    assert measured.cpu_us_per_event > 0
    assert next(results.select("idle", subject="mine")).metrics.rss_kib_per_stream is not None
    assert not path.with_suffix(".html").exists()
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not [command for command in commands if str(tmp_path).encode() in command]


def test_a_subject_that_fails_does_not_end_the_run(tmp_path: Path) -> None:
    """The results have its failure and the other subjects; one that is not installed is left out and named."""
    path = tmp_path / "results.json"
    done = run_suite(
        *("--profile", "smoke", "--scenario", "throughput", "--subjects", "direct,portkey"),
        *("--subject", "broken=false {port}", "--tools", "python", "--no-report", "-o", str(path)),
        cache=tmp_path,
    )

    assert done.returncode == 0, done.stderr
    results = Results.read(path)
    assert "portkey" in results.left_out
    assert "left out: portkey" in done.stdout
    broken = next(results.select("throughput", subject="broken")).metrics
    assert broken.failed is not None
    assert "broken ended with status 1" in broken.failed
    assert next(results.select("throughput", subject="direct")).metrics.failed is None


def test_overhead_is_compared_with_the_metric(tmp_path: Path) -> None:
    """Each case has both figures of the same exchanges, by which no other subject than a cgw is measured."""
    path = tmp_path / "results.json"
    done = run_suite(
        *("--profile", "smoke", "--scenario", "overhead", "--case", "rate=50", "--subjects", "direct,cgw"),
        *("--tools", "python", "--no-report", "-o", str(path)),
        cache=tmp_path,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    results = Results.read(path)
    (measurement,) = results.measurements
    metrics = measurement.metrics
    assert (measurement.subject, metrics.failed) == ("cgw", None)
    assert metrics.duration_us is not None
    assert metrics.direct_us is not None
    assert metrics.added_us is not None
    assert metrics.added_us == pytest.approx(metrics.duration_us.mean - metrics.direct_us)
    assert metrics.told_overhead_us is not None
    assert 0 < metrics.told_overhead_us < metrics.duration_us.mean
    assert metrics.told_ratio == pytest.approx(metrics.told_overhead_us / metrics.added_us)
    assert "metric ÷ added" in done.stdout


def test_limits_are_a_scenario_of_the_suite(tmp_path: Path) -> None:
    """A run of it alone starts no gateway, records the versions of its clients, and has their figures in the report."""
    path = tmp_path / "results.json"
    done = run_suite(
        *("--profile", "smoke", "--scenario", "limits", "--case", "limits=3", "--subjects", "cgw,redis-py-asyncio"),
        *("--tools", "python", "-o", str(path)),
        cache=tmp_path,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    results = Results.read(path)
    assert results.subjects == ["cgw", "redis-py-asyncio"]
    assert [m.metrics.failed for m in results.measurements] == [None, None]
    assert set(results.versions) == {"cgw", "redis-py-asyncio", "store"}
    assert "pairs/s" in done.stdout
    assert "limits callers=5 limits=3" in path.with_suffix(".html").read_text()


@pytest.mark.parametrize(
    "arguments",
    [["--scenario", "no-such"], ["--subjects", "no-such"], ["--subject", "x"], ["report"], ["--case", "streams=7"]],
)
def test_a_wrong_command_line_is_explained(arguments: list[str]) -> None:
    """Exit status 2 and a sentence, without a traceback."""
    done = run_suite(*arguments)

    assert done.returncode == 2
    assert "Error" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_lists_scenarios_and_commands() -> None:
    """``--help`` lists the commands, scenarios and options."""
    top, run = run_suite("--help").stdout, run_suite("run", "--help").stdout

    assert all(name in top for name in ("run", "report", "compare", "goals"))
    assert all(name in run for name in ("steady", "slow-reader", "large-prompt", "--subject", "{upstream_port}"))
