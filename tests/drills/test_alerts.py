"""A drill with a real Prometheus: it scrapes `cgw serve`, and its alerts fire and clear with injected faults.

Show the times with ``-s``. The rules are those of ``deploy/``, with durations scaled down, so that an alert that waits
a minute fires after some seconds; the long form scales less.
"""

from __future__ import annotations

import math
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import trio
from attrs import evolve

from cgw.testing.script import Script
from cgw.testing.scripted_upstream import ScriptedUpstream, open_scripted_upstream
from tests.support.collectors import Receiver, open_receiver
from tests.support.gateway import OPENAI_KEY, OPENAI_MODEL, build_environ
from tests.support.process import GatewayProcess, open_gateway_process
from tests.support.prometheus import WITH_SECRET, needs_prometheus
from tests.support.prometheus_server import PrometheusServer, open_prometheus
from tests.support.raw_client import AnswerCut, open_client
from tests.support.redis_cluster import find_free_ports
from tests.support.redis_server import RedisServer, run_redis_server
from tests.support.requests import build_request

PATH = "/v1/completions/openai"

FACTOR = 1 / 10 if "CGW_LONG_DRILLS" in os.environ else 1 / 60
PATIENCE_SECONDS = 20 + 600 * FACTOR
"""How long an alert may take to fire or to clear, on a machine that is busy."""

REQUESTS_PER_SECOND = 20
MAX_EVENT_BYTES = 64 * 2**20


def report(text: str) -> None:
    """Print a line of figures, for ``-s``."""
    sys.stdout.write(f"{text}\n")


async def keep_asking(port: int, nursery: trio.Nursery) -> None:
    """Send requests at a fixed rate; whatever becomes of them."""

    async def ask() -> None:
        try:
            async with open_client(port) as client:
                await client.ask(build_request(PATH, stream=False))
        except (OSError, trio.BrokenResourceError, AnswerCut):
            pass  # the gateway drains, or is gone

    while True:
        nursery.start_soon(ask)
        await trio.sleep(1 / REQUESTS_PER_SECOND)


@asynccontextmanager
async def open_everything(
    folder: Path, upstream: ScriptedUpstream, redis_port: int, receiver: Receiver
) -> AsyncIterator[tuple[GatewayProcess, PrometheusServer]]:
    """Run cgw with Redis, a sink and Prometheus, and requests all the time."""
    (port,) = find_free_ports(1)
    more = {
        **WITH_SECRET,
        "PORT": str(port),
        "REDIS_ENDPOINT": f"redis://127.0.0.1:{redis_port}",
        "CODY_GATEWAY_EVENTS_MAX_BYTES": str(MAX_EVENT_BYTES),
        "CODY_GATEWAY_EVENTS_HTTP_URL": f"{receiver.url}/events",
        "CODY_GATEWAY_DRAIN_DELAY": f"{PATIENCE_SECONDS:.0f}s",
    }
    environ = build_environ(folder, upstream.url, limit=10**6, concurrent_requests=10**6, more=more)
    async with (
        open_gateway_process(environ, folder / "cgw.log") as gateway,
        open_prometheus(folder, gateway.port, factor=FACTOR) as prometheus,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(keep_asking, gateway.port, nursery)
        yield gateway, prometheus
        nursery.cancel_scope.cancel()


@contextmanager
def inject_faults(
    folder: Path, upstream: ScriptedUpstream, redis: RedisServer, receiver: Receiver
) -> Iterator[tuple[str, ...]]:
    """Have Redis hang, the upstream and the sink fail, and the spool be nearly full, for the length of the block.

    Yields the names of the alerts that say so.
    """
    spool = folder / "events" / "20200101T000000Z-0123456789abcdef.ndjson"
    script = upstream.scripts[OPENAI_MODEL]
    redis.send_signal(signal.SIGSTOP)
    upstream.scripts[OPENAI_MODEL] = evolve(script, status=500)
    receiver.status = 503
    with spool.open("wb") as file:
        file.truncate(int(0.9 * MAX_EVENT_BYTES))  # sparse: the size counts, not the blocks
    try:
        yield "CgwRedisAway", "CgwUpstreamErrors", "CgwSinkDown", "CgwEventsUnshipped", "CgwEventsDiskFilling"
    finally:
        redis.send_signal(signal.SIGCONT)
        upstream.scripts[OPENAI_MODEL] = script
        receiver.status = 200
        spool.unlink()


@needs_prometheus
async def test_alerts_fire_and_clear(tmp_path: Path) -> None:
    """Redis away, an upstream and a sink that fail, a full spool, a drain and an end: each alert fires, and clears."""
    (redis_port,) = find_free_ports(1)
    script = Script(answer="Good day.", tokens_per_second=math.inf, api_key=OPENAI_KEY)
    with (
        run_redis_server(tmp_path, "--port", str(redis_port), "--bind", "127.0.0.1") as redis,
        open_receiver() as receiver,
    ):
        async with (
            open_scripted_upstream({OPENAI_MODEL: script}) as upstream,
            open_everything(tmp_path, upstream, redis_port, receiver) as (gateway, prometheus),
        ):
            await trio.sleep(4)
            # On a machine that is busy the event loop may really lag.
            assert await prometheus.list_firing() <= {"CgwLoopLag", "CgwOverhead"}
            with inject_faults(tmp_path, upstream, redis, receiver) as names:
                took = await prometheus.wait_firing(*names, seconds=PATIENCE_SECONDS)
                report(f"\n{', '.join(names)} fire after {took:.1f} s")
            report(f"they clear after {await prometheus.wait_clear(*names, seconds=PATIENCE_SECONDS):.1f} s")
            await check_drain(gateway, prometheus)


async def check_drain(gateway: GatewayProcess, prometheus: PrometheusServer) -> None:
    """End ``gateway``: the alerts of a drain that takes long, and of a process that is gone."""
    gateway.terminate()
    report(f"CgwDraining fires after {await prometheus.wait_firing('CgwDraining', seconds=PATIENCE_SECONDS):.1f} s")
    assert "CgwDown" not in await prometheus.list_firing()
    gateway.terminate()  # a second one cuts the drain
    report(f"CgwDown fires {await prometheus.wait_firing('CgwDown', seconds=PATIENCE_SECONDS):.1f} s after the end")
    took = await prometheus.wait_clear("CgwDraining", seconds=PATIENCE_SECONDS)
    report(f"CgwDraining clears {took:.1f} s later")
