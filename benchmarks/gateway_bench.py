"""Measurements of gateways: one subject in one case at a time. Subjects are kept running between measurements."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from attrs import define, field, frozen

from benchmarks.binaries import Tools
from benchmarks.cases import GatewayCase
from benchmarks.collector import open_collector
from benchmarks.histogram import Histogram
from benchmarks.machine import Cores, process_tree, read_cpu, read_memory
from benchmarks.processes import Child, ChildError, free_port, wait_until_answers
from benchmarks.results import Distribution, Metrics
from benchmarks.subjects.base import Address, Start, Subject
from benchmarks.tool_processes import LoadReport, Target, UpstreamProcess, UpstreamStats, run_load

__all__ = ["GatewayBench"]

WARM_UP_MS = 700
CLOSES_WAIT_SECONDS = 1.0
"""An upstream connection that is open for longer after the client's disconnect counts as never closed."""
IDS_PER_LOAD = 1_000_000
SETTLE_SECONDS = 2.0
IDLE_SHARE = 0.15
"""A subject that uses less of its core than this is idle."""
CARRIED_SHARE = 0.97
"""A subject that carries a smaller share of the offered load counts as saturated."""


@frozen
class Running:
    """A subject that accepts connections. ``child`` is ``None`` for no gateway at all."""

    child: Child | None
    target: Target
    metrics: dict[str, str] | None = None
    """Header fields for its metrics, if it has any."""

    def tree(self) -> list[int]:
        return process_tree(self.child.pid) if self.child else []


@define
class _WindowReadings:
    """CPU (ns) and memory (KiB) when the measured window opened and closed."""

    opened: dict[tuple[int, str], int] = field(factory=dict)
    closed: dict[tuple[int, str], int] = field(factory=dict)
    load_opened: int = 0
    load_closed: int = 0
    memory_at_close: tuple[int, int] = (0, 0)
    requests_at_close: int = 0


