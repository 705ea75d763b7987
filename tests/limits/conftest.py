"""A real server for the limits' tests, emptied before each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from tests.support.limit_store import LimitStore
from tests.support.redis_server import RedisServer, run_redis_server


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One server for all tests of this package."""
    with run_redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def server(shared_server: RedisServer, client: redis.Redis) -> RedisServer:
    """Return the server, emptied."""
    client.flushall()
    return shared_server


@pytest.fixture(scope="session")
def client(shared_server: RedisServer) -> Iterator[redis.Redis]:
    """A redis-py client, independent of cgw's own."""
    with redis.Redis(unix_socket_path=str(shared_server.path)) as connected:
        yield connected


@pytest.fixture(scope="module")
def store(client: redis.Redis) -> LimitStore:
    """Return the scripts on the server, with a clock to set."""
    return LimitStore(client)
