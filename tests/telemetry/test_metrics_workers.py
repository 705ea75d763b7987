"""One scrape shows all processes that share a data directory, and none of them can spoil it."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from cgw.telemetry import metrics_workers
from cgw.telemetry.metrics import (
    Distribution,
    Exemplar,
    HistogramValue,
    Metric,
    MetricKind,
    MetricReading,
    Metrics,
    counter,
    gauge,
)
from cgw.telemetry.metrics_text import render_metrics
from cgw.telemetry.metrics_workers import WORKERS, encode_readings, open_workers
from cgw.testing.scripted_upstream import ScriptedUpstream
from tests.gateway.conftest import upstream
from tests.support.gateway import build_environ
from tests.support.process import open_gateway_process
from tests.support.prometheus import AUTHORIZATION, WITH_SECRET
from tests.support.redis_cluster import find_free_ports
from tests.support.redis_server import run_redis_server

__all__ = ["upstream"]

THINGS = counter("test_things", "Things.", "kind")
SECONDS = Metric("test_seconds", MetricKind.HISTOGRAM, "Seconds.", bounds=(1.0, 2.0))
NEWER = gauge("test_newer", "A metric that only a newer version has.")
DECLARED = (THINGS, SECONDS)


def build_metrics(number: int, *more: MetricReading) -> Metrics:
    """The metrics of one process: a count, and a histogram with an exemplar."""
    distribution = Distribution(SECONDS.bounds)
    distribution.traced.append(("a" * 32, number, 1.5))
    distribution.count_gathered()
    metrics = Metrics()
    metrics.add(lambda: [THINGS.read(number, "a"), SECONDS.read(0)._replace(value=distribution.read()), *more])
    return metrics


def find(readings: Sequence[MetricReading], metric: Metric) -> list[float | HistogramValue]:
    """Return the values of one metric, of all workers, in ascending order if they are numbers."""
    values = [reading.value for reading in readings if reading.metric is metric]
    return sorted(values, key=str)


async def test_a_scrape_of_any_process_shows_all(tmp_path: Path) -> None:
    """Each has every process's numbers, histograms with their exemplars included, under a label of its own."""
    async with (
        open_workers(build_metrics(1), tmp_path / "metrics", DECLARED) as one,
        open_workers(build_metrics(2), tmp_path / "metrics", DECLARED) as two,
    ):
        assert one is not None
        assert two is not None
        first, second = await one.take_all(), await two.take_all()
    assert first == second
    assert find(first, THINGS) == [1, 2]
    assert find(first, WORKERS) == [2]
    assert {reading.worker for reading in first if reading.metric is THINGS} == {one.name, two.name}
    families = {f.name: f for f in text_string_to_metric_families(render_metrics(first, is_openmetrics=False).decode())}
    assert {sample.labels["worker"] for sample in families["test_seconds"].samples} == {one.name, two.name}
    exemplars = [value.exemplars for value in find(first, SECONDS) if isinstance(value, HistogramValue)]
    assert set(exemplars) == {(Exemplar("a" * 32, 1, 1.5), None, None), (None, Exemplar("a" * 32, 2, 1.5), None)}


async def test_sockets_are_private_and_removed(tmp_path: Path) -> None:
    """Nobody else can enter the folder, and a process that ends leaves nothing in it."""
    folder = tmp_path / "metrics"
    async with open_workers(build_metrics(1), folder, DECLARED):
        assert folder.stat().st_mode & 0o777 == 0o700
        assert len(list(folder.iterdir())) == 1
    assert list(folder.iterdir()) == []


async def test_a_long_path_is_no_problem(tmp_path: Path) -> None:
    """A socket's address has 107 bytes at most, a data directory may be deeper."""
    folder = tmp_path / ("x" * 100) / ("y" * 100)
    folder.mkdir(parents=True)
    async with (
        open_workers(build_metrics(1), folder / "metrics", DECLARED) as one,
        open_workers(build_metrics(2), folder / "metrics", DECLARED),
    ):
        assert one is not None
        assert find(await one.take_all(), THINGS) == [1, 2]


