"""Editing the actors file while the gateway runs, rightly and wrongly."""

from __future__ import annotations

import logging
import os
import shutil
import threading
from pathlib import Path

import pytest
import trio
import trio.testing

from cgw.actors.refresh import Refresher, RefreshFailed
from cgw.actors.source import NotFromSource, Sources
from cgw.actors.static import StaticSource, load_static_actors
from cgw.actors.tokens import hash_token
from cgw.errors import ConfigError
from cgw.model import Actor, Feature


def build_text(*actors: tuple[str, str, int]) -> str:
    """Build the text of a file with an actor for each id, token and limit."""
    return "".join(
        f'[[actor]]\nid = "{actor_id}"\ntoken_sha256 = ["{hash_token(token)}"]\n'
        f'[actor.limits.chat_completions]\nlimit = {limit}\ninterval = "24h"\n'
        for actor_id, token, limit in actors
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the actors file, with two actors."""
    path = tmp_path / "actors.toml"
    path.write_text(build_text(("acme", "one", 100), ("other", "two", 100)))
    return path


@pytest.fixture
def source(path: Path) -> StaticSource:
    return load_static_actors(path, percentage=50, interval_ms=10_000)


def replace(path: Path, text: str) -> None:
    """Change the file as editors do: put another file in its place."""
    other = path.with_suffix(".new")
    other.write_text(text)
    other.rename(path)


async def get_limit(source: StaticSource, token: str) -> int:
    return (await source.get(token)).rate_limits[Feature.CHAT_COMPLETIONS].limit


async def get_actor(source: StaticSource) -> Actor:
    return await source.get("one")


@pytest.mark.parametrize("is_replaced", [True, False], ids=["replaced", "written over"])
async def test_edit_acts_at_the_next_update(source: StaticSource, path: Path, is_replaced: bool) -> None:
    """The update changes limits, and adds and removes actors and tokens; before it nothing changes."""
    text = build_text(("acme", "one", 2_000), ("new", "three", 5))
    if is_replaced:
        replace(path, text)
    else:
        path.write_text(text)
    assert await get_limit(source, "one") == 100
    await source.update(await get_actor(source), "")
    assert (await get_limit(source, "one"), await get_limit(source, "three")) == (2_000, 5)
    with pytest.raises(NotFromSource):
        await source.get("two")
    assert [actor.id for actor in source.actors] == ["acme", "new"]


async def test_new_file_of_the_same_size_and_time_is_seen(source: StaticSource, path: Path) -> None:
    """A file that replaces the old one is a new version, even with the old one's times."""
    times = path.stat()
    replace(path, build_text(("acme", "one", 999), ("other", "two", 999)))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (times.st_size, times.st_mtime_ns)
    await source.update(await get_actor(source), "")
    assert await get_limit(source, "one") == 999


async def test_unchanged_file_is_not_read(source: StaticSource) -> None:
    """While the file is the same, its actors are the same objects."""
    actor = await get_actor(source)
    await source.update(actor, "")
    assert await get_actor(source) is actor


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (build_text(("acme", "one", 0)), "actor[0].limits.chat_completions.limit: must be at least 1, not 0"),
        (build_text(("acme", "one", 5))[:-3], "not valid TOML: "),
        ("", "has no [[actor]]"),
    ],
    ids=["wrong value", "half written", "empty"],
)
async def test_wrong_edit_leaves_the_old_actors_in_force(
    source: StaticSource, path: Path, text: str, problem: str
) -> None:
    """Every update raises the problem until it is mended; then the mended file takes effect."""
    replace(path, text)
    for _ in range(2):
        with pytest.raises(ConfigError) as caught:
            await source.update(await get_actor(source), "")
        assert caught.value.problems[0].startswith(f"{path}: {problem}")
        assert (await get_limit(source, "one"), await get_limit(source, "two")) == (100, 100)
    replace(path, build_text(("acme", "one", 7)))
    await source.update(await get_actor(source), "")
    assert await get_limit(source, "one") == 7


async def test_vanished_file_leaves_the_old_actors_in_force(source: StaticSource, path: Path) -> None:
    """While the file is missing each update raises that; when it is back, its content takes effect."""
    away = path.with_suffix(".away")
    path.rename(away)
    for _ in range(2):
        with pytest.raises(ConfigError, match="cannot be read: No such file or directory"):
            await source.update(await get_actor(source), "")
        assert await get_limit(source, "one") == 100
    away.rename(path)
    await source.update(await get_actor(source), "")
    replace(path, build_text(("acme", "one", 7)))
    await source.update(await get_actor(source), "")
    assert await get_limit(source, "one") == 7


async def test_file_that_could_not_be_opened_is_tried_again(source: StaticSource, path: Path) -> None:
    """A failure to read is not remembered as a version: the same file takes effect once it can be read."""
    text = build_text(("acme", "one", 7))
    path.unlink()
    path.mkdir()
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        await source.update(await get_actor(source), "")
    shutil.rmtree(path)
    path.write_text(text)
    await source.update(await get_actor(source), "")
    assert await get_limit(source, "one") == 7


