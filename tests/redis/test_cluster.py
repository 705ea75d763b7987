"""A cluster: each call reaches the node that serves its slot, also while slots move."""

from __future__ import annotations

import random
import re
import signal
import ssl
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import trio
import trustme
from redis.crc import key_slot
from redis.exceptions import ResponseError

from cgw.errors import StoreUnavailable
from cgw.redis import cluster_store
from cgw.redis.opening import LuaScript, ScriptCall, Store, open_redis
from tests.support.raw_server import open_raw_server
from tests.support.redis_cluster import (
    ClusterNode,
    RedisCluster,
    find_free_ports,
    find_node_ports,
    run_cluster_node,
    run_redis_cluster,
)
from tests.support.redis_server import wait_until

PATIENT = 5.0
"""The deadline in tests that are not about deadlines: long, so that a busy machine does not fail them."""
TIMEOUT = 0.1
GRACE = 0.15
"""The most that a busy machine may add to a deadline before a test fails."""

MARK = LuaScript.from_text("redis.call('SET', KEYS[1], ARGV[1]) return 1")
UNMARK = LuaScript.from_text("return redis.call('DEL', KEYS[1])")
ADD_BOTH = LuaScript.from_text(
    "redis.call('INCRBY', KEYS[1], ARGV[1]) redis.call('INCRBY', KEYS[2], ARGV[1]) return ARGV[1]"
)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    """A cluster for all tests here: each uses keys, and so slots, of its own."""
    with run_redis_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


async def _is_quiet(redis: Store) -> bool:
    await trio.lowlevel.checkpoint()
    statistics = redis.statistics()
    return statistics.waiting_calls == 0 and statistics.kept_calls == 0


async def _has_nodes(redis: Store, count: int) -> bool:
    await trio.lowlevel.checkpoint()
    statistics = redis.statistics()
    return (statistics.links, statistics.links_up) == (count, count)


async def test_address_forms_lead_to_the_whole_cluster(cluster: RedisCluster) -> None:
    """The address of any node, as redis+cluster:// or not, leads to links to all masters, and to all keys."""
    (closed_port,) = find_free_ports(1)
    first, second, _ = cluster.nodes
    for url in (
        cluster.url,
        f"redis+cluster://127.0.0.1:{closed_port},{first.place}",
        f"redis://{second.place}",
        first.server.url,
    ):
        async with open_redis(url, timeout_seconds=PATIENT) as redis:
            store: Store = redis
            assert store.is_cluster
            statistics = store.statistics()
            assert (statistics.links, statistics.links_up) == (3, 3)
            for number in range(20):
                await redis.commands.set(f"form:{number}", number)
                assert await store.run_script(MARK, [f"form:{number}"], [number]) == 1
                assert await redis.commands.get(f"form:{number}") == b"%d" % number
            await store.check()
            assert redis.statistics().redirections == 0


async def test_single_server_is_not_a_cluster(cluster: RedisCluster, tmp_path: Path) -> None:
    """An address that names a cluster where there is a single server is refused in one sentence."""

    async def play(stream: trio.SocketStream) -> None:
        async for data in stream:
            refusal = b"-ERR This instance has cluster support disabled\r\n"
            await stream.send_all(refusal if b"CLUSTER" in data else b"%0\r\n" if b"HELLO" in data else b"+PONG\r\n")

    async with open_raw_server(play) as port:
        with pytest.raises(StoreUnavailable, match="tells no slots of a cluster: it refused us: ERR This instance"):
            async with open_redis(f"redis+cluster://127.0.0.1:{port}"):
                raise AssertionError("opened")


async def test_a_table_that_is_not_redis_is_a_failure_like_any_other() -> None:
    """A node that answers the request for the slots with other bytes is unavailable, and reported in a sentence."""

    async def play(stream: trio.SocketStream) -> None:
        async for data in stream:
            await stream.send_all(b"?\r\n" if b"CLUSTER" in data else b"%0\r\n" if b"HELLO" in data else b"+PONG\r\n")

    async with open_raw_server(play) as port:
        with pytest.raises(StoreUnavailable, match="gave no answer to CLUSTER SLOTS"):
            async with open_redis(f"redis+cluster://127.0.0.1:{port}"):
                raise AssertionError("opened")


async def test_commands_go_by_their_first_key(cluster: RedisCluster) -> None:
    """Commands reach the node of their first key, wherever their syntax has it; those without key, any node."""
    async with open_redis(cluster.url, timeout_seconds=PATIENT) as redis:
        for number in range(10):
            key = f"first:{number}"
            await redis.commands.set(key, number)
            assert await redis.execute_command("OBJECT", "REFCOUNT", key) is not None
            assert await redis.commands.eval("return redis.call('GET', KEYS[1])", 1, key) == b"%d" % number
            assert await redis.execute_command("PING") == b"PONG"
        assert redis.statistics().redirections == 0


