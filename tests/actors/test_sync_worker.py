"""Syncing the sources on one of several replicas, with a real Redis between them."""

from __future__ import annotations

import logging
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from attrs import define, field

from cgw.actors.source import FenceLost, SourceUnavailable, SyncResult
from cgw.actors.sync import SourceSync, SyncFailed, SyncWorker
from cgw.lifetime import open_background_task
from cgw.redis.opening import Store, open_redis
from tests.support.redis_server import RedisServer, run_redis_server
from tests.support.waiting import wait_until


@define(eq=False)
class ListedSource:
    """A source whose listing does what ``on_sync`` says; ``fences`` are the tokens that it was synced with."""

    name: str = "listed"
    on_sync: Callable[[], object] | None = None
    delay_seconds: float = 0.0
    fences: list[int] = field(factory=list)
    under_way: int = 0

    async def sync(self, fence: int) -> SyncResult:
        self.fences.append(fence)
        self.under_way += 1
        try:
            await trio.sleep(self.delay_seconds)
        finally:
            self.under_way -= 1
        if self.on_sync is not None:
            self.on_sync()
        return SyncResult(seen=3, removed=1)


def fail(error: Exception) -> Callable[[], object]:
    """Return a function that raises ``error``."""

    def raise_it() -> object:
        raise error

    return raise_it


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server of the test's own."""
    with run_redis_server(tmp_path) as running:
        yield running


@pytest.fixture
async def store(server: RedisServer) -> AsyncIterator[Store]:
    """A store on it."""
    async with open_redis(server.url, timeout_seconds=1) as opened:
        yield opened


@asynccontextmanager
async def open_worker(
    store: Store, *sources: ListedSource, interval_seconds: float = 60.0
) -> AsyncIterator[SyncWorker]:
    """Run a worker for the length of the block."""
    worker = SyncWorker(sources, store, interval_seconds=interval_seconds)
    async with open_background_task(worker.run):
        yield worker


def name_results(syncs: Sequence[SourceSync]) -> list[tuple[str, SyncResult | None, str]]:
    return [(sync.source, sync.result, sync.problem) for sync in syncs]


async def test_it_syncs_at_once_and_about_every_interval(store: Store) -> None:
    """The first sync comes with the lock; pauses are between four fifths of the interval and all of it."""
    source = ListedSource()
    async with open_worker(store, source, interval_seconds=2.0) as worker:
        await wait_until(lambda: len(source.fences) == 1)
        began_at = trio.current_time()
        await wait_until(lambda: len(source.fences) == 3, seconds=20)
        assert 3.1 < trio.current_time() - began_at < 6
        assert worker.statistics().is_holding_lock
        assert worker.statistics().succeeded >= 2
    assert len(set(source.fences)) == 1  # the lock was held all the time


