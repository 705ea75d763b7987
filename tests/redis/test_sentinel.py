"""Finding the master through Sentinels: the order of asking, the check of the role, and the errors."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest
import trio

from cgw.errors import StoreUnavailable
from cgw.redis.address import SentinelAddress, parse_store_url
from cgw.redis.opening import Store, open_redis
from cgw.redis.sentinel import MasterFinder
from tests.support.raw_server import open_raw_server
from tests.support.redis_cluster import find_free_ports
from tests.support.redis_sentinel import SERVICE, run_sentinel_group

PATIENT = 5.0
SECRET = "s3cr3t-password"
WATCH_SECRET = "watch-password"

_GREETING = b"%2\r\n$4\r\nmode\r\n$10\r\nstandalone\r\n$4\r\nrole\r\n$6\r\nmaster\r\n"


def _name_master(port: int) -> bytes:
    return b"*2\r\n$9\r\n127.0.0.1\r\n$%d\r\n%d\r\n" % (len(str(port)), port)


async def _play(answer: Callable[[bytes], bytes], stream: trio.SocketStream) -> None:
    async for data in stream:
        await stream.send_all(answer(bytes(data)))


def _answer_as(reply: bytes, data: bytes, greeting: bytes = _GREETING) -> bytes:
    return greeting if b"HELLO" in data else b"+PONG\r\n" if b"PING" in data else reply


def _serve(reply: bytes, greeting: bytes = _GREETING) -> Callable[[trio.SocketStream], Awaitable[None]]:
    return partial(_play, lambda data: _answer_as(reply, data, greeting))


async def test_real_sentinels_lead_to_the_master(tmp_path: Path) -> None:
    """The master is found with different passwords for it and the Sentinels, also when one Sentinel is down."""
    login = ("--requirepass", SECRET, "--masterauth", SECRET)
    lines = f"sentinel auth-pass {SERVICE} {SECRET}\nrequirepass {WATCH_SECRET}"
    (closed_port,) = find_free_ports(1)
    async with run_sentinel_group(
        tmp_path, server_options=login, sentinel_lines=lines, sentinel_password=WATCH_SECRET
    ) as group:
        place = f"127.0.0.1:{closed_port},127.0.0.1:{group.sentinels[0].port}"
        url = f"redis+sentinel://:{SECRET}@{place}/{SERVICE}/2?sentinel_password={WATCH_SECRET}"
        async with open_redis(url, timeout_seconds=PATIENT) as redis:
            store: Store = redis
            assert not store.is_cluster
            await store.check()
            assert redis.statistics().links_up == 1
            info = str(await redis.execute_command("CLIENT INFO"))
            assert "db=2" in info
            assert f"laddr=127.0.0.1:{group.master.port}" in info
        with pytest.raises(StoreUnavailable, match="WRONGPASS") as refused:
            async with open_redis(url.replace(WATCH_SECRET, "wrong-one"), timeout_seconds=PATIENT):
                raise AssertionError("opened")
        assert "wrong-one" not in str(refused.value)


async def test_plain_address_of_a_sentinel_is_refused() -> None:
    """An address without +sentinel that leads to a Sentinel is refused with the form to write."""
    greeting = b"%1\r\n$4\r\nmode\r\n$8\r\nsentinel\r\n"
    async with open_raw_server(_serve(b"+OK\r\n", greeting)) as port:
        with pytest.raises(
            StoreUnavailable, match=r"there is a Sentinel at 127\.0\.0\.1:\d+: write redis\+sentinel://"
        ):
            async with open_redis(f"redis://127.0.0.1:{port}"):
                raise AssertionError("opened")


async def test_silent_sentinel_is_skipped() -> None:
    """A Sentinel that accepts and sends nothing costs 0.4 s once; later the one that answered is asked first."""
    connections = 0

    async def say_nothing(_: trio.SocketStream) -> None:
        nonlocal connections
        connections += 1
        await trio.sleep_forever()

    async with (
        open_raw_server(say_nothing) as silent_port,
        open_raw_server(_serve(b"+OK\r\n")) as master_port,
        open_raw_server(_serve(_name_master(master_port))) as sentinel_port,
    ):
        started = trio.current_time()
        address = parse_store_url(f"redis+sentinel://127.0.0.1:{silent_port},127.0.0.1:{sentinel_port}/{SERVICE}")
        assert isinstance(address, SentinelAddress)
        finder = MasterFinder(address, timeout_seconds=0.1)
        for _ in range(3):
            connection = await finder.connect(1)
            await trio.aclose_forcefully(connection.stream)
        assert 0.4 <= trio.current_time() - started < 0.9
        assert connections == 1


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (b"_\r\n", "knows no service mymaster"),
        (b"-NOPERM no permission\r\n", "refused us: NOPERM no permission"),
        (b"+OK\r\n", "sent a reply of an unexpected form"),
        (b"*1\r\n$1\r\nx\r\n", "sent a reply of an unexpected form"),
    ],
)
async def test_sentinel_that_knows_no_master(reply: bytes, reason: str) -> None:
    """A Sentinel that does not name a master is reported in one sentence with its address and the reason."""
    async with open_raw_server(_serve(reply)) as port:
        with pytest.raises(StoreUnavailable, match=rf"no Sentinel knows the master: .*127\.0\.0\.1:{port} {reason}"):
            async with open_redis(f"redis+sentinel://127.0.0.1:{port}/{SERVICE}"):
                raise AssertionError("opened")


async def test_bytes_that_are_not_redis_are_a_failure_like_any_other() -> None:
    """A Sentinel or master that sends anything else after its handshake is unavailable, and reported in a sentence."""
    garbage, old = b"HTTP/1.1 400 Bad Request\r\n", b"-ERR unknown command\r\n"
    async with (
        open_raw_server(_serve(garbage)) as sentinel_port,
        open_raw_server(_serve(garbage, old)) as master_port,
        open_raw_server(_serve(_name_master(master_port))) as port,
    ):
        for first, reason in ((sentinel_port, "gave no answer"), (port, "gave no answer to ROLE")):
            with pytest.raises(StoreUnavailable, match=reason):
                async with open_redis(f"redis+sentinel://127.0.0.1:{first}/{SERVICE}"):
                    raise AssertionError("opened")


@pytest.mark.parametrize("is_old", [False, True])
async def test_server_that_is_not_the_master_is_refused(is_old: bool) -> None:
    """A server that reports to be a replica is refused, by its HELLO or, without RESP3, by ROLE."""
    greeting = b"-ERR unknown command\r\n" if is_old else _GREETING.replace(b"$6\r\nmaster", b"$7\r\nreplica")
    role = b"*5\r\n$7\r\nreplica\r\n$1\r\nx\r\n:1\r\n$7\r\nconnect\r\n:0\r\n"
    async with (
        open_raw_server(_serve(role, greeting)) as replica_port,
        open_raw_server(_serve(_name_master(replica_port))) as port,
    ):
        with pytest.raises(StoreUnavailable, match=rf"127\.0\.0\.1:{replica_port} is not the master .*: replica"):
            async with open_redis(f"redis+sentinel://127.0.0.1:{port}/{SERVICE}"):
                raise AssertionError("opened")
