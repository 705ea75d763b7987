"""Control routes and provider routes on one connection of the public port: framing, order, limits and hang-ups."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing

from cgw.service.lifecycle import Service
from cgw.testing.scripted_upstream import ScriptedUpstream
from tests.support.gateway import TOKEN, open_gateway
from tests.support.quiet_log import quiet_log
from tests.support.raw_client import ask, open_client
from tests.support.requests import ROUTES, build_request
from tests.support.waiting import wait_until

__all__ = ["quiet_log"]

PROVIDER = "/anthropic/v1/messages"
AUTHORIZED = f"host: x\r\nauthorization: Bearer {TOKEN}\r\n".encode()
VERSION = b"GET /-/__version HTTP/1.1\r\nhost: x\r\n\r\n"
LIMITS = b"GET /v1/limits HTTP/1.1\r\n" + AUTHORIZED + b"\r\n"
REFRESH = b"POST /v1/limits/refresh HTTP/1.1\r\n" + AUTHORIZED


async def test_one_connection_serves_both_kinds_of_routes_in_order(gateway: Service) -> None:
    """Kept alive or pipelined, requests to providers and to control routes are answered in their order."""
    requests = [VERSION, build_request(PROVIDER), LIMITS, build_request(PROVIDER, stream=False), VERSION]
    async with open_client(gateway.port) as client:
        for is_pipelined in (False, True):
            if is_pipelined:
                await client.send(b"".join(requests))
            answers = [await (client.read_answer() if is_pipelined else client.ask(request)) for request in requests]
            assert [answer.status for answer in answers] == [200] * 5
            kinds = [answer.headers["content-type"].partition(";")[0] for answer in answers]
            assert kinds == ["text/plain", "text/event-stream", "application/json", "application/json", "text/plain"]
            assert not any("connection" in answer.headers for answer in answers)
        assert gateway.server.statistics().accepted == 1


@pytest.mark.parametrize(
    "first", [VERSION, LIMITS, build_request(PROVIDER), b"GET /nowhere HTTP/1.1\r\nhost: x\r\n\r\n"]
)
@pytest.mark.parametrize("more", [b"\r\n", b"\r", VERSION, build_request(PROVIDER)])
async def test_close_is_kept_whatever_follows(gateway: Service, first: bytes, more: bytes) -> None:
    """After ``Connection: close`` one answer comes, whole, and the end: not a reset, and no second answer."""
    closing = first.replace(b"host:", b"Connection: close\r\nhost:", 1)
    async with open_client(gateway.port) as client:
        answer = await client.ask(closing + more)
        assert answer.status in (200, 404)
        assert answer.headers["connection"] == "close"
        assert await client.read_end() == b""


BODIES = {
    "small": (b"content-length: 2\r\n\r\n{}", True),
    "chunked": (b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", False),
    "large": (b"content-length: 300000\r\n\r\n" + b"x" * 300_000, False),
    "expected": (b"expect: 100-continue\r\ncontent-length: 2\r\n\r\n", False),
    "too large": (b"content-length: 99999999999\r\n\r\n", False),
}


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("route", [b"POST /v1/limits/refresh", b"GET /v1/limits", b"POST /nowhere"])
async def test_bodies_that_nobody_wants(gateway: Service, name: str, route: bytes) -> None:
    """A small body is skipped; with any other the answer comes at once, no 100 is sent, and the connection ends."""
    rest, is_kept = BODIES[name]
    async with open_client(gateway.port) as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, route + b" HTTP/1.1\r\n" + AUTHORIZED + rest)
            answer = await client.read_answer()
        assert answer.status == (404 if b"nowhere" in route else 200)
        assert answer.informational == ()
        if is_kept:
            assert (await client.ask(VERSION)).status == 200
        else:
            assert answer.headers["connection"] == "close"
            assert await client.read_end() == b""


@pytest.mark.parametrize("path", [b"/-/__version", b"/-/healthz", b"/-/readyz", b"/v1/limits"])
async def test_head_is_get_without_the_body(gateway: Service, path: bytes) -> None:
    """HEAD has the length of GET's body and no body; the next answer on the connection is read rightly."""
    head = path + b" HTTP/1.1\r\n" + AUTHORIZED + b"\r\n"
    async with open_client(gateway.port) as client:
        whole = await client.ask(b"GET " + head)
        await client.send(b"HEAD " + head + VERSION)
        data = b""
        while data.count(b"HTTP/1.1 200") < 2 or not data.endswith(b"0.1.0"):
            data += await client.stream.receive_some(65536)
        first, _, second = data.partition(b"\r\n\r\n")
        assert f"content-length: {len(whole.body)}".encode() in first
        assert second.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"get /v1/limits", 405),
        (b"Get /-/__version", 405),
        (b"head /-/readyz", 405),
        (b"post /v1/limits/refresh", 405),
        (b"post /anthropic/v1/messages", 405),
        (b"post /nowhere", 404),
        (b"CONNECT /v1/limits", 405),
        (b"CONNECT example.com:443", 404),
        (b"OPTIONS *", 404),
        (b"TRACE /-/__version", 405),
    ],
)
async def test_methods_are_case_sensitive_and_known(
    gateway: Service, upstream: ScriptedUpstream, line: bytes, status: int
) -> None:
    """Another method, or a known one in lower case, is not run (RFC 9110 §9.1); the connection is kept."""
    async with open_client(gateway.port) as client:
        for _ in range(2):
            answer = await client.ask(line + b" HTTP/1.1\r\n" + AUTHORIZED + b"content-length: 0\r\n\r\n")
            assert answer.status == status
    assert upstream.request_count == 0


