"""Finding the actors with activity, on a server and on a cluster."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cgw.actors.policies import POLICIES
from cgw.limits.activity import find_active_actors
from cgw.limits.limiter import Limiter
from cgw.limits.maintenance import LimitMaintenance
from cgw.model import Actor, Feature, RateLimit
from cgw.redis.opening import Store, open_redis
from tests.support.redis_cluster import run_redis_cluster
from tests.support.redis_server import RedisServer

CHAT, CODE = Feature.CHAT_COMPLETIONS, Feature.CODE_COMPLETIONS
LIMIT = RateLimit(1_000, 86_400_000, ("*",), 500, 3_600_000, max_in_flight=4)
SOURCES = tuple(POLICIES)


@pytest.fixture
async def store(server: RedisServer) -> AsyncIterator[Store]:
    """A store on the emptied server."""
    async with open_redis(server.url, timeout_seconds=5) as opened:
        yield opened


async def use(store: Store, count: int, *, source: str = "static", feature: Feature = CHAT) -> list[tuple[str, str]]:
    """Charge a request of each of ``count`` actors; return them in order."""
    limiter = Limiter(store)
    actors = [Actor(f"a:{{{number}}} ü", "", source, True) for number in range(count)]
    for actor in actors:
        admission = await limiter.admit(actor, feature, LIMIT)
        await limiter.settle(admission, is_charged=True)
    return sorted((actor.source, actor.id) for actor in actors)


async def test_every_actor_is_found_once_among_other_keys(store: Store) -> None:
    """Keys of other things and of unknown sources are left out; ids are decoded."""
    expected = sorted(await use(store, 3) + await use(store, 2, source="dotcom-user", feature=CODE))
    await use(store, 1, source="provider")
    await store.commands.mset({f"cgw:{{actors}}:{number}": "x" for number in range(2_000)} | {"other": "x"})
    active = await find_active_actors(store, SOURCES)
    assert (list(active.actors), active.is_complete) == (expected, True)
    only = await find_active_actors(store, ("dotcom-user",), feature=CODE)
    assert [source for source, _ in only.actors] == ["dotcom-user"] * 2
    assert (await find_active_actors(store, SOURCES, feature=Feature.EMBEDDINGS)).actors == ()


async def test_a_scan_is_bounded_and_says_so(store: Store) -> None:
    """Beyond the bound of actors, or of time, the answer is marked as incomplete."""
    await use(store, 5)
    most = await find_active_actors(store, SOURCES, max_actors=5)
    assert (len(most.actors), most.is_complete) == (5, True)
    cut = await find_active_actors(store, SOURCES, max_actors=4)
    assert (len(cut.actors), cut.is_complete) == (4, False)
    late = await find_active_actors(store, SOURCES, seconds=0)
    assert (late.actors, late.is_complete) == ((), False)


async def test_one_actor_that_cannot_be_read_does_not_hide_the_others(store: Store) -> None:
    """A key that holds something else is a problem that names the actor; the others are listed."""
    await use(store, 2)
    await store.commands.set("cgw:{static:broken}:chat_completions:quota", "x")
    activity = await LimitMaintenance(store, (), SOURCES).read_active()
    assert len({reading.actor for reading in activity.readings}) == 2
    (problem,) = activity.problems
    assert problem.startswith("actor 'broken' of source static: a limit can't be read")


async def test_all_masters_of_a_cluster_are_scanned(tmp_path: Path) -> None:
    """Actors whose keys are on different nodes are all found."""
    with run_redis_cluster(tmp_path) as cluster:
        async with open_redis(cluster.url, timeout_seconds=5) as store:
            expected = await use(store, 40)
            active = await find_active_actors(store, SOURCES)
            assert (list(active.actors), active.is_complete) == (expected, True)
            activity = await LimitMaintenance(store, (), SOURCES).read_active()
    assert {(reading.source, reading.actor) for reading in activity.readings} == set(expected)
