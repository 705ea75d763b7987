"""Pass routes: what is authenticated and counted, but not read; uploads and answers stream, and either side may end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import h11
import httpx
import openai
import pytest
import trio
from attrs import define, field

from cgw.actors.tokens import hash_token
from cgw.service.lifecycle import Service
from tests.support.gateway import OPENAI_KEY, TOKEN, open_gateway
from tests.support.limits import get_usage, open_http, read_recorded, wait_nothing_held
from tests.support.raw_client import AnswerCut, RawClient, open_client
from tests.support.raw_server import open_raw_server
from tests.support.waiting import wait_until

PASS = {
    "CODY_GATEWAY_OPENAI_PASS_ROUTES": "/v1/batches, /v1/files, /v1/files/*, POST /v1/audio/*, /v1/chat/*, "
    "/v1/responses/*, /v1/models",
    "CODY_GATEWAY_ANTHROPIC_PASS_ROUTES": "GET /v1/messages/batches",
    "CODY_GATEWAY_GOOGLE_PASS_ROUTES": "/v1beta/files/*",
    "CODY_GATEWAY_GOOGLE_ACCESS_TOKEN": "google-key",
    "CODY_GATEWAY_REDIS_TIMEOUT": "20s",
}
MIB = 1024 * 1024
AUTHORIZED = f"host: x\r\nauthorization: Bearer {TOKEN}\r\n".encode()

RESTRICTED = f"""
[[actor]]
id = "narrow"
token_sha256 = ["{hash_token("cgw_narrow")}"]
[actor.limits.chat_completions]
limit = 10
interval = "24h"
allowed_models = ["openai/gpt-4o"]

[[actor]]
id = "openai-only"
token_sha256 = ["{hash_token("cgw_openai-only")}"]
[actor.limits.chat_completions]
limit = 10
interval = "24h"
allowed_models = ["openai/*"]

[[actor]]
id = "named"
token_sha256 = ["{hash_token("cgw_named")}"]
[actor.limits.chat_completions]
limit = 10
interval = "24h"
allowed_models = ["openai/gpt-4o", "openai/pass-routes"]

[[actor]]
id = "tokens"
token_sha256 = ["{hash_token("cgw_tokens")}"]
[actor.limits.chat_completions]
limit = 1000
unit = "tokens"
interval = "24h"
"""


@define
class Upstream:
    """An upstream that keeps what it gets. ``play`` takes the place of the usual answer."""

    requests: list[tuple[h11.Request, bytes]] = field(factory=list)
    connections: int = 0
    received_bytes: int = 0
    is_over: bool = False
    play: Callable[[trio.SocketStream, h11.Connection], Awaitable[None]] | None = None

    async def serve(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        try:
            while await self._serve_one(stream):
                pass
        finally:
            self.is_over = True

    async def _serve_one(self, stream: trio.SocketStream) -> bool:
        connection = h11.Connection(h11.SERVER)
        if self.play is not None:
            await self.play(stream, connection)
            return False
        request = await next_event(stream, connection)
        if not isinstance(request, h11.Request):
            return False
        body = b""
        while isinstance(event := await next_event(stream, connection), h11.Data):
            body += bytes(event.data)
            self.received_bytes += len(event.data)
        if not isinstance(event, h11.EndOfMessage):
            return False
        self.requests.append((request, body))
        answer = b'{"id": "batch_1", "object": "batch"}'
        await stream.send_all(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-request-id: req_1\r\n"
            b"content-length: %d\r\n\r\n%b" % (len(answer), answer)
        )
        return True

    def header(self, name: bytes) -> bytes | None:
        """Return a field of the last request."""
        return dict(self.requests[-1][0].headers).get(name)


async def next_event(stream: trio.SocketStream, connection: h11.Connection) -> Any:
    """Return the next event of a request; ``None`` at the connection's end."""
    try:
        while (event := connection.next_event()) is h11.NEED_DATA:
            connection.receive_data(bytes(await stream.receive_some(65536)))
    except h11.RemoteProtocolError:
        return None
    return event


