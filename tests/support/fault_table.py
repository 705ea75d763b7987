"""What clients see of each fault of an upstream, on every route: played, observed, and written down.

Routes come from the running gateway, so a new dialect joins by the registry of providers.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import h11
import trio
from attrs import field, frozen

from cgw.providers.dialect import Dialect
from cgw.providers.registry import PROVIDERS
from cgw.service.lifecycle import Service
from tests.support.embeddings import ADA, LIMITS, SOURCEGRAPH
from tests.support.embeddings import PATH as EMBEDDINGS
from tests.support.fault_bench import Upstream
from tests.support.gateway import TOKEN, open_gateway
from tests.support.raw_client import Answer, AnswerCut, ask
from tests.support.raw_server import open_raw_server, read_request
from tests.support.streams import encode_chunked

EVENTS = [b'data: {"n":1}\n\n', b'data: {"n":2}\n\n']
JSON = b'{"n":[1,2]}'

SHORT_HEAD_TIMEOUT = {"CODY_GATEWAY_UPSTREAM_HEAD_TIMEOUT": "20ms"}
SHORT_SILENCE_TIMEOUT = {"CODY_GATEWAY_UPSTREAM_SILENCE_TIMEOUT": "20ms"}


def build_whole(status: int, body: bytes, fields: str = "content-type: application/json\r\n") -> bytes:
    """Return a complete response."""
    return f"HTTP/1.1 {status} x\r\n{fields}content-length: {len(body)}\r\n\r\n".encode() + body


def build_stream(*events: bytes, kind: str = "text/event-stream") -> bytes:
    """Return a complete streamed response."""
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\n\r\n"
    return head.encode() + encode_chunked(list(events))


def build_error(status: int, kind: str, fields: str = "") -> bytes:
    """Return an error in the shape that most APIs have."""
    body = json.dumps({"error": {"type": kind, "code": kind, "message": "the upstream's own words"}}).encode()
    return build_whole(status, body, f"content-type: application/json\r\n{fields}")


@frozen
class Fault:
    """One fault: what the upstream sends, for a request that is streamed or not, and what it does then."""

    name: str
    whole: bytes = b""
    stream: bytes | None = None
    is_reset: bool = False
    is_held: bool = False
    is_plain: bool = False

    def build(self, *, is_stream: bool) -> bytes:
        """Return the bytes for one kind of request."""
        return self.whole if self.stream is None or not is_stream else self.stream


_OPEN = build_stream(*EVENTS).removesuffix(b"0\r\n\r\n")
_PART = build_whole(200, JSON)[:-4]

REFUSED = Fault("connection refused")
TLS_FAILURE = Fault("TLS failure (no TLS at that port)", is_plain=True)
FAULTS = (
    Fault("reset before the response's head", is_reset=True),
    Fault("reset after the head", _PART, _OPEN, is_reset=True),
    Fault("429 with `retry-after: 17`", build_error(429, "rate_limit_error", "retry-after: 17\r\n")),
    Fault("429 without", build_error(429, "rate_limit_error")),
    Fault("500", build_error(500, "api_error")),
    Fault("503", build_error(503, "overloaded_error")),
    Fault("529", build_error(529, "overloaded_error")),
    Fault("cut in mid-body", _PART, _OPEN + b"ff\r\ndata: {"),
    Fault("ends for HTTP, without the API's own end", build_whole(200, JSON), build_stream(*EVENTS)),
    Fault("malformed JSON", build_whole(200, b'{"n":[1,'), build_stream(b'data: {"n":\n\n', EVENTS[1])),
    Fault("malformed SSE", build_whole(200, JSON, ""), build_stream(b"data {no colon\n\n\n: \x00\xff\n", EVENTS[1])),
    Fault(
        "wrong content type (HTML)",
        build_whole(200, b"<html>", "content-type: text/html\r\n"),
        build_stream(b"<html>", kind="text/html"),
    ),
    Fault("content filter", build_error(400, "content_filter")),
    Fault("request too large, says the upstream", build_error(413, "request_too_large")),
    Fault("oversized head (more than 64 KiB)", b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 20_000),
    Fault("no HTTP", b"SSH-2.0-OpenSSH_9.6\r\n"),
    Fault("unknown content coding (br)", build_whole(200, b"\x0b\x02\x80", "content-encoding: br\r\n")),
)
NO_HEAD = Fault("no head in time", is_held=True)
SILENCE = Fault("silence in mid-body", _PART, _OPEN, is_held=True)


@frozen
class Seen:
    """What one route's clients see of one fault."""

    fault: str
    whole: str
    stream: str
    charged: str


