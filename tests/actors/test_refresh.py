"""Refreshing actors: shared updates, cool-down, failures, and an end that answers all callers."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest
import trio
import trio.testing
from attrs import define, evolve, field, frozen

from cgw.actors.refresh import MAX_AT_ONCE, MAX_COOLING, MAX_WAITING, UPDATE_SECONDS, Refresher, RefreshFailed
from cgw.actors.source import ActorRecentlyUpdated, NotFromSource, Sources, Updater
from cgw.errors import CgwError, StoreUnavailable
from cgw.model import Actor


def build_actor(actor_id: str = "acme", source: str = "listed") -> Actor:
    return Actor(id=actor_id, name="", source=source, access_enabled=True)


@define
class ListedSource:
    """A source whose updates take time, or fail, as the test sets it; it notes the actors that were updated."""

    seconds: float = 0.0
    error: Exception | None = None
    name: str = "listed"
    cooldown_seconds: float = 60.0
    updated_ids: list[str] = field(factory=list)
    most_at_once: int = 0
    _at_once: int = 0

    async def get(self, token: str, client: str = "") -> Actor:
        raise NotFromSource

    async def update(self, actor: Actor, token: str) -> None:
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        self.updated_ids.append(actor.id)
        try:
            await trio.sleep(self.seconds)
            if self.error is not None:
                raise self.error
        finally:
            self._at_once -= 1


@frozen
class FixedSource:
    """A source that cannot update."""

    name: str = "fixed"

    async def get(self, token: str, client: str = "") -> Actor:
        raise NotFromSource


@asynccontextmanager
async def open_refresher(*sources: ListedSource | FixedSource) -> AsyncIterator[Refresher]:
    """Run a refresher for the length of the block."""
    refresher = Refresher(Sources(sources))
    async with trio.open_nursery() as service_nursery:
        service_nursery.start_soon(refresher.run)
        yield refresher
        service_nursery.cancel_scope.cancel()


@define
class Outcomes:
    """The outcomes of calls, in the order in which they ended."""

    ended: list[str] = field(factory=list)

    async def note(self, call: Callable[[Actor, str], Awaitable[None]], actor: Actor) -> None:
        try:
            await call(actor, "token")
        except CgwError as error:
            self.ended.append(str(error))
        else:
            self.ended.append("updated")


def test_an_updater_is_found_by_the_actors_source() -> None:
    """An actor's updater is its own source, if that can update."""
    listed = ListedSource()
    sources = Sources([FixedSource(), listed])
    assert sources.find_updater(build_actor()) is listed
    assert isinstance(listed, Updater)
    assert sources.find_updater(build_actor(source="fixed")) is None
    assert sources.find_updater(build_actor(source="gone")) is None


async def test_callers_for_one_actor_share_one_update(autojump_clock: trio.testing.MockClock) -> None:
    """Fifty callers wait for the same update, and all end with it."""
    source = ListedSource(seconds=2)
    outcomes = Outcomes()
    async with open_refresher(source) as refresher:
        async with trio.open_nursery() as callers:
            for _ in range(50):
                callers.start_soon(outcomes.note, refresher.refresh, build_actor())
        assert trio.current_time() == pytest.approx(2)
    assert outcomes.ended == ["updated"] * 50
    assert source.updated_ids == ["acme"]
    statistics = refresher.statistics()
    assert (statistics.updated, statistics.joined, statistics.under_way, statistics.waiting) == (1, 49, 0, 0)


async def test_cancelled_caller_leaves_the_update_to_the_others(autojump_clock: trio.testing.MockClock) -> None:
    """If the caller that started the update is cancelled, the one that joined still gets its outcome."""
    source = ListedSource(seconds=2)
    outcomes = Outcomes()
    async with open_refresher(source) as refresher, trio.open_nursery() as callers:
        with trio.move_on_after(1) as caller_scope:
            callers.start_soon(outcomes.note, refresher.refresh, build_actor())
            await refresher.refresh(build_actor(), "token")
        assert caller_scope.cancelled_caught
        assert refresher.statistics().under_way == 1
    assert outcomes.ended == ["updated"]
    assert source.updated_ids == ["acme"]


async def test_request_does_not_wait(autojump_clock: trio.testing.MockClock) -> None:
    """A request returns at once; the update follows, and later callers join it."""
    source = ListedSource(seconds=2)
    async with open_refresher(source) as refresher:
        refresher.request(build_actor(), "token")
        refresher.request(build_actor(), "token")
        assert (source.updated_ids, trio.current_time()) == ([], 0)
        await refresher.refresh(build_actor(), "token")
        assert source.updated_ids == ["acme"]
        assert trio.current_time() == pytest.approx(2)


