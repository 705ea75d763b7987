"""redis-py's command methods on a store, on a real server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import NoScriptError, ResponseError

from cgw.redis.opening import Store, open_redis
from tests.support.redis_server import run_redis_server


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """A store on a server of the test's own, with a deadline that a busy machine keeps."""
    with run_redis_server(tmp_path) as server:
        async with open_redis(server.url, timeout_seconds=5) as store:
            yield store


async def test_values_expire_and_are_deleted(store: Store) -> None:
    """SET with an expiry, GET, PTTL and DEL give the server's own replies."""
    commands = store.commands
    assert await commands.set("name", "value", px=60_000) == b"OK"
    assert await commands.get("name") == b"value"
    assert 0 < await commands.pttl("name") <= 60_000
    assert await commands.set("name", "other", nx=True) is None
    assert await commands.delete("name") == 1
    assert await commands.get("name") is None


async def test_keys_are_scanned(store: Store) -> None:
    """SCAN page by page finds every matching key, without a pipeline."""
    expected = {f"scan:{number}" for number in range(50)}
    await store.commands.mset(dict.fromkeys(expected, "x") | {"other": "x"})
    found: set[str] = set()
    cursor = 0
    while True:
        reply: Any = await store.commands.scan(cursor, match="scan:*", count=10)  # bytes, not as annotated
        found.update(key.decode() for key in reply[1])
        cursor = int(reply[0])
        if cursor == 0:
            break
    assert found == expected


async def test_methods_that_need_an_encoder(store: Store) -> None:
    """ACL SETUSER, which encodes its arguments itself, finds the encoder that it asks its client for."""
    await store.commands.acl_setuser("reader", enabled=True, passwords="+sécret", commands=["+get"])
    assert await store.commands.acl_users() == [b"default", b"reader"]


async def test_error_replies_are_raised(store: Store) -> None:
    """An error reply to a method is raised as for any command of the store."""
    await store.commands.set("text", "x")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await store.commands.lpush("text", "y")
    with pytest.raises(NoScriptError):
        await store.commands.evalsha("0" * 40, 0)


async def test_methods_that_need_a_connection_of_their_own_are_refused(store: Store) -> None:
    """A blocking method raises ValueError before anything is sent."""
    with pytest.raises(ValueError, match="shared"):
        await store.commands.blpop(["list"], timeout=1)
