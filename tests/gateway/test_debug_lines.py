"""Debug lines of an exchange: what an operator looks for, each with its request's id, and nothing that is secret."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from cgw.service.lifecycle import Service
from cgw.telemetry.logs import open_logging
from tests.support.gateway import TOKEN, open_gateway
from tests.support.raw_client import Answer, ask, open_client
from tests.support.raw_server import open_raw_server, read_request
from tests.support.requests import build_request
from tests.support.waiting import wait_until

PATH = "/v1/completions/openai"
JSON = b'{"choices":[{"message":{"content":"Hello"}}],"usage":{"prompt_tokens":9,"completion_tokens":3}}'
RESPONSE = b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%s\r\n" + JSON
OK = RESPONSE % (b"200 OK", len(JSON), b"")
LAST = RESPONSE % (b"200 OK", len(JSON), b"connection: close\r\n")
LIMITED = RESPONSE % (b"429 no", len(JSON), b"")


class Upstream:
    """Plays ``answers`` in order; an empty one ends the connection instead, where the request was read."""

    def __init__(self) -> None:
        self.answers: list[bytes] = []

    async def serve(self, stream: trio.SocketStream) -> None:
        """Serve one connection."""
        while await read_request(stream) is not None:
            answer = self.answers.pop(0)
            if not answer:
                return
            await stream.send_all(answer)


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """The log at debug level, as JSON."""
    stream = io.StringIO()
    with open_logging(stream, level="DEBUG"):
        yield stream


@pytest.fixture
def upstream() -> Upstream:
    return Upstream()


@pytest.fixture
async def gateway(log: io.StringIO, tmp_path: Path, upstream: Upstream) -> AsyncIterator[Service]:
    """A gateway that logs everything, with a fallback for OpenAI that is never there."""
    async with open_raw_server(upstream.serve) as port:
        fallback = {"CODY_GATEWAY_OPENAI_FALLBACK_API_URL": "http://127.0.0.1:9"}
        async with open_gateway(tmp_path, f"http://127.0.0.1:{port}", more=fallback) as service:
            yield service


async def read_lines(log: io.StringIO, answer: Answer) -> list[dict[str, Any]]:
    """Return the lines of the request that ``answer`` belongs to."""
    own = f'"request_id":"{answer.headers["x-cgw-request-id"]}"'
    await wait_until(lambda: f'{own},"httpRequest"' in log.getvalue())
    return [json.loads(line) for line in log.getvalue().splitlines() if own in line]


async def find(log: io.StringIO, answer: Answer) -> list[str]:
    """Return the texts of the debug lines of a request."""
    return [line["message"] for line in await read_lines(log, answer) if line["severity"] == "DEBUG"]


async def test_an_exchange_tells_its_way(gateway: Service, upstream: Upstream, log: io.StringIO) -> None:
    """Who asks, where it goes, which limits let it through, which connection carries it, what it is charged."""
    upstream.answers = [OK, LAST]
    async with open_client(gateway.port) as client:
        first = await client.ask(build_request(PATH, stream=False))
        texts = await find(log, first)
        assert texts[0] == "the token is actor acme's of source static, known here"
        assert texts[1].startswith("routed: feature=chat_completions model=openai/gpt-4o upstream=http://127.0.0.1:")
        assert texts[2].startswith("admitted: left are quota 999 of 1000 requests, ")
        assert texts[2].endswith("counted in Redis")
        assert texts[3].startswith("http://127.0.0.1:")
        assert ": connected in " in texts[3]
        assert texts[4] == "settled: charged 1 request, 12 tokens to acme"
        second = await client.ask(build_request(PATH, stream=False))
        texts = await find(log, second)
        assert ": reusing a connection, idle for " in texts[3]
        assert texts[-2].endswith(
            "closing a connection: the upstream does not keep it open, or has sent more than one response"
        )
    assert TOKEN not in log.getvalue()
    assert "Good day" not in log.getvalue()


async def test_a_retry_and_a_refund_are_told(gateway: Service, upstream: Upstream, log: io.StringIO) -> None:
    """A kept connection that had ended is named as the reason; a 429 of the upstream gives the request back."""
    upstream.answers = [OK, b"", LIMITED]
    async with open_client(gateway.port) as client:
        await client.ask(build_request(PATH, stream=False))
        answer = await client.ask(build_request(PATH, stream=False))
        assert answer.status == 503
        texts = await find(log, answer)
    assert any("retrying on a new connection: the kept one had ended" in text for text in texts)
    assert any(text == "settled: refunded to acme" for text in texts)
    (line,) = [line for line in await read_lines(log, answer) if "httpRequest" in line]
    assert " status=503 outcome=refused upstream_status=429 " in line["message"]


async def test_a_fallback_is_told(gateway: Service, upstream: Upstream, log: io.StringIO) -> None:
    """The answer that made cgw ask the second upstream is in the line."""
    upstream.answers = [RESPONSE % (b"500 no", len(JSON), b"")]
    answer = await ask(gateway.port, build_request(PATH, stream=False))
    assert answer.status == 502
    assert any(
        text.startswith("asking the fallback of http://") and text.endswith(": it answered 500")
        for text in await find(log, answer)
    )


async def test_control_routes_leave_debug_lines(gateway: Service, log: io.StringIO) -> None:
    """What they answered well is for debugging; a refusal, and a failing health check, are not."""
    ok = await ask(gateway.port, b"GET /-/healthz HTTP/1.1\r\nhost: x\r\n\r\n")
    assert [line["severity"] for line in await read_lines(log, ok)] == ["DEBUG"]
    missing = await ask(gateway.port, b"GET /nowhere HTTP/1.1\r\nhost: x\r\n\r\n")
    assert [line["severity"] for line in await read_lines(log, missing)] == ["INFO"]
    head = f"GET /v1/limits HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\n\r\n".encode()
    limits = await read_lines(log, await ask(gateway.port, head))
    assert [line["severity"] for line in limits] == ["DEBUG", "DEBUG"]
    assert limits[0]["message"] == "the token is actor acme's of source static, known here"
    wrong = await ask(gateway.port, head.replace(b"GET", b"DELETE"))
    assert [line["severity"] for line in await read_lines(log, wrong)] == ["INFO"]
