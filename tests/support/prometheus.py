"""Prometheus' own tools, and scrapes of a gateway."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as text_string_to_openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families

from cgw.service.lifecycle import Service

DEPLOY = Path(__file__).parents[2] / "deploy"
SECRET = "secret-of-the-diagnostics"
WITH_SECRET = {"CODY_GATEWAY_DIAGNOSTICS_SECRET": SECRET}
AUTHORIZATION = {"authorization": f"Bearer {SECRET}"}
OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"

needs_prometheus = pytest.mark.skipif(
    (shutil.which("promtool") is None or shutil.which("prometheus") is None) and "CI" not in os.environ,
    reason="promtool and prometheus are not installed (Debian: apt-get install prometheus)",
)


def run_promtool(*arguments: str, text: bytes = b"") -> str:
    """Run promtool; fail with its output if it finds fault."""
    done = subprocess.run(["promtool", *arguments], input=text, capture_output=True, timeout=60, check=False)
    output = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, output
    return output


def parse_openmetrics(text: str) -> list[Family]:
    """Parse OpenMetrics, strictly."""
    return list(text_string_to_openmetrics_families(text))  # type: ignore[no-untyped-call]


async def scrape(gateway: Service, accept: str = "text/plain") -> httpx.Response:
    """Scrape the public port."""
    async with httpx.AsyncClient(base_url=gateway.url, timeout=30) as client:
        return await client.get("/-/metrics", headers={**AUTHORIZATION, "accept": accept})


async def scrape_families(gateway: Service) -> dict[str, Family]:
    """Scrape the public port; return the families by name."""
    answer = await scrape(gateway)
    assert answer.status_code == 200
    return {family.name: family for family in text_string_to_metric_families(answer.text)}


def read_sample(families: dict[str, Family], name: str, **labels: str) -> float:
    """Return the sum of the samples with this name and at least these labels; 0 where there is none."""
    return sum(
        sample.value
        for family in families.values()
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )
