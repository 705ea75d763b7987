"""Several gateways that share one Redis, many actors, and an upstream that holds some responses back."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import trio
from attrs import define, field, frozen

from cgw.actors.tokens import hash_token
from tests.support.gateway import ANTHROPIC_KEY
from tests.support.process import GatewayProcess, open_gateway_process
from tests.support.raw_client import open_client
from tests.support.raw_server import open_raw_server

PATH = "/v1/completions/anthropic-messages"
OPEN_MODEL = "claude-open"
GATED_MODEL = "claude-gated"

_ANSWER = json.dumps(
    {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "content": [{"type": "text", "text": "Good day."}],
        "usage": {"input_tokens": 2, "output_tokens": 2},
    }
).encode()
_RESPONSE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
    len(_ANSWER),
    _ANSWER,
)
_ENTRY = """
[[actor]]
id = "{id}"
token_sha256 = ["{hash}"]
[actor.limits.chat_completions]
limit = {limit}
interval = "24h"
concurrent_requests = 1000
max_in_flight = {max_in_flight}
"""


@frozen
class Caller:
    """An actor and its limits. The upstream answers requests for :data:`GATED_MODEL` only once its gate is open."""

    id: str
    limit: int
    max_in_flight: int
    model: str = OPEN_MODEL

    @property
    def token(self) -> str:
        """Its token."""
        return f"cgw_token-of-{self.id}"

    @property
    def allowed(self) -> int:
        """The number of many concurrent requests that must be admitted."""
        return self.limit if self.model == OPEN_MODEL else min(self.limit, self.max_in_flight)

    @property
    def hash_tag(self) -> str:
        """The hash tag of its keys, which decides on their slot in a cluster."""
        return f"static:{self.id}"

    def build_request(self) -> bytes:
        """Return the bytes of a request that is not streamed."""
        message = {"role": "user", "content": "Good day"}
        body = json.dumps({"model": self.model, "max_tokens": 50, "messages": [message]}).encode()
        head = (
            f"POST {PATH} HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {self.token}\r\n"
            f"x-sourcegraph-feature: chat_completions\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


@define(eq=False)
class GatedUpstream:
    """An upstream that answers requests for :data:`OPEN_MODEL` at once, all others once ``gate`` is set."""

    url: str = ""
    gate: trio.Event = field(factory=trio.Event)
    waiting: int = 0
    answered: int = 0

    async def serve(self, stream: trio.SocketStream) -> None:
        """Serve one connection."""
        data = b""
        while True:
            while b"\r\n\r\n" not in data:
                more = await stream.receive_some(65536)
                if not more:
                    return
                data += more
            head, _, data = data.partition(b"\r\n\r\n")
            fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
            length = int(fields[b"content-length"])
            while len(data) < length:
                data += await stream.receive_some(65536)
            body, data = data[:length], data[length:]
            if json.loads(body)["model"] != OPEN_MODEL:
                self.waiting += 1
                await self.gate.wait()
            await stream.send_all(_RESPONSE)
            self.answered += 1


@asynccontextmanager
async def open_gated_upstream() -> AsyncIterator[GatedUpstream]:
    """Run a gated upstream for the length of the block."""
    upstream = GatedUpstream()
    async with open_raw_server(upstream.serve) as port:
        upstream.url = f"http://127.0.0.1:{port}"
        yield upstream


@asynccontextmanager
async def open_replicas(
    folder: Path, count: int, callers: Sequence[Caller], upstream_url: str, settings: Mapping[str, str]
) -> AsyncIterator[list[GatewayProcess]]:
    """Run ``count`` gateways for the length of the block; their data is in folders ``0``, ``1``, …."""
    actors = folder / "actors.toml"
    actors.write_text(
        "".join(
            _ENTRY.format(
                id=caller.id, hash=hash_token(caller.token), limit=caller.limit, max_in_flight=caller.max_in_flight
            )
            for caller in callers
        )
    )
    environ = {
        "PORT": "0",
        "CODY_GATEWAY_ACTORS_FILE": str(actors),
        "CODY_GATEWAY_ANTHROPIC_API_URL": upstream_url,
        "CODY_GATEWAY_ANTHROPIC_ACCESS_TOKEN": ANTHROPIC_KEY,
        "CODY_GATEWAY_ANTHROPIC_ALLOWED_MODELS": f"{OPEN_MODEL},{GATED_MODEL}",
        **settings,
    }
    gateways: dict[int, GatewayProcess] = {}
    async with AsyncExitStack() as stack:
        stacks = [await stack.enter_async_context(AsyncExitStack()) for _ in range(count)]

        async def start(number: int) -> None:
            data_dir = folder / str(number)
            data_dir.mkdir()
            own = {**environ, "CODY_GATEWAY_DATA_DIR": str(data_dir)}
            gateways[number] = await stacks[number].enter_async_context(open_gateway_process(own, data_dir / "log"))

        async with trio.open_nursery() as nursery:
            for number in range(count):
                nursery.start_soon(start, number)
        yield [gateways[number] for number in range(count)]


@define(eq=False)
class Crowd:
    """Many concurrent requests: ``per_caller`` of each caller, spread over all gateways; ``outcomes`` by caller id."""

    callers: Sequence[Caller]
    gateways: Sequence[GatewayProcess]
    per_caller: int
    outcomes: dict[str, Counter[int]] = field(factory=dict)
    answered: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        statuses = sum(self.outcomes.values(), Counter[int]())
        return f"{self.answered} answers in {self.seconds:.1f} s: {dict(statuses)}"

    async def run(self) -> None:
        """Open all connections, then send all requests, and read all responses."""
        self.outcomes = {caller.id: Counter() for caller in self.callers}
        start = trio.Event()
        ready = [0]

        async def ask(caller: Caller, port: int) -> None:
            async with open_client(port) as client:
                ready[0] += 1
                if ready[0] == self.per_caller * len(self.callers):
                    start.set()
                    self.seconds = -trio.current_time()
                await start.wait()
                answer = await client.ask(caller.build_request())
                self.outcomes[caller.id][answer.status] += 1
                self.answered += 1

        async with trio.open_nursery() as nursery:
            for turn in range(self.per_caller):
                for number, caller in enumerate(self.callers):
                    gateway = self.gateways[(turn + number) % len(self.gateways)]
                    nursery.start_soon(ask, caller, gateway.port)
        self.seconds += trio.current_time()
