"""Drills with figures: Sentinels and clusters lose a master or move slots under load. Show the figures with ``-s``."""

from __future__ import annotations

import signal
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import trio
from redis.crc import key_slot

from cgw.errors import StoreUnavailable
from cgw.redis.opening import LuaScript, open_redis
from tests.support.redis_callers import run_caller_drill
from tests.support.redis_cluster import (
    ClusterNode,
    RedisCluster,
    find_node_ports,
    run_cluster_node,
    run_redis_cluster,
)
from tests.support.redis_sentinel import SERVICE, SentinelGroup, run_sentinel_group
from tests.support.redis_server import ask_server, wait_until

PATIENT = 30.0
MOVERS_KEYS = 40

ADD_BOTH = LuaScript.from_text(
    "local a = redis.call('INCR', KEYS[1]) local b = redis.call('INCR', KEYS[2]) return {a, b, ARGV[1]}"
)


@pytest.mark.parametrize("sentinels", [1, 3])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["kill", "stop"])
async def test_sentinel_failover(tmp_path: Path, sentinels: int, number: signal.Signals) -> None:
    """The master is killed or stopped: a moment after the Sentinels name another, the callers use it."""
    name = f"Sentinel failover, Sentinels: {sentinels}, {number.name}"
    async with run_sentinel_group(tmp_path, sentinels) as group, run_caller_drill(name, group.url) as drill:
        group.master.server.send_signal(number)
        await drill.wait_outage()
        await wait_until(partial(_is_failed_over, group), seconds=20)
        await drill.wait_back()
        if number == signal.SIGSTOP:
            group.master.server.send_signal(signal.SIGCONT)  # the old master is up again: it must not be used
            errors = drill.errors
            await drill.wait_answers(500)
            assert drill.errors == errors


async def test_planned_failover(tmp_path: Path) -> None:
    """SENTINEL FAILOVER: the old master serves until it is made a replica; then all callers use the new one."""

    async def is_demoted() -> bool:
        try:
            return "role:slave" in str(await ask_server(group.master.server.path, "INFO", "replication"))
        # A Sentinel that demotes a master ends all its connections, this one too: at its handshake, or after it.
        except (StoreUnavailable, trio.BrokenResourceError):
            return False

    async with (
        run_sentinel_group(tmp_path) as group,
        run_caller_drill("Sentinel failover, planned", group.url) as drill,
    ):
        await group.ask_sentinel(0, "FAILOVER", SERVICE)
        await wait_until(is_demoted, seconds=20)
        await drill.wait_back()
        reply = await drill.redis.execute_command("INFO", "server")
        assert f"tcp_port:{group.replica.port}" in str(reply)


async def _is_failed_over(group: SentinelGroup) -> bool:
    return await group.find_master_port() == group.replica.port


async def test_slots_move_under_load(tmp_path: Path) -> None:
    """A slot moves back and forth key by key while callers count on two of its keys: each call runs exactly once."""
    with run_redis_cluster(tmp_path) as cluster:
        async with open_redis(cluster.url, timeout_seconds=PATIENT) as redis:
            slot = key_slot(b"{load}")
            await redis.commands.mset({f"{{load}}:filler:{number}": number for number in range(MOVERS_KEYS)})
            counted = [0, 0]
            longest = 0.0

            async def count(caller: int) -> None:
                nonlocal longest
                pair = caller % 2
                keys = [f"{{load}}:{pair}:a", f"{{load}}:{pair}:b"]
                while True:
                    text = f"{caller}-{counted[pair]}"
                    started = trio.current_time()
                    first, second, echo = await redis.run_script(ADD_BOTH, keys, [text])
                    counted[pair] += 1
                    longest = max(longest, trio.current_time() - started)
                    assert (first, echo) == (second, text.encode())

            async with trio.open_nursery() as callers_nursery:
                for caller in range(8):
                    callers_nursery.start_soon(count, caller)
                for _ in range(6):
                    await _move_key_by_key(cluster, slot)
                statistics = redis.statistics()
                callers_nursery.cancel_scope.cancel()
            sys.stdout.write(
                f"\nslot moved 6 times under load: {sum(counted)} calls, {statistics.redirections} redirections, "
                f"{statistics.retries} TRYAGAIN, longest wait {longest * 1000:.0f} ms\n"
            )
            assert statistics.redirections > 0
            assert statistics.retries > 0
            for pair in range(2):
                values = await redis.commands.mget(f"{{load}}:{pair}:a", f"{{load}}:{pair}:b")
                # A call that was cancelled in the end may have counted.
                assert values[0] == values[1]
                assert counted[pair] <= int(values[0] or 0) <= counted[pair] + 4


