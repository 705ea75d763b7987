"""The cache of fetched actors: what is asked when, who pays, and what a failure of the source or of Redis changes."""

from __future__ import annotations

import logging
import re

import msgspec
import pytest
import redis
import trio
import trio.testing

from cgw.actors.fetched import cached_source
from cgw.actors.fetched.address_budget import MAX_ADDRESSES, AddressBudget
from cgw.actors.fetched.fetched_actor import FetchedActor
from cgw.actors.fetched.memory import MAX_ACTORS, MAX_DENIALS, Memory, Remembered
from cgw.actors.source import AccessTokenDenied, SourceUnavailable, TooManyUnknownTokens
from cgw.control.attribution import MAX_AT_ONCE
from cgw.model import Actor, Feature
from cgw.testing.json_server import JsonAnswer, JsonCall
from cgw.testing.scripted_sourcegraph import ScriptedSourcegraph, ScriptedUser, build_limit
from tests.support.redis_server import RedisServer
from tests.support.sources import SourceBench, user_token
from tests.support.waiting import wait_until

CHECK = "CheckDotcomUserAccessToken"
TOKEN = user_token("alice")
KEYS = "cgw:{actors:dotcom-user}:*"


@pytest.fixture
def sourcegraph(sourcegraph: ScriptedSourcegraph) -> ScriptedSourcegraph:
    sourcegraph.users[TOKEN] = ScriptedUser(123)
    return sourcegraph


def count_calls(bench: SourceBench) -> int:
    return bench.store.statistics().calls


# --- how often what is asked -----------------------------------------------------------------------------------------


async def test_an_actor_in_memory_costs_no_call(bench: SourceBench, sourcegraph: ScriptedSourcegraph) -> None:
    """Within seconds neither Redis nor the source is asked again, and the actor is the same object."""
    source = await bench.start_users(sourcegraph)
    first = await source.get(TOKEN)
    before = count_calls(bench)
    for _ in range(100):
        assert await source.get(TOKEN) is first
    assert (count_calls(bench) - before, sourcegraph.counts[CHECK]) == (0, 1)


async def test_an_actor_in_redis_costs_one_call(bench: SourceBench, sourcegraph: ScriptedSourcegraph) -> None:
    """Another replica finds the actor in Redis, by one call, and asks the source nothing."""
    await (await bench.start_users(sourcegraph)).get(TOKEN)
    other = await bench.start_users(sourcegraph)
    await other.get(TOKEN)
    other.forget_freshness()
    before = count_calls(bench)
    actor = await other.get(TOKEN)
    assert (count_calls(bench) - before, sourcegraph.counts[CHECK]) == (1, 1)
    assert (actor.id, actor.is_stale) == ("123", False)


async def test_an_unchanged_actor_stays_the_same_object(bench: SourceBench, sourcegraph: ScriptedSourcegraph) -> None:
    """What Redis has not changed is not built again, so that limits recognise it by identity."""
    source = await bench.start_users(sourcegraph)
    first = await source.get(TOKEN)
    source.forget_freshness()
    assert await source.get(TOKEN) is first


async def test_a_thousand_requests_of_one_new_token_are_one_fetch(
    bench: SourceBench, sourcegraph: ScriptedSourcegraph
) -> None:
    """They all wait for the same look-up, and get the same actor."""
    sourcegraph.delay_seconds = 0.05
    source = await bench.start_users(sourcegraph)
    actors: list[Actor] = []

    async def ask() -> None:
        actors.append(await source.get(TOKEN, "192.0.2.1"))

    async with trio.open_nursery() as callers:
        for _ in range(1000):
            callers.start_soon(ask)
    assert sourcegraph.counts[CHECK] == 1
    assert len(actors) == 1000
    assert len({id(actor) for actor in actors}) == 1


