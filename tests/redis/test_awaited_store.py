"""Stores that are away at start: in use as soon as they are there, and what cannot mend itself is still an error."""

from __future__ import annotations

import logging
import signal
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import ClassVar

import pytest
import trio
import trustme

from cgw.errors import StoreRefused, StoreUnavailable
from cgw.redis.opening import LuaScript, ScriptCall, Store, open_redis
from tests.support.raw_server import open_raw_server
from tests.support.redis_cluster import run_redis_cluster
from tests.support.redis_server import RedisServer, ask_server, run_redis_server, wait_until

PATIENT = 5.0
MARK = LuaScript.from_text("redis.call('SET', KEYS[1], ARGV[1]) return 1")


async def _answers(store: Store) -> bool:
    try:
        await store.check()
    except StoreUnavailable:
        return False
    return True


async def _count_calls(server: RedisServer, command: str) -> int:
    text = await ask_server(server.path, "INFO", "commandstats")
    text = text.decode() if isinstance(text, bytes) else str(text)
    found = [line for line in text.splitlines() if line.startswith(f"cmdstat_{command}:")]
    return int(found[0].partition("calls=")[2].partition(",")[0]) if found else 0


async def test_a_server_is_in_use_as_soon_as_it_is_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Calls fail at once with the reason until the server is up; then they are made, kept ones first."""
    caplog.set_level(logging.INFO)
    url = f"unix://{tmp_path / 'redis.sock'}"
    async with open_redis(url, timeout_seconds=PATIENT, may_be_away=True) as store:
        replies: list[object] = []

        class Posted:
            gathers: ClassVar[bool] = False

            def pack(self) -> bytes:
                raise AssertionError("not sent")

            def build_call(self) -> ScriptCall:
                raise AssertionError("not sent")

            def handle_reply(self, reply: object) -> None:
                replies.append(reply)

        for call in (store.check, store.commands.ping, lambda: store.run_script(MARK, ["a"], [1])):
            with pytest.raises(StoreUnavailable, match="can't be reached: No such file or directory"):
                await call()
        store.post_script(Posted(), "a")
        assert isinstance(replies[0], StoreUnavailable)
        store.send_later(ScriptCall(MARK, ["kept"], ["1"]))
        store.send_postponed()
        store.preload([MARK])
        counts = store.statistics()
        assert (counts.links, counts.links_up, counts.failed_fast, counts.kept_calls) == (1, 0, 4, 1)
        with run_redis_server(tmp_path) as server:
            await wait_until(lambda: _answers(store))
            assert not store.is_cluster
            assert await store.run_script(MARK, ["later"], [2]) == 1
            assert await store.commands.mget("kept", "later") == [b"1", b"2"]
            assert store.statistics().links_up == 1
            assert await _count_calls(server, "eval") == 0
    assert [record.levelno for record in caplog.records] == [logging.WARNING, logging.INFO]


@pytest.mark.parametrize("form", ["redis", "redis+cluster"])
async def test_a_cluster_is_recognised_once_it_is_there(tmp_path: Path, form: str) -> None:
    """A cluster that does not answer at start is used as one later, also behind the address of a single server."""
    with run_redis_cluster(tmp_path) as cluster:
        first = cluster.nodes[0]
        first.server.send_signal(signal.SIGSTOP)
        url = f"{form}://{first.place}"
        async with open_redis(url, timeout_seconds=0.2, connect_timeout_seconds=0.3, may_be_away=True) as store:
            assert store.statistics().links_up == 0
            assert store.is_cluster  # not known, and calls that suit a cluster suit a single server
            first.server.send_signal(signal.SIGCONT)
            await wait_until(lambda: _answers(store), seconds=10)
            assert store.is_cluster
            for number in range(20):
                assert await store.run_script(MARK, [f"key:{number}"], [number]) == 1


async def _play_http(stream: trio.SocketStream) -> None:
    async for _ in stream:
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")


async def _play_full(stream: trio.SocketStream) -> None:
    await stream.send_all(b"-ERR max number of clients reached\r\n")


async def test_what_cannot_mend_itself_is_an_error_at_start(tmp_path: Path) -> None:
    """A wrong password or database, or something else than Redis, is raised, although the store may be away."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)

    async def play_tls(stream: trio.SocketStream) -> None:
        await trio.SSLStream(stream, context, server_side=True).do_handshake()

    with run_redis_server(tmp_path, "--requirepass", "right") as server:
        async with open_raw_server(_play_http) as http_port, open_raw_server(play_tls) as tls_port:
            for url, match in (
                (f"unix://:wrong@{server.path}", "WRONGPASS"),
                (f"unix://{server.path}", "NOAUTH"),
                (f"unix://:right@{server.path}?db=99", "DB index is out of range"),
                (f"redis://127.0.0.1:{http_port}", "does not speak Redis's protocol"),
                (f"rediss://127.0.0.1:{tls_port}", "the certificate is not valid"),
            ):
                with pytest.raises(StoreRefused, match=match):
                    async with open_redis(url, timeout_seconds=PATIENT, may_be_away=True):
                        raise AssertionError("opened")


@pytest.mark.parametrize("play", [_play_full, trio.aclose_forcefully])
async def test_what_may_pass_is_waited_for(play: Callable[[trio.SocketStream], Awaitable[None]]) -> None:
    """A server with too many clients, or one that drops connections, may serve a moment later."""
    async with open_raw_server(play) as port, open_redis(f"redis://127.0.0.1:{port}", may_be_away=True) as store:
        assert store.statistics().links_up == 0
