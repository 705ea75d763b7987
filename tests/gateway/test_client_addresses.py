"""The client's address on a real connection: PROXY protocol, X-Forwarded-For, and bounds per address."""

from __future__ import annotations

import ipaddress
import logging
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing

from cgw.service.lifecycle import Service
from cgw.telemetry.exchange_record import ExchangeRecord
from cgw.testing.scripted_upstream import ScriptedUpstream
from cgw.transport.client_address import AddressBound, TrustedProxies
from cgw.transport.client_side import ClientLimits
from cgw.wire.proxy_protocol import V2_PREFIX
from tests.support.gateway import open_gateway
from tests.support.http_engine import HEAD, open_engine
from tests.support.quiet_log import quiet_log
from tests.support.raw_client import open_client
from tests.support.requests import build_request
from tests.support.waiting import wait_until

__all__ = ["quiet_log"]

PATH = "/v1/completions/anthropic-messages"
PROBE = b"GET /-/readyz HTTP/1.1\r\nhost: x\r\n\r\n"
TRUSTING = {"CODY_GATEWAY_TRUSTED_PROXIES": "127.0.0.1/32"}
V1 = b"PROXY TCP4 203.0.113.9 127.0.0.1 56324 443\r\n"
V2 = V2_PREFIX + struct.pack("!BBH", 0x21, 0x11, 12) + bytes([203, 0, 113, 9, 127, 0, 0, 1]) + struct.pack("!HH", 1, 2)
V2_LOCAL = V2_PREFIX + struct.pack("!BBH", 0x20, 0x00, 0)


@pytest.fixture
async def trusting(tmp_path: Path, upstream: ScriptedUpstream) -> AsyncIterator[Service]:
    """A gateway that trusts this machine as a proxy, with at most two connections of one address."""
    more = {**TRUSTING, "CODY_GATEWAY_MAX_CONNECTIONS_PER_ADDRESS": "2"}
    async with open_gateway(tmp_path, upstream.url, more=more) as service:
        yield service


async def read_logged_address(caplog: pytest.LogCaptureFixture) -> str | None:
    """Return the address in the next line of an exchange."""
    await wait_until(lambda: any(isinstance(record.msg, ExchangeRecord) for record in caplog.records))
    (line,) = [record.msg for record in caplog.records if isinstance(record.msg, ExchangeRecord)]
    caplog.clear()
    return line.remote_ip


@pytest.mark.parametrize(
    ("header", "fields", "address"),
    [
        (V1, b"", "203.0.113.9"),
        (V2, b"", "203.0.113.9"),
        (V2_LOCAL, b"", "127.0.0.1"),
        (b"PROXY UNKNOWN\r\n", b"", "127.0.0.1"),
        (b"", b"", "127.0.0.1"),
        (b"", b"x-forwarded-for: 6.6.6.6, 203.0.113.9\r\n", "203.0.113.9"),
        (b"", b"forwarded: for=203.0.113.9\r\n", "203.0.113.9"),
        (V1, b"x-forwarded-for: 6.6.6.6\r\n", "203.0.113.9"),
        (V2_LOCAL, b"x-forwarded-for: 203.0.113.9\r\n", "203.0.113.9"),
    ],
)
async def test_log_has_the_address_that_a_trusted_proxy_tells(
    trusting: Service, caplog: pytest.LogCaptureFixture, header: bytes, fields: bytes, address: str
) -> None:
    """The PROXY header holds for the connection; a client behind it cannot tell another address."""
    caplog.set_level(logging.INFO, "cgw.exchange")
    request = build_request(PATH).replace(b"host:", fields + b"host:", 1)
    for cut in (0, 1, 7, len(header)):
        async with open_client(trusting.port) as client:
            await client.send(header[:cut])
            await trio.testing.wait_all_tasks_blocked()
            for data in (header[cut:] + request, request):
                assert (await client.ask(data)).status == 200
                assert await read_logged_address(caplog) == address


