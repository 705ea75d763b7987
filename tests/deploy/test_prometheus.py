"""What is deployed beside cgw: Prometheus takes the rules, and every metric that they and the dashboard name exists."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx

from cgw.service.lifecycle import Service
from cgw.service.metrics import list_all_metrics
from cgw.telemetry.metrics import MetricKind
from cgw.testing.scripted_upstream import ScriptedUpstream
from docs.generate_dashboard import PAGE as DASHBOARD
from docs.generate_dashboard import build_dashboard, list_panels
from tests.gateway.conftest import upstream
from tests.support.collectors import open_receiver
from tests.support.gateway import open_gateway
from tests.support.prometheus import (
    DEPLOY,
    WITH_SECRET,
    needs_prometheus,
    run_promtool,
    scrape,
    scrape_families,
)
from tests.support.requests import HEADERS, ROUTES, build_body

__all__ = ["upstream"]

RULES = DEPLOY / "prometheus" / "alerts.yml"
CONFIGURATION = DEPLOY / "prometheus" / "prometheus.yml"

# What a query has besides metrics and functions: strings, labels in braces or in `by (…)`.
_QUERY_NOISE = re.compile(r'"[^"]*"|by \([^)]*\)|\{[^}]*\}')
_NAME = re.compile(r"\b(?:cgw|cody_gateway|gen_ai|process|python)_[a-z0-9_]+\b")


def list_names(query: str) -> set[str]:
    """Return the names of the metrics that a query reads."""
    return set(_NAME.findall(_QUERY_NOISE.sub("", query)))


def list_rule_queries() -> Iterator[str]:
    """Yield the queries of all alert rules."""
    # Not by a YAML parser, which would be a dependency: `promtool check rules` says whether the file is valid.
    for match in re.finditer(r"expr: (?:\|\n((?: {10}.*\n)+)|(.*)\n)", RULES.read_text()):
        yield match[1] or match[2]


async def use_every_route(gateway: Service) -> None:
    """Send what makes every metric of exchanges appear."""
    async with httpx.AsyncClient(base_url=gateway.url, headers=HEADERS, timeout=30) as client:
        for path in ROUTES:
            assert (await client.post(path, json=build_body(path))).status_code == 200
            assert (await client.post(path, json=build_body(path, stream=False))).status_code == 200


@needs_prometheus
def test_the_rules_are_valid() -> None:
    """`promtool check rules` takes the alert rules, and counts as many as there are names."""
    output = run_promtool("check", "rules", str(RULES))
    assert f"{RULES.read_text().count('- alert:')} rules found" in output


@needs_prometheus
def test_the_configuration_is_valid(tmp_path: Path) -> None:
    """`promtool check config` takes the configuration, given a secret."""
    secret = tmp_path / "secret"
    secret.write_text("secret")
    for file in (RULES, CONFIGURATION):
        text = file.read_text().replace("/etc/prometheus/cgw-diagnostics-secret", str(secret))
        (tmp_path / file.name).write_text(text)
    run_promtool("check", "config", str(tmp_path / CONFIGURATION.name))


@needs_prometheus
async def test_a_scrape_is_what_prometheus_wants(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """`promtool check metrics` finds nothing to remark on: names, units, help, types."""
    async with open_gateway(tmp_path, upstream.url, more=WITH_SECRET) as gateway:
        await use_every_route(gateway)
        answer = await scrape(gateway)
    assert run_promtool("check", "metrics", text=answer.content).strip() == ""


async def test_every_scraped_metric_is_declared(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """A scrape of a used gateway has no metric that docs/metrics.md does not have, with the labels that it has."""
    async with open_gateway(tmp_path, upstream.url, more=WITH_SECRET) as gateway:
        await use_every_route(gateway)
        families = await scrape_families(gateway)
    declared = {metric.name: metric for metric in list_all_metrics()}
    for name, family in families.items():
        metric = declared[name]
        assert family.type == metric.kind.value
        assert family.documentation == metric.help
        assert all(set(sample.labels) - {"le"} == set(metric.labels) for sample in family.samples)


def test_every_metric_of_the_rules_and_the_dashboard_is_declared() -> None:
    """A name that is misspelt, or of a metric that was renamed, would never fire and draw nothing."""
    declared = set()
    for metric in list_all_metrics():
        suffixes = ("_bucket", "_sum", "_count") if metric.kind is MetricKind.HISTOGRAM else ("",)
        declared |= {metric.sample_name + suffix for suffix in suffixes}
    queries = [*list_rule_queries(), *(query for panel in list_panels() for query, _ in panel.queries)]
    named = [list_names(query) for query in queries]
    assert [query for query, names in zip(queries, named, strict=True) if not names] == ['up{job="cgw"} == 0']
    assert set().union(*named) - declared == set()


async def test_every_metric_of_the_rules_and_the_dashboard_is_on_a_scrape(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    """All but those that need a fault, or a source of actors on the network, are there after each route was used."""
    with open_receiver() as receiver:
        more = {
            **WITH_SECRET,
            "CODY_GATEWAY_EVENTS_HTTP_URL": receiver.url,
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url,
        }
        async with open_gateway(tmp_path, upstream.url, more=more) as gateway:
            await use_every_route(gateway)
            families = await scrape_families(gateway)
    scraped = {sample.name for family in families.values() for sample in family.samples}
    queries = [*list_rule_queries(), *(query for panel in list_panels() for query, _ in panel.queries)]
    missing = set().union(*map(list_names, queries)) - scraped
    assert {name for name in missing if not name.startswith("cgw_actor_source_")} == {
        "cgw_model_unavailable",  # one that is
        "cgw_limits_refused_total",  # a refusal
        "cgw_log_lines_dropped_total",  # the log is the process's, and this gateway runs in the test's
        "cgw_log_lines_lost_total",
    }


def test_the_dashboard_is_up_to_date() -> None:
    """``deploy/grafana/cgw.json`` matches the panels; ``python -m docs.generate_dashboard`` rewrites it."""
    assert DASHBOARD.read_text("utf-8") == build_dashboard(), "run: python -m docs.generate_dashboard"
    panels = json.loads(DASHBOARD.read_text("utf-8"))["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
