"""Names whose look-up fails or hangs, and those that must not be affected by them."""

from __future__ import annotations

import errno
import logging
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
import trio.testing

from cgw import resolver as resolving
from cgw.redis.opening import open_redis
from cgw.resolver import (
    FAILED_SECONDS,
    FRESH_SECONDS,
    OVERDUE_SECONDS,
    PATIENCE_SECONDS,
    STALE_SECONDS,
    THREADS_PER_NAME,
    Resolver,
    open_resolver,
)
from cgw.telemetry.slack import open_slack_webhook
from tests.support.names import NameServer
from tests.support.raw_server import open_raw_server, read_request
from tests.support.redis_server import run_tcp_server


@pytest.fixture
def names() -> NameServer:
    """Return what the resolver asks instead of the system."""
    return NameServer()


@pytest.fixture
async def resolver(names: NameServer) -> AsyncIterator[Resolver]:
    """Run a resolver for the test."""
    async with open_resolver(names.look_up) as resolver:
        yield resolver
    names.release()


@pytest.fixture
def clock() -> trio.testing.MockClock:
    """Return a clock that only moves by jumps: threads take no time of it."""
    return trio.testing.MockClock()


async def wait_until(is_true: Callable[[], bool]) -> None:
    """Poll ``is_true()``, which another thread makes true. In real time: the test's clock may stand still."""
    deadline = time.monotonic() + 5
    while not is_true():
        assert time.monotonic() < deadline
        await trio.lowlevel.checkpoint()
        time.sleep(0.001)  # noqa: ASYNC251 - as above


async def ask(host: str, port: int = 443) -> list[str]:
    """Return the addresses of ``host`` by Trio's own function, with the port that they must have."""
    found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    assert {address[4][1] for address in found} <= {port}
    return [str(address[4][0]) for address in found]


async def test_callers_share_a_look_up_and_then_its_result(
    clock: trio.testing.MockClock, names: NameServer, resolver: Resolver
) -> None:
    """Twenty callers cause one look-up; for some seconds there is no other, whatever the port, and then there is."""
    names.set("api.test", "127.0.0.1", "127.0.0.2")
    with names.hanging("api.test"):
        async with trio.open_nursery() as nursery:
            for port in range(20):
                nursery.start_soon(ask, "api.test", port)
            await wait_until(lambda: names.asked["api.test"] == 1)
            await trio.testing.wait_all_tasks_blocked()
            names.release()
    assert await ask("api.test") == ["127.0.0.1", "127.0.0.2"]
    names.set("api.test", "127.0.0.3")
    clock.jump(FRESH_SECONDS - 0.01)
    assert await ask("api.test") == ["127.0.0.1", "127.0.0.2"]
    assert names.asked["api.test"] == 1
    clock.jump(0.01)
    assert await ask("api.test") == ["127.0.0.3"]
    assert names.asked["api.test"] == 2


async def test_last_addresses_are_used_while_a_look_up_fails(
    clock: trio.testing.MockClock, names: NameServer, resolver: Resolver, caplog: pytest.LogCaptureFixture
) -> None:
    """A failing name server costs nothing for an hour, and is logged once; then the failure is the caller's."""
    names.set("api.test", "127.0.0.1")
    assert await ask("api.test") == ["127.0.0.1"]
    names.set("api.test")
    clock.jump(FRESH_SECONDS)
    for _ in range(5):
        assert await ask("api.test") == ["127.0.0.1"]
    assert names.asked["api.test"] == 2  # a failure stands for a second
    clock.jump(FAILED_SECONDS)
    assert await ask("api.test") == ["127.0.0.1"]
    assert names.asked["api.test"] == 3
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "api.test" in caplog.text
    assert "Name or service not known" in caplog.text
    clock.jump(STALE_SECONDS)
    for _ in range(3):
        with pytest.raises(socket.gaierror, match="Name or service not known"):
            await ask("api.test")
    names.set("api.test", "127.0.0.9")
    clock.jump(FAILED_SECONDS)
    assert await ask("api.test") == ["127.0.0.9"]
    assert "api.test can be looked up again" in caplog.text


async def test_last_addresses_are_used_while_a_look_up_hangs(
    clock: trio.testing.MockClock, names: NameServer, resolver: Resolver, caplog: pytest.LogCaptureFixture
) -> None:
    """While it hangs, only its first caller waits, for a quarter of a second; no more than two threads hang."""
    names.set("api.test", "127.0.0.1")
    await ask("api.test")
    clock.jump(FRESH_SECONDS)
    with names.hanging("api.test"):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, "api.test")
            await trio.testing.wait_all_tasks_blocked()
            assert len(nursery.child_tasks) == 1
            clock.jump(PATIENCE_SECONDS)
        for _ in range(20):
            started = trio.current_time()
            assert await ask("api.test") == ["127.0.0.1"]
            assert trio.current_time() == started
            clock.jump(OVERDUE_SECONDS)
        assert resolver.statistics().pending == THREADS_PER_NAME
        assert resolver.statistics().stale == 21
        names.set("api.test", "127.0.0.2")
    await wait_until(lambda: resolver.statistics().pending == 0)
    assert await ask("api.test") == ["127.0.0.2"]
    assert "api.test cannot be looked up: it has taken 5 s so far; its addresses of 10 s ago are used" in caplog.text
    assert len([record for record in caplog.records if "cannot" in record.message]) == 1