@asynccontextmanager
async def open_bench(folder: Path, **more: str) -> AsyncIterator[tuple[Service, Upstream]]:
    """Run a gateway with pass routes, and the upstream."""
    upstream = Upstream()
    async with open_raw_server(upstream.serve) as port:
        url = f"http://127.0.0.1:{port}"
        environ = {**PASS, "CODY_GATEWAY_GOOGLE_API_URL": url, **more}
        async with open_gateway(folder, url, more=environ) as gateway:
            yield gateway, upstream


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[tuple[Service, Upstream]]:
    """A gateway with pass routes, and the upstream."""
    async with open_bench(tmp_path) as opened:
        yield opened


Bench = tuple[Service, Upstream]


async def test_a_request_passes_with_the_providers_key(bench: Bench) -> None:
    """Method, path, query and body pass; keys, cookies and what is about the client do not. It is counted, as one."""
    gateway, upstream = bench
    fields = {
        "content-type": "application/json",
        "openai-beta": "assistants=v2",
        "idempotency-key": "abc",
        "openai-organization": "org-of-the-client",
        "cookie": "a=b",
        "x-api-key": "other",
        "x-forwarded-for": "1.2.3.4",
        "x-stainless-os": "Linux",
    }
    body = b'{ "model": "gpt-5",  "a": 1.0 }'
    async with open_http(gateway) as client:
        answer = await client.post(f"/openai/v1/batches?limit=2&key={TOKEN}&after=a%2Fb", content=body, headers=fields)
    assert answer.status_code == 200
    assert answer.json() == {"id": "batch_1", "object": "batch"}
    assert answer.headers["x-request-id"] == "req_1"
    assert answer.headers["x-ratelimit-remaining"] == "999"
    ((request, received),) = upstream.requests
    assert (request.method, request.target, received) == (b"POST", b"/v1/batches?limit=2&after=a%2Fb", body)
    names = {name for name, _ in request.headers}
    assert names == {
        b"host",
        b"content-type",
        b"content-length",
        b"accept",
        b"openai-beta",
        b"idempotency-key",
        b"authorization",
        b"accept-encoding",
        b"user-agent",
    }
    assert upstream.header(b"authorization") == f"Bearer {OPENAI_KEY}".encode()
    assert await get_usage(gateway) == 1
    ((name, event),) = read_recorded(gateway.events_folder.parent)
    assert (name, event["model"], event["provider"]) == ("CompletionsFinished", "openai/pass-routes", "openai")
    assert (event["route"], event["usage_quality"]) == ("POST /openai/v1/batches", "estimated")
    assert "prompt_token_count" not in event


async def test_methods_and_other_providers(bench: Bench) -> None:
    """GET and DELETE pass, each to its provider with its key; a kept connection is used again."""
    gateway, upstream = bench
    async with open_http(gateway) as client:
        assert (await client.get("/openai/v1/files/file-1/content")).status_code == 200
        assert (await client.delete("/openai/v1/files/file-1")).status_code == 200
        assert upstream.connections == 1
        versions = {"anthropic-version": "2023-06-01"}
        assert (await client.get("/anthropic/v1/messages/batches?limit=1", headers=versions)).status_code == 200
        assert (upstream.header(b"x-api-key") or b"").startswith(b"sk-ant-")
        assert upstream.header(b"anthropic-version") == b"2023-06-01"
        assert (
            await client.get(f"/google/v1beta/files/a?key={TOKEN}&%6Bey=x", headers={"authorization": ""})
        ).is_success
        assert upstream.requests[-1][0].target == b"/v1beta/files/a"
        assert upstream.header(b"x-goog-api-key") == b"google-key"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/openai/v1/assistants"),
        ("GET", "/openai/v1/responses/a/b/c"),
        ("GET", "/openai/v1/audio/speech"),
        ("POST", "/openai/v1/files/%2e%2e/chat/completions"),
        ("POST", "/openai/v1/files/a%2F..%2Fb"),
        ("POST", "/openai/v1/chat/completion%73"),
        ("POST", "/openai/v1/chat/Completions"),
        ("POST", "/openai/v1/chat/completions;a"),
        ("POST", "/openai/v1/chat/completions/"),
        ("POST", "/anthropic/v1/messages/batches"),
        ("GET", "/fireworks/v1/files/a"),
    ],
)
async def test_anything_else_is_not_found(bench: Bench, method: str, path: str) -> None:
    """404 in the API's shape by default, and for other spellings of a route that is read; nothing goes upstream."""
    gateway, upstream = bench
    async with await trio.open_tcp_stream("127.0.0.1", gateway.port) as stream:
        answer = await RawClient(stream).ask(f"{method} {path} HTTP/1.1\r\n".encode() + AUTHORIZED + b"\r\n")
    assert answer.status == 404
    assert answer.json()["error"]["type"] in ("invalid_request_error", "not_found_error")
    assert not upstream.requests


