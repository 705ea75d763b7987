"""The lock with a fencing token, on real servers."""

from __future__ import annotations

import signal
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio

from cgw.errors import StoreUnavailable
from cgw.redis.lock import WRITTEN_AT_ONCE, Held, Lease, LockLost, Record, RedisLock, build_fence_key
from cgw.redis.opening import Store, open_redis
from tests.support.redis_cluster import run_redis_cluster
from tests.support.redis_server import RedisServer, run_redis_server
from tests.support.waiting import wait_until

NAME = "test-worker"
KEY = "cgw:{records}:one"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server of the test's own."""
    with run_redis_server(tmp_path) as running:
        yield running


@pytest.fixture
async def store(server: RedisServer) -> AsyncIterator[Store]:
    """A store on it, with a deadline that a busy machine keeps."""
    async with open_redis(server.url, timeout_seconds=5) as opened:
        yield opened


def build_lock(store: Store, *, expiry_seconds: float = 60.0) -> RedisLock:
    return RedisLock(store, NAME, expiry_seconds=expiry_seconds)


def check_held(lease: Lease | Held) -> Lease:
    assert isinstance(lease, Lease)
    return lease


async def test_one_owner_at_a_time_and_tokens_grow(store: Store) -> None:
    """While one block holds the lock, others are told how long; the next holder has a larger token."""
    async with build_lock(store).open_lease() as lease:
        async with build_lock(store).open_lease() as other:
            assert isinstance(other, Held)
            assert 0 < other.seconds_left <= 60
        first = check_held(lease).token
    async with build_lock(store).open_lease() as lease:
        assert check_held(lease).token > first


async def test_the_lock_is_extended_while_its_block_runs(store: Store) -> None:
    """A block that takes several times the expiry keeps the lock."""
    async with build_lock(store, expiry_seconds=0.6).open_lease() as lease:
        for _ in range(4):
            await trio.sleep(0.4)
            async with build_lock(store).open_lease() as other:
                assert isinstance(other, Held)
        await check_held(lease).write([Record(KEY, b"value", 60)])
    assert await store.commands.get(KEY) == b"value"


async def test_the_lock_is_given_back_when_the_block_is_cancelled(store: Store) -> None:
    """A service that stops does not make the next holder wait for the expiry."""
    with trio.CancelScope() as scope:
        async with build_lock(store).open_lease() as lease:
            check_held(lease)
            scope.cancel()
            await trio.sleep_forever()
    async with build_lock(store).open_lease() as lease:
        check_held(lease)


async def test_an_error_of_the_block_comes_out_unchanged_and_gives_the_lock_back(store: Store) -> None:
    """The block's own exception is not wrapped in a group."""
    with pytest.raises(ZeroDivisionError):
        async with build_lock(store).open_lease():
            raise ZeroDivisionError
    async with build_lock(store).open_lease() as lease:
        check_held(lease)


async def test_a_paused_holder_cannot_write_after_the_lock_has_moved_on(server: RedisServer, store: Store) -> None:
    """The event loop stands still past the expiry, as in a stopped process; its next write changes nothing."""

    async def take_over() -> None:
        async with open_redis(server.url, timeout_seconds=5) as own_store:
            lock = build_lock(own_store)
            while True:
                async with lock.open_lease() as lease:
                    if isinstance(lease, Held):
                        await trio.sleep(lease.seconds_left)
                        continue
                    # Fences only: the new holder has not come to this record yet.
                    await lease.raise_fences(["records"])
                    return

    async def hold_and_pause() -> None:
        async with build_lock(store, expiry_seconds=0.5).open_lease() as lease:
            await check_held(lease).write([Record(KEY, b"before", 60)])
            other = threading.Thread(target=trio.run, args=(take_over,))
            other.start()
            other.join()  # blocks this thread, and so everything in this event loop
            with pytest.raises(LockLost, match="has passed to another owner"):
                await check_held(lease).write([Record(KEY, b"after the pause", 60)])

    await hold_and_pause()
    assert await store.commands.get(KEY) == b"before"


async def test_a_refused_deletion_leaves_the_record(store: Store) -> None:
    """A record that a later holder has written is not deleted by an earlier one."""
    async with build_lock(store).open_lease() as first:
        old = check_held(first)
    async with build_lock(store).open_lease() as second:
        await check_held(second).write([Record(KEY, b"new", 60)])
        with pytest.raises(LockLost, match=f"token {check_held(second).token} instead of {old.token}"):
            await old.write([Record(KEY, None)])
        await check_held(second).write([Record(KEY, b"newer", 60)])
    assert await store.commands.get(KEY) == b"newer"


