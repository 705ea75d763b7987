"""``/-/metrics``: who may scrape, in which format, and that a flood of scrapes costs one a second."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
import trio
from attrs import evolve

from cgw.control.metrics import FRESH_SECONDS, MetricsRoute, prefers_openmetrics
from cgw.telemetry.metrics import MetricReading, Metrics, counter
from cgw.testing.scripted_upstream import ScriptedUpstream
from tests.support.gateway import OPENAI_MODEL, open_gateway
from tests.support.prometheus import (
    AUTHORIZATION,
    OPENMETRICS,
    WITH_SECRET,
    parse_openmetrics,
    read_sample,
    scrape,
    scrape_families,
)
from tests.support.requests import HEADERS, build_body
from tests.support.waiting import wait_until

PATH = "/v1/completions/openai"
TAKEN = counter("test_taken", "Times that the metrics were taken.")


async def test_the_public_port_wants_the_secret(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """Without the secret, or with a wrong one, 401; and only GET and HEAD."""
    async with (
        open_gateway(tmp_path, upstream.url, more=WITH_SECRET) as gateway,
        httpx.AsyncClient(base_url=gateway.url) as client,
    ):
        assert (await client.get("/-/metrics")).status_code == 401
        assert (await client.get("/-/metrics", headers={"authorization": "Bearer wrong"})).status_code == 401
        assert (await client.post("/-/metrics", headers=AUTHORIZATION)).status_code == 405
        assert (await client.get("/-/metrics", headers=AUTHORIZATION)).status_code == 200


async def test_without_a_secret_only_the_admin_port_is_open(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """The public port then refuses, and says what to set; the admin port answers."""
    async with (
        open_gateway(tmp_path, upstream.url, more={"CODY_GATEWAY_ADMIN_PORT": "0"}) as gateway,
        httpx.AsyncClient() as client,
    ):
        refused = await client.get(f"{gateway.url}/-/metrics")
        assert (refused.status_code, "CODY_GATEWAY_DIAGNOSTICS_SECRET" in refused.text) == (403, True)
        answer = await client.get(f"http://127.0.0.1:{gateway.admin_port}/-/metrics")
        assert "cgw_build_info" in answer.text


async def test_the_admin_port_wants_a_secret_that_is_set(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """As for /-/healthz: the admin port may be reachable from elsewhere."""
    more = {**WITH_SECRET, "CODY_GATEWAY_ADMIN_PORT": "0"}
    async with open_gateway(tmp_path, upstream.url, more=more) as gateway, httpx.AsyncClient() as client:
        url = f"http://127.0.0.1:{gateway.admin_port}/-/metrics"
        assert (await client.get(url)).status_code == 401
        assert (await client.get(url, headers=AUTHORIZATION)).status_code == 200


async def test_the_format_is_the_one_that_is_asked_for(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """OpenMetrics for Prometheus, which the strict parser takes; the text format for everyone else."""
    async with open_gateway(tmp_path, upstream.url, more=WITH_SECRET) as gateway:
        answer = await scrape(gateway, OPENMETRICS)
        assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
        assert {family.name for family in parse_openmetrics(answer.text)} >= {"cgw_phase", "process_cpu_seconds"}
        assert (await scrape(gateway)).headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (OPENMETRICS, True),
        ("Application/OpenMetrics-Text", True),
        ("application/openmetrics-text; q=0", False),
        ("text/plain", False),
        ("*/*", False),
        ("", False),
    ],
)
def test_only_who_knows_openmetrics_gets_it(accept: str, expected: bool) -> None:
    """A browser or curl takes anything, and gets the format that all tools read."""
    assert prefers_openmetrics(accept) is expected


async def test_an_exchange_is_counted_everywhere(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """One streamed exchange shows in the metrics of limits, Redis, the pool, the relay and the event log."""
    async with open_gateway(tmp_path, upstream.url, more=WITH_SECRET) as gateway:
        async with httpx.AsyncClient(base_url=gateway.url, headers=HEADERS, timeout=30) as client:
            assert (await client.post(PATH, json=build_body(PATH))).status_code == 200
        families = await scrape_families(gateway)
    assert read_sample(families, "cgw_limits_admitted_total") == 1
    assert read_sample(families, "cgw_events_recorded_total") == 1
    assert read_sample(families, "cgw_upstream_connections_opened_total") == 1
    assert read_sample(families, "cgw_relay_registrations_total") >= 1
    assert read_sample(families, "cody_gateway_redis_latency_count", command="evalsha", error="false") >= 1
    assert read_sample(families, "cgw_phase", phase="serving") == 1
    assert read_sample(families, "cgw_events_disk_bytes") > 0


async def test_times_add_up_to_what_the_client_waited(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """Overhead and the upstream's time are the whole duration, which is no longer than what the client measured."""
    script = upstream.scripts[OPENAI_MODEL]
    upstream.scripts[OPENAI_MODEL] = evolve(script, head_delay_seconds=0.05)
    waited = 0.0
    async with open_gateway(tmp_path, upstream.url, more=WITH_SECRET) as gateway:
        async with httpx.AsyncClient(base_url=gateway.url, headers=HEADERS, timeout=30) as client:
            for _ in range(4):
                began = trio.current_time()
                assert (await client.post(PATH, json=build_body(PATH))).status_code == 200
                # The record is closed once the answer is out: the client may have it a moment earlier.
                await wait_until(lambda: gateway.http_engine.statistics().in_flight == 0)
                waited += trio.current_time() - began
        families = await scrape_families(gateway)
    duration = read_sample(families, "cgw_exchange_duration_seconds_sum", route=PATH)
    upstreams = read_sample(families, "gen_ai_client_operation_duration_seconds_sum")
    overhead = read_sample(families, "cody_gateway_latency_overhead_sum", provider="openai") / 1000
    assert read_sample(families, "cody_gateway_latency_overhead_count") == 4
    assert upstreams + overhead == pytest.approx(duration)
    assert 4 * 0.05 <= upstreams < duration
    assert duration <= waited


