"""A load generator in a process of its own: short requests at a given rate, whether earlier ones are answered or not.

Reads one JSON document from standard input (:class:`Plan`) and prints one (:class:`Report`). Arrivals are a Poisson
process with a fixed seed; latency counts from the time at which a request was due, so a request that waits for a free
connection counts that too. Probes of the health routes run beside it, each on a connection of its own.
"""

from __future__ import annotations

import os
import random
import select
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

PROBE_SECONDS = 0.05
PROBES = (b"/-/healthz", b"/-/readyz")
DRAIN_SECONDS = 2.0
SETTLE_SECONDS = 1.0
"""The time that the server has to accept the connections that are opened in advance."""


class Phase(Struct):
    """``seconds`` of load. ``rate`` is in requests per second; 0 is a closed loop on ``connections`` connections."""

    name: str
    seconds: float
    rate: float = 0
    connections: int = 32


class Plan(Struct):
    """The whole load. ``connections`` are opened in advance, at most ``max_connections`` in open-loop phases."""

    port: int
    path: str
    headers: list[str]
    phases: list[Phase]
    connections: int = 0
    max_connections: int = 1000
    first_id: int = 1


class PhaseReport(Struct):
    """Counts and latencies (milliseconds, sorted) of the requests that were due in a phase.

    ``finished`` counts the answers with status 200 that arrived within the phase, and ``last_refused_seconds`` is when
    the last refusal was due, counted from the phase's start (−1: none was).
    """

    seconds: float
    served_ms: list[float]
    refused_ms: list[float]
    probes_ms: list[float]
    finished: int = 0
    errors: int = 0
    closed: int = 0
    failed_probes: int = 0
    last_refused_seconds: float = -1
    late_ms: list[float] = []
    refusal: str = ""


class _Connection:
    __slots__ = ("data", "due", "need", "phase", "probe", "sock", "status")

    def __init__(self, sock: socket.socket, probe: bytes | None = None) -> None:
        self.sock = sock
        self.probe = probe
        self.phase: int | None = None  # of the request under way
        self.data = b""
        self.due = 0.0
        self.need = -1
        self.status = 0