UNIT_SECONDS = 86_400 / 1000
"""The time in which a quota of 1000 a day gets one request back."""


@frozen
class Observer:
    """A running gateway, and the upstream that plays faults to it."""

    gateway: Service
    upstream: Upstream
    opened_at: float = field(factory=time.time)

    async def observe(self, fault: Fault) -> dict[str, Seen]:
        """Play ``fault`` on each route, not streamed and streamed."""
        seen = {}
        debt = await self._read_debt()
        for dialect in self.gateway.dialects:
            cells, charges = [], []
            for is_stream in (False, True):
                cells.append(await self._ask(fault, dialect, is_stream=is_stream))
                before, debt = debt, await self._read_debt()
                charges.append(debt - before > UNIT_SECONDS / 2)
            whole, streamed = cells
            if dialect.path == EMBEDDINGS:
                streamed = "–"
            kinds = {
                (True, True): "yes",
                (False, False): "no",
                (True, False): "not streamed",
                (False, True): "streamed",
            }
            seen[dialect.path] = Seen(fault.name, whole, streamed, kinds[charges[0], charges[1]])
        return seen

    async def _ask(self, fault: Fault, dialect: Dialect, *, is_stream: bool) -> str:
        sent = fault.build(is_stream=is_stream)
        self.upstream.answer, self.upstream.is_reset = sent, fault.is_reset
        self.upstream.handler = hold(sent) if fault.is_held else refuse_tls if fault.is_plain else None
        try:
            answer = await ask(self.gateway.port, build_request(dialect, is_stream=is_stream))
        except AnswerCut as cut:
            # A reset may overtake data, so that how much of the body came varies.
            return "closed without an answer" if cut.status is None else f"{cut.status}, then cut"
        return describe(answer, sent, "openai" if dialect.path == EMBEDDINGS else dialect.provider)

    async def _read_debt(self) -> float:
        """Return when the quotas will be full again, all added up: unlike the usage, it changes by charges alone."""
        head = f"GET /v1/limits HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\nconnection: close\r\n\r\n"
        limits = (await ask(self.gateway.port, head.encode())).json()
        ends = [datetime.fromisoformat(entry["expiry"]).timestamp() for entry in limits.values() if "expiry" in entry]
        # Quotas that are full count from a fixed time: however long an exchange takes, it is no charge.
        return sum(max(end, self.opened_at) for end in ends) + self.opened_at * (len(limits) - len(ends))


async def refuse_tls(stream: trio.SocketStream) -> None:
    """Answer a TLS handshake as a server without TLS does."""
    await stream.receive_some(65536)
    await stream.send_all(build_whole(400, b"plain HTTP"))


def hold(sent: bytes) -> Any:
    """Return a handler that sends bytes and then nothing, until the peer leaves."""

    async def handle(stream: trio.SocketStream) -> None:
        await read_request(stream)
        await stream.send_all(sent)
        while await stream.receive_some(65536):
            pass

    return handle


