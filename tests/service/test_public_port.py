"""The public port as the settings describe it: its addresses, its bounds, and its end."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import trio

from cgw.testing.scripted_upstream import ScriptedUpstream, open_scripted_upstream
from tests.support.gateway import open_gateway
from tests.support.raw_client import ask, open_client

PROBE = b"GET /-/readyz HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    """An upstream that no test here asks."""
    async with open_scripted_upstream({}) as upstream:
        yield upstream


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 on this machine")
async def test_the_ipv6_wildcard_serves_both_families(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """``CODY_GATEWAY_HOST=::`` is reached by IPv4 and by IPv6 addresses, and its URL works on this machine."""
    async with (
        open_gateway(tmp_path, upstream.url, more={"CODY_GATEWAY_HOST": "::"}) as gateway,
        httpx.AsyncClient() as client,
    ):
        for url in (gateway.url, f"http://127.0.0.1:{gateway.port}", f"http://[::1]:{gateway.port}"):
            assert (await client.get(f"{url}/-/readyz")).text == "readyz: ok"


async def test_connections_above_the_bound_are_turned_away(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """The setting bounds the connections that are open at once; the next one gets 503 with retry-after."""
    more = {"CODY_GATEWAY_MAX_CONNECTIONS": "2"}
    async with open_gateway(tmp_path, upstream.url, more=more) as gateway:
        async with open_client(gateway.port) as first, open_client(gateway.port) as second:
            assert [(await client.ask(PROBE)).status for client in (first, second)] == [200, 200]
            answer = await ask(gateway.port, b"")
            assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        with trio.fail_after(5):
            while (await ask(gateway.port, PROBE)).status != 200:  # noqa: ASYNC110 - the end of a connection shows late
                await trio.sleep(0.01)


async def test_connections_of_one_address_are_bounded_except_for_trusted_proxies(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    """The bound per address turns the second connection away, unless the address is a trusted proxy's."""
    more = {"CODY_GATEWAY_MAX_CONNECTIONS_PER_ADDRESS": "1"}
    trusting = {**more, "CODY_GATEWAY_TRUSTED_PROXIES": "127.0.0.0/8"}
    for settings, status in ((more, 503), (trusting, 200)):
        async with (
            open_gateway(tmp_path, upstream.url, more=settings) as gateway,
            open_client(gateway.port) as first,
        ):
            await first.ask(PROBE)
            assert (await ask(gateway.port, PROBE)).status == status