async def test_only_one_replica_syncs_and_another_one_when_it_has_stopped(store: Store) -> None:
    """While one replica holds the lock, the other waits; afterwards it syncs, with a larger token."""
    first, second = ListedSource(), ListedSource()
    holder = SyncWorker([first], store, interval_seconds=2.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(holder.run)
        await wait_until(lambda: bool(first.fences))
        async with open_worker(store, second, interval_seconds=2.0):
            await trio.sleep(2.2)
            assert second.fences == []
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await wait_until(lambda: bool(second.fences))
    assert second.fences[0] > first.fences[-1]


async def test_the_lock_is_given_back_when_the_service_stops(store: Store) -> None:
    """A replica that starts then need not wait for the expiry."""
    first, second = ListedSource(), ListedSource()
    for source in (first, second):
        async with open_worker(store, source, interval_seconds=600):
            await wait_until(lambda source=source: bool(source.fences))  # type: ignore[misc]


async def test_another_replica_takes_over_within_two_intervals_when_the_holder_is_silent(
    server: RedisServer, store: Store
) -> None:
    """A holder whose process stands still loses the lock, and learns so when it goes on."""
    interval = 2.0
    first, second = ListedSource(), ListedSource()
    async with (
        open_redis(server.url, timeout_seconds=1) as own_store,
        open_worker(own_store, first, interval_seconds=interval) as holder,
    ):
        await wait_until(lambda: bool(first.fences))
        async with open_worker(store, second, interval_seconds=interval):
            await trio.sleep(0.3)
            # The holder's extensions do not reach the server any more.
            await store.commands.hset("cgw:{lock:source-syncer-worker}:holder", "owner", "someone who died")
            with trio.fail_after(2 * interval):
                await wait_until(lambda: bool(second.fences))
            await wait_until(lambda: not holder.statistics().is_holding_lock)
    assert second.fences[0] > first.fences[0]


async def test_all_sources_are_synced_side_by_side(store: Store) -> None:
    """A slow source does not keep another one waiting."""
    slow, quick = ListedSource("slow", delay_seconds=30), ListedSource("quick")
    async with open_worker(store, slow, quick) as worker:
        await wait_until(lambda: worker.statistics().succeeded == 1)
        assert (slow.under_way, len(quick.fences)) == (1, 1)


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (SourceUnavailable("the listing ended early"), "the listing ended early"),
        (ValueError("CANARY"), "unexpected error"),
    ],
)
async def test_the_failure_of_one_source_costs_only_itself(
    store: Store, error: Exception, problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Another source is synced all the same, and the failed one again with the next turn."""
    broken, sound = ListedSource("broken", on_sync=fail(error)), ListedSource("sound")
    async with open_worker(store, broken, sound) as worker:
        for _ in range(2):
            assert name_results(await worker.sync_now()) == [
                ("broken", None, problem),
                ("sound", SyncResult(3, 1), ""),
            ]
        assert worker.statistics().is_holding_lock
    assert "CANARY" not in caplog.text, "the text of an unknown exception may hold a token"


async def test_a_source_that_takes_too_long_is_cut_off(store: Store) -> None:
    """A sync ends after an interval, and the others have ended long before."""
    slow, quick = ListedSource("slow", delay_seconds=60), ListedSource("quick")
    async with open_worker(store, slow, quick, interval_seconds=3.0) as worker:
        results = name_results(await worker.sync_now())
    assert results == [("slow", None, "took more than the interval of 3 s"), ("quick", SyncResult(3, 1), "")]
    assert slow.under_way == 0


async def test_a_failure_is_logged_once_until_it_is_over(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """The same problem is one line, however often it comes; that it is over is another one."""
    caplog.set_level(logging.INFO, "cgw.actors")
    source = ListedSource("moody", on_sync=fail(SourceUnavailable("it is down")))
    async with open_worker(store, source) as worker:
        for _ in range(3):
            await worker.sync_now()
        source.on_sync = None
        await worker.sync_now()
    lines = [record.message for record in caplog.records if "could not" in record.message or "again" in record.message]
    assert lines == [
        "source moody could not be synced: tokens that are revoked go on working",
        "source moody can be synced again",
    ]


async def test_syncing_on_request_takes_the_lock_from_another_replica(store: Store) -> None:
    """The replica that is asked syncs at once; the one that held the lock stops, and comes back to waiting."""
    first, second = ListedSource(), ListedSource()
    async with open_worker(store, first, interval_seconds=3.0) as holder:
        await wait_until(lambda: bool(first.fences))
        async with open_worker(store, second, interval_seconds=3.0) as other:
            syncs = await other.sync_now()
            assert name_results(syncs) == [("listed", SyncResult(3, 1), "")]
            assert second.fences[0] > first.fences[-1]
            await wait_until(lambda: not holder.statistics().is_holding_lock)
            assert other.statistics().is_holding_lock


async def test_requests_share_a_sync_that_began_after_them(store: Store) -> None:
    """Callers during a sync wait for the next one, all of them for the same."""
    source = ListedSource(delay_seconds=0.3)
    async with open_worker(store, source) as worker, trio.open_nursery() as nursery:
        await wait_until(lambda: source.under_way == 1)
        for _ in range(20):
            nursery.start_soon(worker.sync_now)
    assert len(source.fences) == 2


async def test_a_lost_fence_ends_holding_the_lock(store: Store) -> None:
    """A source that was refused by Redis means that another replica syncs: this one goes back to waiting."""
    source = ListedSource(on_sync=fail(FenceLost("a newer holder has begun")))
    async with open_worker(store, source) as worker:
        (sync,) = await worker.sync_now()
        assert sync.has_lost_fence
        await wait_until(lambda: not worker.statistics().is_holding_lock)


async def test_without_redis_nothing_is_synced_and_it_is_said_once(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A request gets a reason; when Redis is back, syncing goes on."""
    caplog.set_level(logging.INFO, "cgw.actors")
    source = ListedSource()
    async with (
        open_redis(server.url, timeout_seconds=0.1) as store,
        open_worker(store, source, interval_seconds=2.0) as worker,
    ):
        await wait_until(lambda: bool(source.fences))
        server.send_signal(signal.SIGSTOP)
        try:
            await wait_until(lambda: not worker.statistics().is_holding_lock)
            for _ in range(2):
                with pytest.raises(SyncFailed, match=r"^the sources were not synced: "):
                    await worker.sync_now()
        finally:
            server.send_signal(signal.SIGCONT)
        count = len(source.fences)
        await wait_until(lambda: len(source.fences) > count)
    lines = [record.message for record in caplog.records if record.levelno >= logging.ERROR]
    assert 1 <= len(lines) <= 2  # no answer in time, then no link
    assert all(line.startswith("the sources cannot be synced: ") for line in lines)


async def test_nothing_is_synced_once_the_worker_has_ended(store: Store) -> None:
    """Callers that wait, and those that come later, are told so instead of waiting for ever."""
    source = ListedSource(delay_seconds=60)
    outcomes = []

    async def ask(worker: SyncWorker) -> None:
        with pytest.raises(SyncFailed, match="the gateway is stopping") as caught:
            await worker.sync_now()
        outcomes.append(caught.value)

    async with trio.open_nursery() as nursery:
        async with open_worker(store, source) as worker:
            await wait_until(lambda: source.under_way == 1)
            nursery.start_soon(ask, worker)
            await trio.testing.wait_all_tasks_blocked(0.05)
        await ask(worker)
    assert len(outcomes) == 2