async def test_many_updates_at_once_read_once(
    source: StaticSource, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Updates that find the same edit share one reading, which is logged."""
    replace(path, build_text(("acme", "one", 7)))
    actor = await get_actor(source)
    with caplog.at_level(logging.INFO, "cgw.actors"):
        async with trio.open_nursery() as callers:
            for _ in range(20):
                callers.start_soon(source.update, actor, "")
    assert [record.getMessage() for record in caplog.records] == [f"the actors were read again from {path}: 1"]


async def test_refresher_logs_a_wrong_file_once(
    source: StaticSource, path: Path, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """For all actors refreshed from a wrong file, its problems are logged once; so is the recovery."""
    autojump_clock.autojump_threshold = 0.01  # reading takes real time
    refresher = Refresher(Sources([source]))
    actors = source.actors
    replace(path, build_text(("acme", "one", 0)))
    async with trio.open_nursery() as service_nursery:
        service_nursery.start_soon(refresher.run)
        for _ in range(2):
            for actor in actors:
                with pytest.raises(ConfigError):
                    await refresher.refresh(actor, "token")
            await trio.sleep(source.cooldown_seconds)
        replace(path, build_text(("acme", "one", 9)))
        with caplog.at_level(logging.INFO, "cgw.actors"):
            await refresher.refresh(actors[0], "token")
        service_nursery.cancel_scope.cancel()
    assert await get_limit(source, "one") == 9
    first, *rest = [record.getMessage() for record in caplog.records]
    assert first == (
        f"unexpected error updating actor acme from source static: {path}: "
        "actor[0].limits.chat_completions.limit: must be at least 1, not 0"
    )
    assert rest == [f"the actors were read again from {path}: 1", "updating actors from source static works again"]


async def test_hanging_file_holds_one_thread_and_no_refresh(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """An update whose file hangs (a pipe without writer) times out; further updates wait for the same thread."""
    autojump_clock.autojump_threshold = 0.01
    path = tmp_path / "actors.toml"
    path.write_text(build_text(("acme", "one", 100)))
    source = load_static_actors(path, percentage=50, interval_ms=10_000)
    path.unlink()
    os.mkfifo(path)
    refresher = Refresher(Sources([source]))
    async with trio.open_nursery() as service_nursery:
        service_nursery.start_soon(refresher.run)
        thread_counts = []
        for _ in range(4):
            with pytest.raises(RefreshFailed, match="took more than 30 s"):
                await refresher.refresh(source.actors[0], "token")
            thread_counts.append(threading.active_count())
            await trio.sleep(source.cooldown_seconds)
        service_nursery.cancel_scope.cancel()
    assert max(thread_counts) == thread_counts[0]
    assert await get_limit(source, "one") == 100
    # The thread is in open(2); a writer releases it.
    os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
    path.unlink()
    path.write_text(build_text(("acme", "one", 7)))
    await source.update(source.actors[0], "")
    assert await get_limit(source, "one") == 7


@pytest.fixture
def watching_clock(autojump_clock: trio.testing.MockClock) -> trio.testing.MockClock:
    """A clock that jumps, but leaves threads the time to read."""
    autojump_clock.autojump_threshold = 0.02
    return autojump_clock


async def test_an_edit_acts_within_five_seconds(
    source: StaticSource, path: Path, watching_clock: trio.testing.MockClock
) -> None:
    """Without any request: limits change, and a removed token stops working."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.run)
        await trio.sleep(1)
        replace(path, build_text(("acme", "one", 7)))
        await trio.sleep(5)
        assert await get_limit(source, "one") == 7
        with pytest.raises(NotFromSource):
            await source.get("two")
        assert source.recall(hash_token("two")) is None
        nursery.cancel_scope.cancel()


async def test_a_broken_edit_is_said_once_and_keeps_the_old_actors(
    source: StaticSource, path: Path, watching_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Each wrong edit is one error line that says what is wrong; the right one after it acts."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.run)
        for text in (build_text(("acme", "one", 0)), "nonsense"):
            replace(path, text)
            await trio.sleep(20)
            assert await get_limit(source, "one") == 100
            assert await get_limit(source, "two") == 100
        path.unlink()
        await trio.sleep(20)
        assert await get_limit(source, "one") == 100
        messages = [record.getMessage() for record in caplog.records]
        replace(path, build_text(("acme", "one", 9)))
        for _ in range(100):  # the clock runs ahead of the thread that reads the file
            await trio.sleep(5)
            if await get_limit(source, "one") == 9:
                break
        assert await get_limit(source, "one") == 9
        nursery.cancel_scope.cancel()
    assert [message.partition(f"{path}: ")[0] for message in messages] == ["the actors stay as they were: "] * 3
    assert "limit: must be at least 1, not 0" in messages[0]
    assert "not valid TOML" in messages[1]
    assert "cannot be read" in messages[2]