async def test_a_route_that_is_read_stays_read(bench: Bench) -> None:
    """A pattern does not take a route away from its dialect."""
    gateway, upstream = bench
    async with open_http(gateway) as client:
        assert (await client.post("/openai/v1/chat/completions", json={"model": "gpt-4o"})).status_code == 400
        assert (await client.get("/openai/v1/chat/completions")).status_code == 405
        assert (await client.get("/openai/v1/models")).json()["object"] == "list"
    assert not upstream.requests


async def test_who_may_use_them(tmp_path: Path) -> None:
    """An actor needs a list that admits all models, or names pass routes; and a quota in requests."""
    async with open_bench(tmp_path) as (gateway, upstream):
        actors = tmp_path / "actors.toml"
        actors.write_text(actors.read_text() + RESTRICTED)
        for reload in gateway.reloads:
            await reload.run()
        async with httpx.AsyncClient(base_url=gateway.url) as client:
            url = "/openai/v1/batches"
            statuses = {}
            for name in ("narrow", "openai-only", "named", "tokens", "unknown"):
                answer = await client.get(url, headers={"authorization": f"Bearer cgw_{name}"})
                statuses[name] = answer.status_code
                if answer.status_code == 403:
                    assert "this route is not read" in answer.json()["error"]["message"]
            assert statuses == {"narrow": 403, "openai-only": 200, "named": 200, "tokens": 403, "unknown": 401}
    assert len(upstream.requests) == 2