async def test_a_fetch_survives_its_first_caller(bench: SourceBench, sourcegraph: ScriptedSourcegraph) -> None:
    """A caller that leaves does not end the fetch: those who came later get its outcome."""
    sourcegraph.delay_seconds = 0.2
    source = await bench.start_users(sourcegraph)
    actors = []

    async def ask() -> None:
        actors.append(await source.get(TOKEN))

    async with trio.open_nursery() as callers:
        with trio.move_on_after(0.05):
            callers.start_soon(ask)
            await source.get(TOKEN)
    assert (len(actors), sourcegraph.counts[CHECK]) == (1, 1)
    assert source.statistics().lookups == 0


async def test_a_fetch_goes_on_although_all_callers_left(bench: SourceBench, sourcegraph: ScriptedSourcegraph) -> None:
    """The next caller finds the actor in memory."""
    sourcegraph.delay_seconds = 0.1
    source = await bench.start_users(sourcegraph)
    with trio.move_on_after(0.05) as scope:
        await source.get(TOKEN)
    assert scope.cancelled_caught
    await source.get(TOKEN)
    assert sourcegraph.counts[CHECK] == 1


async def test_callers_are_answered_when_the_source_ends(bench: SourceBench, sourcegraph: ScriptedSourcegraph) -> None:
    """Nobody waits for ever: at the end of `run` callers get an error, and later ones at once."""
    sourcegraph.delay_seconds = 30
    source = await bench.start_users(sourcegraph)
    ended = []

    async def ask() -> None:
        try:
            await source.get(TOKEN)
        except SourceUnavailable as error:
            ended.append(str(error))

    with trio.fail_after(5):
        async with trio.open_nursery() as callers:
            callers.start_soon(ask)
            await trio.sleep(0.05)
            bench.run_scope.cancel()
    assert ended == ["actor source dotcom-user: the gateway is stopping"]
    with pytest.raises(SourceUnavailable):
        await source.get(user_token("bob"))


# --- §2.5: freshness, limits of all tokens of a user, resets ---------------------------------------------------------


async def test_s2_5_an_entry_is_fetched_again_when_it_is_no_longer_fresh(
    bench: SourceBench, sourcegraph: ScriptedSourcegraph
) -> None:
    """After the source's time (15 min) a request asks the source again, and gets what it says now."""
    bench.fresh_seconds = 0
    source = await bench.start_users(sourcegraph)
    await source.get(TOKEN)
    sourcegraph.users[TOKEN] = ScriptedUser(123, limits={"chatCompletions": build_limit(7)})
    source.forget_freshness()
    actor = await source.get(TOKEN)
    assert actor.rate_limits[Feature.CHAT_COMPLETIONS].limit == 7
    assert sourcegraph.counts[CHECK] == 2


async def test_s2_5_a_newer_token_updates_the_limits_of_all_tokens(
    bench: SourceBench, sourcegraph: ScriptedSourcegraph
) -> None:
    """Limits belong to the user: what was fetched with one token holds for the others."""
    source = await bench.start_users(sourcegraph)
    await source.get(TOKEN)
    sourcegraph.users[user_token("second")] = ScriptedUser(123, limits={"chatCompletions": build_limit(9)})
    await source.get(user_token("second"))
    source.forget_freshness()
    assert (await source.get(TOKEN)).rate_limits[Feature.CHAT_COMPLETIONS].limit == 9
    assert sourcegraph.counts[CHECK] == 2


async def test_s2_5_a_changed_interval_resets_usage_and_a_raised_limit_does_not(
    bench: SourceBench, sourcegraph: ScriptedSourcegraph
) -> None:
    """Once for all replicas; a user who was not known before keeps what is counted (§16.4 is not repeated)."""
    bench.fresh_seconds = 0
    sources = [await bench.start_users(sourcegraph) for _ in range(2)]
    for limits in (
        {"chatCompletions": build_limit(10), "codeCompletions": build_limit(10)},
        {"chatCompletions": build_limit(20), "codeCompletions": build_limit(20)},
        {"chatCompletions": build_limit(20, 3600), "codeCompletions": build_limit(20)},
        {"chatCompletions": build_limit(20, 3600), "codeCompletions": None},
    ):
        sourcegraph.users[TOKEN] = ScriptedUser(123, limits=limits)
        for source in sources:
            await source.get(TOKEN)
            source.forget_freshness()
    assert bench.resets.done == [("123", (Feature.CHAT_COMPLETIONS,))]


