"""One comparison of the scenario ``overhead``: what cgw's own metric tells, and what the load generator sees.

The generator's figure is the mean duration of exchanges through cgw, less that of the same exchanges without it. The
metric has neither what the request takes to the kernel of cgw's machine, nor what cgw does once the client has the
answer.
"""

from __future__ import annotations

import contextlib
import re
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence

from benchmarks.cases import OverheadCase
from benchmarks.gateway_bench import GatewayBench, Running
from benchmarks.processes import Child, ChildError
from benchmarks.results import Metrics
from benchmarks.subjects.base import Subject
from benchmarks.subjects.own import Cgw

__all__ = ["has_metric", "measure_overhead", "parse_overhead"]

SCRAPE_SECONDS = 1.1
"""The time between two scrapes: within a second cgw gives the same answer again."""

_SAMPLE = re.compile(r"^cody_gateway_latency_overhead_(sum|count)\{[^}]*\} ([0-9.e+-]+)", re.MULTILINE)

# In the scheduler's idle class: any other process that wakes up takes the core from it at once.
_SPIN = "import os\nos.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))\nwhile True: pass"


def has_metric(subject: Subject | None) -> bool:
    """Return whether ``subject`` is a cgw, which tells its overhead."""
    return isinstance(subject, Cgw)


def measure_overhead(subject: Subject | None, case: OverheadCase, bench: GatewayBench) -> Metrics:
    """Measure the upstream, ``subject``, and the upstream again. Failures are in ``Metrics.failed``."""
    try:
        with _keep_awake(bench.cores.load):
            before = bench.measure(None, case.direct)
            running = bench.start(subject, case.through.is_tls)
            told = _read_overhead(running)
            metrics = bench.measure(subject, case.through)
            told_after = _read_overhead(running)
            after = bench.measure(None, case.direct)
    except (ChildError, OSError) as error:
        return Metrics(failed=str(error))
    if metrics.failed or metrics.duration_us is None or before.duration_us is None or after.duration_us is None:
        metrics.failed = metrics.failed or before.failed or after.failed or "no exchange was measured"
        return metrics
    exchanges = told_after[1] - told[1]
    if not exchanges:
        metrics.failed = "the metric has no exchange"
        return metrics
    metrics.direct_us = (before.duration_us.mean + after.duration_us.mean) / 2
    metrics.added_us = metrics.duration_us.mean - metrics.direct_us
    metrics.told_overhead_us = (told_after[0] - told[0]) / exchanges * 1000
    metrics.told_ratio = metrics.told_overhead_us / metrics.added_us
    return metrics


def _read_overhead(running: Running) -> tuple[float, float]:
    time.sleep(SCRAPE_SECONDS)
    url = f"http://127.0.0.1:{running.target.port}/-/metrics"
    request = urllib.request.Request(url, headers=running.metrics or {})
    with urllib.request.urlopen(request, timeout=5) as response:
        return parse_overhead(response.read().decode())


def parse_overhead(text: str) -> tuple[float, float]:
    """Return the sum (ms) and the number of exchanges of the metric, over all of its series."""
    totals = {"sum": 0.0, "count": 0.0}
    for kind, value in _SAMPLE.findall(text):
        totals[kind] += float(value)
    return totals["sum"], totals["count"]


@contextlib.contextmanager
def _keep_awake(cores: Sequence[int]) -> Iterator[None]:
    """Keep the tools' core from sleeping: to wake it up takes up to 100 µs, and with cgw between them more often.

    Upstream and load generator, on one core, wake each other up without that when they talk to each other directly.
    """
    with Child("spinner", [sys.executable, "-c", _SPIN], cores=cores):
        yield
