"""One measurement of the scenario ``limits``: a fresh store on one core, a client on the other, the store's count."""

from __future__ import annotations

import contextlib
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import hiredis
import msgspec
import redis

from benchmarks.binaries import REPOSITORY
from benchmarks.cases import LimitsCase
from benchmarks.histogram import Histogram
from benchmarks.limits.clients import MAX_THREADS
from benchmarks.limits.workload import ClientReport, Order, build_actors, build_group
from benchmarks.machine import Cores
from benchmarks.processes import Child, ChildError
from benchmarks.results import Distribution, Metrics
from benchmarks.subjects.base import ask_version
from cgw import __version__
from cgw.limits.scripts import PEEKED_PER_LIMIT, load_scripts
from cgw.redis.embedded import find_server

__all__ = ["describe_versions", "find_miscounts", "judge_report", "measure_limits", "run_store"]

START_SECONDS = 10.0
REPORT_SECONDS = 20.0
MAX_NAMED = 3


def describe_versions(clients: Sequence[str]) -> dict[str, str]:
    """Of the clients, and of the store. Raises :exc:`~cgw.errors.ConfigError` when there is no server to run."""
    peer = f"redis-py {redis.__version__} with hiredis {hiredis.__version__}"
    versions = {
        "cgw": f"cgw {__version__}",
        "redis-py-threads": f"{peer}, {MAX_THREADS} threads at most",
        "redis-py-trio": f"{peer}, called from Trio, {MAX_THREADS} threads at most",
        "redis-py-asyncio": f"{peer}, one connection for each caller",
    }
    line = ask_version([str(find_server()), "--version"])
    found = re.match(r"(\w+) server v=(\S+)", line)
    return {name: versions[name] for name in clients} | {"store": f"{found[1]} {found[2]}" if found else line}


@contextlib.contextmanager
def run_store(cores: Sequence[int]) -> Iterator[tuple[Child, Path]]:
    """An empty server without persistence on a unix socket of its own; ended with the block."""
    with tempfile.TemporaryDirectory(prefix="cgw-") as folder:  # not within another: a socket's path must be short
        socket = Path(folder) / "store.sock"
        options = ("--port", "0", "--unixsocket", str(socket), "--save", "", "--appendonly", "no", "--dir", folder)
        with Child("store", [str(find_server()), *options], cores=cores, log=Path(folder) / "log") as child:
            _wait_until_answers(child, socket)
            yield child, socket


def _wait_until_answers(child: Child, socket: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    with redis.Redis(unix_socket_path=str(socket)) as connection:
        while True:
            if not child.is_alive:
                raise ChildError(child.describe_end())
            try:
                connection.ping()
            except redis.ConnectionError:
                if time.monotonic() > deadline:
                    raise ChildError(f"the store does not answer within {START_SECONDS:g} s") from None
                time.sleep(0.005)
            else:
                return


def measure_limits(client: str, case: LimitsCase, cores: Cores, directory: Path) -> Metrics:
    """Run ``client`` against a store of its own. What goes wrong, a wrong count above all, is in ``Metrics.failed``."""
    try:
        with run_store(cores.load) as (store, socket):
            order = Order(str(socket), store.pid, case.callers, case.limits, case.warm_ms, case.window_ms)
            report = _run_client(client, order, cores.subject, directory / f"limits-{client}.log")
            with redis.Redis(unix_socket_path=str(socket)) as connection:
                return judge_report(report, connection, case.limits)
    except ChildError as error:
        return Metrics(failed=str(error))


def _run_client(name: str, order: Order, cores: Sequence[int], log: Path) -> ClientReport:
    command = [sys.executable, "-m", "benchmarks.limits.clients", name, msgspec.json.encode(order).decode()]
    deadline = time.monotonic() + (order.warm_ms + order.window_ms) / 1000 + REPORT_SECONDS
    with Child(name, command, cores=cores, log=log, has_pipes=True, cwd=REPOSITORY) as child:
        return msgspec.json.decode(child.read_line(deadline), type=ClientReport)


def find_miscounts(connection: redis.Redis, limits: int, charged: Sequence[int]) -> list[str]:
    """Return the differences between the store's counts and the client's, by actor; empty when all is right.

    Quotas and rates must count what was charged, no slot in flight may be taken, and no reservation left unsettled.
    """
    peek = connection.register_script(load_scripts().peek.text)
    found, known = [], 0
    for actor, count in zip(build_actors(), charged, strict=True):
        claims = build_group(actor, limits).claims
        keys = [claim.key for claim in claims]
        answer = peek(keys, [word for claim in claims for word in (claim.kind, claim.limit, claim.period_ms)])
        known += int(connection.exists(*keys))
        for claim, remaining in zip(claims, answer[1::PEEKED_PER_LIMIT], strict=True):
            expected = 0 if claim.kind == "lease" else count
            if claim.limit - remaining != expected:
                found.append(f"{claim.key} is {claim.limit - remaining}, not {expected}")
    left = int(connection.dbsize()) - known
    if left:
        found.append(f"{left} keys besides the limits' are left")
    return found if len(found) <= MAX_NAMED else [*found[:MAX_NAMED], f"and {len(found) - MAX_NAMED} more"]


def judge_report(report: ClientReport, connection: redis.Redis, limits: int) -> Metrics:
    """The figures of a report, which count as failed if the store does not count what the report says."""
    seconds, pairs = report.window_ns / 1e9, report.pairs
    metrics = Metrics(
        window_seconds=seconds,
        pairs_per_second=pairs / seconds,
        pair_us=Distribution.of(report.pair, 1000),
        call_us=Distribution.of(Histogram.merged((report.admit, report.settle)), 1000, keeps_histogram=False),
        admit_us=Distribution.of(report.admit, 1000, keeps_histogram=False),
        settle_us=Distribution.of(report.settle, 1000, keeps_histogram=False),
        cpu_share=report.cpu_ns / report.window_ns,
        store_share=report.store_cpu_ns / report.window_ns,
        store_us_per_call=connection.info("commandstats")["cmdstat_evalsha"]["usec_per_call"],
    )
    if pairs:
        metrics.cpu_us_per_pair = report.cpu_ns / 1000 / pairs
        metrics.store_cpu_us_per_pair = report.store_cpu_ns / 1000 / pairs
    else:
        metrics.failed = "no pair was settled while the window was open"
    miscounts = find_miscounts(connection, limits, report.charged)
    if miscounts:
        metrics.failed = f"the store does not count what was charged: {'; '.join(miscounts)}"
    return metrics