async def test_s2_5_a_failure_between_two_fetches_resets_nothing(
    bench: SourceBench, sourcegraph: ScriptedSourcegraph
) -> None:
    """A transient failure replaces no record, so the next good fetch clears no usage (§16.4)."""
    bench.fresh_seconds = 0
    source = await bench.start_users(sourcegraph)
    await source.get(TOKEN)
    sourcegraph.answer_next = lambda call: JsonAnswer({}, 503)
    source.forget_freshness()
    assert (await source.get(TOKEN)).access_enabled
    sourcegraph.answer_next = None
    source.forget_freshness()
    assert not (await source.get(TOKEN)).is_stale
    assert bench.resets.done == []


async def test_update_fetches_although_the_entry_is_fresh(bench: SourceBench, sourcegraph: ScriptedSourcegraph) -> None:
    """A refresh asks the source, and the next request gets the new limits."""
    source = await bench.start_users(sourcegraph)
    actor = await source.get(TOKEN)
    sourcegraph.users[TOKEN] = ScriptedUser(123, limits={"chatCompletions": build_limit(7)})
    await source.update(actor, TOKEN)
    assert (await source.get(TOKEN)).rate_limits[Feature.CHAT_COMPLETIONS].limit == 7


async def test_a_failed_update_changes_nothing(bench: SourceBench, sourcegraph: ScriptedSourcegraph) -> None:
    """The caller is told, and what was known stays in force."""
    source = await bench.start_users(sourcegraph)
    actor = await source.get(TOKEN)
    sourcegraph.answer_next = lambda call: JsonAnswer({}, 500)
    with pytest.raises(SourceUnavailable):
        await source.update(actor, TOKEN)
    assert await source.get(TOKEN) is actor


# --- denials ---------------------------------------------------------------------------------------------------------


async def test_a_denial_is_remembered_for_a_short_time(
    bench: SourceBench, sourcegraph: ScriptedSourcegraph, client: redis.Redis
) -> None:
    """A denied token is denied again without a fetch, and leaves nothing in Redis."""
    source = await bench.start_users(sourcegraph)
    for _ in range(5):
        with pytest.raises(AccessTokenDenied, match="associated dotcom user not found"):
            await source.get(user_token("unknown"))
    assert sourcegraph.counts[CHECK] == 1
    assert client.keys("*") == []


async def test_a_token_that_is_denied_later_stops_working_everywhere(
    bench: SourceBench, sourcegraph: ScriptedSourcegraph, client: redis.Redis
) -> None:
    """A definite denial overrules what was known: here, in Redis, and so in the other replicas."""
    bench.fresh_seconds = 0
    source, other = [await bench.start_users(sourcegraph) for _ in range(2)]
    await source.get(TOKEN)
    bench.fresh_seconds = 900
    await other.get(TOKEN)
    sourcegraph.users.clear()
    source.forget_freshness()
    for _ in range(2):
        with pytest.raises(AccessTokenDenied):
            await source.get(TOKEN)
    assert [client.get(key) for key in client.keys("*:token:*")] == [b'{"v":1,"at":0,"id":""}'], "a mark, without id"
    other.forget_freshness()
    with pytest.raises(AccessTokenDenied):
        await other.get(TOKEN)


