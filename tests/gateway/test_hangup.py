"""A client that disconnects stops its upstream, in every phase and on both HTTP servers, and leaves nothing behind."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from cgw.model import Feature
from cgw.service.lifecycle import Service
from cgw.testing.script import Script
from cgw.testing.scripted_upstream import ScriptedUpstream, SeenRequest
from tests.support.gateway import ANTHROPIC_KEY, ANTHROPIC_MODEL, TOKEN, open_gateway
from tests.support.http2 import Http2Client
from tests.support.raw_server import open_raw_server
from tests.support.requests import build_body, build_request, read_until
from tests.support.waiting import wait_until

PATH = "/v1/completions/anthropic-messages"
LIMIT_SECONDS = 0.05
"""The guaranteed time; compared with the median of several tries, because the machine is shared."""

Leave = Callable[[], None]

PHASES: dict[str, tuple[dict[str, float], bool, int]] = {
    "before the first byte": ({"head_delay_seconds": 30}, True, 0),
    "after the head": ({"first_token_delay_seconds": 30}, True, 0),
    "streaming": ({"tokens_per_second": 100}, True, 4),
    "streaming, in a pause": ({"tokens_per_second": 0.01}, True, 1),
    "not streaming": ({"head_delay_seconds": 30}, False, 0),
}


def build_script(
    *, tokens_per_second: float = math.inf, head_delay_seconds: float = 0, first_token_delay_seconds: float = 0
) -> Script:
    """Return a script of a long response with the given delays."""
    return Script(
        answer="word " * 500,
        api_key=ANTHROPIC_KEY,
        tokens_per_second=tokens_per_second,
        head_delay_seconds=head_delay_seconds,
        first_token_delay_seconds=first_token_delay_seconds,
    )


@asynccontextmanager
async def send_http1(gateway: Service, stream: bool) -> AsyncIterator[Leave]:
    connection = await trio.open_tcp_stream("127.0.0.1", gateway.port)
    await connection.send_all(build_request(PATH, stream=stream))
    yield connection.socket.close
    connection.socket.close()


@asynccontextmanager
async def send_half_closing(gateway: Service, stream: bool) -> AsyncIterator[Leave]:
    connection = await trio.open_tcp_stream("127.0.0.1", gateway.port)
    await connection.send_all(build_request(PATH, stream=stream))
    yield lambda: connection.socket.shutdown(trio.socket.SHUT_WR)
    connection.socket.close()


@asynccontextmanager
async def send_with_pipelined(gateway: Service, stream: bool) -> AsyncIterator[Leave]:
    connection = await trio.open_tcp_stream("127.0.0.1", gateway.port)
    await connection.send_all(build_request(PATH, stream=stream) + b"GET /v1/limits HTTP/1.1\r\nhost: x\r\n\r\n")
    yield connection.socket.close
    connection.socket.close()


@asynccontextmanager
async def send_after_control(gateway: Service, stream: bool) -> AsyncIterator[Leave]:
    connection = await trio.open_tcp_stream("127.0.0.1", gateway.port)
    await connection.send_all(b"GET /-/__version HTTP/1.1\r\nhost: x\r\n\r\n")
    await read_until(connection, b"\r\n\r\n")
    await connection.send_all(build_request(PATH, stream=stream))
    yield connection.socket.close
    connection.socket.close()


@asynccontextmanager
async def send_after_control_with_pipelined(gateway: Service, stream: bool) -> AsyncIterator[Leave]:
    connection = await trio.open_tcp_stream("127.0.0.1", gateway.port)
    await connection.send_all(b"GET /-/__version HTTP/1.1\r\nhost: x\r\n\r\n")
    await read_until(connection, b"\r\n\r\n")
    await connection.send_all(build_request(PATH, stream=stream) + b"GET /-/__version HTTP/1.1\r\nhost: x\r\n\r\n")
    yield connection.socket.close
    connection.socket.close()


@asynccontextmanager
async def send_http2_and_close(gateway: Service, stream: bool) -> AsyncIterator[Leave]:
    client = Http2Client(await trio.open_tcp_stream("127.0.0.1", gateway.port))
    await client.post(PATH, json.dumps(build_body(PATH, stream=stream)).encode())
    yield client.stream.socket.close
    client.stream.socket.close()


@asynccontextmanager
async def send_http2_and_reset(gateway: Service, stream: bool) -> AsyncIterator[Leave]:
    client = Http2Client(await trio.open_tcp_stream("127.0.0.1", gateway.port))
    stream_id = await client.post(PATH, json.dumps(build_body(PATH, stream=stream)).encode())
    async with trio.open_nursery() as nursery:

        def leave() -> None:
            client.connection.reset_stream(stream_id)
            nursery.start_soon(client.flush)

        yield leave
    client.stream.socket.close()


SENDERS = {
    "HTTP/1.1": send_http1,
    "HTTP/1.1, half-closing": send_half_closing,
    "HTTP/1.1, with a pipelined request": send_with_pipelined,
    "after a control request": send_after_control,
    "after a control request, with a pipelined request": send_after_control_with_pipelined,
    "HTTP/2, closing": send_http2_and_close,
    "HTTP/2, resetting": send_http2_and_reset,
}


async def count_tasks() -> int:
    """Return the number of tasks once all are blocked."""
    await trio.testing.wait_all_tasks_blocked()
    return trio.lowlevel.current_statistics().tasks_living


async def wait_rest(gateway: Service, task_count: int) -> None:
    """Wait until all connections are closed, and no more than ``task_count`` tasks are left."""
    await wait_until(lambda: gateway.server.connection_count == 0)
    await wait_until(lambda: trio.lowlevel.current_statistics().tasks_living <= task_count)


@pytest.mark.parametrize("sender", list(SENDERS))
@pytest.mark.parametrize("phase", list(PHASES))
async def test_leaving_closes_the_upstream(
    phase: str, sender: str, gateway: Service, upstream: ScriptedUpstream
) -> None:
    """The upstream sees its connection closed within 50 ms (median of tries), and no task is left."""
    changes, stream, events = PHASES[phase]
    upstream.scripts[ANTHROPIC_MODEL] = build_script(**changes)
    task_count = await count_tasks()
    taken: list[float] = []
    for attempt in range(1, 4):
        async with SENDERS[sender](gateway, stream) as leave:
            with trio.fail_after(10):
                seen = await upstream.wait_request(attempt)
                await seen.wait_events_sent(events)
            left_at = trio.current_time()
            leave()
            with trio.fail_after(10):
                await seen.wait_over()
            assert seen.peer_closed_at is not None
            taken.append(seen.peer_closed_at - left_at)
        await wait_rest(gateway, task_count)
    assert statistics.median(taken) < LIMIT_SECONDS
    assert upstream.open_connections == 0


async def test_resetting_one_http2_stream_leaves_the_others(gateway: Service, upstream: ScriptedUpstream) -> None:
    """On one HTTP/2 connection only the stream that was reset loses its upstream."""
    upstream.scripts[ANTHROPIC_MODEL] = build_script(head_delay_seconds=30)
    client = Http2Client(await trio.open_tcp_stream("127.0.0.1", gateway.port))
    body = json.dumps(build_body(PATH)).encode()
    first = await client.post(PATH, body)
    first_seen = await upstream.wait_request(1)
    await client.post(PATH, body)
    second_seen: SeenRequest = await upstream.wait_request(2)
    client.connection.reset_stream(first)
    await client.flush()
    with trio.fail_after(5):
        await first_seen.wait_over()
    assert not second_seen.is_over
    client.stream.socket.close()
    with trio.fail_after(5):
        await second_seen.wait_over()


async def test_leaving_while_limits_are_waited_for(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """When the client disconnects while Redis is silent, the exchange ends and the upstream is never asked."""
    async with open_gateway(tmp_path, upstream.url, more={"CODY_GATEWAY_REDIS_TIMEOUT": "20s"}) as gateway:
        await gateway.redis.execute_command("CLIENT", "PAUSE", "3000", "ALL")
        task_count = await count_tasks()
        async with send_http1(gateway, True) as leave:
            await wait_until(lambda: gateway.redis.statistics().waiting_calls > 0)
            leave()
            await wait_rest(gateway, task_count)
        assert upstream.request_count == 0


async def test_leaving_while_the_upstream_does_not_read(tmp_path: Path) -> None:
    """When the client disconnects while the upstream does not read its large prompt, that connection is closed."""
    closed = trio.Event()
    connected = trio.Event()
    left = trio.Event()

    async def never_read(stream: trio.SocketStream) -> None:
        connected.set()
        await left.wait()
        try:
            while await stream.receive_some(65536):
                pass
        finally:
            closed.set()

    async with open_raw_server(never_read) as port, open_gateway(tmp_path, f"http://127.0.0.1:{port}") as gateway:
        task_count = await count_tasks()
        connection = await trio.open_tcp_stream("127.0.0.1", gateway.port)
        content = "x" * 20_000_000
        await connection.send_all(build_request(PATH, messages=[{"role": "user", "content": content}]))
        with trio.fail_after(10):
            await connected.wait()
        connection.socket.close()
        left.set()
        with trio.fail_after(5):
            await closed.wait()
        await wait_rest(gateway, task_count)


async def test_a_stream_whose_client_left_is_charged_and_recorded(gateway: Service, upstream: ScriptedUpstream) -> None:
    """An exchange whose client disconnects counts on the quota after the upstream's 200, and not before it."""
    upstream.scripts[ANTHROPIC_MODEL] = build_script(tokens_per_second=100)
    async with send_http1(gateway, True) as leave:
        seen = await upstream.wait_request(1)
        await seen.wait_events_sent(4)
        leave()
        await seen.wait_over()
    upstream.scripts[ANTHROPIC_MODEL] = build_script(head_delay_seconds=30)
    async with send_http1(gateway, True) as leave:
        seen = await upstream.wait_request(2)
        leave()
        await seen.wait_over()
    await wait_until(lambda: gateway.gateway.event_log.statistics().recorded == 2)
    actor = await gateway.gateway.sources.get(TOKEN)
    with trio.fail_after(5):  # the refund of the second exchange comes after its event
        while (await gateway.gateway.limiter.peek(actor))[Feature.CHAT_COMPLETIONS].usage != 1:  # noqa: ASYNC110 - of another process
            await trio.sleep(0.01)
