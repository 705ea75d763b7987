"""Draws panels of the dashboard from a real run, into docs/dashboard.svg: ``python -m docs.draw_dashboard``.

A gateway serves streams of scripted upstreams for a minute, more of them from the middle on; then an upstream fails,
and Redis hangs. Prometheus scrapes it, and answers the queries of the dashboard's panels. Needs Debian's `prometheus`.
"""

from __future__ import annotations

import math
import signal
import tempfile
import time
from collections.abc import Sequence
from html import escape
from pathlib import Path

import trio
from attrs import evolve, frozen

from cgw.testing.script import Script
from cgw.testing.scripted_upstream import ScriptedUpstream, open_scripted_upstream
from docs.generate_dashboard import Panel, list_panels
from tests.support.gateway import ANTHROPIC_KEY, ANTHROPIC_MODEL, OPENAI_KEY, OPENAI_MODEL, build_environ
from tests.support.process import open_gateway_process
from tests.support.prometheus import WITH_SECRET
from tests.support.prometheus_server import PrometheusServer, open_prometheus
from tests.support.raw_client import AnswerCut, open_client
from tests.support.redis_server import RedisServer, run_redis_server
from tests.support.requests import build_request

PICTURE = Path(__file__).with_name("dashboard.svg")

PANELS = (
    "Requests by status",
    "Overhead: cgw's own time",
    "Time to first token, p50",
    "Responses of upstreams",
    "Concurrent upstream requests",
    "Tokens per second",
    "Redis latency",
    "Redis away, and what waits for it",
    "Event loop lag",
    "Connections and streams",
    "Events relayed",
    "CPU",
)
PATHS = ("/v1/completions/openai", "/v1/completions/anthropic-messages")
CALM_SECONDS, BUSY_SECONDS, FAULT_SECONDS = 30.0, 30.0, 8.0
CALM_STREAMS, BUSY_STREAMS = 10, 30
RANGE_SECONDS = 8
LIMIT = 10**6

COLUMNS, WIDTH, HEIGHT, MARGIN = 3, 300, 180, 12
LEFT, TOP, BOTTOM = 48, 26, 56
COLOURS = ("#2f6f9f", "#c2571a", "#3b8a4b", "#8a4fa3", "#a08419", "#666666")
MAX_LINES = 3
STYLE = (
    "rect.page { fill: #ffffff } text { fill: #59636e; font: 10px system-ui, sans-serif } "
    "text.title { fill: #1f2328; font-weight: 600; font-size: 11px } .grid { stroke: #d8dde3 } "
    "polyline { fill: none; stroke-width: 1.5 }"
)


@frozen
class Line:
    """One line of a panel: its legend, and its points as seconds since the begin and values."""

    legend: str
    points: Sequence[tuple[float, float]]


async def run() -> dict[str, list[Line]]:
    """Play the run; return the lines of each panel."""
    scripts = {
        OPENAI_MODEL: Script(tokens_per_second=40, first_token_delay_seconds=0.25, api_key=OPENAI_KEY),
        ANTHROPIC_MODEL: Script(tokens_per_second=60, first_token_delay_seconds=0.4, api_key=ANTHROPIC_KEY),
    }
    with tempfile.TemporaryDirectory() as name, run_redis_server(Path(name)) as redis:
        more = {**WITH_SECRET, "REDIS_ENDPOINT": redis.url}
        async with open_scripted_upstream(scripts) as upstream:
            environ = build_environ(Path(name), upstream.url, limit=LIMIT, concurrent_requests=LIMIT, more=more)
            async with (
                open_gateway_process(environ, Path(name) / "cgw.log") as gateway,
                open_prometheus(Path(name), gateway.port, factor=1) as prometheus,
            ):
                began = time.time()
                await play(gateway.port, upstream, redis)
                wanted = {panel.title: panel for panel in list_panels()}
                return {title: await read_panel(prometheus, wanted[title], began) for title in PANELS}


async def play(port: int, upstream: ScriptedUpstream, redis: RedisServer) -> None:
    """Send the load, and inject the faults."""
    async with trio.open_nursery() as nursery:
        for number in range(CALM_STREAMS):
            nursery.start_soon(keep_streaming, port, PATHS[number % 2])
        await trio.sleep(CALM_SECONDS)
        for number in range(BUSY_STREAMS - CALM_STREAMS):
            nursery.start_soon(keep_streaming, port, PATHS[number % 2])
        await trio.sleep(BUSY_SECONDS)
        script = upstream.scripts[OPENAI_MODEL]
        upstream.scripts[OPENAI_MODEL] = evolve(script, status=500)
        await trio.sleep(FAULT_SECONDS)
        upstream.scripts[OPENAI_MODEL] = script
        redis.send_signal(signal.SIGSTOP)
        await trio.sleep(FAULT_SECONDS)
        redis.send_signal(signal.SIGCONT)
        await trio.sleep(FAULT_SECONDS)
        nursery.cancel_scope.cancel()


