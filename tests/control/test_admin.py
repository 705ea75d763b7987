"""The admin port: the control app under Hypercorn, apart from users' requests."""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import trio
from hypercorn.trio import serve

from cgw.control import admin
from cgw.control.admin import open_admin_server
from cgw.errors import ConfigError
from cgw.service.lifecycle import Service
from cgw.telemetry.exchange_record import ExchangeRecord
from cgw.testing.scripted_upstream import ScriptedUpstream
from cgw.transport.asgi_host import Receive, Scope, Send
from tests.support.gateway import open_gateway
from tests.support.requests import HEADERS, ROUTES, build_body
from tests.support.waiting import wait_until

WITH_ADMIN = {"CODY_GATEWAY_ADMIN_PORT": "0"}

both_versions = pytest.mark.parametrize("is_http2", [False, True], ids=["HTTP/1.1", "HTTP/2"])


@asynccontextmanager
async def open_operator(port: int | None, *, is_http2: bool = False) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an admin port, which speaks one version of HTTP."""
    url = f"http://127.0.0.1:{port}"
    async with httpx.AsyncClient(base_url=url, http1=not is_http2, http2=is_http2, timeout=10) as client:
        yield client


@both_versions
async def test_operators_reach_the_control_routes(
    tmp_path: Path, upstream: ScriptedUpstream, is_http2: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Health, readiness, version and limits are served over both versions of HTTP, without a warning in the log."""
    async with (
        open_gateway(tmp_path, upstream.url, more=WITH_ADMIN) as gateway,
        open_operator(gateway.admin_port, is_http2=is_http2) as operator,
    ):
        answers = [await operator.get(path) for path in ("/-/healthz", "/-/readyz", "/-/__version", "/nowhere")]
        limits = await operator.get("/v1/limits", headers=HEADERS)
        head = await operator.head("/-/readyz")
    assert [answer.http_version for answer in answers] == ["HTTP/2" if is_http2 else "HTTP/1.1"] * 4
    assert [answer.status_code for answer in answers] == [200, 200, 200, 404]
    assert [answer.text for answer in answers[:2]] == ["healthz: ok", "readyz: ok"]
    assert "server" not in answers[0].headers
    assert limits.json()["chat_completions"]["limit"] == 1000
    assert (head.status_code, head.content) == (200, b"")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("path", ROUTES)
async def test_requests_to_providers_are_not_served(tmp_path: Path, upstream: ScriptedUpstream, path: str) -> None:
    """A request for a provider gets 404 in its API's shape, names the public port, and goes nowhere."""
    async with (
        open_gateway(tmp_path, upstream.url, more=WITH_ADMIN) as gateway,
        open_operator(gateway.admin_port) as operator,
    ):
        answer = await operator.post(path, json=build_body(path), headers=HEADERS)
        assert answer.status_code == 404
        assert f"public port {gateway.port}" in answer.text
        assert (await operator.get(path)).status_code == 405
    assert upstream.request_count == 0


