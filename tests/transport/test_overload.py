"""Shedding: its decisions by a virtual clock, and what clients and operators see of it."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx
import pytest
import trio
import trio.testing

from cgw.service.lifecycle import Service
from cgw.testing.script import Script
from cgw.testing.scripted_upstream import open_scripted_upstream
from cgw.transport.overload import ENTRY_FACTOR, SERVED_PER_PASS, SUMMARY_SECONDS, OverloadControl
from tests.support.gateway import OPENAI_KEY, open_gateway
from tests.support.raw_client import Answer, ask, open_client
from tests.support.requests import HEADERS, ROUTES, build_body, build_request
from tests.support.waiting import wait_until

TARGET, INTERVAL = 0.005, 0.1
SERVED_FIRST = [False] * SERVED_PER_PASS
TYPES = {"/anthropic/v1/messages": "overloaded_error", "/openai/v1/chat/completions": "server_error"}


class Loop:
    """A loop whose passes last as long as the test says, by a virtual clock."""

    def __init__(self, clock: trio.testing.MockClock, target_seconds: float = TARGET) -> None:
        self.clock = clock
        self.idle_seconds = 0.0
        self.control = OverloadControl(
            target_seconds=target_seconds, interval_seconds=INTERVAL, read_work=self.read_work
        )

    def read_work(self) -> float:
        return trio.current_time() - self.idle_seconds

    def start_pass(self, *, idle_seconds: float = 0) -> None:
        self.control.before_io_wait(idle_seconds)
        self.clock.jump(idle_seconds)
        self.idle_seconds += idle_seconds
        self.control.after_io_wait(idle_seconds)

    def run_passes(self, seconds: float, pass_seconds: float) -> None:
        """Run passes of equal length, the last of which has just begun when it returns."""
        for _ in range(round(seconds / pass_seconds)):
            self.clock.jump(pass_seconds)
            self.start_pass()


async def test_nothing_is_shed_below_the_entry_threshold(mock_clock: trio.testing.MockClock) -> None:
    """A loop whose backlog stays at up to four times the target refuses nothing, however long that lasts."""
    loop = Loop(mock_clock)
    loop.run_passes(10, ENTRY_FACTOR * TARGET / 2)
    assert not loop.control.must_shed()
    assert not loop.control.is_shedding


async def test_bursts_are_served(mock_clock: trio.testing.MockClock) -> None:
    """Long passes for less than an interval refuse nothing, however often they come."""
    loop = Loop(mock_clock)
    for _ in range(50):
        loop.run_passes(INTERVAL - 0.02, 0.02)
        loop.run_passes(0.002, 0.001)
        assert not loop.control.is_shedding


async def test_one_long_pass_is_no_overload(mock_clock: trio.testing.MockClock) -> None:
    """A pass that takes a second, as when the machine was suspended, refuses nothing afterwards."""
    loop = Loop(mock_clock)
    loop.run_passes(1, 1)
    loop.run_passes(0.1, 0.001)
    assert not loop.control.is_shedding


async def test_sustained_backlog_is_shed(mock_clock: trio.testing.MockClock) -> None:
    """After an interval above the threshold, each pass serves a few, then those with a backlog up to the target."""
    loop = Loop(mock_clock)
    loop.run_passes(0.2, 0.015)
    assert loop.control.is_shedding
    assert [loop.control.must_shed() for _ in range(20)] == SERVED_FIRST + [True] * (20 - len(SERVED_FIRST))
    loop.run_passes(0.002, 0.001)
    assert [loop.control.must_shed() for _ in range(20)] == [False] * 20, (
        "these have 2 ms of work in front of them at most"
    )
    loop.clock.jump(2 * TARGET)
    assert loop.control.must_shed(), "in the same pass, after the target"


async def test_shedding_ends_an_interval_after_the_load(mock_clock: trio.testing.MockClock) -> None:
    """When no request was refused for an interval, the next refusal needs a whole interval of backlog again."""
    loop = Loop(mock_clock)
    loop.run_passes(0.2, 0.015)
    assert any(loop.control.must_shed() for _ in range(20))
    loop.run_passes(INTERVAL + 0.01, 0.001)
    assert not loop.control.is_shedding
    loop.run_passes(0.06, 0.015)
    assert not any(loop.control.must_shed() for _ in range(20))


async def test_requests_that_woke_the_loop_have_not_waited(mock_clock: trio.testing.MockClock) -> None:
    """A pass after an idle wait counts from its own start: what came woke the loop at once."""
    loop = Loop(mock_clock)
    loop.run_passes(0.2, 0.015)
    loop.clock.jump(0.015)
    loop.start_pass(idle_seconds=0.05)
    assert not any(loop.control.must_shed() for _ in range(20))


async def test_target_of_zero_never_sheds(autojump_clock: trio.testing.MockClock) -> None:
    """With a target of 0 the loop is not measured, and nothing is refused."""
    control = OverloadControl(target_seconds=0, interval_seconds=0.001)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(control.run)
        for _ in range(200):
            work(0.0001)
            await trio.lowlevel.checkpoint()
        assert not control.must_shed()
        nursery.cancel_scope.cancel()


async def test_overload_at_three_times_the_capacity(mock_clock: trio.testing.MockClock) -> None:
    """In a model of the loop, three times the capacity leaves the backlog near the target, and serves without gaps.

    A request takes 0.7 ms in 7 steps, one in each pass; a refusal takes 0.05 ms.
    """
    loop = Loop(mock_clock)
    step, refusal, steps, rate = 0.0001, 0.00005, 7, 3 / 0.0007
    under_way: list[int] = []  # the steps that each request has left
    due, served, refused, longest_gap, last_served = trio.current_time(), 0, 0, 0.0, trio.current_time()
    delays: list[float] = []
    start = trio.current_time()
    while (began := trio.current_time()) < start + 5:
        arrived = int((began - due) * rate)
        due += arrived / rate
        for _ in range(arrived):
            is_refused = loop.control.must_shed()
            loop.clock.jump(refusal if is_refused else step)
            if is_refused:
                refused += 1
            else:
                under_way.append(steps - 1)
                longest_gap = max(longest_gap, trio.current_time() - last_served) if began > start + 1 else 0
                last_served = trio.current_time()
        loop.clock.jump(step * len(under_way))
        served += under_way.count(0)
        under_way = [left - 1 for left in under_way if left]
        loop.clock.jump(0.00005)
        if began > start + 1:
            delays.append(trio.current_time() - began)
        loop.start_pass()
    delays.sort()
    assert delays[len(delays) * 99 // 100] < 4 * TARGET
    assert longest_gap < 0.1
    assert served / 5 > 0.7 * rate / 3, "the rest of the capacity pays for the refusals"
    assert refused > served


def work(seconds: float) -> None:
    """Use so much CPU time."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def read_message(path: str, answer: Answer) -> str:
    """Return the text of a refusal, after a check that it has the shape of the API at ``path``."""
    assert answer.status == 503
    assert answer.headers["retry-after"] == "1"
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    if path in TYPES:
        assert error["type"] == TYPES[path]
        error = error["message"]
    assert isinstance(error, str)
    return error


