"""Drill: a collector, a Sentry and a webhook that are slow, hang, refuse or are away.

Two gateways on one core, one with such receivers and one with good ones, are asked in turn, round by round. ``-s``
prints the figures. With ``CGW_LONG_DRILLS=1`` the 99th percentile beside bad receivers may be 1.05 times that beside
good ones; otherwise the bound is wide, for busy machines.
"""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from benchmarks.binaries import build_tools
from benchmarks.machine import pick_cores, process_tree, read_memory
from benchmarks.processes import Child, free_port, wait_until_answers
from benchmarks.subjects.base import Address
from benchmarks.subjects.own import Cgw
from benchmarks.tool_processes import Target, UpstreamProcess
from tests.support.collectors import Receiver, open_receiver
from tests.support.open_load import Phase, Plan, quantile, run_plan

IS_LONG = os.environ.get("CGW_LONG_DRILLS") == "1"
ROUNDS = 9 if IS_LONG else 2
SECONDS = 4.0 if IS_LONG else 1.0
RATE = 100.0
FACTOR, SLACK_MS = (1.05, 0.2) if IS_LONG else (4.0, 400.0)
MAX_GROWTH_KIB = 64 * 1024
"""The memory that a full queue of spans, one batch, and a queue of reports may take, with room to spare."""


@contextmanager
def open_gateway(directory: Path, upstream: UpstreamProcess, receivers: str, core: list[int]) -> Iterator[Target]:
    """Run a gateway that sends its telemetry to ``receivers``, and some failures, which it reports."""
    directory.mkdir()
    telemetry = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": receivers,
        "OTEL_EXPORTER_OTLP_TIMEOUT": "2s",
        "SENTRY_DSN": receivers.replace("http://", "http://key@") + "/1",
        "CODY_GATEWAY_ACTOR_RATE_LIMIT_NOTIFY_SLACK_WEBHOOK_URL": f"{receivers}/services/x",
        "CODY_GATEWAY_ANTHROPIC_ACCESS_TOKEN": "sk-ant-drill",
        "CODY_GATEWAY_ANTHROPIC_API_URL": "http://127.0.0.1:9",
    }
    address = Address(upstream.scheme, upstream.port, directory / "ca.pem")
    start = Cgw(environ=telemetry).prepare(directory, free_port(), address)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("CODY_GATEWAY_")}
    environ = {**inherited, **start.environ}
    log = directory / "gateway.log"
    with Child("cgw", start.command, cores=core, environ=environ, cwd=start.cwd, log=log) as child:
        wait_until_answers(child, start.target.port, 20)
        headers = dict(field.split(": ", 1) for field in start.target.headers)
        body = {"model": "claude-3-haiku-20240307", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]}
        for _ in range(10):
            url = f"http://127.0.0.1:{start.target.port}/anthropic/v1/messages"
            assert httpx.post(url, json=body, headers=headers).status_code == 502
        before = read_memory(process_tree(child.pid)).rss
        yield start.target
        assert read_memory(process_tree(child.pid)).rss - before < MAX_GROWTH_KIB


def measure_p99(target: Target, cores: list[int]) -> float:
    """Ask for some seconds; return the 99th percentile in milliseconds."""
    plan = Plan(target.port, target.path, list(target.headers), [Phase("all", SECONDS, RATE)], max_connections=200)
    report = run_plan(plan, cores)["all"]
    assert report.errors == 0
    assert len(report.served_ms) >= RATE * SECONDS / 2
    return quantile(report.served_ms, 0.99)


@pytest.mark.parametrize("kind", ["slow", "hangs", "refuses", "dead"])
def test_bad_receivers_do_not_hold_up_what_is_served(tmp_path: Path, kind: str) -> None:
    """The 99th percentile stays what it is beside good receivers, and the memory is bounded."""
    cores, tools = pick_cores(), build_tools()
    with ExitStack() as stack:
        good, bad = stack.enter_context(open_receiver()), stack.enter_context(open_receiver())
        bad.hangs, bad.status, bad.delay_seconds = kind == "hangs", 200 if kind == "slow" else 503, 1.0
        away = Receiver("http://127.0.0.1:9")
        upstream = stack.enter_context(UpstreamProcess(tools.upstream, cores.upstream, tmp_path / "upstream.log"))
        upstream.behave("a", {"stream": 0, "bytes": 200, "first": 5_000_000})
        targets = [
            stack.enter_context(open_gateway(tmp_path / name, upstream, receiver.url, list(cores.subject)))
            for name, receiver in (("good", good), ("bad", away if kind == "dead" else bad))
        ]
        figures: list[list[float]] = [[], []]
        for number in range(ROUNDS):
            for index in (0, 1) if number % 2 else (1, 0):
                figures[index].append(measure_p99(targets[index], list(cores.load)))
        beside_good, beside_bad = map(statistics.median, figures)
        sys.stdout.write(
            f"\n{kind}: p99 {beside_good:.2f} ms beside good receivers, {beside_bad:.2f} beside bad ones\n"
        )
        assert good.spans()
    assert beside_bad <= FACTOR * beside_good + SLACK_MS
