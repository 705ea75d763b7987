"""The lock with a fencing token, on real servers."""

from __future__ import annotations

import signal
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio

from cgw.errors import StoreUnavailable
from cgw.redis.lock import Held, Lease, LockLost, RedisLock
from cgw.redis.opening import Store, open_redis
from tests.support.redis_cluster import run_redis_cluster
from tests.support.redis_server import RedisServer, run_redis_server
from tests.support.waiting import wait_until

NAME = "test-worker"


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
    async with build_lock(store, expiry_seconds=0.6).open_lease():
        for _ in range(4):
            await trio.sleep(0.4)
            async with build_lock(store).open_lease() as other:
                assert isinstance(other, Held)


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


async def test_a_paused_holder_is_cancelled_when_it_goes_on_and_its_token_is_smaller(
    server: RedisServer, store: Store
) -> None:
    """The event loop stands still past the expiry, as in a stopped process; another owner has the lock by then."""
    tokens: list[int] = []

    async def take_over() -> None:
        async with open_redis(server.url, timeout_seconds=5) as own_store:
            lock = build_lock(own_store)
            while not tokens:
                async with lock.open_lease() as lease:
                    if isinstance(lease, Held):
                        await trio.sleep(lease.seconds_left)
                    else:
                        tokens.append(lease.token)

    async def hold_and_pause() -> None:
        async with build_lock(store, expiry_seconds=0.5).open_lease() as lease:
            other = threading.Thread(target=trio.run, args=(take_over,))
            other.start()
            other.join()  # blocks this thread, and so everything in this event loop
            assert tokens[0] > check_held(lease).token
            await trio.sleep_forever()

    with trio.fail_after(20), pytest.raises(LockLost, match=NAME):
        await hold_and_pause()


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


async def test_on_a_cluster(tmp_path: Path) -> None:
    """The keys of a lock share a slot, whatever its name."""
    with run_redis_cluster(tmp_path) as cluster:
        async with open_redis(cluster.url, timeout_seconds=5) as store:
            for name in ("a", "b", "c", "d"):
                lock = RedisLock(store, name, expiry_seconds=60)
                async with lock.open_lease() as lease, lock.open_lease() as other:
                    check_held(lease)
                    assert isinstance(other, Held)
