"""The cost of one exchange besides its body, in counts that do not vary: Redis calls, parses, thread hops.

Counts are per exchange of a whole gateway with authentication, limits and events. Each bound is the count that was
measured when it was set. A failure means that every exchange costs one more.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import trio

from cgw.service.lifecycle import Service
from cgw.telemetry.logs import open_logging
from tests.support.counting import CallCounter, StepCounter
from tests.support.gateway import open_gateway
from tests.support.raw_client import open_client
from tests.support.raw_server import open_raw_server, read_request
from tests.support.requests import build_request
from tests.support.streams import ANTHROPIC, encode_chunked, split_events

PATH = "/v1/completions/anthropic-messages"
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
JSON = b'{"id":"m","usage":{"input_tokens":9,"output_tokens":3}}'
WHOLE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(JSON)
EXCHANGES = 20

IN_STORE = {"evalsha": 1, "del": 1, "get": 2, "set": 3, "time": 1}
"""Commands that Redis runs to admit and to charge a request, for an actor with a quota and a short-term rate."""

PARSERS = re.compile(r"msgspec.*\.decode(_lines)?$|orjson\.loads$|^json.*:(loads|load|decode|raw_decode)$")


async def play(stream: trio.SocketStream) -> None:
    """Answer every request of a connection with the recorded stream or with JSON."""
    while (asked := await read_request(stream)) is not None:
        if b'"stream":true' in asked[1].replace(b" ", b""):
            head, *rest = split_events(ANTHROPIC)
            await stream.send_all(STREAM + encode_chunked([head])[: -len(b"0\r\n\r\n")])
            await stream.send_all(encode_chunked(rest))
        else:
            await stream.send_all(WHOLE + JSON)


async def run_exchanges(gateway: Service, count: int, *, is_stream: bool) -> None:
    """Run ``count`` exchanges, one after the other on one connection."""
    request = build_request(PATH, stream=is_stream)
    async with open_client(gateway.port) as client:
        for _ in range(count):
            answer = await client.ask(request)
            assert answer.status == 200
            assert answer.body == (ANTHROPIC if is_stream else JSON)


async def read_command_counts(gateway: Service) -> Counter[str]:
    """Return how often Redis has run each command, including those in scripts."""
    info = await gateway.redis.execute_command("INFO", "commandstats")
    found: list[tuple[bytes, bytes]] = re.findall(rb"cmdstat_([^:]+):calls=(\d+)", info)
    return Counter({name.decode(): int(calls) for name, calls in found if name != b"info"})


@asynccontextmanager
async def open_warm_gateway(folder: Path) -> AsyncIterator[Service]:
    """Open a gateway that has served a few exchanges of each kind: scripts are loaded, connections are open."""
    async with open_raw_server(play) as port, open_gateway(folder, f"http://127.0.0.1:{port}") as gateway:
        for is_stream in (True, False):
            await run_exchanges(gateway, 3, is_stream=is_stream)
        yield gateway


@pytest.mark.parametrize("is_stream", [True, False], ids=["streaming", "not streaming"])
async def test_calls_of_the_store(tmp_path: Path, is_stream: bool) -> None:
    """An exchange costs one script, to admit, and one deletion, to charge, with the commands that were measured."""
    async with open_warm_gateway(tmp_path) as gateway:
        before = await read_command_counts(gateway)
        await run_exchanges(gateway, EXCHANGES, is_stream=is_stream)
        spent = await read_command_counts(gateway) - before
    per_exchange = {name: calls / EXCHANGES for name, calls in spent.items()}
    assert set(per_exchange) <= set(IN_STORE), "the store is asked for something else"
    # The last charge before the counting may have left with its first admission.
    slack = 1 / EXCHANGES
    assert all(calls <= IN_STORE[name] + slack for name, calls in per_exchange.items()), per_exchange


@pytest.mark.parametrize("is_stream", [True, False], ids=["streaming", "not streaming"])
async def test_parses_of_json(tmp_path: Path, is_stream: bool) -> None:
    """JSON is parsed once for the request, and once for the answer, or for all of its frames, to read usage."""
    counter = CallCounter()
    async with open_warm_gateway(tmp_path) as gateway:
        with counter.count():
            await run_exchanges(gateway, EXCHANGES, is_stream=is_stream)
    parses = sum(calls for name, calls in counter.calls.items() if PARSERS.search(name))
    assert parses == EXCHANGES * 2


@pytest.mark.parametrize("is_stream", [True, False], ids=["streaming", "not streaming"])
async def test_hops_between_threads(tmp_path: Path, is_stream: bool) -> None:
    """An exchange hops to no thread; only a stream that is still open goes to the relay's and back."""
    counter = CallCounter()
    async with open_warm_gateway(tmp_path) as gateway:
        before = gateway.gateway.event_log.statistics()
        started = trio.current_time()
        with counter.count():
            await run_exchanges(gateway, EXCHANGES, is_stream=is_stream)
        seconds = trio.current_time() - started
        after = gateway.gateway.event_log.statistics()
    assert after.recorded - before.recorded == EXCHANGES
    assert counter.calls["_queue.SimpleQueue.put"] == 0
    # In threads: the event log checks its segment once a second, and the actors file is looked at every 3 s.
    checks = 2 + int(seconds * 4 / 3)
    assert counter.calls["trio._threads:to_thread_run_sync"] <= checks
    # Calls from other threads into Trio: the relay's for a stream that had not ended with its head.
    assert counter.calls["trio._core._entry_queue:run_cb"] <= checks + (EXCHANGES if is_stream else 0)


