"""Redis from Trio: one or two connections per process and node, shared by all tasks.

:func:`open_redis` owns the links: each has a supervisor that replaces it when it breaks, so that a caller either
has its answer within the deadline or knows at once that there is none. The commands themselves are redis-py's.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import trio

from cgw.errors import ConfigError, StoreUnavailable
from cgw.lifetime import open_background_task
from cgw.redis.address import ClusterAddress, RedisAddress, SentinelAddress, parse_redis_url, parse_store_url
from cgw.redis.cluster import RedisCluster
from cgw.redis.handshake import RedisConnection, connect
from cgw.redis.link import LuaScript, ScriptCall
from cgw.redis.link_set import Connect
from cgw.redis.sentinel import MasterFinder
from cgw.redis.shared import MAX_KEPT_CALLS, Redis
from cgw.redis.single import RedisServer
from cgw.redis.store import RedisStatistics, Store

__all__ = [
    "MAX_KEPT_CALLS",
    "LuaScript",
    "Redis",
    "RedisStatistics",
    "ScriptCall",
    "Store",
    "open_redis",
    "parse_redis_url",
    "parse_store_url",
]


@attrs.frozen
class _Allowances:
    """How many links to each server, and how long calls and connecting may take."""

    links: int
    timeout_seconds: float
    connect_timeout_seconds: float


@asynccontextmanager
async def open_redis(
    url: str, *, links: int = 1, timeout_seconds: float = 0.1, connect_timeout_seconds: float = 1.0
) -> AsyncIterator[Redis]:
    """Connect ``links`` links to the store at ``url`` (to each master of a cluster) and keep them up for the block.

    ``url`` is as in :func:`~cgw.redis.address.parse_store_url`; a cluster behind the address of one server
    is noticed. ``timeout_seconds`` is the deadline of each call, ``connect_timeout_seconds`` that of connecting,
    authenticating and waiting for a server that is loading. Raises :exc:`~cgw.errors.ConfigError` for a wrong
    address and :exc:`~cgw.errors.StoreUnavailable`, with one sentence naming the server, when it can't be reached or
    refuses us. When the block is cancelled from outside, the links stay up until it has ended, for its shielded
    cleanup.
    """
    try:
        address = parse_store_url(url)
    except ValueError as error:
        raise ConfigError([str(error)]) from error
    redis = await _find_store(address, _Allowances(links, timeout_seconds, connect_timeout_seconds))
    async with open_background_task(redis.run):
        if isinstance(redis, RedisCluster):
            await redis.wait_up()
        yield redis


async def _find_store(address: RedisAddress | ClusterAddress | SentinelAddress, allowances: _Allowances) -> Redis:
    if isinstance(address, ClusterAddress):
        return await _build_cluster(address, allowances, None)
    if isinstance(address, SentinelAddress):
        finder = MasterFinder(address, allowances.timeout_seconds)
        return await _build_server(finder.display_name, finder.connect, allowances, [])

    async def connect_server(seconds: float) -> RedisConnection:
        return await connect(address, seconds, allowances.timeout_seconds)

    first = await connect_server(allowances.connect_timeout_seconds)
    if first.mode == "cluster":
        return await _build_cluster(ClusterAddress((address,)), allowances, first)
    if first.mode == "sentinel":
        await trio.aclose_forcefully(first.stream)
        raise StoreUnavailable(f"there is a Sentinel at {address.display_name}: say redis+sentinel://host:port/service")
    return await _build_server(address.display_name, connect_server, allowances, [first])


async def _build_cluster(
    address: ClusterAddress, allowances: _Allowances, first: RedisConnection | None
) -> RedisCluster:
    cluster = RedisCluster(address, allowances.links, allowances.timeout_seconds, allowances.connect_timeout_seconds)
    await cluster.look_up(first)
    return cluster


async def _build_server(
    display_name: str, connect_server: Connect, allowances: _Allowances, connections: list[RedisConnection]
) -> RedisServer:
    try:
        while len(connections) < allowances.links:
            connections.append(await connect_server(allowances.connect_timeout_seconds))
    except BaseException:
        for connection in connections:
            await trio.aclose_forcefully(connection.stream)
        raise
    server = RedisServer(
        display_name,
        connect_server,
        allowances.links,
        allowances.timeout_seconds,
        allowances.connect_timeout_seconds,
    )
    server.put_up(connections)
    return server
