"""Drills: a sink that is down under load, in five ways one after the other, and is back; SIGTERM amid streams.

A second and a half for each way in the ordinary suite; two minutes with ``CGW_LONG_DRILLS=1``. ``-s`` prints figures.
"""

from __future__ import annotations

import faulthandler
import json
import math
import os
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import quantiles

import httpx
import pytest
import trio
from attrs import define, field

from cgw.events.event_log import open_event_log
from cgw.events.reading import read_events
from cgw.events.shipping.cursor import get_sink_folder
from cgw.events.shipping.failed import read_failed, retry_failed
from cgw.events.shipping.status import read_status
from cgw.testing.script import Script
from cgw.testing.scripted_upstream import open_scripted_upstream
from tests.events.conftest import build_event
from tests.support.collector import OK, Answer, Collector, Received, open_collector
from tests.support.gateway import ANTHROPIC_KEY, ANTHROPIC_MODEL, OPENAI_KEY, OPENAI_MODEL, build_environ
from tests.support.limits import PATIENT
from tests.support.process import GatewayProcess, open_gateway_process
from tests.support.requests import HEADERS, build_body
from tests.support.waiting import wait_until

pytestmark = pytest.mark.skipif(not Path("/proc").exists(), reason="reads the memory of another process")

IS_LONG = "CGW_LONG_DRILLS" in os.environ
PHASE_SECONDS = 120.0 if IS_LONG else 1.5
CLIENTS, PAUSE_SECONDS = 10, 0.05
PATH = "/v1/completions/anthropic-messages"
STREAM_PATH = "/v1/completions/openai"
MOST_GROWTH_BYTES = 16 * 2**20
SHORT = Script(answer="Good day.", tokens_per_second=math.inf, api_key=ANTHROPIC_KEY)
SLOW = Script(answer="word " * 60, tokens_per_second=40, api_key=OPENAI_KEY)


def refuse_some(received: Received) -> Answer:
    """Refuse events whose id ends in 7, as a table does that lacks a column."""
    is_bad = any(event["id"].endswith("7") for event in received.events)
    return Answer(422, b"no such column") if is_bad else OK


FAULTS: Mapping[str, Callable[[Received], Answer]] = {
    "closed connections": lambda received: Answer(0),
    "hanging": lambda received: Answer(-1),
    "errors": lambda received: Answer(500),
    "partial row errors": refuse_some,
    "quota errors": lambda received: Answer(429, headers=(("retry-after", "1"),)),
}


@define
class Load:
    """Clients that ask at a steady pace, and the seconds that each answer took."""

    seconds: list[float] = field(factory=list)

    async def run(self, client: httpx.AsyncClient) -> None:
        while True:
            started = trio.current_time()
            answer = await client.post(PATH, json=build_body(PATH, stream=False))
            assert answer.status_code == 200
            self.seconds.append(trio.current_time() - started)
            await trio.sleep(PAUSE_SECONDS)

    def take_p99(self) -> float:
        """Return the 99th percentile since the last call."""
        seconds, self.seconds = self.seconds, []
        return quantiles(seconds, n=100)[98]


@asynccontextmanager
async def open_shipping_gateway(tmp_path: Path, collector: Collector) -> AsyncIterator[GatewayProcess]:
    """Run a gateway whose sink is the collector."""
    shipping = {
        "CODY_GATEWAY_EVENTS_HTTP_URL": collector.url,
        "CODY_GATEWAY_EVENTS_HTTP_TIMEOUT": "1s",
        "CODY_GATEWAY_EVENTS_BATCH_AGE": "100ms",
        "CODY_GATEWAY_EVENTS_DRAIN_TIMEOUT": "3s",
    }
    async with open_scripted_upstream({ANTHROPIC_MODEL: SHORT, OPENAI_MODEL: SLOW}) as upstream:
        environ = build_environ(
            tmp_path, upstream.url, limit=10**7, concurrent_requests=10**6, more={**PATIENT, **shipping}
        )
        async with open_gateway_process(environ, tmp_path / "log") as gateway:
            yield gateway


def read_resident_bytes(pid: int) -> int:
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) * 1024


def is_all_shipped(folder: Path) -> bool:
    return all(status.unshipped_bytes == 0 for status in read_status(folder))


