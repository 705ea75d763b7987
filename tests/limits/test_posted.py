"""Posted settlements: what they count, when they leave, and that each counts once whatever happens to Redis."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import redis
import trio
import trio.testing
from attrs import evolve

from cgw.actors.policies import POLICIES
from cgw.limits.admissions import Admission
from cgw.limits.alert_messages import UsageAlert
from cgw.limits.limiter import Limiter
from cgw.limits.options import LimiterOptions
from cgw.limits.posted import MAX_DELETED_AT_ONCE
from cgw.model import Actor, Feature, LimitUnit, RateLimit
from cgw.redis.link import GATHER_SECONDS
from cgw.redis.opening import Store, open_redis
from tests.limits.test_outages import open_setup
from tests.support.redis_cluster import run_redis_cluster
from tests.support.redis_server import RedisServer, run_redis_server, wait_until

CHAT = Feature.CHAT_COMPLETIONS
DAY_MS = 86_400_000
LIMIT = RateLimit(100, DAY_MS, ("*",), 50, 10_000)
ACTOR = Actor("acme", "Acme Inc.", "static", True, {CHAT: LIMIT})


@pytest.fixture
async def links(server: RedisServer) -> AsyncIterator[Store]:
    """Return links to the emptied server."""
    async with open_redis(server.url, timeout_seconds=2) as connected:
        yield connected


def _count_records(client: redis.Redis) -> int:
    return len(list(client.scan_iter("*reservation*")))


async def _has_records(client: redis.Redis, count: int) -> bool:
    await trio.lowlevel.checkpoint()
    return _count_records(client) == count


async def test_a_charge_leaves_with_a_later_admission(links: Store, client: redis.Redis) -> None:
    """A charge sends nothing by itself; it leaves with an admission a moment later, or alone."""
    limiter = Limiter(links)
    for _ in range(3):
        admission = await limiter.admit(ACTOR, CHAT, LIMIT)
        before = links.statistics().calls
        limiter.settle_later(admission, is_charged=True)
        limiter.settle_later(admission, is_charged=False)  # the first call counts
        assert links.statistics().calls == before
        await trio.sleep(GATHER_SECONDS)
    assert _count_records(client) <= 1
    await wait_until(lambda: _has_records(client, 0), seconds=2)
    assert (await limiter.peek(ACTOR))[CHAT].remaining == 97


@pytest.mark.parametrize("may_wait", [False, True])
async def test_the_next_admission_finds_what_was_given_back(links: Store, may_wait: bool) -> None:
    """Refunds, freed slots and token usage are there for the next admission, though nothing waited for them."""
    limiter = Limiter(links)
    # So that the server has the script: otherwise a first settlement is sent twice, the second time too late here.
    await limiter.settle(await limiter.admit(ACTOR, Feature.EMBEDDINGS, LIMIT), is_charged=False)
    whole = evolve(LIMIT, limit=2, max_in_flight=2)
    held = [await limiter.admit(ACTOR, CHAT, whole) for _ in range(2)]
    limiter.settle_later(held[0], is_charged=False)
    if may_wait:
        await trio.sleep(0.01)
    held.append(await limiter.admit(ACTOR, CHAT, whole))
    for admission in held[1:]:
        limiter.settle_later(admission, is_charged=True)
    slots = evolve(LIMIT, max_in_flight=1)
    code = Feature.CODE_COMPLETIONS
    limiter.settle_later(await limiter.admit(ACTOR, code, slots), is_charged=True)
    limiter.settle_later(await limiter.admit(ACTOR, code, slots), is_charged=True)
    tokens = evolve(LIMIT, limit=1_000, unit=LimitUnit.TOKENS)
    admission = await limiter.admit(ACTOR, Feature.EMBEDDINGS, tokens, tokens=900)
    limiter.settle_later(admission, is_charged=True, tokens=100)
    assert (await limiter.admit(ACTOR, Feature.EMBEDDINGS, tokens, tokens=900)).states[0].remaining == 0


async def test_a_refund_after_the_server_lost_its_scripts_comes_first(tmp_path: Path) -> None:
    """Scripts are loaded when a link opens, so no settlement has to be sent twice, behind the next admission."""
    whole = evolve(LIMIT, limit=1)
    for _ in range(2):  # the second server is new, at the same address
        with run_redis_server(tmp_path) as server:
            async with open_redis(server.url, timeout_seconds=2) as links:
                limiter = Limiter(links)
                for _ in range(3):
                    limiter.settle_later(await limiter.admit(ACTOR, CHAT, whole), is_charged=False)
                admission = await limiter.admit(ACTOR, CHAT, whole)
                await limiter.settle(admission, is_charged=True)
                stats = str(await links.commands.info("commandstats"))
                assert "cmdstat_eval:" not in stats, stats
                assert "cmdstat_evalsha:calls=8," in stats, stats


async def test_a_link_that_comes_back_loads_the_scripts(tmp_path: Path) -> None:
    """A server that was restarted has the scripts before the first call over the new link."""
    with run_redis_server(tmp_path) as server:
        async with open_redis(server.url, timeout_seconds=2) as links, trio.open_nursery() as nursery:
            limiter = Limiter(links)
            nursery.start_soon(limiter.run)
            await links.commands.script_flush()
            await links.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "no")

            async def is_linked() -> bool:
                await trio.lowlevel.checkpoint()
                return links.statistics().reconnects == 1

            await wait_until(is_linked)
            await limiter.settle(await limiter.admit(ACTOR, CHAT, LIMIT), is_charged=False)
            assert "cmdstat_eval:" not in str(await links.commands.info("commandstats"))
            nursery.cancel_scope.cancel()


async def test_alerts_are_sent(links: Store) -> None:
    """A threshold that a posted settlement reaches makes one alert."""
    alerts: list[UsageAlert] = []
    limiter = Limiter(links, LimiterOptions(notify_thresholds=(50, 100)), on_alert=alerts.append)
    actor, limit = evolve(ACTOR, policy=POLICIES["static"]), evolve(LIMIT, limit=10)
    for _ in range(10):
        limiter.settle_later(await limiter.admit(actor, CHAT, limit), is_charged=True)

    async def has_alerts() -> bool:
        await trio.lowlevel.checkpoint()
        return len(alerts) == 2

    await wait_until(has_alerts, seconds=2)
    assert [(alert.threshold, alert.limit) for alert in alerts] == [(50, 10), (100, 10)]


async def test_the_end_of_the_limiter_waits_for_settlements(server: RedisServer, client: redis.Redis) -> None:
    """When the limiter's task ends, all that was posted is settled, and later settlements leave at once."""
    async with open_redis(server.url, timeout_seconds=2) as links:
        limiter = Limiter(links)
        admissions = [await limiter.admit(ACTOR, CHAT, LIMIT) for _ in range(4)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(limiter.run)
            await trio.testing.wait_all_tasks_blocked()
            before = links.statistics().calls
            for admission in admissions[:3]:
                limiter.settle_later(admission, is_charged=True)
            assert links.statistics().calls == before
            nursery.cancel_scope.cancel()
        assert _count_records(client) == 1
        limiter.settle_later(admissions[3], is_charged=True)
        await links.commands.ping()
        assert _count_records(client) == 0
        assert (await limiter.peek(ACTOR))[CHAT].remaining == 96


async def test_settlements_of_a_lost_link_count_once(tmp_path: Path) -> None:
    """Settlements posted when Redis falls silent are retried until they count, once each."""
    async with open_setup(tmp_path) as setup:
        limit = evolve(LIMIT, limit=20)
        admissions: list[Admission] = [await setup.limiter.admit(ACTOR, CHAT, limit) for _ in range(12)]
        setup.limiter.settle_later(admissions[0], is_charged=True)
        setup.stop_server()
        for index, admission in enumerate(admissions[1:10]):
            setup.limiter.settle_later(admission, is_charged=index % 3 > 0)

        async def has_backlog() -> bool:
            await trio.lowlevel.checkpoint()
            return setup.limiter.statistics().backlog > 0

        # Once the link has timed out, the rest meets a store without a link.
        await wait_until(has_backlog)
        for admission in admissions[10:]:
            setup.limiter.settle_later(admission, is_charged=False)
        setup.continue_server()
        await wait_until(setup.is_back, seconds=3)
        with setup.open_client() as client:
            await wait_until(lambda: _has_records(client, 0), seconds=3)
        state = (await setup.limiter.peek(evolve(ACTOR, rate_limits={CHAT: limit})))[CHAT]
        assert state.usage == 12 - 3 - 2
        assert setup.limiter.statistics().backlog == 0


async def test_a_refused_settlement_is_retried(tmp_path: Path) -> None:
    """A settlement that the server refuses for lack of replicas counts when it takes writes again."""
    async with open_setup(tmp_path) as setup:
        admission, _ = [await setup.limiter.admit(ACTOR, CHAT, LIMIT) for _ in range(2)]
        with setup.open_client() as client:
            client.config_set("min-replicas-to-write", 1)
            setup.limiter.settle_later(admission, is_charged=False)

            async def is_away() -> bool:
                await trio.lowlevel.checkpoint()
                return setup.limiter.statistics().is_redis_away

            await wait_until(is_away)
            client.config_set("min-replicas-to-write", 0)
            await wait_until(setup.is_back, seconds=2)
            assert (await setup.limiter.peek(ACTOR))[CHAT].usage == 1


async def test_broken_limit_is_not_retried(links: Store, client: redis.Redis) -> None:
    """A settlement whose key holds something else is given up, as every retry would fail."""
    limiter = Limiter(links)
    admission = await limiter.admit(ACTOR, CHAT, LIMIT)
    for key in client.scan_iter("*quota"):
        client.set(key, "not a bucket")
    limiter.settle_later(admission, is_charged=False)
    await links.commands.ping()
    assert (limiter.statistics().backlog, limiter.statistics().is_redis_away) == (0, False)


async def test_charges_share_one_command(links: Store, client: redis.Redis) -> None:
    """The charges of some milliseconds leave with an admission, in one ``DEL`` for the records of all actors."""
    limiter = Limiter(links)
    actors = [evolve(ACTOR, id=f"actor {number % 3}") for number in range(9)]
    admissions = [await limiter.admit(actor, CHAT, LIMIT) for actor in actors]
    client.config_resetstat()
    for admission in admissions:
        limiter.settle_later(admission, is_charged=True)
    time.sleep(GATHER_SECONDS)  # noqa: ASYNC251 - in a sleep of Trio, they could leave alone
    await limiter.admit(ACTOR, CHAT, LIMIT)
    assert _count_records(client) == 1
    assert client.info("commandstats")["cmdstat_del"]["calls"] == 1
    assert [(await limiter.peek(actor))[CHAT].usage for actor in actors[:3]] == [3, 3, 3]


async def test_a_command_settles_a_bounded_number_of_charges(links: Store, client: redis.Redis) -> None:
    """Without an admission in between, charges leave as soon as there are as many as one command takes."""
    limiter = Limiter(links)
    limit = evolve(LIMIT, limit=1_000, concurrent_requests=1_000)
    count = MAX_DELETED_AT_ONCE * 2 + 1
    admissions = [await limiter.admit(ACTOR, CHAT, limit) for _ in range(count)]
    before = links.statistics().calls
    for admission in admissions:
        limiter.settle_later(admission, is_charged=True)
    assert links.statistics().calls == before + 2
    await links.commands.ping()
    await wait_until(lambda: _has_records(client, 0), seconds=2)
    assert links.statistics().calls == before + 4


async def test_charges_whose_command_has_not_left_outlive_the_link(tmp_path: Path) -> None:
    """Charges that wait for an admission when the link is lost are made over the next one, through the backlog."""
    async with open_setup(tmp_path) as setup:
        admissions = [await setup.limiter.admit(ACTOR, CHAT, LIMIT) for _ in range(5)]
        with setup.open_client() as client:
            for admission in admissions[:4]:
                setup.limiter.settle_later(admission, is_charged=True)
            client.client_kill_filter(_type="normal", skipme=True)

            async def has_backlog() -> bool:
                await trio.lowlevel.checkpoint()
                return setup.limiter.statistics().backlog == 4

            await wait_until(has_backlog)
            await wait_until(lambda: _has_records(client, 1), seconds=3)
        assert (await setup.limiter.peek(ACTOR))[CHAT].usage == 5
        assert setup.limiter.statistics().backlog == 0


async def test_charges_of_a_cluster_are_made_one_by_one(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Records of several actors are on several nodes: each charge goes to its own."""
    with run_redis_cluster(tmp_path_factory.mktemp("c")) as cluster:
        async with open_redis(cluster.url, timeout_seconds=5) as links:
            limiter = Limiter(links)
            actors = [evolve(ACTOR, id=f"actor {number}") for number in range(12)]
            for admission in [await limiter.admit(actor, CHAT, LIMIT) for actor in actors]:
                limiter.settle_later(admission, is_charged=True)
            assert len(limiter._posted) == len(actors)

            async def are_settled() -> bool:
                await trio.lowlevel.checkpoint()
                return len(limiter._posted) == 0

            await wait_until(are_settled, seconds=3)
            assert limiter.statistics().backlog == 0
            assert [page async for page in links.scan("*reservation*") if page] == []
            assert [(await limiter.peek(actor))[CHAT].usage for actor in actors] == [1] * len(actors)
