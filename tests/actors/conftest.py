"""A real Redis and the scripted services for the tests of cached sources."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Iterator

import pytest
import redis

from cgw.testing.scripted_portal import ScriptedPortal, open_scripted_portal
from cgw.testing.scripted_sourcegraph import ScriptedSourcegraph, open_scripted_sourcegraph
from tests.support.redis_server import RedisServer, run_redis_server
from tests.support.sources import SourceBench, open_source_bench


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One server for all tests of this package."""
    with run_redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def client(shared_server: RedisServer) -> Iterator[redis.Redis]:
    """A redis-py client, independent of cgw's own, of the server, which is emptied."""
    with redis.Redis(unix_socket_path=str(shared_server.path)) as connected:
        connected.flushall()
        yield connected


@pytest.fixture(scope="session")
def tls_context() -> ssl.SSLContext:
    """The system's certificates, read once: that takes 100 ms."""
    return ssl.create_default_context()


@pytest.fixture
async def bench(
    shared_server: RedisServer, client: redis.Redis, tls_context: ssl.SSLContext
) -> AsyncIterator[SourceBench]:
    """What sources share."""
    async with open_source_bench(shared_server.url, tls_context) as bench:
        yield bench


@pytest.fixture
async def sourcegraph() -> AsyncIterator[ScriptedSourcegraph]:
    """A scripted Sourcegraph.com."""
    async with open_scripted_sourcegraph() as scripted:
        yield scripted


@pytest.fixture
async def portal() -> AsyncIterator[ScriptedPortal]:
    """A scripted Enterprise Portal and SAMS."""
    async with open_scripted_portal() as scripted:
        yield scripted
