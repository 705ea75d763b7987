"""A gateway with embeddings, in front of an upstream that plays OpenAI's, KServe's and Fireworks' part."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio
from attrs import define, field

from cgw.events.reading import read_events
from cgw.service.lifecycle import Service
from tests.support.gateway import TOKEN, open_gateway
from tests.support.raw_client import Answer, ask
from tests.support.raw_server import open_raw_server, read_request

PATH = "/v1/embeddings"
ADA = "openai/text-embedding-ada-002"
MPNET = "sourcegraph/st-multi-qa-mpnet-base-dot-v1"
METADATA = "sourcegraph/st-multi-qa-mpnet-metadata"
SOURCEGRAPH_TOKEN = "smega-canary-of-the-tests"
FIREWORKS_KEY = "fw-canary-of-the-tests"
LIMITS = """
[actor.limits.embeddings]
limit = 100000
interval = "24h"
concurrent_requests = 1000
"""

FIREWORKS = {"CODY_GATEWAY_FIREWORKS_ACCESS_TOKEN": FIREWORKS_KEY}
SOURCEGRAPH = {"CODY_GATEWAY_SOURCEGRAPH_EMBEDDINGS_API_TOKEN": SOURCEGRAPH_TOKEN}


def encode_response(status: int, body: bytes, fields: str = "") -> bytes:
    """Return a whole response of JSON."""
    head = f"HTTP/1.1 {status} x\r\ncontent-type: application/json\r\n{fields}content-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def build_row(seed: int, dimensions: int) -> str:
    """Return a vector with digits that a float would not keep."""
    return "[" + ", ".join(f"0.{seed}{index:04d}0000000000000001000" for index in range(dimensions)) + "]"


def build_openai_answer(body: Mapping[str, Any]) -> bytes:
    """Answer as OpenAI does, out of order."""
    rows = (f'{{"object":"embedding","index":{i},"embedding":{build_row(i, 1536)}}}' for i in range(len(body["input"])))
    data = ",".join(reversed(list(rows)))
    usage = '"usage":{"prompt_tokens":9,"total_tokens":9}'
    return f'{{"object":"list","data":[{data}],"model":"text-embedding-ada-002",{usage}}}'.encode()


def build_kserve_answer(body: Mapping[str, Any]) -> bytes:
    """Answer as KServe does: one flat list."""
    texts = body["inputs"][0]["data"]
    flat = ",".join(build_row(index, 768)[1:-1] for index in range(len(texts)))
    shape = f'"shape":[{len(texts)},768]'
    output = f'{{"name":"EMBEDDINGS","datatype":"FP32",{shape},"data":[{flat}]}}'
    return f'{{"model_name":"m","outputs":[{output}]}}'.encode()


def build_chat_answer(body: Mapping[str, Any]) -> bytes:
    """Answer as Fireworks does, with a description that names the code."""
    code = body["messages"][0]["content"].split("```")[1].strip()
    message = {"role": "assistant", "content": f"about {code}"}
    return json.dumps({"choices": [{"message": message}], "usage": {"total_tokens": 7}}).encode()


@define
class Asked:
    """One request that came to the upstream."""

    target: str
    headers: Mapping[str, str]
    body: dict[str, Any]


@define
class EmbeddingsUpstream:
    """Answers each API by its path; ``answers`` are played first, in order, whatever is asked."""

    asked: list[Asked] = field(factory=list)
    answers: list[bytes] = field(factory=list)
    before: Callable[[Asked], Awaitable[None]] | None = None

    async def serve(self, stream: trio.SocketStream) -> None:
        while (found := await read_request(stream)) is not None:
            request, body = found
            headers = {name.decode(): value.decode() for name, value in request.headers}
            asked = Asked(bytes(request.target).decode(), headers, json.loads(body))
            self.asked.append(asked)
            if self.before is not None:
                await self.before(asked)
            if self.answers:
                answer = self.answers.pop(0)
                if not answer:
                    return
                await stream.send_all(answer)
                if b"connection: close" in answer:
                    return
                continue
            build = {"/v1/embeddings": build_openai_answer, "/infer": build_kserve_answer}.get(asked.target)
            await stream.send_all(encode_response(200, (build or build_chat_answer)(asked.body)))


@define
class EmbeddingsBench:
    """A gateway with embeddings and its upstream."""

    gateway: Service
    upstream: EmbeddingsUpstream

    async def embed(self, model: str, texts: Any, fields: str = "", **more: Any) -> Answer:
        """Ask for the embeddings of ``texts``."""
        return await ask(self.gateway.port, self.build(model, texts, fields, **more))

    def build(self, model: str, texts: Any, fields: str = "", **more: Any) -> bytes:
        """Return the bytes of a request."""
        body = json.dumps({"model": model, "input": texts, **more}).encode()
        head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\n{fields}"
        return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body

    async def get(self, path: str) -> Answer:
        """Return what ``path`` answers to acme."""
        head = f"GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\nconnection: close\r\n\r\n"
        return await ask(self.gateway.port, head.encode())

    async def read_usage(self) -> int:
        """Return what is used of acme's quota."""
        usage: int = (await self.get("/v1/limits")).json()["embeddings"]["usage"]
        return usage

    def read_events(self) -> list[tuple[str, dict[str, Any]]]:
        """Return name and metadata of all events."""
        return [(event.name, event.metadata) for event in read_events(self.gateway.events_folder)]


@asynccontextmanager
async def open_embeddings(
    folder: Path, more: Mapping[str, str] | None = None, limits: str = LIMITS
) -> AsyncIterator[EmbeddingsBench]:
    """Run a gateway with embeddings by OpenAI and Sourcegraph."""
    upstream = EmbeddingsUpstream()
    async with open_raw_server(upstream.serve) as port:
        url = f"http://127.0.0.1:{port}"
        environ = {
            "CODY_GATEWAY_SOURCEGRAPH_EMBEDDINGS_API_URL": f"{url}/infer",
            "CODY_GATEWAY_FIREWORKS_API_URL": f"{url}/inference",
            **SOURCEGRAPH,
            **(more or {}),
        }
        async with open_gateway(folder, url, chat_lines=limits, more=environ) as gateway:
            yield EmbeddingsBench(gateway, upstream)