async def test_readiness_fails_first_and_everything_is_served_during_the_delay(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    """While draining, /-/readyz says 503 and /-/healthz 200; the public port serves until the delay is over."""
    async with (
        open_gateway(tmp_path, upstream.url, more=WITH_ADMIN) as gateway,
        open_operator(gateway.admin_port) as operator,
        httpx.AsyncClient(base_url=gateway.url, headers=HEADERS) as user,
        trio.open_nursery() as nursery,
    ):
        assert (await user.get("/-/readyz")).text == "readyz: ok"
        nursery.start_soon(drain, gateway)
        await wait_until(lambda: not gateway.status.is_ready)
        for client in (operator, user):
            answer = await client.get("/-/readyz")
            assert (answer.status_code, answer.text) == (503, "readyz: draining")
            assert (await client.get("/-/healthz")).status_code == 200
        path = "/v1/completions/openai"
        assert (await user.post(path, json=build_body(path))).status_code == 200
        await user.aclose()
        await gateway.server.drained.wait()
        assert (await operator.get("/-/readyz")).status_code == 503


async def drain(gateway: Service) -> None:
    assert await gateway.drain(10, delay_seconds=0.5)


async def test_readiness_is_open_where_health_has_a_secret(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """Load balancers probe without the diagnostics secret."""
    more = {**WITH_ADMIN, "CODY_GATEWAY_DIAGNOSTICS_SECRET": "secret"}
    async with (
        open_gateway(tmp_path, upstream.url, more=more) as gateway,
        open_operator(gateway.admin_port) as operator,
    ):
        assert (await operator.get("/-/readyz")).status_code == 200
        assert (await operator.get("/-/healthz")).status_code == 401
        assert (await operator.get("/-/healthz", headers={"authorization": "Bearer secret"})).status_code == 200


async def test_the_admin_port_is_off_by_default(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """Without the setting nothing but the public port is bound."""
    async with open_gateway(tmp_path, upstream.url) as gateway:
        assert gateway.admin_port is None


async def test_a_taken_admin_port_is_one_problem(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """If the admin port is in use, the start fails and names the setting."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        more = {"CODY_GATEWAY_ADMIN_PORT": str(other.getsockname()[1])}
        with pytest.RaisesGroup(ConfigError, allow_unwrapped=True, flatten_subgroups=True) as caught:
            async with open_gateway(tmp_path, upstream.url, more=more):
                pass
    assert "CODY_GATEWAY_ADMIN_PORT" in str(caught.value)


async def serve_text(scope: Scope, receive: Receive, send: Send) -> None:
    """An app that answers every request alike."""
    if scope["type"] == "lifespan":
        raise NotImplementedError
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"served"})


async def test_a_failure_of_the_server_stays_within_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """When Hypercorn fails as a whole, it is logged, and it serves the same port again."""
    starts = 0

    async def fail_once(*arguments: object, **options: object) -> None:
        nonlocal starts
        starts += 1
        if starts == 1:
            raise RuntimeError("a bug")
        await serve(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(admin, "serve", fail_once)
    async with open_admin_server(serve_text, "127.0.0.1", 0) as port, open_operator(port) as operator:
        assert (await operator.get("/")).text == "served"
    assert starts == 2
    assert any("starting it again" in message for message in caplog.messages)


async def test_a_client_that_reads_nothing_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that Hypercorn shields ends with the kernel's own timeout, and so does the server."""
    monkeypatch.setattr(admin, "WRITE_SECONDS", 0.5)
    chunk, sent = b"x" * 65_536, 0

    async def flood(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal sent
        if scope["type"] == "lifespan":
            raise NotImplementedError
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
            sent += 1

    async with open_admin_server(flood, "127.0.0.1", 0) as port:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        seen = -1
        while sent != seen:  # until the buffers of both sides are full
            seen = sent
            await trio.sleep(0.3)
        ended = trio.current_time()
    assert 0.1 < trio.current_time() - ended < 5
    stream.socket.close()


async def test_requests_leave_a_line(
    tmp_path: Path, upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    """Those of the admin port as well: at DEBUG where they succeed, with the ids of their answer."""
    caplog.set_level(logging.DEBUG, "cgw.request")
    async with (
        open_gateway(tmp_path, upstream.url, more=WITH_ADMIN) as service,
        open_operator(service.admin_port) as client,
    ):
        answers = [await client.get("/-/readyz"), await client.get("/nowhere?key=secret")]
    records = [record for record in caplog.records if record.name == "cgw.request"]
    assert [record.levelno for record in records] == [logging.DEBUG, logging.INFO]
    lines = [record.msg for record in records if isinstance(record.msg, ExchangeRecord)]
    assert [(line.path, line.status, line.remote_ip) for line in lines] == [
        ("/-/readyz", 200, "127.0.0.1"),
        ("/nowhere", 404, "127.0.0.1"),
    ]
    assert [line.request_id for line in lines] == [answer.headers["x-cgw-request-id"] for answer in answers]