async def test_a_sink_that_was_down_gets_everything(tmp_path: Path) -> None:
    """Meanwhile all requests are served, and memory stays flat; rejected events arrive after `cgw events retry`."""
    if IS_LONG:
        faulthandler.cancel_dump_traceback_later()  # the limit of two minutes for a test
    folder = tmp_path / "events"
    load = Load()
    report: list[str] = []
    async with open_collector() as collector, open_shipping_gateway(tmp_path, collector) as gateway:
        async with (
            httpx.AsyncClient(base_url=gateway.url, headers=HEADERS, timeout=30) as client,
            trio.open_nursery() as nursery,
        ):
            for _ in range(CLIENTS):
                nursery.start_soon(load.run, client)
            await trio.sleep(max(PHASE_SECONDS / 4, 2))
            quiet_p99 = load.take_p99()
            resident = read_resident_bytes(gateway.process.pid)
            for name, decide in FAULTS.items():
                collector.decide = decide
                await trio.sleep(PHASE_SECONDS)
                p99, growth = load.take_p99(), read_resident_bytes(gateway.process.pid) - resident
                report.append(f"{name}: p99 {p99 * 1000:.1f} ms, {growth / 2**20:+.1f} MiB")
            collector.decide = refuse_some  # back, but for some rows
            assert read_resident_bytes(gateway.process.pid) - resident < MOST_GROWTH_BYTES
            nursery.cancel_scope.cancel()
        with trio.fail_after(60):
            while not await trio.to_thread.run_sync(is_all_shipped, folder):  # noqa: ASYNC110 - another process
                await trio.sleep(0.1)
        recorded = {event.id for event in read_events(folder)}
        rejected = {failed.event.id for failed in read_failed(get_sink_folder(folder, "http"))}
        assert rejected
        assert all(event_id.endswith("7") for event_id in rejected)
        assert set(collector.ids) | rejected == recorded
        collector.decide = lambda received: OK
        await trio.to_thread.run_sync(retry_failed, get_sink_folder(folder, "http"))
        await wait_until(lambda: set(collector.ids) == recorded, seconds=40)
        gateway.terminate()
        assert await gateway.wait() == 0
    sys.stdout.write(
        f"\nquiet: p99 {quiet_p99 * 1000:.1f} ms\n" + "\n".join(report)
        + f"\n{len(recorded)} events, all arrived; {len(rejected)} of them after a retry; "
        f"{len(collector.ids) - len(recorded)} came twice\n"
    )  # fmt: skip
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log
    assert log.count("events are not shipped to http") <= 2 + len(FAULTS) * PHASE_SECONDS / 60


async def record_before(folder: Path, count: int) -> None:
    async with open_event_log(folder) as event_log:
        for number in range(count):
            event_log.record(build_event(f"earlier-{number}"))


@pytest.mark.parametrize("is_back", [True, False], ids=["sink is back", "sink stays away"])
async def test_sigterm_amid_streams_and_unshipped_events(tmp_path: Path, is_back: bool) -> None:
    """With 100 open streams and 10,000 unshipped events the streams finish, and events drain or stay; exit 0."""
    folder = tmp_path / "events"
    await record_before(folder, 10_000)
    answers: list[bytes] = []
    async with open_collector() as collector:
        collector.decide = lambda received: Answer(503)
        async with open_shipping_gateway(tmp_path, collector) as gateway, trio.open_nursery() as nursery:
            limits = httpx.Limits(max_connections=200)
            client = httpx.AsyncClient(base_url=gateway.url, headers=HEADERS, timeout=60, limits=limits)

            async def stream() -> None:
                answer = await client.post(STREAM_PATH, json=build_body(STREAM_PATH))
                answers.append(answer.content)

            for _ in range(100):
                nursery.start_soon(stream)
            await trio.sleep(0.8)
            assert not answers
            if is_back:
                collector.decide = lambda received: OK
            gateway.terminate()
            assert await gateway.wait(seconds=30) == 0
            await wait_until(lambda: len(answers) == 100)
        await client.aclose()
        assert all(answer.rstrip().endswith(b"data: [DONE]") for answer in answers)
        log = [json.loads(line)["message"] for line in (tmp_path / "log").read_text().splitlines()]
        left = [message for message in log if "are not shipped to http yet" in message]
        recorded = {event.id for event in read_events(folder)}
        assert len(recorded) == 10_100
        if is_back:
            assert not left
            assert set(collector.ids) == recorded
            assert len(collector.ids) == 10_100
        else:
            assert len(left) == 1
            collector.decide = lambda received: OK
            async with open_shipping_gateway(tmp_path, collector):
                await wait_until(lambda: set(collector.ids) == recorded, seconds=20)
            assert len(collector.ids) == 10_100
