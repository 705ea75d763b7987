"""Syncing: what is listed is known, what no longer is stops working, and a wrong listing removes nothing."""

from __future__ import annotations

import pytest
import redis
import trio

from cgw.actors.fetched.synced_source import SyncedSource
from cgw.actors.source import AccessTokenDenied, FenceLost, Sources, SourceUnavailable, SyncResult
from cgw.model import Feature
from cgw.testing.json_server import JsonAnswer, JsonCall
from cgw.testing.scripted_portal import ScriptedAccess, ScriptedPortal
from cgw.testing.scripted_sourcegraph import ScriptedSourcegraph, ScriptedSubscription, build_limit
from tests.support.sources import SourceBench, subscription_token


def subscribe(sourcegraph: ScriptedSourcegraph, count: int) -> None:
    """Give Sourcegraph.com ``count`` subscriptions with two tokens each."""
    sourcegraph.subscriptions = [
        ScriptedSubscription(f"s-{number}", (subscription_token(number), subscription_token(f"{number}b")))
        for number in range(count)
    ]


@pytest.mark.parametrize("page_size", [None, 1, 3, 7])
async def test_all_pages_are_read(bench: SourceBench, sourcegraph: ScriptedSourcegraph, page_size: int | None) -> None:
    """Every token of every page is known without a fetch, in every replica."""
    subscribe(sourcegraph, 7)
    sourcegraph.page_size = page_size
    source, other = [await bench.start_subscriptions(sourcegraph) for _ in range(2)]
    assert await source.sync(1) == SyncResult(seen=14, removed=0)
    for number in range(7):
        assert (await other.get(subscription_token(f"{number}b"))).id == f"s-{number}"
    assert sourcegraph.counts["CheckAccessToken"] == 0


async def test_the_first_page_is_asked_for_as_the_reference_does(
    bench: SourceBench, sourcegraph: ScriptedSourcegraph
) -> None:
    """Without arguments, which the API may not know; only a further page needs one."""
    subscribe(sourcegraph, 2)
    sourcegraph.page_size = 1
    await (await bench.start_subscriptions(sourcegraph)).sync(1)
    first, second = sourcegraph.calls
    assert first.json()["variables"] == {}
    assert "after" not in first.json()["query"]
    assert second.json()["variables"] == {"after": "1"}


@pytest.mark.parametrize("page_size", [None, 2])
async def test_the_portals_listing(bench: SourceBench, portal: ScriptedPortal, page_size: int | None) -> None:
    """One call without a page size, which the portal refuses; further pages by the token that it gave."""
    portal.page_size = page_size
    portal.accesses = [ScriptedAccess(f"s-{number}", (subscription_token(number),)) for number in range(5)]
    source = await bench.start_portal(portal)
    assert await source.sync(1) == SyncResult(seen=5, removed=0)
    assert (await source.get(subscription_token(4))).id == "s-4"
    assert portal.counts["GetCodyGatewayAccess"] == 0


async def test_a_token_that_is_no_longer_listed_is_removed(
    bench: SourceBench, sourcegraph: ScriptedSourcegraph, client: redis.Redis
) -> None:
    """In the replica that synced and in the others, without a fetch; its siblings go on."""
    subscribe(sourcegraph, 2)
    source, other = [await bench.start_subscriptions(sourcegraph) for _ in range(2)]
    await source.sync(1)
    for replica in (source, other):
        await replica.get(subscription_token(0))
    sourcegraph.subscriptions[0] = ScriptedSubscription("s-0", (subscription_token("0b"),))
    assert await source.sync(1) == SyncResult(seen=3, removed=1)
    for replica in (source, other):
        replica.forget_freshness()
        with pytest.raises(AccessTokenDenied, match="no longer listed"):
            await replica.get(subscription_token(0))
        assert (await replica.get(subscription_token("0b"))).id == "s-0"
    assert sourcegraph.counts["CheckAccessToken"] == 0
    assert await source.sync(1) == SyncResult(seen=3, removed=0)


async def test_a_removed_token_that_is_listed_again_works(bench: SourceBench, sourcegraph: ScriptedSourcegraph) -> None:
    """The next sync lifts the removal."""
    subscribe(sourcegraph, 2)
    whole = list(sourcegraph.subscriptions)
    source, other = [await bench.start_subscriptions(sourcegraph) for _ in range(2)]
    await source.sync(1)
    sourcegraph.subscriptions.pop()
    await source.sync(1)
    sourcegraph.subscriptions = whole
    await source.sync(1)
    assert (await other.get(subscription_token(1))).id == "s-1"