async def test_keys_of_several_slots_are_the_callers_error(cluster: RedisCluster) -> None:
    """A call with keys in several slots raises ResponseError, not StoreUnavailable."""
    async with open_redis(cluster.url, timeout_seconds=PATIENT) as redis:
        with pytest.raises(ResponseError, match="CROSSSLOT"):
            await redis.run_script(ADD_BOTH, ["cross:a", "cross:b"], [1])


async def test_moved_slots_are_followed(cluster: RedisCluster) -> None:
    """After a slot has moved, one MOVED is followed, the script is loaded there, and later calls go there directly."""
    async with open_redis(cluster.url, timeout_seconds=PATIENT) as redis:
        key = "moved"
        slot = key_slot(key.encode())
        await redis.commands.set(key, "here")
        source = await cluster.find_owner(slot)
        target = cluster.others(source)[0]
        for node in cluster.nodes:
            await node.ask("SCRIPT", "FLUSH")
        await cluster.move_slot(slot, source, target)
        assert await redis.run_script(MARK, [key], ["there"]) == 1
        assert await redis.commands.get(key) == b"there"
        assert redis.statistics().redirections == 1
        assert await target.ask("GET", key) == b"there"


async def test_one_redirection_renews_the_whole_table(cluster: RedisCluster) -> None:
    """A MOVED makes the slot table be read again: other slots that have moved, too, cost no redirection then."""
    async with open_redis(cluster.url, timeout_seconds=PATIENT) as redis:
        keys = [f"table:{number}" for number in range(4)]
        for key in keys:
            slot = key_slot(key.encode())
            source = await cluster.find_owner(slot)
            await cluster.move_slot(slot, source, cluster.others(source)[0])
        reads = await _count_table_reads(cluster)

        async def is_read() -> bool:
            return await _count_table_reads(cluster) > reads

        await redis.commands.set(keys[0], 1)
        assert redis.statistics().redirections == 1
        await wait_until(is_read)
        await wait_until(partial(_is_quiet, redis))
        for key in keys:
            await redis.commands.set(key, 2)
        assert redis.statistics().redirections == 1


async def _count_table_reads(cluster: RedisCluster) -> int:
    stats = [str(await node.ask("INFO", "commandstats")) for node in cluster.nodes]
    return sum(int(calls) for text in stats for calls in re.findall(r"cmdstat_cluster\|slots:calls=(\d+)", text))


async def test_asked_calls_leave_others_on_the_link_alone(cluster: RedisCluster) -> None:
    """Calls to a slot that is moving use ASKING on a link that other calls share: all get their own replies."""
    async with open_redis(cluster.url, timeout_seconds=PATIENT) as redis:
        slot = key_slot(b"{ask}")
        source = await cluster.find_owner(slot)
        target = cluster.others(source)[0]
        other_key = await _find_key(cluster, target)
        await redis.commands.mset({f"{{ask}}:{number}": number for number in range(20)})
        await cluster.begin_move(slot, source, target)
        await cluster.move_keys(slot, source, target)

        async def read(number: int) -> None:
            assert await redis.commands.get(f"{{ask}}:{number % 20}") == b"%d" % (number % 20)

        async def echo(number: int) -> None:
            script = LuaScript.from_text("return ARGV[1]")
            assert await redis.run_script(script, [other_key], [number]) == b"%d" % number

        async with trio.open_nursery() as callers_nursery:
            for number in range(100):
                callers_nursery.start_soon(read, number)
                callers_nursery.start_soon(echo, number)
        assert redis.statistics().redirections == 100
        await cluster.end_move(slot, target)
        await read(0)
        assert redis.statistics().redirections == 101
        await wait_until(partial(_is_quiet, redis))


async def _find_key(cluster: RedisCluster, node: ClusterNode) -> str:
    """Return a key whose slot this node serves."""
    number = 0
    while await cluster.find_owner(key_slot(b"key:%d" % number)) is not node:
        number += 1
    return f"key:{number}"