@define
class GatewayBench:
    """Starts upstreams and subjects, and measures them. Leaving the context manager ends all of them."""

    tools: Tools
    cores: Cores
    directory: Path
    _stack: contextlib.ExitStack = field(factory=contextlib.ExitStack, init=False)
    _upstreams: dict[bool, UpstreamProcess] = field(factory=dict, init=False)
    _running: dict[tuple[str, bool], tuple[Running, contextlib.ExitStack]] = field(factory=dict, init=False)
    _started: int = field(default=0, init=False)
    _loads: int = field(default=0, init=False)

    def __enter__(self) -> GatewayBench:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            for key in list(self._running):
                self._stop(key)
        finally:
            self._stack.close()

    def upstream(self, is_tls: bool) -> UpstreamProcess:
        """Return the fake upstream, started on first use."""
        if is_tls not in self._upstreams:
            tls = self._certificate() if is_tls else None
            command = self.tools.tls_upstream if is_tls else self.tools.upstream
            log = self.directory / f"upstream-{'tls' if is_tls else 'plain'}.log"
            self._upstreams[is_tls] = self._stack.enter_context(UpstreamProcess(command, self.cores.upstream, log, tls))
        return self._upstreams[is_tls]

    def measure(self, subject: Subject | None, case: GatewayCase) -> Metrics:
        """Measure ``subject``, or the upstream directly for ``None``. Failures are in ``Metrics.failed``.

        A subject that failed, or does not become idle afterwards, is restarted for its next measurement.
        """
        key = (subject.name, case.is_tls) if subject else ("direct", case.is_tls)
        try:
            if case.needs_fresh_subject:
                self._stop(key)
            running = self.start(subject, case.is_tls)
            metrics = self._measure(running, case)
        except ChildError as error:
            self._stop(key)
            return Metrics(failed=str(error))
        if running.child and not running.child.is_alive:
            metrics.failed = running.child.describe_end()
        if metrics.failed or not _settles(running):
            self._stop(key)
        return metrics

    def _measure(self, running: Running, case: GatewayCase) -> Metrics:
        upstream = self.upstream(case.is_tls)
        upstream.behave("a", case.upstream)
        upstream.behave("b", case.second)
        upstream.reset()  # counts and closes of the previous measurement
        tree = running.tree()
        before = read_memory(tree) if case.reads_memory else None
        window = _WindowReadings()

        def at_window(is_open: bool, load: int) -> None:
            # First of all: CPU that is used after the edge of the window would be counted on the wrong side.
            tools = sum(read_cpu([load, upstream.pid]).values())
            if is_open:
                window.opened, window.load_opened = read_cpu(tree), tools
                return
            # The tree is read again: processes started within the window count too.
            window.closed, window.load_closed = read_cpu(running.tree()), tools
            window.requests_at_close = upstream.stats().requests
            # After CPU and counts are read: ending all streams at once is work that is not measured.
            if case.ends_with_window:
                upstream.end()
            if case.reads_memory:
                memory = read_memory(tree)
                window.memory_at_close = memory.rss, memory.pss

        self._loads += 1
        report = run_load(
            self.tools.load,
            running.target,
            case.load,
            first_id=self._loads * IDS_PER_LOAD,
            cores=self.cores.load,
            log=self.directory / "load.log",
            at_window=at_window,
        )
        stats = upstream.stats()
        metrics = _describe(report, stats, window, case, has_subject=bool(tree))
        # Only when all streams have ended: events of an unfinished one may still be in a buffer.
        if case.ends_with_window and report.finished == report.started and stats.events != report.events:
            metrics.errors["lost"] = stats.events - report.events
        if before:
            self._add_memory(metrics, window, before.rss, before.pss, case)
        if case.awaits_closes:
            _add_closes(metrics, upstream, report)
        return metrics

    @staticmethod
    def _add_memory(
        metrics: Metrics, window: _WindowReadings, rss_before: int, pss_before: int, case: GatewayCase
    ) -> None:
        rss, pss = window.memory_at_close
        if not rss:
            return
        metrics.rss_kib = rss
        metrics.rss_growth_kib = rss - rss_before
        if case.scenario == "idle":
            slots = int(case.load["slots"])
            # Only streams that reached the upstream: a subject may queue or refuse some of them.
            streams = min(window.requests_at_close, slots)
            metrics.saturated = streams < CARRIED_SHARE * slots
            if not streams:
                return
            metrics.rss_kib_per_stream = (rss - rss_before) / streams
            metrics.pss_kib_per_stream = (pss - pss_before) / streams

    # --- subjects
    def start(self, subject: Subject | None, is_tls: bool) -> Running:
        """Return the subject in front of the upstream, started and warmed up unless it is running.

        Raises :exc:`ChildError`.
        """
        upstream = self.upstream(is_tls)
        if subject is None:
            return Running(None, Target(upstream.port))
        key = subject.name, is_tls
        if key in self._running:
            return self._running[key][0]
        with contextlib.ExitStack() as stack:
            running = self._launch(subject, upstream, stack)
            self._warm_up(subject, running, upstream)
            self._running[key] = running, stack.pop_all()  # from here on `_stop` ends it
        return running

    def _launch(self, subject: Subject, upstream: UpstreamProcess, stack: contextlib.ExitStack) -> Running:
        self._started += 1
        directory = self.directory / f"{subject.name}-{self._started}"
        directory.mkdir(parents=True)
        ca_file = self.directory / "ca.pem"
        collector_url = stack.enter_context(open_collector())
        address = Address(upstream.scheme, upstream.port, ca_file, collector_url=collector_url)
        start: Start = subject.prepare(directory, free_port(), address)
        child = stack.enter_context(
            Child(
                subject.name,
                start.command,
                cores=self.cores.subject,
                environ={**_plain_environ(), **start.environ},
                cwd=start.cwd or directory,
                log=directory / "output.log",
            )
        )
        wait_until_answers(child, start.target.port, subject.start_seconds)
        return Running(child, start.target, start.metrics)

    def _warm_up(self, subject: Subject, running: Running, upstream: UpstreamProcess) -> None:
        """Run short loads until one finishes streams; raise :exc:`ChildError` after the subject's ``start_seconds``."""
        upstream.behave("a", {"stream": 1, "events": 20, "interval": 2_000_000, "first": 0})
        settings: dict[str, int | float | str] = {
            "slots": 20,
            "repeat": 1,
            "events": 20,
            "warm-ms": 0,
            "window-ms": WARM_UP_MS,
            "drain-ms": 2000,
            "open-limit-ms": 5000,
        }
        deadline = time.monotonic() + subject.start_seconds
        while True:
            report = run_load(
                self.tools.load,
                running.target,
                settings,
                cores=self.cores.load,
                log=self.directory / "load.log",
            )
            if report.finished:
                return
            if time.monotonic() > deadline:
                problems = ", ".join(f"{count} {name}" for name, count in report.errors.items() if count)
                status = f"; last status {report.last_status}" if report.last_status else ""
                raise ChildError(
                    f"{subject.name} finished no stream within {subject.start_seconds:g} s: {problems}{status}"
                )
            time.sleep(0.3)

    def _stop(self, key: tuple[str, bool]) -> None:
        entry = self._running.pop(key, None)
        if entry:
            entry[1].close()

    def _certificate(self) -> tuple[Path, Path]:
        """Create a certificate for 127.0.0.1, with its CA in ``ca.pem``; return the paths of chain and key."""
        import trustme  # only the TLS scenario needs it

        authority = trustme.CA()
        certificate = authority.issue_cert("127.0.0.1", "localhost")
        chain, key = self.directory / "chain.pem", self.directory / "key.pem"
        authority.cert_pem.write_to_path(str(self.directory / "ca.pem"))
        key.touch(mode=0o600)
        certificate.private_key_pem.write_to_path(str(key))
        chain.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
        return chain, key