UPGRADES = {
    "h2c": b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n",
    "websocket": b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
    b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
}


@pytest.mark.parametrize("name", UPGRADES)
async def test_upgrades_are_ignored_everywhere(gateway: Service, name: str) -> None:
    """Each route answers in HTTP/1.1 as if nothing had been asked, and the connection carries the next request."""
    fields = UPGRADES[name]
    async with open_client(gateway.port) as client:
        for request, status in [
            (VERSION, 200),
            (LIMITS, 200),
            (b"GET /nowhere HTTP/1.1\r\nhost: x\r\n\r\n", 404),
            (b"GET /anthropic/v1/messages HTTP/1.1\r\nhost: x\r\n\r\n", 405),
            *((build_request(path), 200) for path in ROUTES),
            (VERSION, 200),
        ]:
            answer = await client.ask(request.replace(b"host:", fields + b"host:", 1))
            assert (answer.status, answer.informational) == (status, ())


async def test_connection_after_an_upgrade_has_a_timeout(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """A client that then speaks WebSocket, or nothing, does not stay."""
    more = {"CODY_GATEWAY_KEEP_ALIVE_TIMEOUT": "100ms", "CODY_GATEWAY_HEADER_TIMEOUT": "100ms"}
    async with open_gateway(tmp_path, upstream.url, more=more) as gateway:
        for frames, is_answered in ((b"", False), (b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58", True)):
            async with open_client(gateway.port) as client:
                await client.ask(VERSION.replace(b"host:", UPGRADES["websocket"] + b"host:", 1))
                await client.send(frames)
                with trio.fail_after(5):
                    assert (await client.read_end()).startswith(b"HTTP/1.1 400 ") == is_answered
        await wait_until(lambda: gateway.server.connection_count == 0)


async def test_http_1_0_gets_its_answer_and_the_end(gateway: Service) -> None:
    """A client of HTTP/1.0 may leave out Host; its connection is closed after the answer."""
    for path, status in ((b"/-/readyz", 200), (b"/v1/limits", 401), (b"/nowhere", 404)):
        async with open_client(gateway.port) as client:
            answer = await client.ask(b"GET " + path + b" HTTP/1.0\r\n\r\n")
            assert (answer.status, answer.headers["connection"]) == (status, "close")
            assert await client.read_end() == b""


async def test_absolute_form_names_the_same_route(gateway: Service) -> None:
    """A target in absolute form is served by its path (RFC 9112 §3.2.2), on both kinds of routes."""
    async with open_client(gateway.port) as client:
        assert (await client.ask(LIMITS.replace(b"/v1", b"http://other.example/v1", 1))).status == 200
        assert (await client.ask(VERSION.replace(b"/-/", b"http://other.example/-/", 1))).body == b"0.1.0"
        request = build_request(PROVIDER).replace(b"POST ", b"POST https://other.example", 1)
        assert (await client.ask(request)).status == 200
        assert (await client.ask(b"GET http://other.example HTTP/1.1\r\nhost: x\r\n\r\n")).status == 404


@pytest.mark.parametrize("path", [b"/-/readyz", b"/v1/limits", b"/anthropic/v1/messages", b"/openai/v1/nowhere"])
@pytest.mark.parametrize(
    ("fields", "status"),
    [(b"a: b\r\n" * 101, 431), (b"a: " + b"b" * 70_000 + b"\r\n", 431), (b"a : b\r\n", 400), (b"a: b\n", 400)],
)
async def test_heads_over_the_limits_are_refused_in_the_routes_shape(
    gateway: Service, path: bytes, fields: bytes, status: int
) -> None:
    """Whatever the route, a head that is too large or malformed is refused, in the shape of the route's API."""
    answer = await ask(gateway.port, b"GET " + path + b" HTTP/1.1\r\nhost: x\r\n" + fields + b"\r\n")
    assert (answer.status, answer.headers["connection"]) == (status, "close")
    error = answer.json()["error"]
    assert isinstance(error, str) == (path in (b"/-/readyz", b"/v1/limits"))


@pytest.fixture
async def impatient(tmp_path: Path, upstream: ScriptedUpstream) -> AsyncIterator[Service]:
    """A gateway with short timeouts."""
    more = {"CODY_GATEWAY_HEADER_TIMEOUT": "100ms", "CODY_GATEWAY_BODY_TIMEOUT": "100ms"}
    async with open_gateway(tmp_path, upstream.url, more=more) as service:
        yield service


async def test_slow_heads_and_bodies_of_control_routes_are_408(impatient: Service) -> None:
    """A head, or a small body that was announced, which does not come in time is refused."""
    for data in (VERSION[:-2], REFRESH + b"content-length: 20\r\n\r\nxx"):
        async with open_client(impatient.port) as client:
            answer = await client.ask(data)
            assert (answer.status, answer.headers["connection"]) == (408, "close")
            assert await client.read_end() == b""


async def test_client_that_leaves_while_redis_is_waited_for(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """A handler whose client has left is cancelled: nothing of it is left, although Redis never answers."""
    waiting, cancelled = trio.Event(), trio.Event()

    async with open_gateway(tmp_path, upstream.url) as gateway:

        async def hang() -> None:
            waiting.set()
            try:
                await trio.sleep_forever()
            finally:
                cancelled.set()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gateway.gateway.limiter, "peek", lambda actor: hang())
            async with open_client(gateway.port) as client:
                await client.send(LIMITS)
                await waiting.wait()
            with trio.fail_after(5):
                await cancelled.wait()
        await wait_until(lambda: gateway.server.connection_count == 0)
        assert (await ask(gateway.port, LIMITS)).status == 200