def break_second_page(call: JsonCall) -> JsonAnswer | None:
    return JsonAnswer({}, 502) if call.json()["variables"] else None


BAD_LISTINGS = {
    "the second page fails": break_second_page,
    "nothing is listed": lambda call: JsonAnswer(
        {
            "data": {
                "dotcom": {"productSubscriptions": {"totalCount": 0, "pageInfo": {"hasNextPage": False}, "nodes": []}}
            }
        }
    ),
    "fewer than announced": lambda call: JsonAnswer(
        {
            "data": {
                "dotcom": {
                    "productSubscriptions": {
                        "totalCount": 3,
                        "pageInfo": {"hasNextPage": False},
                        "nodes": [ScriptedSubscription("s-0", (subscription_token(0),)).render(is_listed=True)],
                    }
                }
            }
        }
    ),
    "a next page without a cursor": lambda call: JsonAnswer(
        {
            "data": {
                "dotcom": {"productSubscriptions": {"totalCount": 9, "pageInfo": {"hasNextPage": True}, "nodes": []}}
            }
        }
    ),
    "no nodes": lambda call: JsonAnswer(
        {"data": {"dotcom": {"productSubscriptions": {"pageInfo": {"hasNextPage": False}, "nodes": None}}}}
    ),
    "no page info": lambda call: JsonAnswer({"data": {"dotcom": {"productSubscriptions": {"nodes": []}}}}),
    "data beside errors": lambda call: JsonAnswer(
        {
            "data": {"dotcom": {"productSubscriptions": {"pageInfo": {"hasNextPage": False}, "nodes": []}}},
            "errors": [{"message": "partial"}],
        }
    ),
}


@pytest.mark.parametrize("name", BAD_LISTINGS)
async def test_a_partial_listing_removes_nothing(
    bench: SourceBench, sourcegraph: ScriptedSourcegraph, name: str
) -> None:
    """It is an error, and every token goes on as before."""
    subscribe(sourcegraph, 4)
    source = await bench.start_subscriptions(sourcegraph)
    await source.sync(1)
    sourcegraph.page_size = 2
    sourcegraph.answer_next = BAD_LISTINGS[name]
    with pytest.raises(SourceUnavailable):
        await source.sync(2)
    sourcegraph.answer_next = lambda call: JsonAnswer({}, 500)
    source.forget_freshness()
    for number in range(4):
        assert (await source.get(subscription_token(number))).id == f"s-{number}"


