"""Five gateways, 2,000 concurrent requests: the limits are exact, on one Redis and on a cluster."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import redis
import trio
from redis.crc import key_slot

from cgw.events.repeats import WINDOW_SECONDS
from tests.support.descriptors import allow_descriptors
from tests.support.limits import read_recorded
from tests.support.redis_cluster import RedisCluster, run_redis_cluster
from tests.support.redis_server import RedisServer, run_redis_server
from tests.support.replicas import (
    GATED_MODEL,
    Caller,
    Crowd,
    GatedUpstream,
    open_gated_upstream,
    open_replicas,
)
from tests.support.waiting import wait_until

REPLICAS = 5
PER_CALLER = 100
CALLERS = [
    *(Caller(f"quota-{number}", 10 + 4 * number, 500) for number in range(15)),
    *(Caller(f"slots-{number}", 900, 3 + 2 * number, GATED_MODEL) for number in range(5)),
]
"""15 actors whose quota runs out, with a slot in flight for each request, and 5 whose slots in flight run out."""
EXPECTED = {caller.id: Counter({200: caller.allowed, 429: PER_CALLER - caller.allowed}) for caller in CALLERS}
LEASES_SECONDS = 1.0

SETTINGS = {
    # The load must not look like an outage; with `closed` an outage would show as 503.
    "CODY_GATEWAY_REDIS_TIMEOUT": "60s",
    "CODY_GATEWAY_LIMITS_WHEN_REDIS_DOWN": "closed",
    # Five processes on one machine are slow: none of the crowd may be shed.
    "CODY_GATEWAY_SHED_TARGET": "0s",
    # Never reached: it only adds the second kind of lease.
    "CODY_GATEWAY_ANTHROPIC_MAX_IN_FLIGHT": "5000",
}


@pytest.fixture(autouse=True)
def enough_descriptors() -> None:
    needed = len(CALLERS) * PER_CALLER + 500
    if allow_descriptors(needed) < needed:
        pytest.skip("needs more file descriptors than the hard limit allows")


async def open_gate(crowd: Crowd, upstream: GatedUpstream) -> None:
    """Let the upstream answer once all refusals have arrived: until then every slot in flight is taken."""
    waiting = sum(caller.allowed for caller in CALLERS if caller.model == GATED_MODEL)
    total = len(CALLERS) * PER_CALLER
    await wait_until(lambda: crowd.answered >= total - waiting or upstream.waiting > waiting, seconds=60)
    upstream.gate.set()


def read_events(folder: Path) -> Counter[tuple[str, object]]:
    """Count what the events of all gateways stand for, by name and cause: repeated refusals share an event."""
    events: Counter[tuple[str, object]] = Counter()
    for number in range(REPLICAS):
        for name, metadata in read_recorded(folder / str(number)):
            events[name, metadata.get("cause")] += metadata.get("count", 1)
    return events


def list_leftovers(clients: list[redis.Redis]) -> list[bytes]:
    """Return the keys of held leases and of reservations that were not settled."""
    leftovers: list[bytes] = []
    for client in clients:
        keys: list[bytes] = list(client.scan_iter("cgw:*", count=1_000))
        leftovers += [key for key in keys if b":reservation:" in key]
        leftovers += [key for key in keys if key.endswith(b":in_flight") and client.zcard(key)]
    return leftovers


async def check_outcome(crowd: Crowd, upstream: GatedUpstream, clients: list[redis.Redis], folder: Path) -> None:
    """Check the outcomes of a crowd: responses, events, charges and leases."""
    assert crowd.outcomes == EXPECTED
    await wait_until(lambda: not list_leftovers(clients), seconds=LEASES_SECONDS)
    allowed = sum(caller.allowed for caller in CALLERS)
    assert upstream.answered == allowed
    usage = {}
    async with httpx.AsyncClient(base_url=crowd.gateways[0].url) as client:
        for caller in CALLERS:
            answer = await client.get("/v1/limits", headers={"authorization": f"Bearer {caller.token}"})
            usage[caller.id] = answer.json()["chat_completions"]["usage"]
    assert usage == {caller.id: caller.allowed for caller in CALLERS}
    by_quota = sum(PER_CALLER - caller.allowed for caller in CALLERS if caller.model != GATED_MODEL)
    by_slots = sum(PER_CALLER - caller.allowed for caller in CALLERS if caller.model == GATED_MODEL)
    expected = {
        ("CompletionsFinished", None): allowed,
        ("RateLimited", "quota"): by_quota,
        ("RateLimited", "in_flight"): by_slots,
    }
    with trio.move_on_after(2 * WINDOW_SECONDS):
        while read_events(folder) != expected:  # noqa: ASYNC110 - of other processes
            await trio.sleep(0.1)
    assert read_events(folder) == expected


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """One Redis for all gateways."""
    with run_redis_server(tmp_path) as server:
        yield server


async def test_five_processes_on_one_redis(tmp_path: Path, server: RedisServer) -> None:
    """Each of 20 actors gets exactly its limits, by quota and in flight; 1 s later no lease is held."""
    settings = {"REDIS_ENDPOINT": server.url, **SETTINGS}
    async with (
        open_gated_upstream() as upstream,
        open_replicas(tmp_path, REPLICAS, CALLERS, upstream.url, settings) as gateways,
        trio.open_nursery() as nursery,
    ):
        crowd = Crowd(CALLERS, gateways, PER_CALLER)
        nursery.start_soon(open_gate, crowd, upstream)
        await crowd.run()
        with redis.Redis(unix_socket_path=str(server.path)) as client:
            await check_outcome(crowd, upstream, [client], tmp_path)
    sys.stdout.write(f"\n{crowd}\n")


def count_redirections(clients: list[redis.Redis]) -> Counter[str]:
    """Count the MOVED and ASK replies of all nodes."""
    redirections: Counter[str] = Counter()
    for client in clients:
        for name, statistic in client.info("errorstats").items():
            redirections[name.removeprefix("errorstat_")] += statistic["count"]
    return redirections


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[RedisCluster]:
    """A cluster of three masters."""
    with run_redis_cluster(tmp_path) as cluster:
        yield cluster


MOVED = [CALLERS[0], CALLERS[14], CALLERS[16]]
"""Actors whose cluster slots move to another node amid the crowd; the last one holds leases meanwhile."""


async def move_slots(cluster: RedisCluster, crowd: Crowd) -> list[int]:
    """Move the cluster slots of :data:`MOVED`, few keys at a time; return how many keys each had."""
    counts = []
    for number, caller in enumerate(MOVED):
        slot = key_slot(caller.hash_tag.encode())
        source = await cluster.find_owner(slot)
        target = cluster.others(source)[0]
        await wait_until(lambda at_least=100 + 400 * number: crowd.answered >= at_least, seconds=60)  # type: ignore[misc]
        await cluster.begin_move(slot, source, target)
        moved = 0
        while count := await cluster.move_keys(slot, source, target, most=2):
            moved += count
        await cluster.end_move(slot, target)
        assert await cluster.find_owner(slot) is target
        counts.append(moved)
    return counts


async def test_five_processes_on_a_cluster_whose_slots_move(tmp_path: Path, cluster: RedisCluster) -> None:
    """On three nodes whose slots move meanwhile, the limits are just as exact, without any 503."""
    settings = {"REDIS_ENDPOINT": cluster.url, **SETTINGS}
    moved: list[int] = []
    async with (
        open_gated_upstream() as upstream,
        open_replicas(tmp_path, REPLICAS, CALLERS, upstream.url, settings) as gateways,
        trio.open_nursery() as nursery,
    ):
        crowd = Crowd(CALLERS, gateways, PER_CALLER)

        async def move() -> None:
            moved.extend(await move_slots(cluster, crowd))
            await open_gate(crowd, upstream)

        nursery.start_soon(move)
        await crowd.run()
        clients = [redis.Redis(unix_socket_path=str(node.server.path)) for node in cluster.nodes]
        try:
            await check_outcome(crowd, upstream, clients, tmp_path)
            redirections = count_redirections(clients)
        finally:
            for client in clients:
                client.close()
    sys.stdout.write(f"\nkeys moved: {moved}; {dict(redirections)}; {crowd}\n")
    assert min(moved) > 0
    assert redirections["MOVED"] > 0
