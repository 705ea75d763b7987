"""The limiter on real servers: exact across connections, correct charges, no leaked reservations."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import pytest
import redis
import trio
from attrs import evolve
from redis.crc import key_slot

from cgw.actors.policies import POLICIES
from cgw.errors import StoreUnavailable
from cgw.limits.admissions import Admission, PreparedAdmission
from cgw.limits.alert_messages import UsageAlert
from cgw.limits.claims import build_key_prefix
from cgw.limits.headers import build_limit_headers
from cgw.limits.limiter import Limiter
from cgw.limits.options import LimiterOptions
from cgw.limits.states import LimitExceeded
from cgw.model import Actor, Feature, LimitUnit, RateLimit
from cgw.redis.opening import Store, open_redis
from tests.support.limits import MARKS
from tests.support.redis_server import RedisServer, wait_until

CHAT, CODE = Feature.CHAT_COMPLETIONS, Feature.CODE_COMPLETIONS
DAY_MS = 86_400_000
LIMIT = RateLimit(100, DAY_MS, ("*",), 50, 10_000)


def _actor(**limits: RateLimit) -> Actor:
    return Actor("acme", "Acme Inc.", "static", True, {Feature(name): limit for name, limit in limits.items()})


@pytest.fixture
async def links(server: RedisServer) -> AsyncIterator[Store]:
    """Return links to the emptied server."""
    async with open_redis(server.url, timeout_seconds=2) as connected:
        yield connected


@pytest.fixture
def limiter(links: Store) -> Limiter:
    """Return a limiter on these links."""
    return Limiter(links)


async def test_admission_has_the_state_of_its_limits(limiter: Limiter) -> None:
    """An admission has its quota and short-term rate, with the request counted."""
    admission = await limiter.admit(_actor(), CHAT, LIMIT)
    quota, rate = admission.states
    assert (quota.name, quota.limit, quota.remaining, quota.usage, quota.window_ms) == ("quota", 100, 99, 1, DAY_MS)
    assert quota.reset_ms == quota.more_ms == 864_000
    assert (rate.name, rate.limit, rate.remaining, rate.window_ms, rate.more_ms) == ("concurrency", 50, 49, 10_000, 200)


@pytest.mark.parametrize("seed", range(4))
async def test_prepared_plans_decide_as_others(links: Store, seed: int) -> None:
    """Two actors do the same, one by prepared calls and one by general ones: the same is decided and shown."""
    options = LimiterOptions(notify_thresholds=(50, 100), max_in_flight=6 if seed % 2 else None)
    limits = evolve(LIMIT, limit=12, concurrent_requests=9, concurrent_interval_ms=DAY_MS)
    alerts: list[tuple[str, int]] = []
    limiter = Limiter(links, options, on_alert=lambda alert: alerts.append((alert.actor.id, alert.threshold)))
    actors = [evolve(_actor(), id=name, policy=POLICIES["static"]) for name in ("prepared", "general")]
    limiter._planner.find(actors[1], CHAT, limits, "").prepared = None
    held: list[list[Admission]] = [[], []]
    dice = random.Random(seed)
    for _ in range(60):
        step, at = (
            dice.choice(["admit", "admit", "charge", "charge later", "refund", "refund later"]),
            dice.randrange(9),
        )
        outcomes: list[object] = []
        for actor, admissions in zip(actors, held, strict=True):
            if step == "admit":
                # A refusal that is repeated from memory would go on for longer than what led to it.
                limiter._planner.find(actor, CHAT, limits, "").forget_refusal()
                try:
                    admissions.append(await limiter.admit(actor, CHAT, limits))
                except LimitExceeded as exceeded:
                    outcomes += [exceeded.cause, *((state.name, state.remaining) for state in exceeded.states)]
                else:
                    admission = admissions[-1]
                    assert isinstance(admission, PreparedAdmission) == (actor is actors[0])
                    assert admission.build_headers() == build_limit_headers(admission.states)
                    outcomes += [(state.name, state.remaining) for state in admission.states]
            elif admissions:
                admission, is_charged = admissions.pop(at % len(admissions)), step.startswith("charge")
                if step.endswith("later"):
                    limiter.settle_later(admission, is_charged=is_charged)
                    await links.commands.ping()  # the replies of those that leave at once
                else:
                    await limiter.settle(admission, is_charged=is_charged)
        assert outcomes[: len(outcomes) // 2] == outcomes[len(outcomes) // 2 :]
    stands = [await limiter.peek(evolve(actor, rate_limits={CHAT: limits})) for actor in actors]
    assert stands[0][CHAT].usage == stands[1][CHAT].usage
    statistics = limiter.statistics()
    assert statistics.admitted % 2 == 0
    assert all(count % 2 == 0 for count in statistics.refused.values())

    async def has_all_alerts() -> bool:
        await trio.lowlevel.checkpoint()
        told = [[threshold for name, threshold in alerts if name == actor.id] for actor in actors]
        return sorted(told[0]) == sorted(told[1])

    await wait_until(has_all_alerts, seconds=2)


async def test_quota_and_rate_refuse(limiter: Limiter) -> None:
    """The limit that is used up refuses, with the time to retry; the other one is not touched."""
    tight = evolve(LIMIT, concurrent_requests=1)
    await limiter.admit(_actor(), CHAT, tight)
    with pytest.raises(LimitExceeded, match="concurrency limit of 1 requests per 10s exceeded") as refusal:
        await limiter.admit(_actor(), CHAT, tight)
    assert refusal.value.cause == "concurrency"
    assert refusal.value.retry_after_ms is not None
    assert 9_000 < refusal.value.retry_after_ms <= 10_000
    assert refusal.value.states[0].remaining == 99
    small = evolve(LIMIT, limit=1)
    await limiter.admit(_actor(), CODE, small)
    with pytest.raises(LimitExceeded, match="rate limit of 1 requests per 24h exceeded") as refusal:
        await limiter.admit(_actor(), CODE, small)
    assert (refusal.value.cause, refusal.value.refused.remaining) == ("quota", 0)
    assert refusal.value.states[1].remaining == 49


async def test_the_longer_wait_is_named(limiter: Limiter) -> None:
    """If both limits refuse, the one with the longer wait is named."""
    both = evolve(LIMIT, limit=1, concurrent_requests=1)
    await limiter.admit(_actor(), CHAT, both)
    with pytest.raises(LimitExceeded) as refusal:
        await limiter.admit(_actor(), CHAT, both)
    assert refusal.value.cause == "quota"
    assert refusal.value.retry_after_ms is not None
    assert refusal.value.retry_after_ms > DAY_MS - 5_000


async def test_only_charged_requests_count(limiter: Limiter) -> None:
    """A request that is not charged gives back quota and rate, once; a charged one stays counted."""
    actor = _actor(chat_completions=LIMIT)
    kept = await limiter.admit(actor, CHAT, LIMIT)
    given_back = await limiter.admit(actor, CHAT, LIMIT)
    await limiter.settle(kept, is_charged=True)
    for _ in range(2):
        await limiter.settle(given_back, is_charged=False)
    await limiter.settle(kept, is_charged=False)
    assert (await limiter.peek(actor))[CHAT].remaining == 99
    states = (await limiter.admit(actor, CHAT, LIMIT)).states
    assert [state.remaining for state in states] == [98, 48]


async def test_peek_lists_the_quotas(limiter: Limiter) -> None:
    """Peeking consumes nothing, and leaves out features without a limit."""
    assert await limiter.peek(_actor()) == {}
    actor = _actor(embeddings=LIMIT, code_completions=evolve(LIMIT, limit=7))
    await limiter.admit(actor, CODE, actor.rate_limits[CODE])
    states = await limiter.peek(actor)
    assert [state.usage for state in (await limiter.peek(actor)).values()] == [1, 0]
    assert list(states) == [Feature.CODE_COMPLETIONS, Feature.EMBEDDINGS]
    assert [(state.limit, state.usage) for state in states.values()] == [(7, 1), (100, 0)]


@pytest.mark.parametrize("source", ["dotcom-product-subscriptions", "dotcom-user"])
async def test_limit_of_one_means_cut_off_where_abuse_handling_sets_it(limiter: Limiter, source: str) -> None:
    """From Sourcegraph.com's sources a limit of 1 admits nothing; from others it admits one."""
    actor = evolve(_actor(), source=source, policy=POLICIES[source])
    with pytest.raises(LimitExceeded) as refusal:
        await limiter.admit(actor, CHAT, evolve(LIMIT, limit=1))
    assert (refusal.value.is_cut_off, refusal.value.retry_after_ms, refusal.value.cause) == (True, None, "quota")
    assert (await limiter.admit(actor, CHAT, evolve(LIMIT, limit=2))).states[0].remaining == 1


