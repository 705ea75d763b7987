"""Generates deploy/grafana/cgw.json from the panels below: ``python -m docs.generate_dashboard``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

PAGE = Path(__file__).parents[1] / "deploy" / "grafana" / "cgw.json"

SCHEMA_VERSION = 39
COLUMNS, PANEL_WIDTH, PANEL_HEIGHT = 24, 8, 7
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}


@frozen
class Panel:
    """A graph: its title, Grafana's name of its unit, and queries with their legends.

    Queries are sums over all instances, so that any number of processes
    makes the same picture.
    """

    title: str
    unit: str
    queries: Sequence[tuple[str, str]]
    is_stacked: bool = False


def quantiles(metric: str, by: str = "") -> list[tuple[str, str]]:
    """Return the queries of a histogram's median and 99th percentile, by one label if it is given."""
    labels = f"le, {by}" if by else "le"
    legend = f" {{{{{by}}}}}" if by else ""
    return [
        (
            f"histogram_quantile({q}, sum by ({labels}) (rate({metric}_bucket[$__rate_interval])))",
            f"p{q * 100:g}{legend}",
        )
        for q in (0.5, 0.99)
    ]


def rate(metric: str, *by: str, legend: str = "") -> tuple[str, str]:
    """Return the query of a counter's rate."""
    labels = f" by ({', '.join(by)})" if by else ""
    return f"sum{labels} (rate({metric}[$__rate_interval]))", legend or " ".join(f"{{{{{label}}}}}" for label in by)


ROWS: dict[str, Sequence[Panel]] = {
    "Requests": (
        Panel("Requests by status", "reqps", [rate("cgw_exchanges_total", "code")], is_stacked=True),
        Panel("Requests by outcome", "reqps", [rate("cgw_exchanges_total", "outcome")], is_stacked=True),
        Panel("Requests by route", "reqps", [rate("cgw_exchanges_total", "route")], is_stacked=True),
        Panel("Overhead: cgw's own time", "ms", quantiles("cody_gateway_latency_overhead")),
        Panel("Time to first byte", "s", quantiles("cgw_first_byte_seconds")),
        Panel("Duration", "s", quantiles("cgw_exchange_duration_seconds")),
    ),
    "Models": (
        Panel("Responses of upstreams", "reqps", [rate("cgw_upstream_responses_total", "provider", "code")]),
        Panel(
            "Concurrent upstream requests",
            "short",
            [("sum by (provider, feature) (cody_gateway_concurrent_upstream_requests)", "{{provider}} {{feature}}")],
        ),
        Panel(
            "Tokens per second",
            "short",
            [rate("gen_ai_client_token_usage_sum", "gen_ai_provider_name", "gen_ai_token_type")],
        ),
        Panel(
            "Time to first token, p50",
            "s",
            quantiles("gen_ai_server_time_to_first_token_seconds", "gen_ai_request_model")[:1],
        ),
        Panel(
            "Time per output token, p50",
            "s",
            quantiles("gen_ai_server_time_per_output_token_seconds", "gen_ai_request_model")[:1],
        ),
        Panel("Unavailable models", "short", [("sum by (model) (cgw_model_unavailable)", "{{model}}")]),
    ),
    "Limits and Redis": (
        Panel("Refused by limits", "reqps", [rate("cgw_limits_refused_total", "cause")], is_stacked=True),
        Panel("Redis latency", "ms", quantiles("cody_gateway_redis_latency")),
        Panel(
            "Redis away, and what waits for it",
            "short",
            [
                ("sum(cgw_redis_links) - sum(cgw_redis_links_up)", "links down"),
                ("sum(cgw_limits_backlog)", "settlements waiting"),
                rate("cgw_limits_admitted_locally_total", legend="admitted locally per second"),
            ],
        ),
    ),
    "Load": (
        Panel(
            "Connections and streams",
            "short",
            [
                ("sum(cgw_connections)", "connections"),
                ("sum(cgw_exchanges_in_flight)", "exchanges"),
                ("sum(cgw_relay_streams)", "streams"),
            ],
        ),
        Panel("Events relayed", "ops", [rate("cgw_relay_events_total", legend="events")]),
        Panel("Event loop lag", "s", quantiles("cgw_loop_lag_seconds")),
        Panel(
            "Shed",
            "reqps",
            [
                rate("cgw_requests_shed_total", legend="requests"),
                rate("cgw_connections_turned_away_total", legend="connections"),
            ],
        ),
        Panel(
            "CPU",
            "percentunit",
            [
                ('sum by (instance) (rate(process_cpu_seconds_total{job="cgw"}[$__rate_interval]))', "{{instance}}"),
                rate("cgw_relay_busy_seconds_total", legend="the relay's passes"),
            ],
        ),
        Panel("Memory", "bytes", [('process_resident_memory_bytes{job="cgw"}', "{{instance}} {{worker}}")]),
    ),
    "Usage events and actors": (
        Panel(
            "Events",
            "ops",
            [
                rate("cgw_events_recorded_total", legend="recorded"),
                rate("cgw_events_dropped_total", legend="written to the log instead"),
            ],
        ),
        Panel(
            "Not shipped yet",
            "short",
            [("sum by (sink) (cgw_events_unshipped)", "{{sink}}")],
        ),
        Panel("Age of the oldest event not shipped", "s", [("max by (sink) (cgw_events_lag_seconds)", "{{sink}}")]),
        Panel(
            "Disk",
            "bytes",
            [("max(cgw_events_disk_bytes)", "used"), ("max(cgw_events_disk_limit_bytes)", "limit")],
        ),
        Panel(
            "Actor sources",
            "ops",
            [
                rate("cgw_actor_source_hits_total", "source", legend="hits {{source}}"),
                rate("cgw_actor_source_fetches_total", "source", legend="fetches {{source}}"),
            ],
        ),
    ),
}


