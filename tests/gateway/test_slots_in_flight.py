"""Limits on requests in flight: each request holds a slot, and frees it however it ends."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import trio

from cgw.events.reading import read_events
from cgw.service.lifecycle import Service
from cgw.testing.script import Breakage, Script
from cgw.testing.scripted_upstream import ScriptedUpstream
from cgw.transport.upstream import UpstreamPool
from tests.support.errors import read_error
from tests.support.gateway import ANTHROPIC_KEY, ANTHROPIC_MODEL
from tests.support.limits import (
    BOUNDED,
    IN_FLIGHT,
    PROVIDER_BOUND,
    PROVIDER_IN_FLIGHT,
    Held,
    count_held,
    get_usage,
    open_http,
    open_patient_gateway,
    slow_down,
    wait_nothing_held,
)
from tests.support.requests import HEADERS, ROUTES, build_body

PATH = "/v1/completions/anthropic-messages"

LONG = "word " * 500
EXITS: dict[str, tuple[Script, dict[str, str], int | None]] = {
    "success": (Script(answer="Good day.", tokens_per_second=math.inf, api_key=ANTHROPIC_KEY), {}, 200),
    "upstream's 500": (Script(status=500, api_key=ANTHROPIC_KEY), {}, 500),
    "upstream refuses the key": (Script(api_key="another"), {}, 401),
    "upstream's connection reset": (
        Script(LONG, math.inf, break_after_events=3, breakage=Breakage.RESET, api_key=ANTHROPIC_KEY),
        {},
        None,
    ),
    "upstream's stream closed": (
        Script(LONG, math.inf, break_after_events=3, breakage=Breakage.CLOSE, api_key=ANTHROPIC_KEY),
        {},
        None,
    ),
    "deadline before the head": (
        Script(LONG, head_delay_seconds=30, api_key=ANTHROPIC_KEY),
        {"x-timeout-ms": "150"},
        504,
    ),
    "deadline in the stream": (Script(LONG, api_key=ANTHROPIC_KEY), {"x-timeout-ms": "150"}, None),
}


@asynccontextmanager
async def open_bounded_gateway(folder: Path, upstream: ScriptedUpstream) -> AsyncIterator[Service]:
    """Run a gateway that bounds requests in flight, of its actor and to its provider."""
    async with open_patient_gateway(folder, upstream.url, chat_lines=BOUNDED, more=PROVIDER_BOUND) as gateway:
        yield gateway


async def wait_held(gateway: Service) -> None:
    """Wait until one request holds its slots."""
    with trio.fail_after(5):
        while await count_held(gateway) != Held(2, 1):  # noqa: ASYNC110 - it happens in Redis
            await trio.sleep(0.005)
        assert await gateway.redis.execute_command("ZCARD", IN_FLIGHT) == 1
        assert await gateway.redis.execute_command("ZCARD", PROVIDER_IN_FLIGHT.format("anthropic")) == 1


@pytest.mark.parametrize("name", EXITS)
async def test_slots_are_freed_however_the_exchange_ends(tmp_path: Path, upstream: ScriptedUpstream, name: str) -> None:
    """After any end of an exchange no slot is held, of the actor or the provider, and no record is left."""
    script, headers, status = EXITS[name]
    upstream.scripts[ANTHROPIC_MODEL] = script
    upstream.scripts["other"] = Script(api_key=ANTHROPIC_KEY)
    async with open_bounded_gateway(tmp_path, upstream) as gateway, open_http(gateway) as client:
        for _ in range(4):
            try:
                answer = await client.post(PATH, json=build_body(PATH, max_tokens=1_000), headers=headers)
            except httpx.RemoteProtocolError:
                assert status is None
            else:
                assert answer.status_code == status
            await wait_nothing_held(gateway)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("events", [0, 4], ids=["before the first byte", "streaming"])
@pytest.mark.parametrize("http2", [False, True], ids=["HTTP/1.1", "HTTP/2"])
async def test_slots_are_freed_when_the_client_leaves(
    tmp_path: Path, upstream: ScriptedUpstream, http2: bool, events: int, stream: bool
) -> None:
    """The slots of a client that leaves are freed, whatever the gateway is waiting for."""
    delay = 0 if events and stream else 30
    upstream.scripts[ANTHROPIC_MODEL] = Script(LONG, head_delay_seconds=delay, api_key=ANTHROPIC_KEY)
    async with (
        open_bounded_gateway(tmp_path, upstream) as gateway,
        httpx.AsyncClient(base_url=gateway.url, headers=HEADERS, http1=not http2, http2=http2) as client,
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: client.post(PATH, json=build_body(PATH, stream=stream, max_tokens=1_000)))
            seen = await upstream.wait_request()
            await wait_held(gateway)
            if delay == 0:
                await seen.wait_events_sent(events)
            nursery.cancel_scope.cancel()
        await client.aclose()  # httpx does not reset a stream that is cancelled
        await wait_nothing_held(gateway)
        assert await get_usage(gateway) == (1 if delay == 0 else 0)


async def test_a_bug_gives_everything_back(
    tmp_path: Path, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug in cgw between admission and response is a 500 that holds no slot and is not charged."""

    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    async with open_bounded_gateway(tmp_path, upstream) as gateway, open_http(gateway) as client:
        monkeypatch.setattr(UpstreamPool, "open", fail)
        answer = await client.post(PATH, json=build_body(PATH))
        assert (answer.status_code, read_error(answer)) == (500, {"error": "internal error"})
        await wait_nothing_held(gateway)
        assert await get_usage(gateway) == 0
        (event,) = read_events(gateway.events_folder)
        assert (event.metadata["resolved_status_code"], event.metadata["outcome"]) == (500, "internal_error")


async def test_a_freed_slot_is_available_at_once(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """With one slot, requests one after the other are never refused."""
    async with (
        open_patient_gateway(tmp_path, upstream.url, chat_lines="max_in_flight = 1") as gateway,
        open_http(gateway) as client,
    ):
        for number in range(30):
            path = list(ROUTES)[number % 4]
            answer = await client.post(path, json=build_body(path, stream=number % 3 == 0))
            assert answer.status_code == 200


async def test_a_long_stream_keeps_its_slot(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """A stream that is longer than its lease holds its slot by heartbeats until its end, and no longer."""
    slow_down(upstream, "word " * 20)
    more = {"CODY_GATEWAY_IN_FLIGHT_HEARTBEAT": "100ms"}
    async with (
        open_patient_gateway(tmp_path, upstream.url, chat_lines="max_in_flight = 1", more=more) as gateway,
        open_http(gateway) as client,
        client.stream("POST", PATH, json=build_body(PATH)) as answer,
    ):
        refused = 0
        async for _ in answer.aiter_raw():
            other = await client.post(PATH, json=build_body(PATH, stream=False))
            if other.status_code == 200:
                break  # the stream is over, but for what the client has not read yet
            assert other.status_code == 429
            refused += 1
        assert refused > 15
        await wait_nothing_held(gateway)