async def test_exactly_the_limit_over_many_connections(server: RedisServer) -> None:
    """200 callers on 5 connections against a limit of 50: 50 are admitted, never 49 or 51."""
    actor, limit = _actor(), evolve(LIMIT, concurrent_requests=50, concurrent_interval_ms=DAY_MS)
    outcomes: list[bool] = []

    async def call(limiter: Limiter) -> None:
        try:
            await limiter.admit(actor, CHAT, limit)
        except LimitExceeded:
            outcomes.append(False)
        else:
            outcomes.append(True)

    async def serve() -> None:
        async with open_redis(server.url, timeout_seconds=5) as links, trio.open_nursery() as callers_nursery:
            for _ in range(40):
                callers_nursery.start_soon(call, Limiter(links))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(serve)
    assert (len(outcomes), sum(outcomes)) == (200, 50)


async def test_cancelled_admissions_leak_nothing(limiter: Limiter, links: Store) -> None:
    """Callers cancelled while they wait for Redis are not charged, wherever the answer was by then."""
    actor = _actor(chat_completions=evolve(LIMIT, concurrent_requests=1_000, limit=1_000))
    limit = actor.rate_limits[CHAT]
    admitted: list[Admission] = []

    async def call(patience_seconds: float) -> None:
        with trio.move_on_after(patience_seconds):
            admitted.append(await limiter.admit(actor, CHAT, limit))

    async with trio.open_nursery() as callers_nursery:
        for number in range(300):
            callers_nursery.start_soon(call, number * 0.00005)
    assert links.statistics().cancelled > 0
    await wait_until(lambda: _has_usage(limiter, actor, len(admitted)))
    for admission in admitted:
        await limiter.settle(admission, is_charged=False)
    assert await _has_usage(limiter, actor, 0)
    records: list[bytes] = await links.execute_command("KEYS", "*reservation*")
    assert all([await links.commands.get(key) in MARKS for key in records])


