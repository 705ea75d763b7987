"""Generates docs/metrics.md from the declarations of the metrics: ``python -m docs.generate_metrics``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from cgw.telemetry.metrics import MAX_SERIES, Metric, MetricKind
from cgw.telemetry.metrics_catalogue import list_part_metrics
from cgw.telemetry.metrics_exchanges import EXCHANGE_METRICS, MAX_MODELS
from cgw.telemetry.metrics_workers import WORKERS
from cgw.telemetry.process_metrics import PROCESS_METRICS

PAGE = Path(__file__).parent / "metrics.md"

INTRODUCTION = f"""\
# Metrics

`GET /-/metrics` answers in Prometheus' text format, or in OpenMetrics with exemplars (trace ids) where the scraper asks
for that, as Prometheus does. On the public port it needs `CODY_GATEWAY_DIAGNOSTICS_SECRET` as a token; on the admin
port (`CODY_GATEWAY_ADMIN_PORT`) the secret is needed only where one is set. Scrapes within a second share one answer.
[deploy/](../deploy) has a configuration of Prometheus, alert rules and a Grafana dashboard.

This page is generated from the declarations by `python -m docs.generate_metrics`, and a test holds it up to date.

- **Names**: `cgw_…` are cgw's own; `cody_gateway_…` are the reference's five, `.` and `-` written as `_`, in its units;
  `gen_ai_…` are those of OpenTelemetry's semantic conventions, with the unit that Prometheus' naming asks for. Pushed
  metrics (OTLP, Google Cloud Monitoring) have the name in the last column, where there is one.
- **Several processes on one port** (`CODY_GATEWAY_REUSE_PORT`) with one data directory are in each scrape, whichever of
  them answers it, told apart by the label `worker`.
- **Cost**: what the parts count anyway is read when it is asked for. An exchange adds about 2 µs for its histograms, a
  reply of Redis 0.5 µs.
- **Bounds**: no metric has the id of an actor, a key or a path of a client's. A metric has at most {MAX_SERIES} sets of
  labels; further ones are counted as `other`, and in `cgw_metrics_collapsed_total`. Of models, the first
  {MAX_MODELS} that an upstream answered for have a label of their own.
"""


def build_page() -> str:
    """The whole page, in Markdown."""
    groups = {
        "Exchanges": EXCHANGE_METRICS,
        "Parts of the service": [WORKERS, *list_part_metrics()],
        "The process": PROCESS_METRICS,
    }
    return INTRODUCTION + "".join(_build_table(title, metrics) for title, metrics in groups.items())


def _build_table(title: str, metrics: Iterable[Metric]) -> str:
    rows = "".join(_build_row(metric) for metric in sorted(metrics, key=lambda metric: metric.name))
    return f"\n## {title}\n\n| metric | type | labels | meaning | OpenTelemetry |\n|---|---|---|---|---|\n{rows}"


def _build_row(metric: Metric) -> str:
    name = metric.sample_name if metric.kind is MetricKind.COUNTER else metric.name
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    meaning = metric.help.replace("|", r"\|")
    other_name = f"`{metric.otel_name}`" if metric.otel_name else ""
    return f"| `{name}` | {metric.kind} | {labels} | {meaning} | {other_name} |\n"


if __name__ == "__main__":
    PAGE.write_text(build_page(), "utf-8")