class _Load:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.epoll = select.epoll()
        self.connections: dict[int, _Connection] = {}
        self.idle: list[_Connection] = []
        self.waiting: deque[tuple[float, int]] = deque()
        self.open_count = 0
        self.reports = [PhaseReport(phase.seconds, [], [], []) for phase in plan.phases]
        self.random = random.Random(7)
        self.number = plan.first_id
        self.now = 0.0
        self.index = 0
        self.start = self.end = 0.0  # of the phase
        body = (
            '{"model":"gpt-4o","max_tokens":16,"stream":false,"messages":[{"role":"user","content":"bench-id:%010d:"}]}'
        )
        head = [f"POST {plan.path} HTTP/1.1", "host: gateway", "content-type: application/json", *plan.headers]
        head.append(f"content-length: {len(body % 0)}")
        self.request = "\r\n".join([*head, "", body]).encode()

    def connect(self, probe: bytes | None = None) -> _Connection:
        sock = socket.create_connection(("127.0.0.1", self.plan.port), timeout=5)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        connection = _Connection(sock, probe)
        self.connections[sock.fileno()] = connection
        self.epoll.register(sock.fileno(), select.EPOLLIN)
        self.open_count += probe is None
        return connection

    def drop(self, connection: _Connection) -> None:
        del self.connections[connection.sock.fileno()]
        connection.sock.close()
        self.open_count -= connection.probe is None

    def begin(self, due: float, phase: int) -> bool:
        """Send a request on a free connection; return false when all are in use."""
        limit = self.plan.max_connections if self.plan.phases[phase].rate else self.plan.phases[phase].connections
        if self.idle:
            connection = self.idle.pop()
        elif self.open_count < limit:
            try:
                connection = self.connect()
            except OSError:
                self.reports[phase].errors += 1
                return True
        else:
            return False
        self.number += 1
        self.send(connection, self.request % self.number, due, phase)
        return True

    def send(self, connection: _Connection, data: bytes, due: float, phase: int) -> None:
        connection.due, connection.phase, connection.need, connection.data = due, phase, -1, b""
        try:
            connection.sock.send(data)
        except OSError:
            self.fail(connection)

    def fail(self, connection: _Connection) -> None:
        if connection.phase is not None:
            report = self.reports[connection.phase]
            if connection.probe is None:
                report.errors += 1
            else:
                report.failed_probes += 1
        self.drop(connection)

    def receive(self, connection: _Connection) -> None:
        try:
            data = connection.sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data or connection.phase is None:
            if connection in self.idle:
                self.idle.remove(connection)
            self.fail(connection)
            return
        data = connection.data = connection.data + data
        if connection.need < 0:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                return
            connection.status = int(data[9:12])
            connection.need = end + 4 + int(data[:end].lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        if len(data) >= connection.need:
            self.finish(connection)

    def finish(self, connection: _Connection) -> None:
        now, phase, data = time.monotonic(), connection.phase, connection.data
        assert phase is not None
        report = self.reports[phase]
        took = (now - connection.due) * 1000
        connection.phase = None
        if connection.probe is not None:
            report.probes_ms.append(took)
            report.failed_probes += connection.status != 200
            return
        if connection.status == 200:
            report.served_ms.append(took)
            self.reports[self.index].finished += 1
        elif connection.status == 503 and b"\r\nretry-after: " in data:
            report.refused_ms.append(took)
            if phase == self.index:
                report.last_refused_seconds = connection.due - self.start
            report.refusal = report.refusal or data.decode()
        else:
            report.errors += 1
        if b"connection: close" in data:
            report.closed += 1
            self.drop(connection)
        elif not self.plan.phases[self.index].rate and now < self.end and phase == self.index:
            self.number += 1
            self.send(connection, self.request % self.number, now, phase)
        else:
            self.idle.append(connection)

    def run(self) -> list[PhaseReport]:
        probes = [self.connect(path) for path in PROBES]
        # Opened in advance, so that the load consists of requests alone.
        self.idle += [self.connect() for _ in range(self.plan.connections)]
        time.sleep(SETTLE_SECONDS if self.idle else 0)
        for index, phase in enumerate(self.plan.phases):
            self.index = index
            self.run_phase(phase, probes)
        deadline = time.monotonic() + DRAIN_SECONDS
        while any(item.phase is not None for item in self.connections.values()) and time.monotonic() < deadline:
            self.poll(0.05)
        for item in self.connections.values():
            if item.phase is not None:
                self.reports[item.phase].errors += 1
        for report in self.reports:
            for values in (report.served_ms, report.refused_ms, report.probes_ms, report.late_ms):
                values.sort()
        return self.reports

    def run_phase(self, phase: Phase, probes: Sequence[_Connection]) -> None:
        self.start = next_due = next_probe = time.monotonic()
        self.end = self.start + phase.seconds
        report = self.reports[self.index]
        if not phase.rate:
            self.waiting.extend([(self.start, self.index)] * phase.connections)
        while (now := time.monotonic()) < self.end:
            while phase.rate and next_due <= now:
                report.late_ms.append((now - next_due) * 1000)
                if self.waiting or not self.begin(next_due, self.index):
                    self.waiting.append((next_due, self.index))
                next_due += self.random.expovariate(phase.rate)
            while self.waiting and self.begin(*self.waiting[0]):
                self.waiting.popleft()
            if next_probe <= now:
                for probe in probes:
                    if probe.phase is None and probe.sock.fileno() >= 0 and probe.probe is not None:
                        head = b"GET %b HTTP/1.1\r\nhost: gateway\r\n\r\n" % probe.probe
                        self.send(probe, head, next_probe, self.index)
                next_probe += PROBE_SECONDS
            wake = min(self.end, next_probe, next_due if phase.rate else self.end)
            self.poll(max(0.0, wake - time.monotonic()))

    def poll(self, seconds: float) -> None:
        # Whole milliseconds would round the arrivals; a busy loop would take the upstream's share of the core.
        for descriptor, _ in self.epoll.poll(seconds):
            connection = self.connections.get(descriptor)
            if connection is not None:
                self.receive(connection)


def run_plan(plan: Plan, cores: Sequence[int]) -> dict[str, PhaseReport]:
    """Run ``plan`` in a process of its own on ``cores``; return the reports of its phases by name."""
    seconds = sum(phase.seconds for phase in plan.phases) + 30
    pin = f"import os; os.sched_setaffinity(0, {list(cores)!r}); from tests.support.open_load import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", pin],
        input=msgspec.json.encode(plan),
        capture_output=True,
        timeout=seconds,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    if done.returncode:
        raise RuntimeError(f"the load generator failed: {done.stderr.decode()}")
    reports = msgspec.json.decode(done.stdout, type=list[PhaseReport])
    return {phase.name: report for phase, report in zip(plan.phases, reports, strict=True)}


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return the value below which ``share`` of the sorted values lie; 0 for none."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def main() -> None:
    """Read a plan from standard input, run it, and print the reports."""
    plan = msgspec.json.decode(sys.stdin.buffer.read(), type=Plan)
    os.write(1, msgspec.json.encode(_Load(plan).run()))


if __name__ == "__main__":
    main()