async def test_the_quota_counts_requests(tmp_path: Path) -> None:
    """Limits hold as on other routes, in the API's shape."""
    upstream = Upstream()
    async with open_raw_server(upstream.serve) as port:
        url = f"http://127.0.0.1:{port}"
        async with open_gateway(tmp_path, url, limit=2, more=PASS) as gateway, open_http(gateway) as client:
            answers = [await client.get("/openai/v1/batches") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[2].json()["error"]["code"] == "rate_limit_exceeded"


@pytest.mark.parametrize("http2", [False, True], ids=["HTTP/1.1", "HTTP/2"])
@pytest.mark.parametrize("has_length", [False, True], ids=["chunked", "length"])
async def test_uploads_stream(bench: Bench, http2: bool, has_length: bool) -> None:
    """A body of several megabytes arrives byte for byte, with and without length, without being held."""
    gateway, upstream = bench
    piece = bytes(range(256)) * 256

    async def generate() -> AsyncIterator[bytes]:
        for _ in range(80):
            yield piece

    headers = {"authorization": f"Bearer {TOKEN}", "content-type": "application/octet-stream"}
    if has_length:
        headers["content-length"] = str(80 * len(piece))
    async with httpx.AsyncClient(base_url=gateway.url, http1=not http2, http2=http2, timeout=60) as client:
        for _ in range(2):
            answer = await client.post("/openai/v1/files", content=generate(), headers=headers)
            assert answer.status_code == 200
    assert [body for _, body in upstream.requests] == [piece * 80] * 2
    assert (upstream.header(b"content-length") is not None) is has_length
    assert await get_usage(gateway) == 2


async def test_multipart_by_the_real_sdk(bench: Bench) -> None:
    """The SDK's upload of a file, multipart and larger than what is held, arrives whole."""
    gateway, upstream = bench
    content = b"\x00\xff" * MIB
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/openai/v1", api_key=TOKEN, max_retries=0) as client:
        await client.files.create(file=("a.bin", content), purpose="user_data")
    ((request, body),) = upstream.requests
    assert request.target == b"/v1/files"
    assert (upstream.header(b"content-type") or b"").startswith(b"multipart/form-data; boundary=")
    assert content in body


@asynccontextmanager
async def begin_upload(gateway: Service, size: int) -> AsyncIterator[RawClient]:
    """Send the head of an upload of ``size`` bytes."""
    async with open_client(gateway.port) as client:
        await client.send(b"POST /openai/v1/files HTTP/1.1\r\n%bcontent-length: %d\r\n\r\n" % (AUTHORIZED, size))
        yield client


async def test_a_slow_upstream_slows_the_client(bench: Bench) -> None:
    """What the upstream does not take is not read from the client: bounded memory, whatever the size."""
    gateway, upstream = bench

    async def play(stream: trio.SocketStream, connection: h11.Connection) -> None:
        await trio.sleep_forever()

    upstream.play = play
    size, sent = 256 * MIB, 0
    async with begin_upload(gateway, size) as client:
        with trio.move_on_after(1):
            while sent < size:
                await client.send(bytes(MIB // 4))
                sent += MIB // 4
    # Buffers of the kernel on both ways, and little more.
    assert 0 < sent < 64 * MIB


async def test_a_client_that_leaves_stops_the_upload(bench: Bench) -> None:
    """The upstream's connection ends at once, and everything that was reserved is given back."""
    gateway, upstream = bench
    async with begin_upload(gateway, 8 * MIB) as client:
        await client.send(bytes(MIB))
        await wait_until(lambda: upstream.received_bytes >= MIB // 2)
    await wait_until(lambda: upstream.is_over)
    await wait_nothing_held(gateway, 5)
    assert await get_usage(gateway) == 0
    ((_, event),) = read_recorded(gateway.events_folder.parent)
    assert (event["resolved_status_code"], event["outcome"]) == (499, "client_gone")
    assert not upstream.requests


async def test_an_early_answer_ends_the_upload(bench: Bench) -> None:
    """An upstream may refuse before it has all: its answer reaches the client, and the rest is not sent."""
    gateway, upstream = bench

    async def play(stream: trio.SocketStream, connection: h11.Connection) -> None:
        await next_event(stream, connection)
        await next_event(stream, connection)
        await stream.send_all(b"HTTP/1.1 413 Too Large\r\ncontent-length: 9\r\n\r\ntoo large")
        await trio.sleep(5)

    upstream.play = play
    async with begin_upload(gateway, 8 * MIB) as client:
        await client.send(bytes(MIB))
        answer = await client.read_answer()
    assert (answer.status, answer.body) == (413, b"too large")
    assert answer.headers["connection"] == "close"
    await wait_until(lambda: upstream.is_over, seconds=8)


async def test_both_directions_stream_at_once(bench: Bench) -> None:
    """An answer that begins before the upload ends is passed on as it comes."""
    gateway, upstream = bench

    async def play(stream: trio.SocketStream, connection: h11.Connection) -> None:
        await next_event(stream, connection)
        await stream.send_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        while isinstance(event := await next_event(stream, connection), h11.Data):
            data = bytes(event.data)
            await stream.send_all(b"%x\r\n%b\r\n" % (len(data), data))
        await stream.send_all(b"0\r\n\r\n")

    upstream.play = play
    async with open_client(gateway.port) as client:
        await client.send(b"POST /openai/v1/files HTTP/1.1\r\n%btransfer-encoding: chunked\r\n\r\n" % AUTHORIZED)
        received = b""
        for text in (b"one", b"two", b"three"):
            await client.send(b"%x\r\n%b\r\n" % (len(text), text))
            while text not in received:
                received += await client.stream.receive_some(4096)
        await client.send(b"0\r\n\r\n")
        while b"\r\n0\r\n\r\n" not in received:
            received += await client.stream.receive_some(4096)
    assert received.startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize(
    ("settings", "status", "head", "body"),
    [
        ({"CODY_GATEWAY_MAX_UPLOAD_BYTES": "1MiB"}, 413, b"content-length: 2000000\r\n\r\n", b"x"),
        (
            {"CODY_GATEWAY_MAX_UPLOAD_BYTES": "100KiB"},
            413,
            b"transfer-encoding: chunked\r\n\r\n",
            b"1f400\r\n" + bytes(128_000),
        ),
        ({"CODY_GATEWAY_CLIENT_STALL_TIMEOUT": "200ms"}, 408, b"content-length: 2000000\r\n\r\n", b"x"),
        ({}, 400, b"transfer-encoding: chunked\r\n\r\n", b"xyz\r\n"),
    ],
    ids=["too large", "grows too large", "stalls", "malformed"],
)
async def test_uploads_have_bounds(
    tmp_path: Path, settings: dict[str, str], status: int, head: bytes, body: bytes
) -> None:
    """Size, pauses and framing of an upload are bounded, with the API's own shape of errors; nothing is charged."""
    async with open_bench(tmp_path, **settings) as (gateway, upstream):
        async with open_client(gateway.port) as client:
            answer = await client.ask(b"POST /openai/v1/files HTTP/1.1\r\n" + AUTHORIZED + head + body)
            assert answer.status == status
            assert answer.json()["error"]["type"] == "invalid_request_error"
        await wait_until(lambda: upstream.is_over)
        assert await get_usage(gateway) == 0
        ((_, event),) = read_recorded(tmp_path)
        assert (event["resolved_status_code"], event["outcome"]) == (status, "refused")
    assert not upstream.requests


async def test_an_upstream_that_takes_nothing_is_a_timeout(tmp_path: Path) -> None:
    """An upstream that stops reading in mid-upload is given up after the silence timeout."""
    async with open_bench(tmp_path, CODY_GATEWAY_UPSTREAM_SILENCE_TIMEOUT="300ms") as (gateway, upstream):

        async def play(stream: trio.SocketStream, connection: h11.Connection) -> None:
            await trio.sleep_forever()

        upstream.play = play
        async with begin_upload(gateway, 64 * MIB) as client, trio.open_nursery() as nursery:

            async def send() -> None:
                with suppress(trio.BrokenResourceError):
                    await client.send(bytes(64 * MIB))

            nursery.start_soon(send)
            answer = await client.read_answer()
            nursery.cancel_scope.cancel()
        assert answer.status == 504


@pytest.mark.parametrize("has_answered", [False, True])
async def test_an_upstream_that_breaks_in_mid_upload(bench: Bench, has_answered: bool) -> None:
    """Before an answer it is a 502; an answer that has begun is cut."""
    gateway, upstream = bench

    async def play(stream: trio.SocketStream, connection: h11.Connection) -> None:
        await next_event(stream, connection)
        await next_event(stream, connection)
        if has_answered:
            await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\npart")

    upstream.play = play
    async with begin_upload(gateway, MIB) as client:
        with suppress(trio.BrokenResourceError):
            await client.send(bytes(MIB // 2))
        if has_answered:
            with pytest.raises(AnswerCut):
                await client.read_answer()
        else:
            assert (await client.read_answer()).status == 502


async def test_expect_continue(bench: Bench) -> None:
    """A client that waits for 100 gets it once its body is wanted."""
    gateway, upstream = bench
    async with open_client(gateway.port) as client:
        head = (
            b"POST /openai/v1/files HTTP/1.1\r\n%bcontent-length: 100000\r\nexpect: 100-continue\r\n\r\n" % AUTHORIZED
        )
        await client.send(head)
        assert await client.stream.receive_some(65536) == b"HTTP/1.1 100 \r\n\r\n"
        answer = await client.ask(bytes(100_000))
    assert answer.status == 200
    assert upstream.requests[0][1] == bytes(100_000)