@pytest.mark.parametrize(
    "answer",
    [
        JsonAnswer({}, 500),
        JsonAnswer({}, 404),
        JsonAnswer(is_broken=True),
        JsonAnswer({"errors": [{"message": "context deadline exceeded"}], "data": None}),
        JsonAnswer({"errors": [{"message": "x", "extensions": {"code": "SomethingElse"}}], "data": None}),
    ],
    ids=["500", "404", "broken", "an error without code", "an error with another code"],
)
async def test_only_a_definite_denial_is_remembered(
    bench: SourceBench, sourcegraph: ScriptedSourcegraph, answer: JsonAnswer
) -> None:
    """Any other failure is forgotten: the next request asks again, and the user is served."""
    source = await bench.start_users(sourcegraph)
    sourcegraph.answer_next = lambda call: answer
    with pytest.raises(SourceUnavailable) as caught:
        await source.get(TOKEN)
    assert caught.value.retry_after_seconds >= 1
    sourcegraph.answer_next = None
    assert (await source.get(TOKEN)).id == "123"


# --- the source is down ----------------------------------------------------------------------------------------------


async def test_known_actors_go_on_while_the_source_is_down(
    bench: SourceBench, sourcegraph: ScriptedSourcegraph, caplog: pytest.LogCaptureFixture
) -> None:
    """They are marked as stale, in every replica; the log says it once, and once that it is over."""
    bench.fresh_seconds = 0
    source = await bench.start_users(sourcegraph)
    await source.get(TOKEN)
    sourcegraph.answer_next = lambda call: JsonAnswer({}, 502)
    other = await bench.start_users(sourcegraph)
    for _ in range(5):
        for replica in (source, other):
            replica.forget_freshness()
            actor = await replica.get(TOKEN)
            assert (actor.id, actor.access_enabled, actor.is_stale) == ("123", True, True)
    with pytest.raises(SourceUnavailable):
        await source.get(user_token("unknown"))
    warnings = [record.getMessage() for record in caplog.records if "502" in record.getMessage()]
    assert len(warnings) == 2, "one for each replica"
    assert "actor source dotcom-user: GraphQL CheckDotcomUserAccessToken of 127.0.0.1: answered 502" in warnings[0]


async def test_the_source_is_left_alone_after_failures_and_tried_again(
    bench: SourceBench, sourcegraph: ScriptedSourcegraph, caplog: pytest.LogCaptureFixture
) -> None:
    """After three failures callers are refused without asking, until a single one tries after the pause."""
    source = await bench.start_users(sourcegraph)
    sourcegraph.answer_next = lambda call: JsonAnswer({}, 503)
    for number in range(20):
        with pytest.raises(SourceUnavailable):
            await source.get(user_token(number))
    assert sourcegraph.counts[CHECK] == 3
    sourcegraph.answer_next = None
    with trio.fail_after(5):
        while True:
            try:
                assert (await source.get(TOKEN)).id == "123"
                break
            except SourceUnavailable:
                await trio.sleep(0.05)
    with caplog.at_level(logging.INFO, "cgw.actors"):
        assert sourcegraph.counts[CHECK] == 4


async def test_a_slow_source_delays_known_actors_by_a_second_at_most(
    bench: SourceBench, sourcegraph: ScriptedSourcegraph
) -> None:
    """Who is known is served with what is known, while the look-up goes on."""
    bench.fresh_seconds = 0
    source = await bench.start_users(sourcegraph)
    actor = await source.get(TOKEN)
    sourcegraph.delay_seconds = 5
    source.forget_freshness()
    started = trio.current_time()
    assert await source.get(TOKEN) is actor
    assert trio.current_time() - started < 4
    assert source.statistics().lookups == 1


async def test_what_is_too_old_is_not_used(bench: SourceBench, sourcegraph: ScriptedSourcegraph) -> None:
    """After the cache's time to live a source that is down means 503, for everyone."""
    bench.fresh_seconds, bench.ttl_seconds = 0, 0.2
    source = await bench.start_users(sourcegraph)
    await source.get(TOKEN)
    sourcegraph.answer_next = lambda call: JsonAnswer({}, 500)
    await trio.sleep(0.25)
    source.forget_freshness()
    with pytest.raises(SourceUnavailable):
        await source.get(TOKEN)


