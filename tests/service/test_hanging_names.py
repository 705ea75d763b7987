"""The whole gateway while the look-up of a host name hangs: only what needs that very name waits."""

from __future__ import annotations

import socket
from pathlib import Path

import httpx
import pytest
import trio

from tests.support.gateway import open_gateway
from tests.support.names import NameServer
from tests.support.raw_server import open_raw_server, read_request
from tests.support.redis_server import run_tcp_server
from tests.support.requests import HEADERS, build_body
from tests.support.waiting import wait_until

HANGING, HEALTHY = "/v1/completions/anthropic-messages", "/v1/completions/openai"
CALLERS = 60
"""More than Trio's own threads for all look-ups, which are 40."""


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> NameServer:
    """Return what answers the process's look-ups of names in ``.test``."""
    names = NameServer()
    for host in ("anthropic.test", "openai.test", "redis.test"):
        names.set(host, "127.0.0.1")
    monkeypatch.setattr(socket, "getaddrinfo", names.look_up)
    return names


async def serve_json(stream: trio.SocketStream) -> None:
    """Answer each request with an empty object, each on a connection of its own."""
    if await read_request(stream) is not None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")


async def test_a_provider_whose_name_hangs_delays_no_other_and_not_redis(tmp_path: Path, names: NameServer) -> None:
    """While 60 requests wait for one provider's name, another provider is served, and Redis is connected again."""
    with run_tcp_server(tmp_path) as redis_port:
        async with open_raw_server(serve_json) as port:
            more = {
                "REDIS_ENDPOINT": f"redis://redis.test:{redis_port}",
                "CODY_GATEWAY_OPENAI_API_URL": f"http://openai.test:{port}",
                "CODY_GATEWAY_UPSTREAM_CONNECT_TIMEOUT": "30s",
            }
            async with (
                open_gateway(tmp_path, f"http://anthropic.test:{port}", more=more) as gateway,
                httpx.AsyncClient(base_url=gateway.url, headers=HEADERS, timeout=30) as client,
                trio.open_nursery() as nursery,
            ):
                statuses: list[int] = []

                async def ask(path: str) -> None:
                    statuses.append((await client.post(path, json=build_body(path, stream=False))).status_code)

                with names.hanging("anthropic.test"):
                    for _ in range(CALLERS):
                        nursery.start_soon(ask, HANGING)
                    await wait_until(lambda: names.asked["anthropic.test"] == 1)
                    for _ in range(5):
                        with trio.fail_after(5):
                            await ask(HEALTHY)
                    assert statuses == [200] * 5
                    # Beyond the time for which a look-up is used: the link's address is asked for again.
                    await gateway.redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "no")
                    await wait_until(lambda: gateway.redis.statistics().reconnects == 1)
                    await gateway.redis.check()
                await wait_until(lambda: len(statuses) == CALLERS + 5, seconds=20)
                assert statuses == [200] * (CALLERS + 5)
                assert names.asked["anthropic.test"] == 1