async def test_a_second_look_up_may_overtake_one_that_hangs(
    clock: trio.testing.MockClock, names: NameServer, resolver: Resolver, caplog: pytest.LogCaptureFixture
) -> None:
    """Without known addresses, callers wait as long as they want; after some seconds one more look-up is started."""
    names.set("api.test", "127.0.0.1")
    with names.hanging("api.test", times=1):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, "api.test")
            await wait_until(lambda: names.asked["api.test"] == 1)
            await trio.testing.wait_all_tasks_blocked()
            clock.jump(OVERDUE_SECONDS)
            assert await ask("api.test") == ["127.0.0.1"]  # which frees the first caller, too
    assert "api.test cannot be looked up: it has taken 5 s so far; there are no addresses to use" in caplog.text


async def test_a_name_that_hangs_delays_nothing_else(names: NameServer, resolver: Resolver) -> None:
    """A hundred callers of a name that hangs take neither the threads of another name nor those of anything else."""
    names.set("healthy.test", "127.0.0.1")
    names.set("hanging.test", "127.0.0.1")
    with names.hanging("hanging.test"):
        async with trio.open_nursery() as nursery:
            for port in range(100):
                nursery.start_soon(ask, "hanging.test", port)
            await wait_until(lambda: names.asked["hanging.test"] == 1)
            with trio.fail_after(5):
                assert await ask("healthy.test") == ["127.0.0.1"]
                assert await trio.to_thread.run_sync(threading.get_ident) != threading.get_ident()
            limiter = trio.to_thread.current_default_thread_limiter()
            assert limiter.borrowed_tokens == 0
            nursery.cancel_scope.cancel()
        assert resolver.statistics().pending == 1


async def test_a_cancelled_caller_takes_nothing_from_the_others(names: NameServer, resolver: Resolver) -> None:
    """The caller that started a look-up may leave: the others get its result."""
    names.set("api.test", "127.0.0.1")
    results: list[list[str]] = []

    async def ask_and_note() -> None:
        results.append(await ask("api.test"))

    with names.hanging("api.test"):
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as first_scope:
                async with trio.open_nursery() as first_nursery:
                    first_nursery.start_soon(ask, "api.test")
                    await wait_until(lambda: names.asked["api.test"] == 1)
                    nursery.start_soon(ask_and_note)
                    await trio.testing.wait_all_tasks_blocked()
                    first_scope.cancel()
            names.release()
    assert results == [["127.0.0.1"]]
    assert names.asked["api.test"] == 1


def test_look_ups_that_hang_do_not_delay_the_end(names: NameServer) -> None:
    """The run ends at once while look-ups hang, and their threads don't keep the process."""

    async def main() -> None:
        async with open_resolver(names.look_up):
            with trio.move_on_after(0.05):
                await ask("hanging.test")

    with names.hanging("hanging.test"):
        started = time.monotonic()
        trio.run(main)
        assert time.monotonic() - started < 5
        assert all(thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread())


async def test_names_are_bounded(names: NameServer, resolver: Resolver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond a bound the longest unused name is forgotten; if all of them hang, a further one is an error."""
    monkeypatch.setattr(resolving, "MAX_NAMES", 4)
    hosts = [f"{number}.test" for number in range(5)]
    for host in hosts:
        names.set(host, "127.0.0.1")
        await ask(host)
    assert resolver.statistics().names == 4
    await ask(hosts[0])
    assert names.asked[hosts[0]] == 2
    with ExitStack() as stack:
        for host in ("a.test", "b.test", "c.test", "d.test"):
            stack.enter_context(names.hanging(host))
        async with trio.open_nursery() as nursery:
            for host in ("a.test", "b.test", "c.test", "d.test"):
                nursery.start_soon(ask, host)
                await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(socket.gaierror, match="other host names"):
                await ask("e.test")
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "error",
    [
        UnicodeError("label too long"),
        RuntimeError("can't start new thread"),
        OSError(errno.EMFILE, "Too many open files"),
    ],
)
async def test_odd_failures_are_the_names_own(error: Exception, clock: trio.testing.MockClock) -> None:
    """Whatever a look-up raises is an error of that name, and not the end of the resolver."""

    def look_up(host: Any, *_: Any) -> list[Any]:
        if host == b"odd.test":
            raise error
        return socket.getaddrinfo("127.0.0.1", *_)

    async with open_resolver(look_up):
        with pytest.raises(OSError, match=re.escape(str(error))):
            await ask("odd.test")
        assert await ask("fine.test") == ["127.0.0.1"]


async def test_redis_httpx_and_the_webhook_use_it(names: NameServer, resolver: Resolver, tmp_path: Path) -> None:
    """Redis, a plain httpx client and the webhook look names up here, and go on when no look-up succeeds."""

    async def answer(stream: trio.SocketStream) -> None:
        if await read_request(stream) is not None:
            await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")

    names.set("web.test", "127.0.0.1")
    names.set("redis.test", "127.0.0.1")
    with run_tcp_server(tmp_path) as redis_port:
        async with (
            open_raw_server(answer) as port,
            httpx.AsyncClient() as client,
            open_slack_webhook(f"http://web.test:{port}/hook") as webhook,
        ):
            for _ in range(3):
                assert (await client.get(f"http://web.test:{port}")).text == "ok"
                await webhook.post({"text": "alert"})
                async with open_redis(f"redis://redis.test:{redis_port}") as redis:
                    await redis.check()
                names.set("web.test")
                names.set("redis.test")
    assert names.asked == Counter({"web.test": 1, "redis.test": 1})