async def _has_usage(limiter: Limiter, actor: Actor, usage: int) -> bool:
    return (await limiter.peek(actor))[CHAT].usage == usage


async def test_two_calls_an_exchange(limiter: Limiter, links: Store) -> None:
    """One trip to admit, one to settle, once the server knows the scripts."""
    await limiter.settle(await limiter.admit(_actor(), CHAT, LIMIT), is_charged=True)
    before = links.statistics().calls
    for _ in range(10):
        await limiter.settle(await limiter.admit(_actor(), CHAT, LIMIT), is_charged=True)
    assert links.statistics().calls - before == 20


async def test_forgotten_scripts_are_sent_again(limiter: Limiter, links: Store) -> None:
    """SCRIPT FLUSH between two calls has no effect on callers."""
    admission = await limiter.admit(_actor(), CHAT, LIMIT)
    await links.commands.script_flush()
    await limiter.settle(admission, is_charged=False)
    assert (await limiter.admit(_actor(), CHAT, LIMIT)).states[0].remaining == 99


@pytest.mark.parametrize("name", ["a}b{c", "{}", "x:y", "käse \r\n%", ""])
async def test_odd_ids_keep_to_one_slot(limiter: Limiter, name: str) -> None:
    """For any actor id, the keys share a slot of a cluster, and cannot be those of another actor."""
    actor = evolve(_actor(), id=name)
    admission = await limiter.admit(actor, CHAT, LIMIT)
    assert len({key_slot(key.encode()) for key in admission.reservations[0].keys}) == 1
    prefix = build_key_prefix(actor.source, actor.id)
    assert prefix.count("{") == prefix.count("}") == 1


def test_sources_and_ids_cant_be_mixed_up() -> None:
    """A colon in an id does not make it look like another source's."""
    assert build_key_prefix("a", "b:c") != build_key_prefix("a:b", "c")