def build_request(dialect: Dialect, *, is_stream: bool) -> bytes:
    """Return a request that any dialect accepts: it has the fields of all of them."""
    model = next(name for name in dialect.models if "*" not in name)
    text = "Good day"
    body = {
        "model": model if dialect.path == EMBEDDINGS else model.partition("/")[2],
        "stream": is_stream,
        "messages": [{"role": "user", "content": text}],
        "prompt": text,
        "contents": [{"role": "user", "parts": [{"text": text}]}],
        "input": [text],
        "content": {"parts": [{"text": text}]},
        "requests": [{"content": {"parts": [{"text": text}]}}],
        "max_tokens": 50,
        "max_tokens_to_sample": 50,
    }
    data = json.dumps(body).encode()
    fields = {"authorization": f"Bearer {TOKEN}", "x-sourcegraph-feature": "chat_completions"}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    path = dialect.path.replace("{model}", model.partition("/")[2]) + ("?alt=sse" if is_stream else "")
    return f"POST {path} HTTP/1.1\r\nhost: x\r\n{lines}content-length: {len(data)}\r\n\r\n".encode() + data


def describe(answer: Answer, sent: bytes, provider: str) -> str:
    """Return an answer in words: its status, ``retry-after``, and whose body it has."""
    retry_after = answer.headers.get("retry-after")
    wait = "" if retry_after is None else f", `retry-after: {retry_after}`"
    if answer.body == read_body(sent):
        return f"{answer.status}{wait}, the upstream's body"
    error = answer.json()["error"]
    if isinstance(error, str):
        return f"{answer.status}{wait}: {error}".replace(f"provider {provider}", "provider …")
    if "status" in error:  # Google's
        return f"{answer.status}{wait}, `{error['status']}`: {error['message']}".replace(
            f"provider {provider}", "provider …"
        )
    kind = f"`{error['type']}`" + (f", `{error['code']}`" if "code" in error else "")
    return f"{answer.status}{wait}, {kind}: {error['message']}".replace(f"provider {provider}", "provider …")


def read_body(sent: bytes) -> bytes | None:
    """Return the body of a response, without its framing; ``None`` if it is no response."""
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="POST", target="/", headers=[("host", "x")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(sent)
    body = b""
    try:
        while (event := connection.next_event()) is not h11.NEED_DATA:
            if isinstance(event, h11.EndOfMessage):
                return body
            body += bytes(event.data) if isinstance(event, h11.Data) else b""
    except h11.RemoteProtocolError:
        pass
    return None


@asynccontextmanager
async def open_observer(folder: Path, more: Mapping[str, str] | None = None, url: str = "") -> AsyncIterator[Observer]:
    """Run a gateway of which all providers are the upstream that plays faults, or ``url``, if it is set."""
    upstream = Upstream()
    async with open_raw_server(upstream.serve) as port:
        base = (url or "http://127.0.0.1:{port}").format(port=port)
        environ = {**SOURCEGRAPH, "CODY_GATEWAY_ALLOWED_EMBEDDINGS_MODELS": ADA}
        for provider in PROVIDERS:
            environ |= {provider.api_url_variable: base, provider.access_token_variable: "key-of-the-tests"}
        async with open_gateway(
            folder, base, chat_lines=LIMITS.replace("100000", "1000"), more={**environ, **(more or {})}
        ) as gateway:
            yield Observer(gateway, upstream)


async def observe_all() -> dict[str, list[Seen]]:
    """Return what is seen of every fault, by route."""
    async with open_raw_server(lambda stream: trio.lowlevel.checkpoint()) as port:  # noqa: ASYNC105
        closed = f"http://127.0.0.1:{port}"
    table: dict[str, list[Seen]] = {}
    plan: list[tuple[dict[str, str], str, tuple[Fault, ...]]] = [
        ({}, closed, (REFUSED,)),
        ({}, "https://127.0.0.1:{port}", (TLS_FAILURE,)),
        ({}, "", FAULTS),
        # One short timeout at a time, so that the other one never ends an exchange on a machine that is busy.
        (SHORT_HEAD_TIMEOUT, "", (NO_HEAD,)),
        (SHORT_SILENCE_TIMEOUT, "", (SILENCE,)),
    ]
    for more, url, faults in plan:
        with tempfile.TemporaryDirectory() as folder:
            async with open_observer(Path(folder), more, url) as observer:
                for fault in faults:
                    for path, seen in (await observer.observe(fault)).items():
                        table.setdefault(path, []).append(seen)
    return table
