"""Drills: three times the capacity, idle connections, few descriptors, slow heads. ``-s`` prints the figures.

Gateway, upstream and load are processes of their own: the gateway has the last core to itself, as far as the machine
allows. ``CGW_OVERLOAD_SECONDS`` is the length of the overload. The bounds are wide, for machines that do other work at
the same time; the goals are for one that does not, and are printed with the figures.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from attrs import frozen

from benchmarks.binaries import build_tools
from benchmarks.machine import Cores, pick_cores, process_tree, read_cpu, read_memory
from benchmarks.processes import Child, free_port, wait_until_answers
from benchmarks.results import Distribution
from benchmarks.subjects.base import Address
from benchmarks.subjects.own import Cgw
from benchmarks.tool_processes import Target, UpstreamProcess, run_load
from tests.support.descriptors import allow_descriptors
from tests.support.open_load import Phase, PhaseReport, Plan, quantile, run_plan

SECONDS = float(os.environ.get("CGW_OVERLOAD_SECONDS", "5"))
UPSTREAM_SECONDS = 0.02
CLOSED_CONNECTIONS = 64
CONNECTIONS = 1000
STREAMS, FIRST_STREAM = 50, 5_000_000_000
IDLE_CONNECTIONS = 5000
SLOW_HEADS = 2000
SHEDDING = {"CODY_GATEWAY_SHED_TARGET": "5ms"}
"""The default, which benchmarks turn off."""

SLACK_MS = 400.0
"""What other work on the machine may add to a 99th percentile."""


def report(text: str) -> None:
    """Print a line of figures, for ``-s``."""
    sys.stdout.write(f"{text}\n")


def describe(name: str, phase: PhaseReport) -> str:
    """Return the figures of a phase as a line."""
    served, refused, probes = phase.served_ms, phase.refused_ms, phase.probes_ms
    text = f"{name:8} {phase.finished / phase.seconds:6.0f}/s served, p50 {quantile(served, 0.5):.1f} ms, "
    text += f"p99 {quantile(served, 0.99):.1f} ms"
    if refused:
        text += f"; {len(refused) / phase.seconds:.0f}/s refused, p50 {quantile(refused, 0.5):.1f} ms, "
        text += f"p99 {quantile(refused, 0.99):.1f} ms, the last after {phase.last_refused_seconds:.2f} s"
    return f"{text}; health p99 {quantile(probes, 0.99):.1f} ms, max {quantile(probes, 1):.1f} ms"


@frozen
class Stage:
    """A running gateway in front of the fake upstream."""

    child: Child
    target: Target
    cores: Cores
    log: Path
    upstream: UpstreamProcess

    def play(self, *phases: Phase, connections: int = 0, max_connections: int = 1000) -> dict[str, PhaseReport]:
        """Run a load and print its figures."""
        target = self.target
        plan = Plan(
            target.port, target.path, list(target.headers), list(phases), connections, max_connections=max_connections
        )
        reports = run_plan(plan, self.cores.load)
        for name, phase in reports.items():
            report(describe(name, phase))
        return reports

    def read_cpu_seconds(self) -> float:
        """Return the CPU time of the gateway and its store so far."""
        return sum(read_cpu(process_tree(self.child.pid)).values()) / 1e9


@contextmanager
def open_stage(directory: Path, *wrapper: str, **environ: str) -> Iterator[Stage]:
    """Run upstream and gateway; ``wrapper`` is a command that runs the gateway's."""
    cores, tools = pick_cores(), build_tools()
    with ExitStack() as stack:
        upstream = stack.enter_context(UpstreamProcess(tools.upstream, cores.upstream, directory / "upstream.log"))
        upstream.behave("a", {"stream": 0, "bytes": 200, "first": round(UPSTREAM_SECONDS * 1e9)})
        upstream.behave("b", {"stream": 1, "events": 1_000_000, "interval": 50_000_000, "first": 0})
        address = Address(upstream.scheme, upstream.port, directory / "ca.pem")
        # Without a secret for diagnostics, which the benchmarks set: the probes have none.
        settings = {**SHEDDING, "CODY_GATEWAY_DIAGNOSTICS_SECRET": "", **environ}
        start = Cgw(environ=settings).prepare(directory, free_port(), address)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("CODY_GATEWAY_")}
        log = directory / "gateway.log"
        child = stack.enter_context(
            Child(
                "cgw",
                [*wrapper, *start.command],
                cores=cores.subject,
                environ={**inherited, **start.environ},
                cwd=start.cwd,
                log=log,
            )
        )
        wait_until_answers(child, start.target.port, 20)
        yield Stage(child, start.target, cores, log, upstream)