async def test_a_foreign_key_makes_the_limit_unavailable(
    links: Store, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """A key of another type under a limit's name is an outage of that limit alone, and logged once with the key."""
    key = "cgw:{static:acme}:chat_completions:quota"
    client.lpush(key, "x")
    closed = Limiter(links, LimiterOptions(when_down="closed"))
    for _ in range(3):
        with pytest.raises(StoreUnavailable, match="WRONGTYPE"):
            await closed.admit(_actor(), CHAT, LIMIT)
    assert (await closed.admit(_actor(), CODE, LIMIT)).states[0].remaining == 99
    assert closed.outage.describe() is None
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert key in line
    local = Limiter(links)
    await local.settle(await local.admit(_actor(), CHAT, LIMIT), is_charged=True)
    assert (await local.admit(_actor(), CHAT, LIMIT)).states[0].remaining == 98
    assert client.type(key) == b"list"


async def test_tokens_are_reserved_and_settled(limiter: Limiter) -> None:
    """With token counting, the estimate is reserved and replaced by the usage: less, more, or nothing."""
    limit = evolve(LIMIT, limit=1_000, unit=LimitUnit.TOKENS)
    actor = _actor(chat_completions=limit)
    for reserved, used, is_charged, left in ((400, 100, True, 900), (100, 250, True, 650), (300, 300, False, 650)):
        admission = await limiter.admit(actor, CHAT, limit, tokens=reserved)
        await limiter.settle(admission, is_charged=is_charged, tokens=used)
        (state,) = (await limiter.peek(actor)).values()
        assert (state.remaining, state.unit) == (left, "tokens")
    with pytest.raises(LimitExceeded, match="rate limit of 1000 tokens per 24h exceeded"):
        await limiter.admit(actor, CHAT, limit, tokens=700)
    assert (await limiter.admit(actor, CHAT, limit, tokens=600)).states[0].remaining == 50


async def test_a_request_larger_than_the_budget_gets_through_when_all_of_it_is_there(limiter: Limiter) -> None:
    """An estimate above the whole limit reserves all of it; usage beyond the limit is an overdraft."""
    limit = evolve(LIMIT, limit=1_000, unit=LimitUnit.TOKENS)
    admission = await limiter.admit(_actor(), CHAT, limit, tokens=10**12)
    assert admission.states[0].remaining == 0
    await limiter.settle(admission, is_charged=True, tokens=1_500)
    with pytest.raises(LimitExceeded) as refusal:
        await limiter.admit(_actor(), CHAT, limit, tokens=10**12)
    assert refusal.value.retry_after_ms is not None


async def test_slots_are_bounded_and_freed(limiter: Limiter, client: redis.Redis) -> None:
    """At most so many requests of an actor and feature are in flight; each exit frees its slot, charged or not."""
    limit = evolve(LIMIT, max_in_flight=2)
    held = [await limiter.admit(_actor(), CHAT, limit) for _ in range(2)]
    assert [state.name for state in held[0].states] == ["quota", "concurrency", "in_flight"]
    for is_charged in (True, False):
        with pytest.raises(LimitExceeded, match="limit of 2 requests in flight exceeded") as refusal:
            await limiter.admit(_actor(), CHAT, limit)
        assert refusal.value.cause == "in_flight"
        assert refusal.value.retry_after_ms is not None
        assert refusal.value.retry_after_ms <= 1_000
        await limiter.admit(_actor(), CODE, limit)
        await limiter.settle(held.pop(0), is_charged=is_charged)
        held.append(await limiter.admit(_actor(), CHAT, limit))
    for admission in held:
        await limiter.settle(admission, is_charged=True)
    assert client.zcard("cgw:{static:acme}:chat_completions:in_flight") == 0


async def test_the_settings_bound_actors_that_bring_no_bound(links: Store) -> None:
    """The operator's bound applies to actors that have none of their own."""
    limiter = Limiter(links, LimiterOptions(max_in_flight=1))
    await limiter.admit(_actor(), CHAT, LIMIT)
    with pytest.raises(LimitExceeded, match="limit of 1 requests in flight"):
        await limiter.admit(_actor(), CHAT, LIMIT)
    own = evolve(LIMIT, max_in_flight=3)
    assert (await limiter.admit(_actor(), CHAT, own)).states[2].limit == 3


async def test_a_provider_is_bounded_for_all_actors_together(server: RedisServer, links: Store) -> None:
    """Requests of all actors and replicas to one provider count together; another provider is not affected."""
    options = LimiterOptions(provider_max_in_flight={"anthropic": 2})
    one, other = _actor(), evolve(_actor(), id="initech")
    async with open_redis(server.url, timeout_seconds=2) as more_links:
        replicas = [Limiter(links, options), Limiter(more_links, options)]
        held = [
            await replica.admit(actor, CHAT, LIMIT, provider="anthropic")
            for replica, actor in zip(replicas, (one, other), strict=True)
        ]
        for replica in replicas:
            with pytest.raises(LimitExceeded) as refusal:
                await replica.admit(one, CHAT, LIMIT, provider="anthropic")
            assert refusal.value.cause == "provider"
        await replicas[0].admit(one, CHAT, LIMIT, provider="openai")
        await replicas[1].settle(held[1], is_charged=False)
        await replicas[0].admit(one, CHAT, LIMIT, provider="anthropic")


async def test_heartbeats_keep_slots_of_gateways_that_live(server: RedisServer, client: redis.Redis) -> None:
    """A slot outlives its lease while its gateway lives, and ends three heartbeats after the gateway died."""
    limit, options = evolve(LIMIT, max_in_flight=1), LimiterOptions(heartbeat_seconds=0.1)
    key = "cgw:{static:acme}:chat_completions:in_flight"
    async with open_redis(server.url, timeout_seconds=2) as links:
        async with trio.open_nursery() as nursery:
            limiter = Limiter(links, options)
            nursery.start_soon(limiter.run)
            await limiter.admit(_actor(), CHAT, limit)
            await trio.sleep(0.5)
            assert client.zcard(key) == 1
            with pytest.raises(LimitExceeded):
                await limiter.admit(_actor(), CHAT, limit)
            nursery.cancel_scope.cancel()  # the gateway dies without settling
        started = trio.current_time()
        survivor = Limiter(links, options)
        await wait_until(lambda: _is_admitted(survivor, limit), seconds=2)
        assert 0.15 < trio.current_time() - started < 0.6


async def _is_admitted(limiter: Limiter, limit: RateLimit) -> bool:
    try:
        await limiter.admit(_actor(), CHAT, limit)
    except LimitExceeded:
        return False
    return True


async def test_an_actor_that_hammers_spares_redis(limiter: Limiter, links: Store) -> None:
    """A refusal is repeated for up to 250 ms without asking Redis; a refund in this process ends that at once."""
    limit = evolve(LIMIT, limit=1)
    admission = await limiter.admit(_actor(), CHAT, limit)
    waits = []
    before, started = links.statistics().calls, trio.current_time()
    for _ in range(100):
        with pytest.raises(LimitExceeded) as refusal:
            await limiter.admit(_actor(), CHAT, limit)
        waits.append(refusal.value.retry_after_ms or 0)
    assert links.statistics().calls - before <= 1 + (trio.current_time() - started) / 0.25
    assert waits == sorted(waits, reverse=True)
    await limiter.settle(admission, is_charged=False)
    await limiter.admit(_actor(), CHAT, limit)


async def test_alerts_are_sent_once_over_all_replicas(server: RedisServer, links: Store) -> None:
    """Each threshold of a quota makes one alert, whichever replica reaches it, if the source has alerts at all."""
    alerts: list[UsageAlert] = []
    options = LimiterOptions(notify_thresholds=(50, 100))
    limit = evolve(LIMIT, limit=10)
    async with open_redis(server.url, timeout_seconds=2) as more_links:
        replicas = [Limiter(connected, options, on_alert=alerts.append) for connected in (links, more_links)]
        for source in ("static", "anonymous"):
            for number in range(12):
                try:
                    actor = evolve(_actor(), source=source, policy=POLICIES[source])
                    admission = await replicas[number % 2].admit(actor, CHAT, limit)
                except LimitExceeded:
                    continue
                await replicas[number % 2].settle(admission, is_charged=True)
    assert [(alert.threshold, alert.limit, alert.actor.source) for alert in alerts] == [
        (50, 10, "static"),
        (100, 10, "static"),
    ]
    assert 0 < alerts[1].reset_ms <= DAY_MS
