"""Reading and resetting an actor's limits on real servers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import redis
from attrs import evolve

from cgw.actors.policies import POLICIES, STATIC
from cgw.errors import StoreUnavailable
from cgw.limits.claims import build_key_prefix
from cgw.limits.limiter import Limiter
from cgw.limits.maintenance import AmbiguousActor, LimitMaintenance, UnknownActor
from cgw.limits.options import LimiterOptions
from cgw.limits.readings import LimitReading
from cgw.model import Actor, Feature, LimitUnit, RateLimit
from cgw.redis.opening import Store, open_redis
from tests.support.redis_cluster import run_redis_cluster
from tests.support.redis_server import RedisServer

CHAT, EMBEDDINGS = Feature.CHAT_COMPLETIONS, Feature.EMBEDDINGS
DAY_MS = 86_400_000
REQUESTS = RateLimit(10, DAY_MS, ("*",), 8, 3_600_000, max_in_flight=4)
TOKENS = RateLimit(1000, DAY_MS, ("*",), 8, 3_600_000, LimitUnit.TOKENS, max_in_flight=4)
ACME = Actor("acme", "Acme Inc.", STATIC, True, {CHAT: REQUESTS, EMBEDDINGS: TOKENS}, policy=POLICIES[STATIC])


def maintain(links: Store, *known: Actor) -> LimitMaintenance:
    """Return the maintenance of a store, by an operator whose local sources know ``known``."""
    return LimitMaintenance(links, known, tuple(POLICIES))


@pytest.fixture
async def links(server: RedisServer) -> AsyncIterator[Store]:
    """Return links to the emptied server."""
    async with open_redis(server.url, timeout_seconds=5) as connected:
        yield connected


@pytest.fixture
def limiter(links: Store) -> Limiter:
    """Return a limiter that alerts on half a quota and on a whole one."""
    return Limiter(links, LimiterOptions(notify_thresholds=(50, 100)))


async def use(limiter: Limiter, times: int, actor: Actor = ACME, feature: Feature = CHAT) -> None:
    """Charge some requests."""
    for _ in range(times):
        admission = await limiter.admit(actor, feature, actor.rate_limits[feature])
        await limiter.settle(admission, is_charged=True)


def name_used(readings: list[LimitReading]) -> list[tuple[str, str, int | None]]:
    """Return feature, limit, and how much of it is used."""
    return [(reading.feature.value, reading.name, reading.used) for reading in readings]


async def test_readings_are_what_the_limiter_counted(links: Store, limiter: Limiter) -> None:
    """Quota, short-term rate, slots and the last alert are as admitting and settling left them."""
    await use(limiter, 5)
    await limiter.admit(ACME, CHAT, REQUESTS)
    quota, rate, in_flight = await maintain(links, ACME).read("acme", feature=CHAT)
    assert (quota.actor, quota.source, quota.feature, quota.name) == ("acme", "static", CHAT, "quota")
    assert (quota.limit, quota.unit, quota.interval_ms) == (10, LimitUnit.REQUESTS, DAY_MS)
    assert (quota.used, quota.remaining, quota.alert_percent) == (6, 4, 50)
    assert (rate.name, rate.limit, rate.used, rate.remaining) == ("concurrency", 8, 6, 2)
    assert (in_flight.name, in_flight.limit, in_flight.used, in_flight.remaining) == ("in_flight", 4, 1, 3)
    assert (in_flight.interval_ms, in_flight.unused_in_ms) == (None, None)
    now = datetime.now(UTC)
    assert quota.unused_at is not None
    assert quota.alert_since is not None
    assert abs(quota.unused_at - now - timedelta(hours=24 * 0.6)) < timedelta(minutes=1)
    assert abs(now - quota.alert_since) < timedelta(minutes=1)
    assert quota.alert_until == quota.alert_since + timedelta(days=1)


async def test_unused_limits_of_a_known_actor_are_shown(links: Store) -> None:
    """A known actor's limits are shown before anything is counted."""
    readings = await maintain(links, ACME).read("acme")
    assert [reading.remaining for reading in readings] == [10, 8, 4, 1000, 8, 4]
    assert {(reading.used, reading.alert_percent) for reading in readings} == {(0, None)}


async def test_more_than_the_limit_is_shown_as_it_is(links: Store, limiter: Limiter) -> None:
    """Tokens beyond the reservation count as used, and nothing remains."""
    admission = await limiter.admit(ACME, EMBEDDINGS, TOKENS, tokens=1)
    await limiter.settle(admission, is_charged=True, tokens=1500)
    quota = (await maintain(links, ACME).read("acme", feature=EMBEDDINGS))[0]
    assert (quota.used, quota.remaining, quota.unit) == (1500, 0, LimitUnit.TOKENS)


async def test_an_actor_of_no_local_source_is_found_by_what_is_counted(links: Store, limiter: Limiter) -> None:
    """The limits of another source's actor are shown with the numbers they were counted with."""
    remote = evolve(ACME, id="a:{b} ü", source="dotcom-user")
    await use(limiter, 3, remote)
    readings = await maintain(links, ACME).read(remote.id)
    assert name_used(readings) == [(CHAT, "quota", 3), (CHAT, "concurrency", 3)]
    assert {(reading.actor, reading.source) for reading in readings} == {(remote.id, "dotcom-user")}
    assert [(reading.limit, reading.interval_ms, reading.remaining) for reading in readings] == [
        (10, DAY_MS, 7),
        (8, 3_600_000, 5),
    ]
    with pytest.raises(UnknownActor, match="source static has no local actor"):
        await maintain(links, ACME).read(remote.id, source="static")