async def _move_key_by_key(cluster: RedisCluster, slot: int) -> None:
    source = await cluster.find_owner(slot)
    target = cluster.others(source)[0]
    await cluster.begin_move(slot, source, target)
    while await cluster.move_keys(slot, source, target, most=3):  # noqa: ASYNC110 - slowly, on purpose
        await trio.sleep(0.005)
    await trio.sleep(0.02)
    await cluster.end_move(slot, target)


async def test_killed_master_of_a_cluster(tmp_path: Path) -> None:
    """A master without replica is killed: other slots are still served, and its own after it is restarted."""
    with run_redis_cluster(tmp_path) as cluster:
        lost = cluster.nodes[2]
        lost_key, other_key = [await _find_key(cluster, node) for node in (lost, cluster.nodes[0])]
        async with (
            run_caller_drill("cluster, master killed: its slots", cluster.url, key=lost_key) as drill,
            run_caller_drill("cluster, master killed: the others' slots", cluster.url, key=other_key) as others,
        ):
            lost.server.send_signal(signal.SIGKILL)
            lost.server.process.wait()
            await drill.wait_outage()
            await others.wait_answers(500)
            assert others.errors == 0
            with run_cluster_node(tmp_path / "n2", lost.port) as again:
                await wait_until(partial(_takes_writes, again, lost_key), seconds=20)
                await drill.wait_back()
                await others.wait_back()
                assert others.errors == 0


async def test_stopped_master_of_a_cluster(tmp_path: Path) -> None:
    """A master stops for too short for the cluster to notice: its slots are served as soon as it continues."""
    with run_redis_cluster(tmp_path) as cluster:
        key = await _find_key(cluster, cluster.nodes[1])
        async with run_caller_drill("cluster, SIGSTOP 0.5 s of a master", cluster.url, key=key) as drill:
            cluster.nodes[1].server.send_signal(signal.SIGSTOP)
            await trio.sleep(0.5)
            assert drill.errors > 0
            cluster.nodes[1].server.send_signal(signal.SIGCONT)
            await drill.wait_back()


async def test_failover_in_a_cluster(tmp_path: Path) -> None:
    """A master with a replica is killed: a moment after the replica is promoted, the callers use it."""
    with run_redis_cluster(tmp_path) as cluster, run_cluster_node(tmp_path / "r", *find_node_ports(1)) as replica:
        master = cluster.nodes[0]
        await _replicate(replica, master)
        key = await _find_key(cluster, master)
        async with run_caller_drill("cluster failover to a replica", cluster.url, key=key) as drill:
            master.server.send_signal(signal.SIGKILL)
            master.server.process.wait()
            await drill.wait_outage()
            await wait_until(partial(_takes_writes, replica, key), seconds=20)
            recovered_at = trio.current_time()
            # The link to the killed node stays down for a while, so wait_back would wait for it.
            await drill.wait_answers(50)
            drill.back_seconds = trio.current_time() - recovered_at


async def _replicate(replica: ClusterNode, master: ClusterNode) -> None:
    await replica.ask("CLUSTER", "MEET", "127.0.0.1", master.port)

    async def is_replica() -> bool:
        with suppress(Exception):
            await replica.ask("CLUSTER", "REPLICATE", master.id)
        return "master_link_status:up" in str(await replica.ask("INFO", "replication"))

    await wait_until(is_replica, seconds=20)


async def _takes_writes(node: ClusterNode, key: str) -> bool:
    try:
        await node.ask("SET", key, "operator")
    except StoreUnavailable:
        return False
    return True


async def _find_key(cluster: RedisCluster, node: ClusterNode) -> str:
    """Return a key whose slot this node serves."""
    number = 0
    while await cluster.find_owner(key_slot(b"key:%d" % number)) is not node:
        number += 1
    return f"key:{number}"