class StreamLoad(threading.Thread):
    """Streams that are open all the time, and the delay of their events while a window is open."""

    def __init__(self, stage: Stage, *, number: int, wait_seconds: float, window_seconds: float) -> None:
        super().__init__()
        self._stage = stage
        self._first_id = FIRST_STREAM + number * 1_000_000
        self._settings = {
            "slots": STREAMS,
            "warm-ms": round(wait_seconds * 1000),
            "window-ms": round(window_seconds * 1000),
            "drain-ms": 0,
        }
        self.delays: Distribution | None = None

    def run(self) -> None:
        log = self._stage.log.with_name("streams.log")
        load = build_tools().load
        result = run_load(
            load, self._stage.target, self._settings, first_id=self._first_id, cores=self._stage.cores.load, log=log
        )
        self.delays = Distribution.of(result.latency, 1_000_000)


def show(streams: StreamLoad) -> str:
    """Return the delays of events in words."""
    delays = streams.delays
    return "no events" if delays is None else f"p50 {delays.p50:.2f} ms, p99 {delays.p99:.2f} ms"


@pytest.mark.skipif("CGW_LONG_DRILLS" not in os.environ, reason="needs a core of its own")
def test_three_times_the_capacity(tmp_path: Path) -> None:
    """At three times the capacity those admitted stay fast, the rest are refused at once, and health is answered."""
    with open_stage(tmp_path) as stage:
        stage.play(Phase("warm-up", 0.5, 0, CLOSED_CONNECTIONS))
        cpu = stage.read_cpu_seconds()
        closed = stage.play(Phase("closed", 3, 0, CLOSED_CONNECTIONS))["closed"]
        capacity = closed.finished / closed.seconds
        per_cpu = closed.finished / (stage.read_cpu_seconds() - cpu)
        before = StreamLoad(stage, number=0, wait_seconds=1.5, window_seconds=2)
        during = StreamLoad(stage, number=1, wait_seconds=7, window_seconds=max(1, SECONDS - 2))
        before.start()
        during.start()
        readings: list[float] = []

        def read_cpu_of_overload() -> None:
            for wait_seconds in (6.2, SECONDS):  # settling, quiet and the first second are over
                time.sleep(wait_seconds)
                readings.append(stage.read_cpu_seconds())

        reader = threading.Thread(target=read_cpu_of_overload)
        reader.start()
        phases = stage.play(
            Phase("quiet", 4, 0.3 * capacity),
            Phase("first 1 s", 1, 3 * capacity),
            Phase("overload", SECONDS, 3 * capacity),
            Phase("after", 3, 0.3 * capacity),
            connections=CONNECTIONS,
        )
        for thread in (before, during, reader):
            thread.join()
        quiet, overload, after = phases["quiet"], phases["overload"], phases["after"]
        ratio = quantile(overload.served_ms, 0.99) / quantile(quiet.served_ms, 0.99)
        report(f"p99 of admitted: {ratio:.1f} × quiet (goal: under 5)")
        used = readings[1] - readings[0]
        report(f"throughput of admitted: {overload.finished / overload.seconds / capacity:.2f} × capacity (goal: 0.9)")
        report(
            f"per second of CPU: {overload.finished / used / per_cpu:.2f} ×; {used / SECONDS:.0%} of a core was used"
        )
        report(f"{STREAMS} open streams: before {show(before)}; during {show(during)}")
        log = stage.log.read_text()
    assert not any(phase.errors or phase.failed_probes for phase in phases.values())
    assert not quiet.refused_ms
    assert overload.refused_ms
    assert '"code":"overloaded"' in overload.refusal
    assert overload.closed == 0
    assert 0 <= after.last_refused_seconds < 1 or not after.refused_ms
    if used > 0.8 * SECONDS:  # otherwise other processes took the gateway's core, and the figures tell of them
        assert quantile(overload.served_ms, 0.99) < 5 * quantile(quiet.served_ms, 0.99) + SLACK_MS
        assert quantile(overload.refused_ms, 0.99) < 100 + SLACK_MS
        assert quantile(overload.probes_ms, 0.99) < 100 + SLACK_MS
        assert overload.finished / used > 0.5 * per_cpu
    assert log.count("overloaded: refused") <= SECONDS + 4


