"""A real Prometheus that scrapes a gateway and evaluates the alert rules, with their times scaled down."""

from __future__ import annotations

import re
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import trio
from attrs import define

from tests.support.prometheus import DEPLOY, SECRET
from tests.support.redis_cluster import find_free_ports

STEP_SECONDS = 0.5
"""The interval of scrapes and of evaluations."""

LEAST_RANGE_SECONDS = 5.0
"""The shortest range of a rate: several scrapes, also on a machine that is busy."""

_UNITS = {"s": 1, "m": 60, "h": 3600}


def scale_rules(text: str, factor: float) -> str:
    """Return alert rules whose durations are ``factor`` times as long; ranges keep room for several scrapes."""

    def scale(match: re.Match[str]) -> str:
        seconds = int(match["count"]) * _UNITS[match["unit"]] * factor
        if match["before"] == "[":
            seconds = max(seconds, LEAST_RANGE_SECONDS)
        return f"{match['before']}{round(seconds * 1000)}ms"

    # The only threshold that is a time.
    text = re.sub(r"(lag_seconds > )(\d+)", lambda match: f"{match[1]}{int(match[2]) * factor:g}", text)
    return re.sub(r"(?P<before>\[|for: )(?P<count>\d+)(?P<unit>[smh])\b", scale, text)


@define
class PrometheusServer:
    """A running Prometheus."""

    url: str

    async def list_firing(self) -> set[str]:
        """Return the names of the alerts that are firing now."""
        async with httpx.AsyncClient(base_url=self.url, timeout=10) as client:
            alerts = (await client.get("/api/v1/alerts")).json()["data"]["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}

    async def wait_firing(self, *names: str, seconds: float) -> float:
        """Wait until all of ``names`` fire; return how long that took. Raises :exc:`AssertionError`."""
        return await self._wait(lambda firing: set(names) <= firing, f"{names} fire", seconds)

    async def wait_clear(self, *names: str, seconds: float) -> float:
        """Wait until none of ``names`` fires; return how long that took. Raises :exc:`AssertionError`."""
        return await self._wait(lambda firing: not set(names) & firing, f"{names} clear", seconds)

    async def _wait(self, is_reached: Callable[[set[str]], bool], goal: str, seconds: float) -> float:
        began, firing = trio.current_time(), set[str]()
        with trio.move_on_after(seconds):
            while not is_reached(firing := await self.list_firing()):  # noqa: ASYNC110 - Prometheus has no event
                await trio.sleep(STEP_SECONDS / 2)
            return trio.current_time() - began
        raise AssertionError(f"not within {seconds:g} s: {goal}; firing: {sorted(firing)}")

    async def query(self, expression: str) -> list[dict[str, object]]:
        """Return the vector that a query gives now."""
        async with httpx.AsyncClient(base_url=self.url, timeout=10) as client:
            answer = (await client.get("/api/v1/query", params={"query": expression})).json()
        found: list[dict[str, object]] = answer["data"]["result"]
        return found


@asynccontextmanager
async def open_prometheus(folder: Path, gateway_port: int, *, factor: float) -> AsyncIterator[PrometheusServer]:
    """Run Prometheus with the configuration and the rules of ``deploy/`` for the length of the block."""
    (port,) = find_free_ports(1)
    _write_configuration(folder, gateway_port, factor)
    log_path = folder / "prometheus.log"
    process = _start(folder, port, log_path)
    try:
        await _wait_ready(f"http://127.0.0.1:{port}", process, log_path)
        yield PrometheusServer(f"http://127.0.0.1:{port}")
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(process.wait)


def _start(folder: Path, port: int, log_path: Path) -> subprocess.Popen[bytes]:
    with log_path.open("wb") as log:
        return subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--log.level=warn",
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )


def _write_configuration(folder: Path, gateway_port: int, factor: float) -> None:
    secret = folder / "secret"
    secret.write_text(SECRET)
    configuration = (DEPLOY / "prometheus" / "prometheus.yml").read_text()
    configuration = configuration.replace("/etc/prometheus/cgw-diagnostics-secret", str(secret))
    configuration = configuration.replace("127.0.0.1:9992", f"127.0.0.1:{gateway_port}")
    (folder / "prometheus.yml").write_text(configuration.replace("15s", f"{round(STEP_SECONDS * 1000)}ms"))
    rules = (DEPLOY / "prometheus" / "alerts.yml").read_text()
    (folder / "alerts.yml").write_text(scale_rules(rules, factor))


async def _wait_ready(url: str, process: subprocess.Popen[bytes], log_path: Path) -> None:
    with trio.fail_after(30):
        async with httpx.AsyncClient(base_url=url, timeout=5) as client:
            while True:
                if process.poll() is not None:
                    raise RuntimeError(f"prometheus ended at once: {log_path.read_text()}")
                try:
                    if (await client.get("/-/ready")).status_code == 200:
                        return
                except httpx.TransportError:
                    pass  # not listening yet
                await trio.sleep(0.05)