async def test_nothing_known_and_nothing_counted_is_an_error(links: Store) -> None:
    """An unknown id, and an actor without limits, have different errors."""
    blocked = Actor("blocked", "", "static", False)
    maintenance = maintain(links, ACME)
    for operation in (maintenance.read, maintenance.reset):
        with pytest.raises(UnknownActor, match="no local source knows actor 'nobody'"):
            await operation("nobody")
    with pytest.raises(UnknownActor, match="actor 'blocked' of source static has no limits"):
        await maintain(links, blocked).read("blocked")
    assert await maintain(links, ACME).reset("acme") == []


async def test_reading_writes_nothing(links: Store, limiter: Limiter, client: redis.Redis) -> None:
    """Reading causes no change that the server would count."""
    await use(limiter, 5)
    changes = client.info("persistence")["rdb_changes_since_last_save"]
    assert changes > 0
    await maintain(links, ACME).read("acme")
    await maintain(links).read("acme")
    assert client.info("persistence")["rdb_changes_since_last_save"] == changes


async def test_a_reset_leaves_requests_in_flight(links: Store, limiter: Limiter) -> None:
    """Quota, rate and alert are reset, the slot stays; settling it afterwards gives nothing back twice."""
    await use(limiter, 5)
    under_way = await limiter.admit(ACME, CHAT, REQUESTS)
    reset = await maintain(links, ACME).reset("acme")
    assert name_used(reset) == [(CHAT, "quota", 6), (CHAT, "concurrency", 6)]
    assert [reading.alert_percent for reading in reset] == [50, None]
    readings = await maintain(links, ACME).read("acme", feature=CHAT)
    assert name_used(readings) == [(CHAT, "quota", 0), (CHAT, "concurrency", 0), (CHAT, "in_flight", 1)]
    assert readings[0].alert_percent is None
    await use(limiter, 1)
    await limiter.settle(under_way, is_charged=True)
    readings = await maintain(links, ACME).read("acme", feature=CHAT)
    assert name_used(readings) == [(CHAT, "quota", 1), (CHAT, "concurrency", 1), (CHAT, "in_flight", 0)]


async def test_slots_are_freed_on_request(links: Store, limiter: Limiter) -> None:
    """With ``has_in_flight`` the slots are reset too."""
    await limiter.admit(ACME, CHAT, REQUESTS)
    reset = await maintain(links, ACME).reset("acme", has_in_flight=True)
    assert name_used(reset) == [(CHAT, "quota", 1), (CHAT, "concurrency", 1), (CHAT, "in_flight", 1)]
    assert {reading.used for reading in await maintain(links, ACME).read("acme")} == {0}


async def test_one_feature_is_reset_alone(links: Store, limiter: Limiter) -> None:
    """The usage of other features is kept."""
    await use(limiter, 2)
    await use(limiter, 1, feature=EMBEDDINGS)
    assert len(await maintain(links, ACME).reset("acme", feature=EMBEDDINGS)) == 2
    used = [reading.used for reading in await maintain(links, ACME).read("acme") if reading.name == "quota"]
    assert used == [2, 0]


async def test_an_id_of_two_sources(links: Store, limiter: Limiter) -> None:
    """Both are shown; a reset needs the source's name, and leaves the other one alone."""
    await use(limiter, 1)
    await use(limiter, 2, evolve(ACME, source="dotcom-user"))
    quotas = [reading for reading in await maintain(links, ACME).read("acme", feature=CHAT) if reading.name == "quota"]
    assert [(quota.source, quota.used) for quota in quotas] == [("static", 1), ("dotcom-user", 2)]
    with pytest.raises(AmbiguousActor, match=r"several sources \(static, dotcom-user\): name one with --source"):
        await maintain(links, ACME).reset("acme")
    assert len(await maintain(links, ACME).reset("acme", source="dotcom-user")) == 2
    assert [reading.used for reading in await maintain(links, ACME).read("acme", feature=CHAT)] == [1, 1, 0]


@pytest.mark.parametrize("content", ["no bucket", ["a list"]], ids=["text", "type"])
async def test_a_key_that_holds_no_limit(links: Store, client: redis.Redis, content: str | list[str]) -> None:
    """Reading is an error that names the key; a reset deletes it."""
    key = f"{build_key_prefix('static', 'acme')}{CHAT}:quota"
    if isinstance(content, str):
        client.set(key, content)
    else:
        client.rpush(key, *content)
    with pytest.raises(StoreUnavailable) as refusal:
        await maintain(links, ACME).read("acme")
    assert key in str(refusal.value)
    assert name_used(await maintain(links, ACME).reset("acme")) == [(CHAT, "quota", None)]
    assert not client.exists(key)
    assert {reading.used for reading in await maintain(links, ACME).read("acme")} == {0}


async def test_on_a_cluster(tmp_path_factory: pytest.TempPathFactory) -> None:
    """All keys of an actor are in one slot, so that a cluster serves every call."""
    folder: Path = tmp_path_factory.mktemp("c")
    with run_redis_cluster(folder) as cluster:
        async with open_redis(cluster.url, timeout_seconds=5) as links:
            limiter = Limiter(links)
            actors = [evolve(ACME, id=f"acme-{number}") for number in range(8)]
            for actor in actors:
                await use(limiter, 2, actor)
            for actor in actors:
                assert name_used(await maintain(links, *actors).reset(actor.id)) == [
                    (CHAT, "quota", 2),
                    (CHAT, "concurrency", 2),
                ]
                assert {reading.used for reading in await maintain(links, *actors).read(actor.id)} == {0}
