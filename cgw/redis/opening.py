"""Redis from Trio: one connection per process and server, shared by all tasks.

:func:`open_redis` owns the links: a supervisor replaces each one that goes down, so that a caller has its reply
within the deadline, or an error at once while there is no link.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import trio

from cgw.errors import ConfigError, StoreRefused, StoreUnavailable
from cgw.lifetime import open_background_task
from cgw.redis.address import ClusterAddress, SentinelAddress, StoreAddress, parse_store_url
from cgw.redis.awaited_store import AwaitedStore
from cgw.redis.cluster_store import ClusterStore
from cgw.redis.handshake import RedisConnection, connect
from cgw.redis.linked_store import LinkedStore
from cgw.redis.lua import LuaScript, ScriptCall
from cgw.redis.sentinel import MasterFinder
from cgw.redis.server_store import ServerStore
from cgw.redis.store import RedisStatistics, Store

__all__ = [
    "LuaScript",
    "RedisStatistics",
    "ScriptCall",
    "Store",
    "open_redis",
]


@asynccontextmanager
async def open_redis(
    url: str, *, timeout_seconds: float = 0.1, connect_timeout_seconds: float = 1.0, may_be_away: bool = False
) -> AsyncIterator[Store]:
    """Connect to the store at ``url`` (to each master of a cluster) and keep the links up for the block.

    ``url`` is as in :func:`~cgw.redis.address.parse_store_url`; a cluster behind the address of one server is
    detected. ``timeout_seconds`` is the deadline of each call; ``connect_timeout_seconds`` is that of connecting,
    authenticating and waiting for a server that is loading its data.

    Raises :exc:`~cgw.errors.ConfigError` for a wrong address, and :exc:`~cgw.errors.StoreUnavailable`, with one
    sentence that names the server, when it can't be reached or refuses the connection. With ``may_be_away``, it is
    raised only for what trying again does not mend (:exc:`~cgw.errors.StoreRefused`: a wrong password, no such
    database, something else than Redis); otherwise calls fail until the store is there. When the block is cancelled
    from outside, the links stay up until it has ended, for its shielded cleanup.
    """
    try:
        address = parse_store_url(url)
    except ValueError as error:
        raise ConfigError([str(error)]) from error
    # Before the block begins, so that a wrong address or password is an error at start instead of an outage.
    connect_store = partial(_connect_store, address, timeout_seconds, connect_timeout_seconds)
    store: LinkedStore | AwaitedStore
    try:
        store = await connect_store()
    except StoreUnavailable as error:
        if not may_be_away or isinstance(error, StoreRefused):
            raise
        store = AwaitedStore(connect_store, error)
    async with open_background_task(store.run):
        if isinstance(store, ClusterStore):
            # The links of a cluster are connected by run(); that of a single server is up already.
            await _wait_up(store, may_be_away=may_be_away)
        yield store


async def _wait_up(cluster: ClusterStore, *, may_be_away: bool) -> None:
    try:
        await cluster.wait_up()
    except StoreUnavailable:
        if not may_be_away:
            raise


async def _connect_store(address: StoreAddress, timeout_seconds: float, connect_timeout_seconds: float) -> LinkedStore:
    if isinstance(address, ClusterAddress):
        cluster = ClusterStore(address, timeout_seconds, connect_timeout_seconds)
        await cluster.load_slots()
        return cluster
    if isinstance(address, SentinelAddress):
        finder = MasterFinder(address, timeout_seconds)
        first = await finder.connect(connect_timeout_seconds)
        return ServerStore(finder.display_name, finder.connect, first, timeout_seconds, connect_timeout_seconds)

    async def connect_server(seconds: float) -> RedisConnection:
        return await connect(address, seconds, timeout_seconds)

    first = await connect_server(connect_timeout_seconds)
    if first.mode == "cluster":
        cluster = ClusterStore(ClusterAddress((address,)), timeout_seconds, connect_timeout_seconds)
        # Only the reply to HELLO tells that the server belongs to a cluster: its URL looks the same.
        await cluster.load_slots(first)
        return cluster
    if first.mode == "sentinel":
        await trio.aclose_forcefully(first.stream)
        raise StoreRefused(
            f"there is a Sentinel at {address.display_name}: write redis+sentinel://host:port/service instead"
        )
    return ServerStore(address.display_name, connect_server, first, timeout_seconds, connect_timeout_seconds)