async def test_a_process_that_hangs_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopped process, whose kernel still accepts, costs a scrape its patience and nothing else."""
    monkeypatch.setattr(metrics_workers, "ANSWER_SECONDS", 0.2)
    async with open_workers(build_metrics(1), tmp_path, DECLARED) as one:
        assert one is not None
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / "1-hung.sock"))
            listener.listen()
            readings = await one.take_all()
    assert (find(readings, THINGS), find(readings, WORKERS)) == ([1], [1])


async def test_what_a_dead_process_left_is_removed(tmp_path: Path) -> None:
    """After `kill -9` the next scrape removes the socket."""
    dead = tmp_path / "1-dead.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(dead))
    async with open_workers(build_metrics(1), tmp_path, DECLARED) as one:
        assert one is not None
        assert find(await one.take_all(), THINGS) == [1]
    assert not dead.exists()


@pytest.mark.parametrize(
    "answer", [b"", b"\xc1 no msgpack", encode_readings([THINGS.read(7, "a", "b")]), b"\x91\x93\xa1x\x90\x01"]
)
async def test_an_answer_that_makes_no_sense_is_left_out(tmp_path: Path, answer: bytes) -> None:
    """Garbage, or a metric with other labels, spoils no scrape."""

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.send_all(answer)

    async with open_workers(build_metrics(1), tmp_path, DECLARED) as one, trio.open_nursery() as nursery:
        assert one is not None
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / "1-odd.sock"))
            listener.listen()
            odd = trio.SocketListener(trio.socket.from_stdlib_socket(listener.dup()))
            nursery.start_soon(trio.serve_listeners, serve, [odd])
            assert find(await one.take_all(), THINGS) == [1]
            nursery.cancel_scope.cancel()


async def test_processes_may_be_of_different_versions(tmp_path: Path) -> None:
    """During a deploy, metrics that this version does not know are left out, and all others are there."""
    async with (
        open_workers(build_metrics(1), tmp_path, DECLARED) as older,
        open_workers(build_metrics(2, NEWER.read(1)), tmp_path, (*DECLARED, NEWER)) as newer,
    ):
        assert older is not None
        assert newer is not None
        assert find(await older.take_all(), NEWER) == []
        assert find(await older.take_all(), THINGS) == [1, 2]
        assert find(await newer.take_all(), NEWER) == [1]


async def test_without_a_socket_there_is_one_process(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where the folder cannot be made, the service runs, and the log says what a scrape lacks."""
    (tmp_path / "metrics").write_text("a file")
    async with open_workers(build_metrics(1), tmp_path / "metrics", DECLARED) as workers:
        assert workers is None
    assert any("scrapes show one process only" in message for message in caplog.messages)


async def test_two_processes_on_one_port(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """`cgw serve` twice, with a shared port and data directory: a scrape has both, whichever of them answers."""
    (port,) = find_free_ports(1)
    with run_redis_server(tmp_path) as redis:
        more = {**WITH_SECRET, "PORT": str(port), "CODY_GATEWAY_REUSE_PORT": "on", "REDIS_ENDPOINT": redis.url}
        environ = build_environ(tmp_path, upstream.url, more=more)
        async with (
            open_gateway_process(environ, tmp_path / "one.log") as one,
            open_gateway_process(environ, tmp_path / "two.log") as two,
        ):
            for _ in range(4):  # new connections: the kernel chooses
                async with httpx.AsyncClient(base_url=one.url, timeout=30) as client:
                    answer = await client.get("/-/metrics", headers=AUTHORIZATION)
                families = {family.name: family for family in text_string_to_metric_families(answer.text)}
                workers = {sample.labels["worker"] for sample in families["process_open_fds"].samples}
                assert {worker.partition("-")[0] for worker in workers} == {str(p.process.pid) for p in (one, two)}