async def test_what_is_too_old_is_not_used_while_the_source_hangs(
    bench: SourceBench, sourcegraph: ScriptedSourcegraph, client: redis.Redis
) -> None:
    """A source that does not answer grants nothing that one that is down does not."""
    bench.fresh_seconds, bench.ttl_seconds = 0, 0.2
    source = await bench.start_users(sourcegraph)
    await source.get(TOKEN)
    sourcegraph.delay_seconds = 30
    client.acl_setuser("default", enabled=True, nopass=True, categories=["+@all", "-@scripting"])
    try:
        await trio.sleep(0.25)
        source.forget_freshness()
        with trio.move_on_after(2) as waiting_scope:
            await source.get(TOKEN)
        assert waiting_scope.cancelled_caught
    finally:
        client.acl_setuser("default", enabled=True, nopass=True, categories=["+@all"])


@pytest.mark.parametrize("hangs", [False, True], ids=["down", "hanging"])
async def test_what_another_replica_was_denied_is_not_used_while_the_source_is_down(
    bench: SourceBench, sourcegraph: ScriptedSourcegraph, hangs: bool
) -> None:
    """A token that stopped working everywhere does not work again, where it is remembered, with the next outage."""
    source = await bench.start_users(sourcegraph)
    await source.get(TOKEN)
    bench.fresh_seconds = 0
    other = await bench.start_users(sourcegraph)
    sourcegraph.users.clear()
    with pytest.raises(AccessTokenDenied):
        await other.get(TOKEN)
    if hangs:
        sourcegraph.delay_seconds = 30
    else:
        sourcegraph.answer_next = lambda call: JsonAnswer({}, 503)
    source.forget_freshness()
    with trio.move_on_after(2) as waiting_scope:
        with pytest.raises(SourceUnavailable):
            await source.get(TOKEN)
    assert waiting_scope.cancelled_caught == hangs


# --- Redis ------------------------------------------------------------------------------------------------------------


async def test_without_redis_actors_are_fetched_and_known_in_the_process(
    bench: SourceBench, sourcegraph: ScriptedSourcegraph, shared_server: RedisServer, client: redis.Redis
) -> None:
    """A Redis that cannot serve costs no request: the source is asked, by each process, as often as it must be."""
    source = await bench.start_users(sourcegraph)
    await source.get(TOKEN)
    # Every script of cgw is refused.
    client.acl_setuser("default", enabled=True, nopass=True, categories=["+@all", "-@scripting"])
    try:
        source.forget_freshness()
        assert (await source.get(TOKEN)).id == "123"
        assert sourcegraph.counts[CHECK] == 1
        sourcegraph.users[user_token("new")] = ScriptedUser(7)
        assert (await source.get(user_token("new"))).id == "7"
    finally:
        client.acl_setuser("default", enabled=True, nopass=True, categories=["+@all"])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b"",
        lambda data: data[:-5],
        lambda data: b"[1,2]",
        lambda data: b"\xff\xfe",
        lambda data: data.replace(b'"v":1', b'"v":0'),
        lambda data: data.replace(b'"v":1,', b""),
        lambda data: data.replace(b'"id":"123"', b'"id":123'),
        lambda data: b"9" * 5000,
        lambda data: re.sub(rb'"(at|fetched_at_ms)":\d+', rb'"\1":1' + b"0" * 17, data),
        None,
    ],
    ids=[
        *("empty", "cut off", "other JSON", "no text", "older format", "no version", "other type", "digits"),
        *("beyond all times", "a list"),
    ],
)
@pytest.mark.parametrize("kind", ["token", "actor"])
async def test_bad_input_a_broken_record_is_dropped(
    bench: SourceBench, sourcegraph: ScriptedSourcegraph, client: redis.Redis, spoil: object, kind: str
) -> None:
    """A record that cannot be read, or is of another format or type, is as none: fetched again and replaced."""
    await (await bench.start_users(sourcegraph)).get(TOKEN)
    [key] = client.keys(f"*:{kind}:*")
    good = client.get(key)
    if callable(spoil):
        client.set(key, spoil(good))
    else:
        client.delete(key)
        client.rpush(key, "x")
    other = await bench.start_users(sourcegraph)
    assert (await other.get(TOKEN)).id == "123"
    assert sourcegraph.counts[CHECK] == 2
    repaired = client.get(key)
    assert isinstance(repaired, bytes)
    assert msgspec.json.decode(repaired)["v"] == 1


