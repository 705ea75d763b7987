"""One port, two engines: connections that mix routes, and HTTP/2 connections with many streams at once."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
import trio

from cgw.service.lifecycle import Service
from cgw.testing.script import Script
from cgw.testing.scripted_upstream import ScriptedUpstream
from tests.support.gateway import ANTHROPIC_KEY, ANTHROPIC_MODEL, open_gateway
from tests.support.requests import HEADERS, ROUTES, build_body, build_request, read_to_end

PATH = "/v1/completions/anthropic-messages"


async def test_a_keep_alive_connection_mixes_provider_and_control_routes(gateway: Service) -> None:
    """On one HTTP/1.1 connection each route gets its own response, before and after the hand-over to Hypercorn."""
    async with httpx.AsyncClient(base_url=gateway.url, headers=HEADERS) as client:
        for path in (*ROUTES, "/v1/limits", *ROUTES, "/-/__version", "/nowhere", *ROUTES):
            if path in ROUTES:
                answer = await client.post(path, json=build_body(path, stream=False))
                assert (answer.status_code, "Good day to you." in answer.text) == (200, True)
            else:
                answer = await client.get(path)
                assert answer.status_code == (404 if path == "/nowhere" else 200)
    usage = await get_usage(gateway)
    assert usage == 3 * len(ROUTES)


async def get_usage(gateway: Service) -> int:
    async with httpx.AsyncClient(base_url=gateway.url, headers=HEADERS) as client:
        limits = (await client.get("/v1/limits")).json()
    usage = limits["chat_completions"]["usage"]
    assert isinstance(usage, int)
    return usage


async def test_pipelined_requests_are_answered_in_order(gateway: Service) -> None:
    """Requests for both engines that are sent at once are answered in the order in which they were sent."""
    version = b"GET /-/__version HTTP/1.1\r\nhost: x\r\n\r\n"
    last = b"GET /nowhere HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    completions = [build_request(path, stream=False) for path in ROUTES]
    stream = await trio.open_tcp_stream("127.0.0.1", gateway.port)
    await stream.send_all(b"".join([*completions, version, *completions, last]))
    async with stream:
        data = await read_to_end(stream)
    marks = [b'"type":"message"', b'"chat.completion"'] * 2
    position = 0
    for mark in [*marks, b"\r\n0.1.0", *marks, b"there is no route"]:
        position = data.index(mark, position) + 1
    assert data.count(b"HTTP/1.1 ") == 2 * len(completions) + 2


async def test_one_http2_connection_carries_many_exchanges(gateway: Service, upstream: ScriptedUpstream) -> None:
    """Twenty streamed responses and some GETs at once over one HTTP/2 connection: each is complete and its own."""
    upstream.scripts[ANTHROPIC_MODEL] = Script(
        answer="word " * 99 + "word", tokens_per_second=500, first_token_delay_seconds=0.05, api_key=ANTHROPIC_KEY
    )
    answers: list[httpx.Response] = []
    async with (
        httpx.AsyncClient(base_url=gateway.url, headers=HEADERS, http1=False, http2=True) as client,
        trio.open_nursery() as nursery,
    ):

        async def post(number: int) -> None:
            answer = await client.post(PATH, json=build_body(PATH, max_tokens=100 + number))
            assert answer.status_code == 200
            texts = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
            deltas = [event["delta"]["text"] for event in texts if event["type"] == "content_block_delta"]
            assert "".join(deltas) == "word " * 99 + "word"
            answers.append(answer)

        async def get(path: str) -> None:
            answer = await client.get(path)
            assert answer.status_code == 200
            answers.append(answer)

        await get("/-/__version")  # one connection from here on
        for number in range(20):
            nursery.start_soon(post, number)
        for path in ("/v1/limits", "/-/healthz", "/-/__version"):
            nursery.start_soon(get, path)
    assert len(answers) == 24
    assert {answer.http_version for answer in answers} == {"HTTP/2"}
    assert gateway.server.connection_count <= 1
    assert {request.json()["max_tokens"] for request in upstream.requests} == set(range(100, 120))


async def test_a_broken_upstream_resets_its_http2_stream_only(gateway: Service, upstream: ScriptedUpstream) -> None:
    """An HTTP/2 client gets an error when the upstream breaks off, and its connection stays open."""
    upstream.scripts[ANTHROPIC_MODEL] = Script(
        answer="word " * 20, tokens_per_second=0, break_after_events=5, api_key=ANTHROPIC_KEY
    )
    async with httpx.AsyncClient(base_url=gateway.url, headers=HEADERS, http1=False, http2=True) as client:
        with pytest.raises(httpx.RemoteProtocolError):
            await client.post(PATH, json=build_body(PATH))
        answer = await client.get("/-/__version")
    assert answer.status_code == 200


async def test_a_broken_upstream_cuts_a_handed_over_connection(gateway: Service, upstream: ScriptedUpstream) -> None:
    """After the hand-over, an HTTP/1.1 client still gets an incomplete body when the upstream breaks off."""
    upstream.scripts[ANTHROPIC_MODEL] = Script(
        answer="word " * 20, tokens_per_second=0, break_after_events=5, api_key=ANTHROPIC_KEY
    )
    async with httpx.AsyncClient(base_url=gateway.url, headers=HEADERS) as client:
        await client.get("/-/__version")
        with pytest.raises(httpx.RemoteProtocolError):
            await client.post(PATH, json=build_body(PATH))


async def test_websocket_upgrade_of_an_unknown_route_is_refused(gateway: Service) -> None:
    """A WebSocket handshake on an unknown route gets 403."""
    stream = await trio.open_tcp_stream("127.0.0.1", gateway.port)
    await stream.send_all(
        b"GET /socket HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
        b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    async with stream:
        data = await stream.receive_some(65536)
    assert data.startswith(b"HTTP/1.1 403 ")


async def test_wrong_methods_get_the_allowed_ones(gateway: Service) -> None:
    """405 carries Allow on both kinds of route; HEAD is answered like GET, without a body."""
    async with httpx.AsyncClient(base_url=gateway.url, headers=HEADERS) as client:
        for path in ROUTES:
            for method in ("GET", "PUT", "DELETE", "OPTIONS", "PATCH"):
                answer = await client.request(method, path)
                assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
        answer = await client.post("/v1/limits")
        assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")
        answer = await client.head("/-/__version")
        assert (answer.status_code, answer.text) == (200, "")


async def test_diagnostics_need_their_secret(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """With a secret, healthz needs it as bearer token; the version does not."""
    async with (
        open_gateway(tmp_path, upstream.url, more={"CODY_GATEWAY_DIAGNOSTICS_SECRET": "open-sesame"}) as gateway,
        httpx.AsyncClient(base_url=gateway.url) as client,
    ):
        assert (await client.get("/-/healthz")).status_code == 401
        assert (await client.get("/-/healthz", headers={"authorization": "Bearer wrong"})).status_code == 401
        answer = await client.get("/-/healthz", headers={"authorization": "Bearer open-sesame"})
        assert (answer.status_code, answer.text) == (200, "healthz: ok")
        assert (await client.get("/-/__version")).status_code == 200
