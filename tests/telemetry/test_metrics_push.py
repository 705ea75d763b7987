"""Pushed metrics: what a collector decodes is what a scrape shows, and a collector that fails costs nothing else."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality, Metric

from cgw.telemetry.metrics import Metrics, counter
from cgw.telemetry.metrics_push import FLUSH_SECONDS, open_metrics_push
from cgw.telemetry.metrics_settings import MetricsPushSettings
from cgw.telemetry.settings import OtlpSettings, TraceSettings
from cgw.testing.scripted_upstream import ScriptedUpstream
from tests.gateway.conftest import upstream
from tests.support.collectors import Posted, Receiver, open_receiver, read_attributes
from tests.support.gateway import open_gateway
from tests.support.requests import HEADERS, build_body

__all__ = ["upstream"]

PATH = "/v1/completions/openai"
TICKS = counter("test_ticks", "Ticks.")


def decode(post: Posted) -> tuple[dict[str, Any], dict[str, Metric]]:
    """Return the resource's attributes, and the metrics by name, of one request."""
    request = ExportMetricsServiceRequest.FromString(post.body)
    (resource_metrics,) = request.resource_metrics
    (scope_metrics,) = resource_metrics.scope_metrics
    assert scope_metrics.scope.name == "cgw"
    metrics = {metric.name: metric for metric in scope_metrics.metrics}
    assert len(metrics) == len(scope_metrics.metrics)
    return read_attributes(resource_metrics.resource.attributes), metrics


async def run_gateway(folder: Path, upstream: ScriptedUpstream, settings: Mapping[str, str]) -> float:
    """Run a gateway for one streamed exchange; return how long its end took, in seconds."""
    async with open_gateway(folder, upstream.url, more=settings) as gateway:
        async with httpx.AsyncClient(base_url=gateway.url, headers=HEADERS, timeout=30) as client:
            assert (await client.post(PATH, json=build_body(PATH))).status_code == 200
        ended = time.monotonic()
    return time.monotonic() - ended


async def test_the_last_numbers_are_pushed_at_the_end(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """A collector gets every metric, under OpenTelemetry's names, with what the last exchange added."""
    with open_receiver() as receiver:
        settings = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url,
            "OTEL_EXPORTER_OTLP_METRICS_HEADERS": "x-key=metrics%20key",
            "OTEL_RESOURCE_ATTRIBUTES": "cloud.region=europe-west1",
        }
        await run_gateway(tmp_path, upstream, settings)
        (post,) = [post for post in receiver.posts if post.path == "/v1/metrics"]
    assert post.headers["content-type"] == "application/x-protobuf"
    assert post.headers["x-key"] == "metrics key"
    resource, metrics = decode(post)
    assert (resource["service.name"], resource["cloud.region"]) == ("cgw", "europe-west1")

    duration = metrics["gen_ai.client.operation.duration"]
    (point,) = duration.histogram.data_points
    assert duration.unit == "s"
    assert duration.histogram.aggregation_temporality == AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE
    assert read_attributes(point.attributes) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-4o",
    }
    assert point.count == sum(point.bucket_counts) == 1
    assert len(point.bucket_counts) == len(point.explicit_bounds) + 1
    assert 0 < point.start_time_unix_nano < point.time_unix_nano

    overhead = metrics["cody-gateway.latency_overhead"].histogram.data_points[0]
    (exemplar,) = overhead.exemplars
    assert len(exemplar.trace_id) == 16
    assert exemplar.as_double == pytest.approx(overhead.sum)

    recorded = metrics["cgw_events_recorded"].sum
    assert (recorded.is_monotonic, [point.as_double for point in recorded.data_points]) == (True, [1])
    assert [point.as_double for point in metrics["cgw_healthy"].gauge.data_points] == [1]


def build_metrics() -> Metrics:
    """Metrics with one that is there."""
    metrics = Metrics()
    metrics.add(lambda: [TICKS.read(1)])
    return metrics


async def test_numbers_are_pushed_every_interval() -> None:
    """The first push comes after an interval, and others follow; names and values are the same each time."""
    with open_receiver() as receiver:
        settings = MetricsPushSettings(interval_seconds=0.05)
        otlp = OtlpSettings(endpoint=receiver.url)
        async with open_metrics_push(build_metrics(), settings, TraceSettings(), otlp, environment="test"):
            await wait_for_posts(receiver, 3)
    assert {tuple(decode(post)[1]) for post in receiver.posts} == {("test_ticks",)}


async def wait_for_posts(receiver: Receiver, count: int) -> None:
    """Wait until a receiver has so many requests."""
    with trio.fail_after(20):
        while len(receiver.posts) < count:  # noqa: ASYNC110 - it runs in threads
            await trio.sleep(0.01)


@pytest.mark.parametrize("fault", ["hangs", "refuses", "away"])
async def test_a_collector_that_fails_costs_only_numbers(
    tmp_path: Path, upstream: ScriptedUpstream, fault: str
) -> None:
    """Exchanges are served, and the end of the process is late by the time of the flush at most."""
    with open_receiver() as receiver:
        receiver.hangs, receiver.status = fault == "hangs", 400 if fault == "refuses" else 200
        url = "http://127.0.0.1:1" if fault == "away" else receiver.url
        settings = {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": f"{url}/v1/metrics", "OTEL_METRIC_EXPORT_INTERVAL": "1000"}
        took = await run_gateway(tmp_path, upstream, settings)
    assert took < FLUSH_SECONDS + 5


async def test_snapshots_do_not_pile_up_before_a_collector_that_hangs() -> None:
    """One is on its way and one waits; all others are dropped, and counted."""
    with open_receiver() as receiver:
        receiver.hangs = True
        otlp = OtlpSettings(endpoint=receiver.url, timeout_seconds=2.0)
        push_settings = MetricsPushSettings(interval_seconds=3600.0)
        async with open_metrics_push(build_metrics(), push_settings, TraceSettings(), otlp, environment="test") as push:
            assert push is not None
            await push.push()
            await wait_for_posts(receiver, 1)
            for _ in range(5):
                await push.push()
            statistics = push.statistics()
            assert (statistics.dropped, statistics.pending) == (4, 2)


@pytest.mark.parametrize("settings", [MetricsPushSettings(), MetricsPushSettings(exporter="none")])
async def test_nothing_is_pushed_where_nothing_is_set(settings: MetricsPushSettings) -> None:
    """Without a receiver, or with `none`, there is no thread."""
    otlp = OtlpSettings(endpoint=None if settings.exporter == "otlp" else "http://127.0.0.1:1")
    async with open_metrics_push(build_metrics(), settings, TraceSettings(), otlp, environment="test") as push:
        assert push is None