@pytest.mark.parametrize("numbers", [b"-1,86400000", b"100,0", b"100,-1", b"1" + b"0" * 30 + b",86400000"])
async def test_bad_input_numbers_that_no_limit_can_have(
    bench: SourceBench, sourcegraph: ScriptedSourcegraph, client: redis.Redis, numbers: bytes
) -> None:
    """A limit in a record that cannot be built is no limit, and does not lock its actor out."""
    await (await bench.start_users(sourcegraph)).get(TOKEN)
    [key] = client.keys("*:actor:*")
    record = client.get(key)
    assert isinstance(record, bytes)
    assert b"[100,86400000," in record
    client.set(key, record.replace(b"[100,86400000,", b"[" + numbers + b","))
    actor = await (await bench.start_users(sourcegraph)).get(TOKEN)
    assert actor.rate_limits[Feature.CHAT_COMPLETIONS].limit == 100


async def test_records_expire(bench: SourceBench, sourcegraph: ScriptedSourcegraph, client: redis.Redis) -> None:
    """All records live for CODY_GATEWAY_SOURCES_CACHE_TTL."""
    bench.ttl_seconds = 1000
    await (await bench.start_users(sourcegraph)).get(TOKEN)
    keys = client.keys("*")
    assert len(keys) == 2
    assert all(990_000 < client.pttl(key) <= 1_000_000 for key in keys)


async def test_an_actor_of_another_id_is_not_used(
    bench: SourceBench, sourcegraph: ScriptedSourcegraph, client: redis.Redis
) -> None:
    """A record that was copied under another id is as none."""
    source = await bench.start_users(sourcegraph)
    await source.get(TOKEN)
    sourcegraph.users[user_token("eve")] = ScriptedUser(666)
    await source.get(user_token("eve"))
    client.copy("cgw:{actors:dotcom-user}:actor:123", "cgw:{actors:dotcom-user}:actor:666", replace=True)
    other = await bench.start_users(sourcegraph)
    assert (await other.get(user_token("eve"))).id == "666"


# --- floods -----------------------------------------------------------------------------------------------------------


async def test_unknown_tokens_are_fetched_within_a_budget_per_address(
    bench: SourceBench, sourcegraph: ScriptedSourcegraph
) -> None:
    """Beyond it they get 429 with the time to wait; other addresses and known tokens are not affected."""
    bench.fetches_per_minute = 10
    source = await bench.start_users(sourcegraph)
    await source.get(TOKEN, "192.0.2.1")
    refused = 0
    for number in range(30):
        try:
            await source.get(user_token(number), "192.0.2.1")
        except AccessTokenDenied:
            continue
        except TooManyUnknownTokens as error:
            refused += 1
            assert 0 < error.retry_after_seconds <= 6
    assert (sourcegraph.counts[CHECK], refused) == (11, 20)
    assert (await source.get(TOKEN, "192.0.2.1")).id == "123"
    with pytest.raises(AccessTokenDenied):
        await source.get(user_token("other"), "192.0.2.2")


async def test_the_budget_of_an_ipv6_address_is_its_networks(
    bench: SourceBench, sourcegraph: ScriptedSourcegraph
) -> None:
    """Who has one address of a /64 has all of them."""
    bench.fetches_per_minute = 5
    source = await bench.start_users(sourcegraph)
    outcomes = []
    for number in range(20):
        try:
            await source.get(user_token(number), f"2001:db8::{number:x}")
        except (AccessTokenDenied, TooManyUnknownTokens) as error:
            outcomes.append(type(error).__name__)
    assert outcomes == ["AccessTokenDenied"] * 5 + ["TooManyUnknownTokens"] * 15