def open_connections(port: int, count: int, stack: ExitStack) -> list[socket.socket]:
    """Open connections that are closed with ``stack``."""
    return [stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10)) for _ in range(count)]


def test_idle_connections(tmp_path: Path) -> None:
    """Thousands of idle connections cost memory only: other requests are as fast as without them."""
    count = min(IDLE_CONNECTIONS, allow_descriptors(IDLE_CONNECTIONS + 200) - 200)
    with open_stage(tmp_path) as stage, ExitStack() as stack:
        stage.play(Phase("warm-up", 0.5, 0, 16))
        without = stage.play(Phase("without", 2, 100))["without"]
        tree = process_tree(stage.child.pid)
        rss = read_memory(tree).rss
        began = time.monotonic()
        open_connections(stage.target.port, count, stack)
        beside = stage.play(Phase("beside", 2, 100), connections=10)["beside"]
        report(f"{count} idle connections, opened within {time.monotonic() - began - 3:.1f} s:")
        report(f"{(read_memory(tree).rss - rss) / count:.1f} KiB each")
    assert not beside.errors
    assert len(beside.refused_ms) < 0.2 * len(beside.served_ms)  # opening that many is a short overload itself
    assert quantile(beside.served_ms, 0.99) < 5 * quantile(without.served_ms, 0.99) + SLACK_MS


def test_few_descriptors(tmp_path: Path) -> None:
    """With 256 descriptors, connections beyond the bound get a 503, and those within are served with no failure."""
    with open_stage(tmp_path, "prlimit", "--nofile=256:256") as stage, ExitStack() as stack:
        port = stage.target.port
        reports: list[PhaseReport] = []
        load = threading.Thread(
            target=lambda: reports.append(
                stage.play(Phase("beside", 4, 100), connections=30, max_connections=30)["beside"]
            )
        )
        load.start()
        time.sleep(1.5)
        extra = open_connections(port, 300, stack)
        load.join()  # by now, all that is to be refused has been
        refused = 0
        for connection in extra:
            connection.settimeout(0.02)
            try:
                refused += connection.recv(4096).startswith(b"HTTP/1.1 503 ") or connection.recv(1) == b""
            except TimeoutError:
                continue
            except ConnectionError:
                refused += 1
        report(f"{refused} of 300 more connections were turned away")
        log = stage.log.read_text()
    [beside] = reports
    assert refused >= 200
    assert not beside.errors
    assert not beside.failed_probes
    assert "Traceback" not in log
    assert "Too many open files" not in log, "the bound on connections leaves descriptors for everything else"


def test_slow_heads(tmp_path: Path) -> None:
    """2000 clients that send their heads byte by byte are dropped in time, and slow down nobody meanwhile."""
    count = min(SLOW_HEADS, allow_descriptors(SLOW_HEADS + 200) - 200)
    with open_stage(tmp_path, CODY_GATEWAY_HEADER_TIMEOUT="3s") as stage, ExitStack() as stack:
        stage.play(Phase("warm-up", 0.5, 0, 16))
        without = stage.play(Phase("without", 2, 100))["without"]
        slow = open_connections(stage.target.port, count, stack)
        is_over = threading.Event()

        def send_slowly() -> None:
            for byte in b"POST /openai/v1/chat/completions HTTP/1.1":
                for connection in slow:
                    try:
                        connection.send(bytes([byte]))
                    except OSError:
                        continue  # it was dropped
                if is_over.wait(0.5):
                    return

        sender = threading.Thread(target=send_slowly)
        sender.start()
        beside = stage.play(Phase("beside", 2, 100))["beside"]
        time.sleep(4)
        is_over.set()
        sender.join()
        dropped = 0
        for connection in slow:
            connection.settimeout(30)
            try:
                dropped += connection.recv(4096).startswith(b"HTTP/1.1 408 ")
            except ConnectionError:
                dropped += 1
        report(f"{dropped} of {count} slow heads were dropped")
        after = stage.play(Phase("after", 2, 100))["after"]
    assert dropped == count
    assert not beside.errors
    assert not beside.failed_probes
    # Opening that many is a short overload itself, and other work on the machine looks like one.
    noise = max(len(phase.refused_ms) for phase in (without, after))
    assert len(beside.refused_ms) < 0.2 * len(beside.served_ms) + noise
    slowest = max(quantile(phase.served_ms, 0.99) for phase in (without, after) if phase.served_ms)
    assert quantile(beside.served_ms, 0.99) < 5 * slowest + SLACK_MS