@asynccontextmanager
async def open_full_gateway(data_dir: Path) -> AsyncIterator[Service]:
    """Run a gateway that is allowed one exchange, and has it: every other request is refused."""
    async with (
        open_scripted_upstream(Script(api_key=OPENAI_KEY, head_delay_seconds=60)) as upstream,
        open_gateway(data_dir, upstream.url, more={"CODY_GATEWAY_MAX_EXCHANGES": "1"}) as gateway,
        open_client(gateway.port) as busy,
    ):
        await busy.send(build_request("/openai/v1/chat/completions"))
        await upstream.wait_request()
        yield gateway


@pytest.mark.parametrize("path", ROUTES)
async def test_refusal_on_a_kept_connection(path: str, tmp_path: Path) -> None:
    """A request that came whole is refused in its route's dialect, and its connection carries the next ones."""
    async with open_full_gateway(tmp_path) as gateway, open_client(gateway.port) as client:
        for _ in range(3):
            answer = await client.ask(build_request(path))
            assert read_message(path, answer) == "the gateway is overloaded, please retry"
            assert "connection" not in answer.headers
        assert (await client.ask(b"GET /-/healthz HTTP/1.1\r\nhost: x\r\n\r\n")).status == 200
        assert gateway.http_engine.statistics().shed == 3


async def test_control_routes_are_never_shed(tmp_path: Path) -> None:
    """Health, readiness and version are answered while everything else is refused, HTTP/1.0 included."""
    async with open_full_gateway(tmp_path) as gateway:
        for path in ("/-/healthz", "/-/readyz", "/-/__version"):
            for version in ("1.0", "1.1"):
                answer = await ask(gateway.port, f"GET {path} HTTP/{version}\r\nhost: x\r\n\r\n".encode())
                assert answer.status == 200
        assert gateway.http_engine.statistics().shed == 0


