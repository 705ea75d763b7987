"""A gateway in front of an upstream that plays faults, and checks of what each fault leaves behind."""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from attrs import define, field

from cgw.events.reading import read_events
from cgw.model import Feature
from cgw.service.lifecycle import Service
from cgw.telemetry.exchange_record import ExchangeRecord
from tests.support.gateway import TOKEN, open_gateway
from tests.support.raw_client import Answer, AnswerCut, ask, open_client
from tests.support.raw_server import Handler, open_raw_server, read_request
from tests.support.requests import ROUTES, build_request
from tests.support.streams import ANTHROPIC, encode_chunked, split_events
from tests.support.waiting import wait_until

PATH = "/v1/completions/anthropic-messages"
OK = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
EVENTS = split_events(ANTHROPIC)
WHOLE = OK + b"transfer-encoding: chunked\r\n\r\n" + encode_chunked(EVENTS)
PART = encode_chunked(EVENTS[:2]).removesuffix(b"0\r\n\r\n")
RST_ON_CLOSE = b"\1\0\0\0\0\0\0\0"


@define
class Upstream:
    """An upstream that answers with bytes and then closes or resets the connection, or runs the test's own handler."""

    answer: bytes = b""
    is_reset: bool = False
    handler: Handler | None = None
    requests: int = 0
    connections: int = 0

    async def serve(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        if self.handler is not None:
            await self.handler(stream)
        elif await read_request(stream) is not None:
            self.requests += 1
            await stream.send_all(self.answer)
            await trio.testing.wait_all_tasks_blocked()
            if self.is_reset:
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST_ON_CLOSE)


class _RecordHandler(logging.Handler):
    def __init__(self, records: list[ExchangeRecord]) -> None:
        super().__init__()
        self._records = records

    def emit(self, record: logging.LogRecord) -> None:
        if isinstance(record.msg, ExchangeRecord):
            self._records.append(record.msg)


@define
class Bench:
    """A gateway in front of an upstream that plays faults."""

    gateway: Service
    upstream: Upstream
    charged: int = 0
    events_seen: int = field(default=0, init=False)
    logged: list[ExchangeRecord] = field(factory=list, init=False)

    @property
    def records(self) -> list[ExchangeRecord]:
        """The exchanges' lines in the log, in order, without waiting for those that are reported together."""
        self.gateway.gateway.readers.flush()
        return self.logged

    async def ask(self, path: str = PATH, **options: Any) -> Answer:
        return await ask(self.gateway.port, build_request(path, **options))

    async def ask_cut(self, data: bytes, *, after_control: bool = False) -> AnswerCut:
        """Return the response to ``data``, which must be truncated.

        With ``after_control`` another request, to the control app, goes before it on its connection.
        """
        async with open_client(self.gateway.port) as client:
            if after_control:
                await client.ask(b"GET /-/__version HTTP/1.1\r\nhost: x\r\n\r\n")
            with pytest.raises(AnswerCut) as caught:
                await client.ask(data)
            return caught.value

    def read_events(self) -> list[dict[str, Any]]:
        """Return the metadata of each event since the last call."""
        events = [event.metadata for event in read_events(self.gateway.events_folder)][self.events_seen :]
        self.events_seen += len(events)
        return events

    async def check(self, name: str, *, resolved: int, upstream: int | None, count: int = 1) -> list[dict[str, Any]]:
        """Check that ``count`` exchanges ended and left their events, their charges, and nothing else."""
        await self.wait_rest()
        events = self.read_events()
        statuses = [(event["resolved_status_code"], event.get("upstream_status_code")) for event in events]
        assert (name, statuses) == (name, [(resolved, upstream)] * count)
        self.charged += count if upstream is not None and 200 <= upstream < 300 else 0
        head = f"GET /v1/limits HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\nconnection: close\r\n\r\n"
        limits = (await ask(self.gateway.port, head.encode())).json()
        assert (name, limits[Feature.CHAT_COMPLETIONS]["usage"]) == (name, self.charged)
        return events

    async def wait_rest(self) -> None:
        """Wait until no client connection, no upstream connection and no stream of the relay is left."""
        services = self.gateway.gateway
        await wait_until(
            lambda: (
                (self.gateway.server.connection_count, services.pool.statistics().busy) == (0, 0)
                and services.relay.statistics().streams == 0
            )
        )


@asynccontextmanager
async def open_bench(data_dir: Path, more: Mapping[str, str] | None = None) -> AsyncIterator[Bench]:
    """Run a gateway and its upstream; at the end neither may have a connection left."""
    upstream = Upstream()
    async with (
        open_raw_server(upstream.serve) as port,
        open_gateway(data_dir, f"http://127.0.0.1:{port}", more=more) as gateway,
    ):
        bench = Bench(gateway, upstream)
        handler = _RecordHandler(bench.logged)
        logger = logging.getLogger("cgw.exchange")
        logger.addHandler(handler)
        try:
            yield bench
            await bench.wait_rest()
        finally:
            logger.removeHandler(handler)


def read_message(path: str, answer: Answer) -> str:
    """Return the text of an error, after a check that it has the shape of the route's API."""
    error = answer.json()["error"]
    text: str = error["message"] if isinstance(error, dict) else error
    assert isinstance(error, dict) != path.startswith("/v1/")
    return text


async def check_502(bench: Bench, name: str, words: str) -> None:
    """Check that each route answers 502 in its own shape, streamed or not."""
    for index, path in enumerate(ROUTES):
        answer = await bench.ask(path, stream=bool(index % 2))
        assert (name, answer.status) == (name, 502)
        message = read_message(path, answer)
        # The client is not told more: hosts and ports of the operator's own are for the log.
        assert (name, message) in [
            (name, f"failed to make request to upstream provider {provider}") for provider in ("anthropic", "openai")
        ]
    await bench.check(name, resolved=502, upstream=None, count=len(ROUTES))
    for record in bench.records[-len(ROUTES) :]:
        assert (name, words in (record.error or ""), "bytearray" in (record.error or "")) == (name, True, False)
