"""The sync lock together with a source that it protects, in front of a scripted Sourcegraph.com."""

from __future__ import annotations

import pytest
import redis
import trio

from cgw.actors.fetched.synced_source import SyncedSource
from cgw.actors.source import FenceLost, SyncResult
from cgw.actors.sync import SyncWorker
from cgw.lifetime import open_background_task
from cgw.redis.lock import Lease, RedisLock
from cgw.testing.json_server import JsonAnswer, JsonCall, open_json_server
from cgw.testing.scripted_sourcegraph import ScriptedSourcegraph, ScriptedSubscription
from tests.support.sources import SourceBench, subscription_token

OLD, KEPT, ADDED = (subscription_token(name) for name in ("old", "kept", "added"))


def build_subscription(number: int, token: str) -> ScriptedSubscription:
    return ScriptedSubscription(f"00000000-0000-0000-0000-00000000000{number}", (token,))


def read_records(client: redis.Redis) -> dict[bytes, object]:
    """Return everything that is kept about actors, but the times of writing in the index."""
    keys = [key for key in client.scan_iter("cgw:{actors:*") if not key.endswith(b":index")]
    return {key: client.get(key) for key in keys}


async def take_token(lock: RedisLock) -> int:
    """Take the lock, and leave it to the next one."""
    async with lock.open_lease() as lease:
        assert isinstance(lease, Lease)
        return lease.token


@pytest.mark.parametrize("page", [1, 2])
async def test_a_paused_holder_writes_nothing_after_the_lock_has_moved_on(
    bench: SourceBench, sourcegraph: ScriptedSourcegraph, client: redis.Redis, page: int
) -> None:
    """Its listing is older than that of the new holder; it stops at the first write, and nothing has changed."""
    lock = RedisLock(bench.store, "test", expiry_seconds=60)
    first_token, second_token = await take_token(lock), await take_token(lock)
    # A token was revoked and another one issued between the two listings.
    earlier = ScriptedSourcegraph(subscriptions=[build_subscription(1, OLD), build_subscription(2, KEPT)], page_size=1)
    sourcegraph.subscriptions = [build_subscription(2, KEPT), build_subscription(3, ADDED)]
    is_paused, goes_on = trio.Event(), trio.Event()

    async def pause_at_page(call: JsonCall) -> JsonAnswer:
        answer = await earlier.handle(call)
        if len(earlier.calls) == page:
            is_paused.set()
            await goes_on.wait()
        return answer

    async def sync_paused(holder: SyncedSource) -> None:
        with pytest.raises(FenceLost):
            await holder.sync(first_token)

    async with open_json_server(pause_at_page) as url, trio.open_nursery() as nursery:
        earlier.url = url
        nursery.start_soon(sync_paused, await bench.start_subscriptions(earlier))
        await is_paused.wait()
        successor = await bench.start_subscriptions(sourcegraph)
        assert (await successor.sync(second_token)).seen == 2
        before = read_records(client)
        goes_on.set()
    assert len(earlier.calls) == page  # it has given up the listing
    assert read_records(client) == before
    assert (await successor.get(ADDED)).id.endswith("3")


async def test_the_worker_removes_what_is_no_longer_listed(
    bench: SourceBench, sourcegraph: ScriptedSourcegraph
) -> None:
    """Worker, lock and source together: the second sync removes a revoked token."""
    sourcegraph.subscriptions = [build_subscription(1, OLD), build_subscription(2, KEPT)]
    source = await bench.start_subscriptions(sourcegraph)
    worker = SyncWorker([source], bench.store, interval_seconds=60)
    async with open_background_task(worker.run):
        (sync,) = await worker.sync_now()
        assert sync.result == SyncResult(2, 0)
        sourcegraph.subscriptions = [build_subscription(2, KEPT)]
        (sync,) = await worker.sync_now()
        assert sync.result == SyncResult(1, 1)