def _settles(running: Running) -> bool:
    """Return whether the subject becomes idle within 2 s, so that it takes no CPU from the next one on its core."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while running.child:
        before, started = sum(read_cpu(running.tree()).values()), time.monotonic_ns()
        time.sleep(0.05)
        used = sum(read_cpu(running.tree()).values()) - before
        if used < IDLE_SHARE * (time.monotonic_ns() - started):
            return True
        if time.monotonic() > deadline:
            return False
    return True


def _plain_environ() -> dict[str, str]:
    """Return the environment without cgw's settings, and without variables that would send traffic through a proxy."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("CODY_GATEWAY_") and not name.lower().endswith("_proxy")
    }


def _describe(
    report: LoadReport, stats: UpstreamStats, window: _WindowReadings, case: GatewayCase, *, has_subject: bool
) -> Metrics:
    seconds = report.window_ns / 1e9
    metrics = Metrics(
        window_seconds=seconds,
        latency_us=Distribution.of(report.latency, 1000),
        first_byte_us=Distribution.of(report.first_event, 1000),
        duration_us=Distribution.of(report.duration, 1000, keeps_histogram=False),
        upstream_late_us=Distribution.of(stats.late, 1000, keeps_histogram=False),
        load_share=(window.load_closed - window.load_opened) / report.window_ns,
        errors={
            name: count
            for name, count in report.errors.items()
            if count and not (case.leaves_open and name == "unfinished")
        },
    )
    if report.duration.count and case.counts == "events":
        metrics.duration_us = None  # the upstream decides how long its streams last
    if case.counts == "events":
        metrics.events_per_second = report.window.events / seconds
        metrics.offered_events_per_second = case.offered_events_per_second
        if case.offered_events_per_second:
            metrics.saturated = metrics.events_per_second < CARRIED_SHARE * case.offered_events_per_second
    else:
        # Cancelled exchanges do not finish, so the started ones count.
        metrics.requests_per_second = (
            report.window.finished if not case.awaits_closes else report.window.started
        ) / seconds
        if "rate" in case.load:
            offered = float(case.load["rate"])
            metrics.saturated = metrics.requests_per_second < 0.9 * offered
    if has_subject:
        _add_cpu(metrics, report, window, case)
    return metrics


def _add_cpu(metrics: Metrics, report: LoadReport, window: _WindowReadings, case: GatewayCase) -> None:
    used: dict[str, int] = {}
    for (pid, name), nanoseconds in window.closed.items():
        # A process that ended within the window is missing in `closed`: its CPU is lost, never negative.
        used[name] = used.get(name, 0) + nanoseconds - window.opened.get((pid, name), 0)
    total = sum(used.values())
    metrics.cpu_share = total / report.window_ns
    metrics.cpu_share_by_process = {name: nanoseconds / report.window_ns for name, nanoseconds in used.items()}
    if case.counts == "events" and report.window.events and case.scenario != "idle":
        metrics.cpu_us_per_event = total / 1000 / report.window.events
    exchanges = report.window.started if case.awaits_closes else report.window.finished
    if case.counts == "requests" and exchanges:
        metrics.cpu_us_per_request = total / 1000 / exchanges


def _add_closes(metrics: Metrics, upstream: UpstreamProcess, report: LoadReport) -> None:
    """Match the load's cancels with the upstream's closes. Those not closed within a second count as never closed."""
    deadline = time.monotonic() + CLOSES_WAIT_SECONDS
    while True:
        closed = dict(upstream.closes())
        if all(exchange in closed for exchange, _ in report.cancels) or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    delays = list(_delays(report.cancels, closed))
    limit = int(CLOSES_WAIT_SECONDS * 1e9)
    # Negative: the upstream was closed before the cancel, so not because of it.
    in_time = [delay for delay in delays if delay is not None and 0 <= delay < limit]
    metrics.upstream_closed_ms = Distribution.of(Histogram.of(in_time), 1_000_000)
    metrics.upstream_never_closed = len(delays) - len(in_time)


def _delays(cancels: list[tuple[int, int]], closed: dict[int, int]) -> Iterator[int | None]:
    for exchange, cancelled_at in cancels:
        yield closed[exchange] - cancelled_at if exchange in closed else None
