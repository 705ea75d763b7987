"""Errors below the prefixes of SDK routes: each has the shape, type and code of its API, whatever was wrong."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
from attrs import frozen

from cgw.service.lifecycle import Service
from cgw.testing.scripted_upstream import ScriptedUpstream
from tests.gateway.test_sdks import ask_anthropic, ask_openai, open_anthropic, open_openai
from tests.support.errors import read_error
from tests.support.gateway import TOKEN, open_gateway
from tests.support.raw_client import Answer, ask
from tests.support.waiting import wait_until

PREFIXES = {"/openai": "/openai/v1/chat/completions", "/anthropic": "/anthropic/v1/messages"}
"""The route below each prefix."""

ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "request_too_large",
    414: "request_too_large",
    431: "request_too_large",
}
OPENAI_CODES = {
    400: "invalid_request",
    401: "invalid_api_key",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "request_too_large",
    414: "uri_too_long",
    431: "request_headers_too_large",
}


def check_shape(prefix: str, status: int, content_type: str, body: Any) -> str:
    """Check that ``body`` is an error of the API below ``prefix``; return its message."""
    assert content_type == "application/json"
    error = body["error"]
    if prefix == "/openai":
        code = OPENAI_CODES[status]
        assert error == {"message": error["message"], "type": "invalid_request_error", "param": None, "code": code}
    else:
        assert body["type"] == "error"
        assert error == {"message": error["message"], "type": ANTHROPIC_TYPES[status]}
    assert error["message"]
    return str(error["message"])


@frozen
class Case:
    """A request that is wrong; in it ``{prefix}`` and ``{route}`` are replaced."""

    status: int
    request: bytes

    def build(self, prefix: str) -> bytes:
        """Return the request below ``prefix``."""
        return self.request.replace(b"{prefix}", prefix.encode()).replace(b"{route}", PREFIXES[prefix].encode())


AUTHORIZED = b"host: x\r\nauthorization: Bearer " + TOKEN.encode() + b"\r\n"
CASES = {
    "unknown route": Case(404, b"POST {prefix}/v1/batches HTTP/1.1\r\n" + AUTHORIZED + b"\r\n"),
    "unknown route to read": Case(404, b"GET {prefix}/v1/files HTTP/1.1\r\n" + AUTHORIZED + b"\r\n"),
    "prefix alone": Case(404, b"GET {prefix} HTTP/1.1\r\nhost: x\r\n\r\n"),
    "absolute target": Case(404, b"GET http://x{prefix}/v1/files?a=b HTTP/1.1\r\nhost: x\r\n\r\n"),
    "wrong method": Case(405, b"GET {route} HTTP/1.1\r\n" + AUTHORIZED + b"\r\n"),
    "large body": Case(413, b"POST {route} HTTP/1.1\r\n" + AUTHORIZED + b"content-length: 70000\r\n\r\n"),
    "large body to an unknown route": Case(
        413, b"POST {prefix}/v1/files HTTP/1.1\r\n" + AUTHORIZED + b"content-length: 60000\r\n\r\n"
    ),
    "no JSON": Case(400, b"POST {route} HTTP/1.1\r\n" + AUTHORIZED + b"content-length: 2\r\n\r\n{]"),
    "no key": Case(401, b"POST {route} HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}"),
    "long target": Case(414, b"POST {route}/" + b"a" * 9000 + b" HTTP/1.1\r\nhost: x\r\n\r\n"),
    "endless target": Case(414, b"POST {route}/" + b"a" * 70_000),
    "large head": Case(431, b"POST {route} HTTP/1.1\r\nhost: x\r\na: " + b"b" * 70_000 + b"\r\n\r\n"),
    "many fields": Case(431, b"POST {route} HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 101 + b"\r\n"),
    "no host": Case(400, b"POST {route} HTTP/1.1\r\n\r\n"),
    "bare LF": Case(400, b"POST {route} HTTP/1.1\nhost: x\n\n"),
    "two framings": Case(
        400,
        b"POST {route} HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    "unknown protocol": Case(400, b"POST {route}?beta=true HTTP/3.0\r\nhost: x\r\n\r\n"),
    "wrong chunk": Case(400, b"POST {route} HTTP/1.1\r\n" + AUTHORIZED + b"transfer-encoding: chunked\r\n\r\nxyz\r\n"),
    "slow head": Case(408, b"POST {route} HTTP/1.1\r\nhost: x\r\n"),
}
LIMITS = {"CODY_GATEWAY_MAX_BODY_BYTES": "50000", "CODY_GATEWAY_HEADER_TIMEOUT": "300ms"}


@asynccontextmanager
async def open_strict(folder: Path, upstream: ScriptedUpstream, **more: str) -> AsyncIterator[Service]:
    """Run a gateway with small limits."""
    async with open_gateway(folder, upstream.url, more={**LIMITS, **more}) as gateway:
        yield gateway


@pytest.mark.parametrize("prefix", PREFIXES)
async def test_every_error_below_an_sdk_prefix_has_its_shape(
    tmp_path: Path, upstream: ScriptedUpstream, prefix: str
) -> None:
    """404, 405, 413, 431 and malformed requests, too, have shape, type and code of the API that the path belongs to."""
    async with open_strict(tmp_path, upstream) as gateway:
        for name, case in CASES.items():
            answer: Answer = await ask(gateway.port, case.build(prefix))
            assert (name, answer.status) == (name, case.status)
            check_shape(prefix, answer.status, answer.headers["content-type"], read_error(answer))
    assert upstream.request_count == 0


@pytest.mark.parametrize("prefix", PREFIXES)
async def test_the_shape_does_not_depend_on_a_key(tmp_path: Path, upstream: ScriptedUpstream, prefix: str) -> None:
    """A provider without a key has no routes, but its SDKs still read what is wrong."""
    async with open_strict(
        tmp_path, upstream, CODY_GATEWAY_OPENAI_ACCESS_TOKEN="", CODY_GATEWAY_ANTHROPIC_ACCESS_TOKEN=""
    ) as gateway:
        answer = await ask(gateway.port, b"POST %b HTTP/1.1\r\n%b\r\n" % (PREFIXES[prefix].encode(), AUTHORIZED))
        assert answer.status == 404
        check_shape(prefix, 404, answer.headers["content-type"], read_error(answer))


@pytest.mark.parametrize("prefix", PREFIXES)
async def test_errors_over_http2_have_the_shape(tmp_path: Path, upstream: ScriptedUpstream, prefix: str) -> None:
    """The same holds for streams of HTTP/2, also for heads that are refused before anything looks at them."""
    route = PREFIXES[prefix]
    async with (
        open_strict(tmp_path, upstream) as gateway,
        httpx.AsyncClient(base_url=gateway.url, http1=False, http2=True) as client,
    ):
        requests: list[tuple[int, str, str, Mapping[str, str]]] = [
            (404, "GET", f"{prefix}/v1/files", {}),
            (405, "PUT", route, {}),
            (401, "POST", route, {}),
            (414, "POST", f"{route}/{'a' * 9000}", {}),
            (431, "POST", route, {f"a{number}": "b" for number in range(101)}),
        ]
        for status, method, path, headers in requests:
            answer = await client.request(method, path, headers=headers)
            assert (answer.http_version, answer.status_code) == ("HTTP/2", status)
            check_shape(prefix, status, answer.headers["content-type"], read_error(answer))


async def test_the_references_routes_keep_their_shape(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """Elsewhere an error is an object with one text; an unknown token is named as such."""
    async with open_strict(tmp_path, upstream) as gateway:
        for path in ("/v1/completions/openai", "/v1/nowhere", "/openaix/v1", "/"):
            answer = await ask(gateway.port, b"POST %b HTTP/1.1\r\nhost: x\r\n\r\n" % path.encode())
            body = read_error(answer)
            assert body.keys() == {"error"}
            assert isinstance(body["error"], str)
        for path in ("/v1/completions/openai", "/v1/completions/anthropic-messages", "/v1/limits"):
            method = b"GET" if path == "/v1/limits" else b"POST"
            answer = await ask(
                gateway.port, b"%b %b HTTP/1.1\r\nhost: x\r\nauthorization: Bearer y\r\n\r\n" % (method, path.encode())
            )
            assert (answer.status, answer.headers["x-should-retry"]) == (401, "false")
            assert read_error(answer) == {"error": "invalid or unknown access token"}


async def test_sdks_give_up_at_once_on_a_wrong_key(gateway: Service, caplog: pytest.LogCaptureFixture) -> None:
    """A wrong key is each SDK's AuthenticationError, in its API's words, after a single attempt."""
    caplog.set_level("INFO", "cgw.exchange")
    async with open_openai(gateway, "wrong", retries=3) as openai_client:
        with pytest.raises(openai.AuthenticationError, match="Incorrect API key provided") as openai_refused:
            await ask_openai(openai_client)
    assert openai_refused.value.code == "invalid_api_key"
    async with open_anthropic(gateway, "wrong", retries=3) as client:
        with pytest.raises(anthropic.AuthenticationError, match="invalid x-api-key") as refused:
            await ask_anthropic(client)
    assert refused.value.type == "authentication_error"
    for error in (openai_refused.value, refused.value):
        assert error.response.headers["x-should-retry"] == "false"
    await wait_until(lambda: len([record for record in caplog.records if record.name == "cgw.exchange"]) == 2)


async def test_sdks_say_which_route_there_is_not(gateway: Service) -> None:
    """A route that cgw does not serve is each SDK's NotFoundError with the path, not only a bare status."""
    async with open_openai(gateway) as openai_client:
        with pytest.raises(openai.NotFoundError, match="/openai/v1/batches") as missing:
            await openai_client.batches.list()
        assert (missing.value.type, missing.value.code) == ("invalid_request_error", "not_found")
    async with open_anthropic(gateway) as client:
        with pytest.raises(anthropic.NotFoundError, match="/anthropic/v1/messages/batches"):
            await client.messages.batches.list()