@pytest.mark.parametrize(
    "overrides",
    [
        {"uuid": None},
        {"uuid": "not an id"},
        {"codyGatewayAccess": None},
        {"codyGatewayAccess": {"enabled": "yes"}},
        {"isArchived": 1},
    ],
)
async def test_bad_input_a_listed_subscription_that_cannot_be_read_stays_as_it_was(
    bench: SourceBench,
    sourcegraph: ScriptedSourcegraph,
    overrides: dict[str, object],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its tokens are listed, so they are not removed; nothing is granted; the log says it once, by name."""
    subscribe(sourcegraph, 2)
    source = await bench.start_subscriptions(sourcegraph)
    await source.sync(1)
    sourcegraph.subscriptions[0] = ScriptedSubscription("s-0", (subscription_token(0),), overrides=overrides)
    for fence in (2, 3):
        assert await source.sync(fence) == SyncResult(seen=3, removed=1 if fence == 2 else 0)
    assert (await source.get(subscription_token(0))).access_enabled
    assert len([record for record in caplog.records if "it stays as it was" in record.getMessage()]) == 1
    assert subscription_token(0) not in caplog.text


async def test_a_portal_access_without_an_id_stays_as_it_was(
    bench: SourceBench, portal: ScriptedPortal, caplog: pytest.LogCaptureFixture
) -> None:
    """The same for the Enterprise Portal."""
    portal.accesses = [ScriptedAccess(f"s-{number}", (subscription_token(number),)) for number in range(2)]
    source = await bench.start_portal(portal)
    await source.sync(1)
    portal.accesses[0] = ScriptedAccess("s-0", (subscription_token(0),), overrides={"subscriptionId": None})
    assert await source.sync(2) == SyncResult(seen=2, removed=0)
    assert "lacks 'subscription_id'" in caplog.text or "lacks 'subscriptionId'" in caplog.text


async def test_listings_that_fail_do_not_keep_new_tokens_out(
    bench: SourceBench, sourcegraph: ScriptedSourcegraph
) -> None:
    """However often a listing fails: the question for one token is another one."""
    subscribe(sourcegraph, 1)
    source = await bench.start_subscriptions(sourcegraph)
    sourcegraph.answer_next = lambda call: JsonAnswer({}, 504) if "List" in call.target else None
    for fence in range(1, 6):
        with pytest.raises(SourceUnavailable):
            await source.sync(fence)
    assert (await source.get(subscription_token(0))).id == "s-0"


async def test_a_source_without_any_token_can_be_synced(bench: SourceBench, sourcegraph: ScriptedSourcegraph) -> None:
    """An empty listing is only an error if tokens were known."""
    source = await bench.start_subscriptions(sourcegraph)
    assert await source.sync(1) == SyncResult(seen=0, removed=0)


async def test_a_paused_holder_cannot_write_after_a_newer_one(
    bench: SourceBench, sourcegraph: ScriptedSourcegraph
) -> None:
    """An old holder that wakes up in the middle of its sync neither writes nor removes (fencing)."""
    subscribe(sourcegraph, 4)
    sourcegraph.page_size = 1
    old, new = [await bench.start_subscriptions(sourcegraph) for _ in range(2)]
    paused, go_on = trio.Event(), trio.Event()
    outcome: list[str] = []

    async def hold_second_page(call: JsonCall) -> None:
        if call.json()["variables"] and not paused.is_set():
            paused.set()
            await go_on.wait()

    sourcegraph.wait_before = hold_second_page

    async def run_old() -> None:
        try:
            await old.sync(5)
        except FenceLost as error:
            outcome.append(str(error))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_old)
        await paused.wait()
        # The new holder finds one subscription less, and another one changed.
        sourcegraph.subscriptions.pop()
        limits = {"chatCompletions": build_limit(77)}
        sourcegraph.subscriptions[0] = ScriptedSubscription("s-0", (subscription_token(0),), limits=limits)
        await new.sync(6)
        go_on.set()
    assert outcome == ["another replica syncs the actors by now: nothing more was written"]
    assert (await new.get(subscription_token(0))).rate_limits[Feature.CHAT_COMPLETIONS].limit == 77
    with pytest.raises(FenceLost):
        await new.sync(5)


async def test_a_changed_interval_resets_usage_once(bench: SourceBench, sourcegraph: ScriptedSourcegraph) -> None:
    """Syncing applies the rule of §2.5, too: an interval that changed, not a limit that was raised."""
    subscribe(sourcegraph, 3)
    source = await bench.start_subscriptions(sourcegraph)
    await source.sync(1)
    limits = {"chatCompletions": build_limit(500), "codeCompletions": build_limit(1000, 3600)}
    sourcegraph.subscriptions[1] = ScriptedSubscription("s-1", (subscription_token(1),), limits=limits)
    await source.sync(2)
    await source.sync(3)
    assert bench.resets.done == [("s-1", (Feature.CODE_COMPLETIONS,))]


async def test_a_token_fetched_while_a_sync_runs_is_not_removed(
    bench: SourceBench, sourcegraph: ScriptedSourcegraph
) -> None:
    """A subscription that was made after its page was read is known by a request's fetch."""
    subscribe(sourcegraph, 2)
    source = await bench.start_subscriptions(sourcegraph)
    late = ScriptedSubscription("s-late", (subscription_token("late"),))

    await source.sync(1)
    sourcegraph.delay_seconds = 0.1

    async def fetch() -> None:
        await trio.sleep(0.03)
        sourcegraph.delay_seconds = 0
        sourcegraph.subscriptions.append(late)
        assert (await source.get(subscription_token("late"))).id == "s-late"
        sourcegraph.subscriptions.remove(late)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fetch)
        result = await source.sync(2)
    assert result.removed == 0
    source.forget_freshness()
    assert (await source.get(subscription_token("late"))).id == "s-late"


async def test_thousands_of_subscriptions(bench: SourceBench, sourcegraph: ScriptedSourcegraph) -> None:
    """The whole listing is kept in calls of bounded size, and the Trio thread is never held for long."""
    subscribe(sourcegraph, 2000)
    source = await bench.start_subscriptions(sourcegraph)
    before = bench.store.statistics().calls
    assert await source.sync(1) == SyncResult(seen=4000, removed=0)
    assert bench.store.statistics().calls - before <= 2000 / 50 + 5


async def test_which_sources_can_be_synced(bench: SourceBench, sourcegraph: ScriptedSourcegraph) -> None:
    """The sync worker finds subscriptions, not users."""
    users, subscriptions = await bench.start_users(sourcegraph), await bench.start_subscriptions(sourcegraph)
    sources = Sources([users, subscriptions])
    assert sources.syncers == [subscriptions]
    assert sources.runners == [users, subscriptions]
    assert isinstance(subscriptions, SyncedSource)