async def test_pipelined_requests_are_each_refused(tmp_path: Path) -> None:
    """Requests that came in one segment get a refusal each, in order, and none is taken for another's body."""
    async with open_full_gateway(tmp_path) as gateway, open_client(gateway.port) as client:
        await client.send(b"".join(build_request(path) for path in ROUTES) * 25)
        for path in list(ROUTES) * 25:
            read_message(path, await client.read_answer())
        assert gateway.http_engine.statistics().shed == 25 * len(ROUTES)


WHOLE = build_request("/openai/v1/chat/completions")
HEAD, _, BODY = WHOLE.partition(b"\r\n\r\n")
CLOSING = {
    "the body is still to come": HEAD + b"\r\n\r\n" + BODY[:-1],
    "the client closes": HEAD + b"\r\nconnection: close\r\n\r\n" + BODY,
    "HTTP/1.0": build_request("/openai/v1/chat/completions", version="1.0"),
    "a chunked body": HEAD.partition(b"content-length")[0] + b"transfer-encoding: chunked\r\n\r\n1\r\n{",
    "100-continue": HEAD + b"\r\nexpect: 100-continue\r\n\r\n",
}


@pytest.mark.parametrize("data", CLOSING.values(), ids=CLOSING)
async def test_refusal_that_ends_the_connection(data: bytes, tmp_path: Path) -> None:
    """Where the rest of the request would have to be read, or the client wants it, the connection ends properly."""
    async with open_full_gateway(tmp_path) as gateway, open_client(gateway.port) as client:
        answer = await client.ask(data)
        read_message("/openai/v1/chat/completions", answer)
        assert answer.headers["connection"] == "close"
        assert answer.informational == ()
        assert await client.read_end() == b""


async def test_refusal_while_draining(tmp_path: Path) -> None:
    """A refusal that is sent during the drain says that the connection ends."""
    async with open_full_gateway(tmp_path) as gateway, open_client(gateway.port) as client:
        await client.send(WHOLE[:20])
        await wait_until(lambda: gateway.server.connection_count == 2)
        gateway.http_engine.drain()
        answer = await client.ask(WHOLE[20:])
        read_message("/openai/v1/chat/completions", answer)
        assert answer.headers["connection"] == "close"


async def test_refusals_over_http2(tmp_path: Path) -> None:
    """HTTP/2 requests are refused in their route's dialect, and the connection goes on."""
    path = "/anthropic/v1/messages"
    async with (
        open_full_gateway(tmp_path) as gateway,
        httpx.AsyncClient(http1=False, http2=True, base_url=gateway.url) as client,
    ):
        for _ in range(2):
            response = await client.post(path, headers=HEADERS, content=json.dumps(build_body(path)))
            assert response.http_version == "HTTP/2"
            read_message(path, Answer(response.status_code, response.headers, response.content))
        assert (await client.get("/-/healthz")).status_code == 200


async def test_refusals_share_a_line_of_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """All refusals of a second are one warning, with their number."""
    async with open_full_gateway(tmp_path) as gateway, open_client(gateway.port) as client:
        for _ in range(20):
            assert (await client.ask(WHOLE)).status == 503
        await wait_until(lambda: "overloaded" in caplog.text, seconds=SUMMARY_SECONDS + 2)
        [record] = [record for record in caplog.records if "overloaded" in record.getMessage()]
        assert record.levelno == logging.WARNING
        assert record.getMessage().startswith("overloaded: refused 20 requests within 1 s with status 503")


async def test_lagging_loop_sheds_and_recovers(tmp_path: Path) -> None:
    """While something keeps the loop busy, requests are refused; within a second after it has ended, none is."""
    more = {"CODY_GATEWAY_SHED_TARGET": "2ms", "CODY_GATEWAY_SHED_INTERVAL": "100ms"}

    async def keep_busy() -> None:
        while True:
            work(0.01)
            await trio.lowlevel.checkpoint()

    async with (
        open_scripted_upstream(Script(api_key=OPENAI_KEY, tokens_per_second=0)) as upstream,
        open_gateway(tmp_path, upstream.url, more=more) as gateway,
        AsyncExitStack() as stack,
    ):
        clients = [await stack.enter_async_context(open_client(gateway.port)) for _ in range(20)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_busy)
            await trio.sleep(0.5)
            # All within one pass of the loop, which client and gateway share here.
            async with trio.open_nursery() as senders:
                for client in clients:
                    senders.start_soon(client.send, WHOLE)
            statuses = [(await client.read_answer()).status for client in clients]
            assert 503 in statuses
            assert (await ask(gateway.port, b"GET /-/readyz HTTP/1.1\r\nhost: x\r\n\r\n")).status == 200
            nursery.cancel_scope.cancel()
        await trio.sleep(1)
        for client in clients:
            assert (await client.ask(WHOLE)).status == 200