@pytest.mark.parametrize(
    "header",
    [
        b"PROXY TCP4 nonsense\r\n",
        b"PROXY " + b"x" * 200,
        V2_PREFIX + b"\x31\x11\x00\x0c" + bytes(12),
        V2_PREFIX + struct.pack("!BBH", 0x21, 0x11, 60_000),
    ],
)
async def test_malformed_header_of_a_trusted_proxy_is_400(trusting: Service, header: bytes) -> None:
    """A malformed header is refused readably, and nothing behind it is served."""
    async with open_client(trusting.port) as client:
        answer = await client.ask(header + PROBE)
        assert (answer.status, answer.headers["connection"]) == (400, "close")
        assert b"PROXY" in answer.body
        assert await client.read_end() == b""


@pytest.mark.parametrize("header", [V1, V2, V2_LOCAL])
async def test_header_of_anybody_else_is_a_malformed_request(
    gateway: Service, caplog: pytest.LogCaptureFixture, header: bytes
) -> None:
    """Without trust the header is not HTTP, and X-Forwarded-For is just a field."""
    async with open_client(gateway.port) as client:
        answer = await client.ask(header + PROBE)
        assert (answer.status, answer.headers["connection"]) == (400, "close")
    caplog.set_level(logging.INFO, "cgw.exchange")
    async with open_client(gateway.port) as client:
        await client.ask(build_request(PATH).replace(b"host:", b"x-forwarded-for: 6.6.6.6\r\nhost:", 1))
        assert await read_logged_address(caplog) == "127.0.0.1"


@pytest.mark.parametrize("header", [V1, V2])
async def test_clients_behind_a_proxy_are_bounded_by_their_own_addresses(trusting: Service, header: bytes) -> None:
    """Above the bound of its address a client gets 503; other clients of the proxy, and the proxy, are served."""
    async with open_client(trusting.port) as first, open_client(trusting.port) as second:
        for client in (first, second):
            assert (await client.ask(header + PROBE)).status == 200
        async with open_client(trusting.port) as third:
            answer = await third.ask(header + PROBE)
            assert (answer.status, answer.headers["retry-after"]) == (503, "1")
            assert await third.read_end() == b""
        other = header.replace(b"203.0.113.9", b"203.0.113.7").replace(bytes([203, 0, 113, 9]), bytes([203, 0, 113, 7]))
        for data in (other, b"", V2_LOCAL, V1.replace(b"203.0.113.9", b"127.0.0.1")):
            async with open_client(trusting.port) as client:
                assert (await client.ask(data + PROBE)).status == 200
    await wait_until(lambda: trusting.server.connection_count == 0)
    async with open_client(trusting.port) as client:
        assert (await client.ask(header + PROBE)).status == 200


@pytest.mark.parametrize("data", [b"", b"PROXY", b"PROXY TCP4 203.0", b"\r\n\r\n\x00", V2[:20]])
async def test_slow_header_ends_its_connection(autojump_clock: trio.testing.MockClock, data: bytes) -> None:
    """A PROXY header has the timeout of a head; there is no HTTP yet in which to answer."""
    autojump_clock.autojump_threshold = 0.02
    trusted, addresses = TrustedProxies([ipaddress.ip_network("127.0.0.1/32")]), AddressBound(1)
    limits = ClientLimits(header_timeout_seconds=3)
    async with open_engine(limits=limits, trusted=trusted, addresses=addresses) as engine:
        async with open_client(engine.port) as client:
            await client.send(data)
            started = trio.current_time()
            assert await client.read_end() == b""
            assert trio.current_time() - started == pytest.approx(3, abs=0.5)
        for _ in range(3):  # a connection that breaks leaves nothing counted
            async with open_client(engine.port) as client:
                await client.send(V1 + HEAD)
            await wait_until(lambda: engine.server.connection_count == 0)