async def test_upstreams_at_work_are_counted_while_they_are(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """The reference's up/down counter is 1 during a stream, and 0 after it, also where the client leaves."""
    script = upstream.scripts[OPENAI_MODEL]
    upstream.scripts[OPENAI_MODEL] = evolve(script, tokens_per_second=1)
    name, labels = "cody_gateway_concurrent_upstream_requests", {"provider": "openai", "feature": "chat_completions"}
    async with open_gateway(tmp_path, upstream.url, more=WITH_SECRET) as gateway:
        async with (
            httpx.AsyncClient(base_url=gateway.url, headers=HEADERS, timeout=30) as client,
            client.stream("POST", PATH, json=build_body(PATH)),
        ):
            assert read_sample(await scrape_families(gateway), name, **labels) == 1
        await wait_until(lambda: gateway.http_engine.statistics().in_flight == 0)
        await trio.sleep(FRESH_SECONDS)
        families = await scrape_families(gateway)
    assert read_sample(families, name, **labels) == 0
    assert read_sample(families, "cgw_exchanges_total", outcome="client_gone") == 1


async def test_a_refusal_by_a_limit_is_counted_by_its_cause(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """A request beyond the quota counts under `quota`, also when it is refused from memory."""
    async with open_gateway(tmp_path, upstream.url, limit=2, more=WITH_SECRET) as gateway:
        async with httpx.AsyncClient(base_url=gateway.url, headers=HEADERS, timeout=30) as client:
            statuses = [(await client.post(PATH, json=build_body(PATH))).status_code for _ in range(4)]
        families = await scrape_families(gateway)
    assert statuses == [200, 200, 429, 429]
    assert read_sample(families, "cgw_limits_refused_total", cause="quota") == 2
    assert read_sample(families, "cgw_limits_admitted_total") == 2


def build_counting_route() -> tuple[MetricsRoute, list[float]]:
    """A route, and the times at which its metrics were taken."""
    taken: list[float] = []

    def collect() -> list[MetricReading]:
        taken.append(trio.current_time())
        return [TAKEN.read(len(taken))]

    metrics = Metrics()
    metrics.add(collect)
    return MetricsRoute(metrics.take_all), taken


async def test_a_flood_of_scrapes_is_one(mock_clock: trio.testing.MockClock) -> None:
    """However many ask at once, the numbers are taken once a second for each format."""
    route, taken = build_counting_route()
    async with trio.open_nursery() as nursery:
        for number in range(200):
            nursery.start_soon(route.answer, OPENMETRICS if number % 2 else "")
    assert len(taken) == 2
    mock_clock.jump(1.1)
    first = await route.answer("")
    assert (await route.answer("")).body == first.body
    assert len(taken) == 3


async def test_a_scraper_that_leaves_does_not_spoil_the_others(autojump_clock: trio.testing.MockClock) -> None:
    """The first of many is cancelled while it renders; the next one renders, and all get an answer."""
    route, _ = build_counting_route()
    answers: list[int] = []

    async def ask() -> None:
        answers.append((await route.answer("")).status)

    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(route.answer, "")
            await trio.lowlevel.checkpoint()
            scope.cancel()
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(ask)
    assert answers == [200] * 10