async def test_call_with_keys_on_two_nodes_is_retried(cluster: RedisCluster) -> None:
    """A script whose keys are on two nodes is retried until the move is over, or fails at its deadline."""
    keys = ["{torn}:a", "{torn}:b"]
    slot = key_slot(b"{torn}")
    async with (
        open_redis(cluster.url, timeout_seconds=PATIENT) as redis,
        open_redis(cluster.url, timeout_seconds=TIMEOUT) as hasty,
    ):
        await redis.run_script(ADD_BOTH, keys, [5])
        source = await cluster.find_owner(slot)
        target = cluster.others(source)[1]
        await cluster.begin_move(slot, source, target)
        assert await cluster.move_keys(slot, source, target, most=1) == 1
        started = trio.current_time()
        with pytest.raises(StoreUnavailable, match="TRYAGAIN"):
            await hasty.run_script(ADD_BOTH, keys, [1])
        assert TIMEOUT <= trio.current_time() - started < TIMEOUT + GRACE
        assert (hasty.statistics().timeouts, hasty.statistics().cancelled) == (1, 0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(redis.run_script, ADD_BOTH, keys, [2])

            async def has_retried() -> bool:
                await trio.lowlevel.checkpoint()
                return redis.statistics().retries > 2

            await wait_until(has_retried)
            await cluster.move_keys(slot, source, target)
            await cluster.end_move(slot, target)
        assert await redis.commands.mget(keys) == [b"7", b"7"]


async def test_undo_follows_its_slot(cluster: RedisCluster) -> None:
    """A cancelled call is undone wherever its slot is by then: only calls that had a reply leave a mark."""
    slot = key_slot(b"{undo}")
    done: set[bytes] = set()

    async def mark(redis: Store, number: int) -> None:
        key = f"{{undo}}:{number}"
        dice = random.Random(number)
        with trio.move_on_after(dice.random() * 0.004):
            await redis.run_script(MARK, [key], [1], undo=ScriptCall(UNMARK, [key], []))
            done.add(key.encode())

    async with open_redis(cluster.url, timeout_seconds=PATIENT) as redis:
        source = await cluster.find_owner(slot)
        target = cluster.others(source)[0]
        await cluster.begin_move(slot, source, target)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_move_all, cluster, redis, slot)
            for number in range(400):
                nursery.start_soon(mark, redis, number)
                if number % 20 == 0:
                    await trio.sleep(0.002)  # spread over the move
        await redis.commands.echo("x")
        await wait_until(partial(_is_quiet, redis))
        left = await target.ask("CLUSTER", "GETKEYSINSLOT", slot, 1_000)
        assert isinstance(left, list)
        assert set(left) == done
        assert 0 < len(done) < 400
        assert redis.statistics().cancelled > 0


async def _move_all(cluster: RedisCluster, redis: Store, slot: int) -> None:
    source = await cluster.find_owner(slot)
    target = cluster.others(source)[0]
    for _ in range(10):
        await cluster.move_keys(slot, source, target)
    while await cluster.move_keys(slot, source, target):
        pass
    await cluster.end_move(slot, target)


async def test_posted_call_follows_its_slot(cluster: RedisCluster) -> None:
    """A posted call follows its slot: by MOVED, by ASK, and after TRYAGAIN."""
    keys = ["{post}:a", "{post}:b"]
    slot = key_slot(b"{post}")

    async def counts_to(redis: Store, number: int) -> bool:
        return bool(await redis.commands.mget(keys) == [b"%d" % number] * 2)

    async with open_redis(cluster.url, timeout_seconds=PATIENT) as redis:
        await redis.run_script(ADD_BOTH, keys, [1])
        source = await cluster.find_owner(slot)
        target = cluster.others(source)[0]
        await cluster.move_slot(slot, source, target)
        redis.send_later(ScriptCall(ADD_BOTH, keys, [1]))
        await wait_until(lambda: counts_to(redis, 2))
        await cluster.begin_move(slot, target, source)
        await cluster.move_keys(slot, target, source, most=1)
        redis.send_later(ScriptCall(ADD_BOTH, keys, [1]))

        async def is_kept() -> bool:
            await trio.lowlevel.checkpoint()
            return redis.statistics().kept_calls == 1

        await wait_until(is_kept)
        await cluster.move_keys(slot, target, source)
        await wait_until(lambda: counts_to(redis, 3))
        redis.send_later(ScriptCall(ADD_BOTH, keys, [1]))
        await wait_until(lambda: counts_to(redis, 4))
        await cluster.end_move(slot, source)
        await wait_until(lambda: counts_to(redis, 4))