async def test_tokens_that_are_known_cost_no_budget(bench: SourceBench, sourcegraph: ScriptedSourcegraph) -> None:
    """An instance with thousands of users behind one address is served: only unknown tokens count."""
    bench.fetches_per_minute = 5
    source, other = [await bench.start_users(sourcegraph) for _ in range(2)]
    for number in range(60):
        sourcegraph.users[user_token(number)] = ScriptedUser(number)
        await source.get(user_token(number), "192.0.2.1")
        await other.get(user_token(number), "192.0.2.1")
    assert sourcegraph.counts[CHECK] == 60
    assert other.statistics().addresses == 0


async def test_a_flood_costs_redis_a_bounded_number_of_calls(
    bench: SourceBench, sourcegraph: ScriptedSourcegraph
) -> None:
    """An address that spent its look-ups costs neither the source nor Redis anything."""
    bench.fetches_per_minute = 2
    source = await bench.start_users(sourcegraph)
    before = count_calls(bench)
    for number in range(500):
        with pytest.raises((AccessTokenDenied, TooManyUnknownTokens)):
            await source.get(user_token(number), "192.0.2.1")
    assert count_calls(bench) - before <= 2 * 20 + 2 * 2 + 5
    assert sourcegraph.counts[CHECK] == 2


async def test_known_actors_are_served_in_a_flood_of_unknown_tokens(
    bench: SourceBench, sourcegraph: ScriptedSourcegraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While look-ups of unknown tokens wait for a slow source, known ones are served, from memory and from Redis."""
    monkeypatch.setattr(cached_source, "MAX_LOOKUPS", 30)
    monkeypatch.setattr(cached_source, "MAX_WAITING_FETCHES", 10)
    source = await bench.start_users(sourcegraph)
    actor = await source.get(TOKEN)
    sourcegraph.users[user_token("bob")] = ScriptedUser(7)
    await (await bench.start_users(sourcegraph)).get(user_token("bob"))
    sourcegraph.delay_seconds = 30
    refused = 0

    async def ask(number: int) -> None:
        nonlocal refused
        try:
            await source.get(user_token(number), f"192.0.2.{number}")
        except SourceUnavailable:
            refused += 1

    async with trio.open_nursery() as flood_nursery:
        for number in range(100):
            flood_nursery.start_soon(ask, number)
        await wait_until(lambda: refused == 100 - cached_source.MAX_FETCHES - 10)
        source.forget_freshness()
        assert await source.get(TOKEN, "192.0.2.200") is actor
        assert (await source.get(user_token("bob"), "192.0.2.201")).id == "7"
        monkeypatch.setattr(cached_source, "MAX_LOOKUPS", 1)
        source.forget_freshness()
        assert await source.get(TOKEN, "192.0.2.200") is actor
        flood_nursery.cancel_scope.cancel()


async def test_an_outage_uses_up_no_budget(bench: SourceBench, sourcegraph: ScriptedSourcegraph) -> None:
    """While the source is left alone, callers that cannot be recognised get 503, and are served when it is back."""
    bench.fetches_per_minute = 10
    source = await bench.start_users(sourcegraph)
    sourcegraph.answer_next = lambda call: JsonAnswer({}, 503)
    for number in range(30):
        with pytest.raises(SourceUnavailable):
            await source.get(user_token(number), "192.0.2.1")
    sourcegraph.answer_next = None
    with trio.fail_after(10):
        while True:
            try:
                assert (await source.get(TOKEN, "192.0.2.1")).id == "123"
                break
            except SourceUnavailable:
                await trio.sleep(0.1)


async def test_slow_attribution_keeps_no_token_from_being_checked(
    bench: SourceBench, sourcegraph: ScriptedSourcegraph
) -> None:
    """As many searches as run at once, none of which is answered, leave connections for the other questions."""
    dotcom = bench.build_dotcom_client(sourcegraph)
    source = await bench.start_users(sourcegraph)

    async def hold_attribution(call: JsonCall) -> None:
        if call.target.endswith("?SnippetAttribution"):
            await trio.sleep_forever()

    sourcegraph.wait_before = hold_attribution
    async with trio.open_nursery() as search_nursery:
        for _ in range(MAX_AT_ONCE):
            search_nursery.start_soon(dotcom.snippet_attribution, "snippet", 4)
        await wait_until(lambda: sourcegraph.counts["SnippetAttribution"] == MAX_AT_ONCE)
        with trio.fail_after(5):
            assert (await source.get(TOKEN)).id == "123"
        search_nursery.cancel_scope.cancel()


def test_memory_is_bounded() -> None:
    """Actors, denials and addresses are forgotten, the oldest first, when there are too many."""

    async def fill() -> None:
        memory, budget = Memory(), AddressBudget(10)
        fetched = FetchedActor("1", "", True, 0)
        for number in range(MAX_DENIALS + 500):
            key = str(number)
            memory.remember_denial(key, "no")
            budget.spend(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
        for number in range(MAX_ACTORS + 500):
            key = f"actor {number}"
            memory.remember(key, Remembered(Actor("1", "", "dotcom-user", True), fetched, 0, 0.0))
        assert (len(memory), len(budget)) == (MAX_ACTORS + MAX_DENIALS, MAX_ADDRESSES)

    trio.run(fill)


async def test_bursts_of_stale_requests_ask_redis_once(bench: SourceBench, sourcegraph: ScriptedSourcegraph) -> None:
    """A hundred requests of an actor whose entry has just expired share one look-up."""
    source = await bench.start_users(sourcegraph)
    await source.get(TOKEN)
    source.forget_freshness()
    before = count_calls(bench)
    async with trio.open_nursery() as callers:
        for _ in range(100):
            callers.start_soon(source.get, TOKEN)
    assert count_calls(bench) - before == 1


async def test_a_replica_that_has_just_started_does_not_wait_for_a_slow_source(
    bench: SourceBench, sourcegraph: ScriptedSourcegraph
) -> None:
    """What Redis knows is served after a second, although this process knew nothing and the source takes long."""
    bench.fresh_seconds = 0
    await (await bench.start_users(sourcegraph)).get(TOKEN)
    other = await bench.start_users(sourcegraph)
    sourcegraph.delay_seconds = 8
    started = trio.current_time()
    assert (await other.get(TOKEN)).id == "123"
    assert trio.current_time() - started < 5


async def test_many_failures_at_once_are_one_pause(bench: SourceBench, sourcegraph: ScriptedSourcegraph) -> None:
    """Fetches that fail together do not prolong the pause: it is over after a second."""
    sourcegraph.delay_seconds = 0.05
    sourcegraph.answer_next = lambda call: JsonAnswer({}, 503)
    source = await bench.start_users(sourcegraph)

    async def ask(number: int) -> None:
        with pytest.raises(SourceUnavailable):
            await source.get(user_token(number))

    async with trio.open_nursery() as callers:
        for number in range(16):
            callers.start_soon(ask, number)
    assert source.describe() == "actor source dotcom-user cannot be asked (see the log)"
    with pytest.raises(SourceUnavailable) as caught:
        await source.get(TOKEN)
    assert caught.value.retry_after_seconds <= 1
    sourcegraph.answer_next = None
    await trio.sleep(1.1)
    await source.get(TOKEN)
    assert source.describe() is None


async def test_a_bug_costs_one_look_up(
    bench: SourceBench, sourcegraph: ScriptedSourcegraph, caplog: pytest.LogCaptureFixture
) -> None:
    """An unexpected exception is 503 for its callers and one error line with its place, without its text."""
    source = await bench.start_users(sourcegraph)

    original = source._backend

    class Broken:
        async def fetch(self, token: str, report: object) -> FetchedActor:
            raise RuntimeError(f"it happened with {token}")

    source._backend = Broken()
    with pytest.raises(SourceUnavailable, match="failed"):
        await source.get(TOKEN)
    [record] = caplog.records
    assert "unexpected RuntimeError at " in record.getMessage()
    assert TOKEN not in caplog.text
    source._backend = original
    assert (await source.get(TOKEN)).id == "123"