def list_panels() -> list[Panel]:
    """Return all panels, in order."""
    return [panel for panels in ROWS.values() for panel in panels]


def build_dashboard() -> str:
    """The dashboard, as Grafana imports it."""
    dashboard = {
        "uid": "cgw",
        "title": "cgw",
        "tags": ["cgw"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [{"name": "datasource", "type": "datasource", "query": "prometheus"}]},
        "panels": _place(),
    }
    return json.dumps(dashboard, indent=1, ensure_ascii=False) + "\n"


def _place() -> list[dict[str, Any]]:
    placed: list[dict[str, Any]] = []
    top = 0
    for title, panels in ROWS.items():
        placed.append(
            {"type": "row", "title": title, "id": len(placed) + 1, "gridPos": {"x": 0, "y": top, "w": COLUMNS, "h": 1}}
        )
        top += 1
        for index, panel in enumerate(panels):
            line, column = divmod(index, COLUMNS // PANEL_WIDTH)
            x, y = column * PANEL_WIDTH, top + line * PANEL_HEIGHT
            placed.append(_build_panel(panel, len(placed) + 1, x, y))
        top += -(-len(panels) // (COLUMNS // PANEL_WIDTH)) * PANEL_HEIGHT
    return placed


def _build_panel(panel: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    stacking = {"mode": "normal" if panel.is_stacked else "none"}
    custom = {"stacking": stacking, "fillOpacity": 20 if panel.is_stacked else 0, "showPoints": "never"}
    return {
        "type": "timeseries",
        "title": panel.title,
        "id": number,
        "datasource": _SOURCE,
        "gridPos": {"x": x, "y": y, "w": PANEL_WIDTH, "h": PANEL_HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0, "custom": custom}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + index), "expr": query, "legendFormat": legend, "datasource": _SOURCE}
            for index, (query, legend) in enumerate(panel.queries)
        ],
    }


if __name__ == "__main__":
    PAGE.write_text(build_dashboard(), "utf-8")