async def test_nodes_come_and_go(cluster: RedisCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that gets its first slot gets a link when a call is redirected to it; without slots it loses the link."""
    monkeypatch.setattr(cluster_store, "_RETIRE_SECONDS", 0.05)
    slot = key_slot(b"{guest}")
    async with open_redis(cluster.url, timeout_seconds=1) as redis:
        await redis.commands.set("{guest}", "kept")
        home = await cluster.find_owner(slot)
        with run_cluster_node(tmp_path / "g", *find_node_ports(1)) as guest:
            await cluster.nodes[0].ask("CLUSTER", "MEET", "127.0.0.1", guest.port)

            async def know_guest() -> bool:
                views = [str(await node.ask("CLUSTER", "NODES")) for node in cluster.nodes]
                own = await guest.ask("CLUSTER", "INFO")
                return all(guest.id in view for view in views) and "cluster_state:ok" in str(own)

            await wait_until(know_guest, seconds=10)
            await cluster.move_slot(slot, home, guest)
            assert await redis.commands.get("{guest}") == b"kept"
            await wait_until(partial(_has_nodes, redis, 4))
            await cluster.move_slot(slot, guest, home)
            assert await redis.commands.get("{guest}") == b"kept"
            await wait_until(partial(_has_nodes, redis, 3))
        for node in cluster.nodes:
            await node.ask("CLUSTER", "FORGET", guest.id)


async def test_check_asks_every_master(cluster: RedisCluster) -> None:
    """One master that does not answer makes the check fail within the deadline; the others' keys are still served."""
    async with open_redis(cluster.url, timeout_seconds=TIMEOUT) as redis:
        stopped = cluster.nodes[2]
        key = await _find_key(cluster, cluster.nodes[0])
        stopped.server.send_signal(signal.SIGSTOP)
        try:
            started = trio.current_time()
            with pytest.raises(StoreUnavailable, match="silent"):
                await redis.check()
            assert trio.current_time() - started < TIMEOUT + GRACE
            assert await redis.commands.set(key, 1) == b"OK"
        finally:
            stopped.server.send_signal(signal.SIGCONT)

        async def is_well() -> bool:
            try:
                await redis.check()
            except StoreUnavailable:
                return False
            return True

        await wait_until(is_well)


async def test_redirection_without_host_is_to_the_node_that_sent_it() -> None:
    """Nodes that don't know their own address send only ports: the host is that of the node that was asked."""
    asked: list[bytes] = []

    async def play_second(stream: trio.SocketStream) -> None:
        async for data in stream:
            asked.append(bytes(data))
            await stream.send_all(_greet(bytes(data)) or b"$4\r\nhere\r\n")

    async def play_first(second_port: int, stream: trio.SocketStream) -> None:
        port = stream.socket.getsockname()[1]
        async for data in stream:
            table = b"*1\r\n*3\r\n:0\r\n:16383\r\n*3\r\n$-1\r\n:%d\r\n$2\r\nid\r\n" % port
            reply = table if b"CLUSTER" in data else b"-MOVED 12182 :%d\r\n" % second_port
            await stream.send_all(_greet(bytes(data)) or reply)

    async with (
        open_raw_server(play_second) as second_port,
        open_raw_server(partial(play_first, second_port)) as port,
        open_redis(f"redis://127.0.0.1:{port}", timeout_seconds=PATIENT) as redis,
    ):
        assert redis.is_cluster
        assert await redis.commands.get("foo") == b"here"
    assert asked[-1] == b"*2\r\n$3\r\nGET\r\n$3\r\nfoo\r\n"


async def test_announced_host_names_are_verified(tmp_path: Path) -> None:
    """Over TLS the certificate of a node must be valid for the host name that the cluster announces for it."""
    authority = trustme.CA()
    trusted = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(trusted))
    place: list[bytes] = []

    async def play(name: str, raw: trio.SocketStream) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(name).configure_cert(context)
        stream = trio.SSLStream(raw, context, server_side=True)
        async for data in stream:
            table = b"*1\r\n*3\r\n:0\r\n:16383\r\n*3\r\n$9\r\nlocalhost\r\n:%s\r\n$2\r\nid\r\n" % place[-1]
            await stream.send_all(_greet(bytes(data)) or (table if b"CLUSTER" in data else b"$4\r\nhere\r\n"))

    async with (
        open_raw_server(partial(play, "localhost")) as named_port,
        open_raw_server(partial(play, "127.0.0.1")) as seed_port,
    ):
        url = f"rediss+cluster://127.0.0.1:{seed_port}?ssl_ca_certs={trusted}"
        place.append(b"%d" % named_port)
        async with open_redis(url, timeout_seconds=PATIENT) as redis:
            assert await redis.commands.get("foo") == b"here"
        place.append(b"%d" % seed_port)  # whose certificate is for the address only
        with pytest.raises(StoreUnavailable, match=f"nodes can be reached: localhost:{seed_port}"):
            async with open_redis(url, timeout_seconds=PATIENT, connect_timeout_seconds=0.5):
                raise AssertionError("opened")


def _greet(data: bytes) -> bytes | None:
    if b"HELLO" in data:
        return b"%1\r\n$4\r\nmode\r\n$7\r\ncluster\r\n"
    return b"+PONG\r\n" if b"PING" in data else None