@pytest.mark.parametrize("is_stream", [True, False], ids=["streaming", "not streaming"])
async def test_debug_lines_that_are_off(tmp_path: Path, is_stream: bool) -> None:
    """With debug lines off an exchange asks a few times whether they are on, 50 ns each, and calls nothing for them."""
    counter = CallCounter()
    with open_logging(io.StringIO()):
        async with open_warm_gateway(tmp_path) as gateway:
            with counter.count():
                await run_exchanges(gateway, EXCHANGES, is_stream=is_stream)
    # Authentication, the exchange, the connection when it is taken and when it is given back, and its line.
    assert counter.calls["logging:isEnabledFor"] <= 5 * EXCHANGES
    # Lines of background tasks, such as the event log's, are no exchange's.
    assert counter.calls["logging:debug"] < EXCHANGES
    assert not [name for name in counter.calls if name.startswith("cgw.gateway.debug_lines:log_")]
    # The request's id for all lines that are logged while it is served.
    assert counter.calls["_contextvars.ContextVar.set"] <= 1.5 * EXCHANGES


class ScopeCounter(CallCounter):
    """Counts the cancel scopes that are entered, by the task that enters them."""

    def note(self, frame: FrameType, event: str, argument: Any) -> None:
        """Count one scope; a profile function for :func:`sys.setprofile`."""
        if event == "call" and frame.f_code is trio.CancelScope.__enter__.__code__:
            self.calls[trio.lowlevel.current_task().name] += 1


@pytest.mark.parametrize("is_stream", [True, False], ids=["streaming", "not streaming"])
async def test_scopes_and_turns_of_a_connection(tmp_path: Path, is_stream: bool) -> None:
    """Exchanges of a kept connection enter no cancel scope, and take as many turns of its task as they wait times."""
    scopes, turns = ScopeCounter(), StepCounter()
    async with open_warm_gateway(tmp_path) as gateway, open_client(gateway.port) as client:
        request = build_request(PATH, stream=is_stream)
        await client.ask(request)
        trio.lowlevel.add_instrument(turns)
        turns.is_on = True
        with scopes.count():
            for _ in range(EXCHANGES):
                assert (await client.ask(request)).status == 200
        trio.lowlevel.remove_instrument(turns)
    assert scopes.calls["cgw.transport.server.Server._serve"] == 0
    # For the request, for Redis, for the head of the response, and for the rest of a stream; and where requests follow
    # each other closely, one in which others have their turn.
    assert turns.steps["_serve"] <= (5 if is_stream else 4) * EXCHANGES