async def test_the_block_is_cancelled_when_the_lock_is_seized(store: Store) -> None:
    """Work that takes long ends when another owner has the lock, not when it writes next."""

    async def lose() -> None:
        async with (
            build_lock(store, expiry_seconds=0.6).open_lease(),
            build_lock(store).open_lease(is_seized=True) as other,
        ):
            check_held(other)
            await trio.sleep_forever()

    with trio.fail_after(10), pytest.raises(LockLost, match=NAME):
        await lose()


async def test_the_block_is_cancelled_when_redis_is_away_for_the_expiry(server: RedisServer) -> None:
    """A holder that cannot extend the lock stops by its own clock: another may have it by then."""

    async def lose() -> None:
        async with (
            open_redis(server.url, timeout_seconds=0.1) as store,
            build_lock(store, expiry_seconds=0.6).open_lease(),
        ):
            server.send_signal(signal.SIGSTOP)
            try:
                await trio.sleep_forever()
            finally:
                server.send_signal(signal.SIGCONT)

    with trio.fail_after(20), pytest.raises(LockLost):
        await lose()


async def test_the_lock_survives_an_outage_of_redis_that_is_shorter_than_the_expiry(server: RedisServer) -> None:
    """A failed extension is repeated while the lock is valid."""
    async with (
        open_redis(server.url, timeout_seconds=0.1) as store,
        build_lock(store, expiry_seconds=6).open_lease() as lease,
    ):
        held = check_held(lease)
        valid_until = held.valid_until
        server.send_signal(signal.SIGSTOP)
        await trio.sleep(2.3)  # the extension at 2 s fails
        server.send_signal(signal.SIGCONT)
        await wait_until(lambda: held.valid_until > valid_until)


async def test_a_lock_whose_reply_was_lost_is_given_back(server: RedisServer) -> None:
    """A server that answers too late does not leave the lock to an owner that does not know of it."""
    async with open_redis(server.url, timeout_seconds=0.1) as store:
        server.send_signal(signal.SIGSTOP)
        with pytest.raises(StoreUnavailable):
            await build_lock(store).open_lease().__aenter__()
        server.send_signal(signal.SIGCONT)
    async with open_redis(server.url, timeout_seconds=5) as store:
        with trio.fail_after(5):
            while True:
                async with build_lock(store).open_lease() as lease:
                    if isinstance(lease, Lease):
                        return
                await trio.sleep(0.01)


async def test_tokens_grow_even_when_redis_has_lost_them(store: Store) -> None:
    """After FLUSHALL the next token is larger than those that fences elsewhere have seen."""
    async with build_lock(store).open_lease() as lease:
        first = check_held(lease).token
    await store.commands.flushall()
    await trio.sleep(0.002)  # tokens are at least the server's time in ms
    async with build_lock(store).open_lease() as lease:
        assert check_held(lease).token > first


async def test_a_key_of_another_type_is_reported_and_nothing_is_taken(store: Store) -> None:
    """A lock whose key holds something else is an error that names the lock."""
    await store.commands.set(f"cgw:{{lock:{NAME}}}:holder", "x")
    with pytest.raises(StoreUnavailable, match=f"the lock {NAME} can't be used: WRONGTYPE"):
        await build_lock(store).open_lease().__aenter__()


async def test_records_of_many_hash_tags_on_a_cluster(tmp_path: Path) -> None:
    """Records are written in batches by hash tag, expire as asked, and are deleted; fences work in every slot."""
    records = [Record(f"cgw:{{tag-{number % 7}}}:{number}", b"%d" % number, 60) for number in range(1_500)]
    with run_redis_cluster(tmp_path) as cluster:
        async with open_redis(cluster.url, timeout_seconds=5) as store:
            async with build_lock(store).open_lease() as first:
                await check_held(first).write(records)
                assert await store.commands.get(records[1234].key) == b"1234"
                assert 59_000 < await store.commands.pttl(records[1234].key) <= 60_000
                await check_held(first).write([Record(record.key, None) for record in records])
                assert await store.commands.get(records[1234].key) is None
            async with build_lock(store).open_lease() as second:
                await check_held(second).raise_fences(f"tag-{number}" for number in range(7))
                for number in range(7):
                    with pytest.raises(LockLost):
                        await check_held(first).write([Record(f"cgw:{{tag-{number}}}:x", b"late", 60)])
    assert len(records) > 7 * WRITTEN_AT_ONCE


def test_a_key_without_a_hash_tag_has_no_fence() -> None:
    """Its fence would be in another slot."""
    assert build_fence_key("cgw:{a:b}:c") == "cgw:{a:b}:fence"
    for key in ("cgw:a", "cgw:{}:a", "cgw:{"):
        with pytest.raises(ValueError, match="hash tag"):
            build_fence_key(key)


def test_values_are_not_in_a_record_s_repr() -> None:
    """Records may hold what is not for logs."""
    assert "canary" not in repr(Record(KEY, b"canary", 1))