async def keep_streaming(port: int, path: str) -> None:
    """Ask for one stream after the other, with a pause after each."""
    while True:
        try:
            async with open_client(port) as client:
                await client.ask(build_request(path))
        except (OSError, trio.BrokenResourceError, AnswerCut):
            pass  # a fault that was injected
        await trio.sleep(0.2)


async def read_panel(prometheus: PrometheusServer, panel: Panel, began: float) -> list[Line]:
    """Return the lines of a panel, those with the highest values first."""
    lines = []
    for query, legend in panel.queries:
        expression = query.replace("$__rate_interval", f"{RANGE_SECONDS}s")
        for series in await prometheus.query_range(expression, began, time.time(), 1):
            text = legend
            for label, value in series.labels.items():
                text = text.replace(f"{{{{{label}}}}}", "cgw" if label == "instance" else value)
            lines.append(Line(text.strip(), [(at - began, value) for at, value in series.points]))
    return sorted(lines, key=lambda line: -max((value for _, value in line.points), default=0))[:MAX_LINES]


def show(value: float, unit: str) -> str:
    """Return a value with its unit, short."""
    if unit == "s":
        return f"{value * 1000:g} ms" if value < 1 else f"{value:g} s"
    if unit == "percentunit":
        return f"{value * 100:g} %"
    return f"{value:,g}{' ms' if unit == 'ms' else '/s' if unit in ('reqps', 'ops') else ''}"


def round_up(value: float) -> float:
    """Return the next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * factor for factor in (1, 2, 5, 10) if value <= power * factor)


def draw(panels: dict[str, list[Line]]) -> str:
    """Return the picture."""
    units = {panel.title: panel.unit for panel in list_panels()}
    rows = -(-len(panels) // COLUMNS)
    width, height = COLUMNS * (WIDTH + MARGIN) + MARGIN, rows * (HEIGHT + MARGIN) + MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="Panels of the dashboard" '
        f'viewBox="0 0 {width} {height}">',
        f'<style>{STYLE}</style><rect class="page" width="{width}" height="{height}"/>',
    ]
    for index, (title, lines) in enumerate(panels.items()):
        row, column = divmod(index, COLUMNS)
        x, y = MARGIN + column * (WIDTH + MARGIN), MARGIN + row * (HEIGHT + MARGIN)
        parts.append(f'<g transform="translate({x} {y})">')
        parts += draw_panel(title, units[title], lines)
        parts.append("</g>")
    return "\n".join([*parts, "</svg>\n"])


def draw_panel(title: str, unit: str, lines: Sequence[Line]) -> list[str]:
    """Return the elements of one panel: title, three levels, lines, legends."""
    highest = round_up(max((value for line in lines for _, value in line.points if value == value), default=0) or 1)
    longest = max((at for line in lines for at, _ in line.points), default=0) or 1
    bottom, span = HEIGHT - BOTTOM, HEIGHT - BOTTOM - TOP
    parts = [f'<text class="title" x="0" y="12">{escape(title)}</text>']
    for share in (0, 0.5, 1):
        at = bottom - share * span
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(
            f'<text x="{LEFT - 4}" y="{at + 3:.1f}" text-anchor="end">{escape(show(share * highest, unit))}</text>'
        )
    for index, line in enumerate(lines):
        points = " ".join(
            f"{LEFT + at / longest * (WIDTH - LEFT):.1f},{bottom - value / highest * span:.1f}"
            for at, value in line.points
            if value == value  # a quantile of nothing is NaN
        )
        parts.append(f'<polyline style="stroke:{COLOURS[index]}" points="{points}"/>')
        left, top = LEFT, bottom + 13 + index * 12
        parts.append(f'<rect x="{left}" y="{top - 6}" width="8" height="3" style="fill:{COLOURS[index]}"/>')
        parts.append(f'<text x="{left + 12}" y="{top}">{escape(line.legend)}</text>')
    return parts


if __name__ == "__main__":
    PICTURE.write_text(draw(trio.run(run)), "utf-8")