async def test_cool_down_refuses_with_the_time_left(autojump_clock: trio.testing.MockClock) -> None:
    """Within the source's cool-down no update is made; the error has the reference's text and the time (§1.7)."""
    source = ListedSource(cooldown_seconds=300)
    async with open_refresher(source) as refresher:
        await refresher.refresh(build_actor(), "token")
        await trio.sleep(0.5)
        with pytest.raises(ActorRecentlyUpdated) as caught:
            await refresher.refresh(build_actor(), "token")
        assert str(caught.value) == "actor was recently updated - try again in 4m59s"
        assert caught.value.retry_after_seconds == pytest.approx(299.5)
        assert (caught.value.retry_at - datetime.now(UTC)).total_seconds() == pytest.approx(299.5, abs=5)
        refresher.request(build_actor(), "token")
        await refresher.refresh(build_actor("other"), "token")
        assert source.updated_ids == ["acme", "other"]
        await trio.sleep(299.5)
        await refresher.refresh(build_actor(), "token")
    assert source.updated_ids == ["acme", "other", "acme"]
    assert refresher.statistics().cooling == 2


async def test_failure_reaches_all_callers_and_cools_down(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Each caller gets the source's error; the same failure is logged once, and so is the recovery."""
    source = ListedSource(seconds=1, error=StoreUnavailable("down"), cooldown_seconds=10)
    outcomes = Outcomes()
    with caplog.at_level(logging.INFO, "cgw.actors"):
        async with open_refresher(source) as refresher:
            async with trio.open_nursery() as callers:
                for actor_id in ("a", "a", "b"):
                    callers.start_soon(outcomes.note, refresher.refresh, build_actor(actor_id))
            assert outcomes.ended == ["down"] * 3
            with pytest.raises(ActorRecentlyUpdated):
                await refresher.refresh(build_actor("a"), "token")
            source.error = None
            await trio.sleep(10)
            await refresher.refresh(build_actor("a"), "token")
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert messages[0].startswith("unexpected error updating actor ")
    assert messages[0].endswith(" from source listed: down")
    assert messages[1] == "updating actors from source listed works again"
    assert (refresher.statistics().failed, refresher.statistics().updated) == (2, 1)


async def test_fault_of_a_source_ends_nothing_else(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """An unexpected exception is logged with its place alone; its callers get a plain error, other refreshes go on."""
    broken = ListedSource(error=KeyError("token sgp_abcdef0123456789"), name="broken")
    async with open_refresher(broken, ListedSource()) as refresher:
        with pytest.raises(RefreshFailed) as caught:
            await refresher.refresh(build_actor(source="broken"), "token")
        await refresher.refresh(build_actor(), "token")
    assert str(caught.value) == "the actor was not refreshed: its source failed"
    (record,) = caplog.records
    assert record.getMessage().startswith("unexpected error updating actor from source broken: KeyError at ")
    assert "sgp_" not in caplog.text


async def test_source_that_never_answers_times_out(autojump_clock: trio.testing.MockClock) -> None:
    """An update has a deadline, so that a source that hangs does not block the others for ever."""
    stuck = ListedSource(seconds=float("inf"), name="stuck")
    outcomes = Outcomes()
    async with open_refresher(stuck, ListedSource()) as refresher:
        async with trio.open_nursery() as callers:
            for number in range(MAX_AT_ONCE):
                callers.start_soon(outcomes.note, refresher.refresh, build_actor(f"{number}", "stuck"))
        assert trio.current_time() == pytest.approx(UPDATE_SECONDS)
        await refresher.refresh(build_actor(), "token")
    assert set(outcomes.ended) == {"the actor was not refreshed: its source took more than 30 s"}


async def test_few_updates_run_at_once_in_the_order_of_arrival(autojump_clock: trio.testing.MockClock) -> None:
    """More refreshes than the bound wait for their turn, first come, first served."""
    source = ListedSource(seconds=1)
    ids = [f"{number}" for number in range(3 * MAX_AT_ONCE)]
    async with open_refresher(source) as refresher:
        for actor_id in ids:
            refresher.request(build_actor(actor_id), "token")
        await refresher.refresh(build_actor(ids[-1]), "token")
        assert trio.current_time() == pytest.approx(3)
    assert source.most_at_once == MAX_AT_ONCE
    rounds = [source.updated_ids[at : at + MAX_AT_ONCE] for at in range(0, len(ids), MAX_AT_ONCE)]
    # Within a round, Trio starts them in an order of its own.
    assert [sorted(started, key=int) for started in rounds] == [
        ids[at : at + MAX_AT_ONCE] for at in range(0, len(ids), MAX_AT_ONCE)
    ]


async def test_full_queue_refuses_requests(autojump_clock: trio.testing.MockClock) -> None:
    """Beyond the bound a request is dropped and counted, and a caller that would wait gets an error."""
    refresher = Refresher(Sources([ListedSource()]))
    for number in range(MAX_WAITING + 5):
        refresher.request(build_actor(f"{number}"), "token")
    with pytest.raises(RefreshFailed, match="too many others"):
        await refresher.refresh(build_actor("late"), "token")
    assert (refresher.statistics().waiting, refresher.statistics().dropped) == (MAX_WAITING, 6)
    async with trio.open_nursery() as service_nursery:
        service_nursery.start_soon(refresher.run)
        await refresher.refresh(build_actor(f"{MAX_WAITING - 1}"), "token")
        service_nursery.cancel_scope.cancel()
    assert refresher.statistics().updated == MAX_WAITING


async def test_end_of_the_service_answers_all_callers(autojump_clock: trio.testing.MockClock) -> None:
    """Callers of updates that run or wait get an error when the service ends, and so do later ones."""
    source = ListedSource(seconds=20)
    outcomes = Outcomes()
    async with trio.open_nursery() as callers, open_refresher(source) as refresher:
        for number in range(2 * MAX_AT_ONCE):
            callers.start_soon(outcomes.note, refresher.refresh, build_actor(f"{number}"))
        await trio.testing.wait_all_tasks_blocked()
        assert (refresher.statistics().under_way, refresher.statistics().waiting) == (MAX_AT_ONCE, MAX_AT_ONCE)
    assert outcomes.ended == ["the actor was not refreshed: the gateway is stopping"] * 2 * MAX_AT_ONCE
    assert trio.current_time() == 0
    with pytest.raises(RefreshFailed, match="stopping"):
        await refresher.refresh(build_actor("late"), "token")
    refresher.request(build_actor("late"), "token")
    assert (refresher.statistics().under_way, refresher.statistics().waiting) == (0, 0)


async def test_actor_without_updater_is_done_at_once(autojump_clock: trio.testing.MockClock) -> None:
    """If the source cannot update, refreshing does nothing, however often."""
    async with open_refresher(FixedSource()) as refresher:
        for _ in range(3):
            await refresher.refresh(build_actor(source="fixed"), "token")
            refresher.request(build_actor(source="fixed"), "token")
    statistics = refresher.statistics()
    assert (statistics.updated, statistics.cooling, statistics.dropped, statistics.remembered) == (0, 0, 0, 0)


async def test_memory_of_cool_downs_is_bounded(autojump_clock: trio.testing.MockClock) -> None:
    """Of very many actors the oldest are forgotten; those that have cooled down are removed as others come."""
    source = ListedSource(cooldown_seconds=60)
    async with open_refresher(source) as refresher:
        for number in range(MAX_COOLING + 10):
            await refresher.refresh(build_actor(f"{number}"), "token")
        assert refresher.statistics().remembered == MAX_COOLING
        await refresher.refresh(build_actor("0"), "token")
        with pytest.raises(ActorRecentlyUpdated):
            await refresher.refresh(build_actor(f"{MAX_COOLING}"), "token")
        await trio.sleep(60)
        for number in range(10):
            await refresher.refresh(build_actor(f"new-{number}"), "token")
        assert refresher.statistics().remembered == MAX_COOLING - 10


async def test_source_without_cool_down_updates_every_time(autojump_clock: trio.testing.MockClock) -> None:
    """With a cool-down of zero every update runs, and nothing is remembered."""
    source = ListedSource(cooldown_seconds=0)
    async with open_refresher(source) as refresher:
        for _ in range(3):
            await refresher.refresh(build_actor(), "token")
    assert source.updated_ids == ["acme"] * 3
    assert refresher.statistics().remembered == 0


async def test_an_actor_that_was_just_fetched_cools_down() -> None:
    """By whichever replica: the time of its record counts, rounded down as in the reference (§1.7)."""
    listed = ListedSource()
    fetched = evolve(build_actor(), last_updated=datetime.now(UTC) - timedelta(seconds=20))
    async with open_refresher(listed) as refresher:
        with pytest.raises(ActorRecentlyUpdated, match=r"^actor was recently updated - try again in 39s$") as caught:
            await refresher.refresh(fetched, "token")
        assert 39 < caught.value.retry_after_seconds <= 40
        refresher.request(fetched, "token")
        ahead = evolve(build_actor(), last_updated=datetime.now(UTC) + timedelta(hours=5))
        with pytest.raises(ActorRecentlyUpdated) as caught:
            await refresher.refresh(ahead, "token")
        assert caught.value.retry_after_seconds <= 60, "a clock that is ahead does not prolong it"
        assert listed.updated_ids == []
        await refresher.refresh(evolve(fetched, last_updated=datetime.now(UTC) - timedelta(seconds=61)), "token")
    assert listed.updated_ids == ["acme"]
