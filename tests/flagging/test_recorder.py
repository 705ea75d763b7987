"""Flagged prompts in a real Redis: bounded in number, size and time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from cgw.errors import StoreUnavailable
from cgw.flagging.recorder import MAX_PROMPT_BYTES, MAX_WAITING, PromptName, PromptRecorder
from cgw.lifetime import open_background_task
from cgw.redis.opening import open_redis
from tests.support.redis_server import RedisServer, run_redis_server


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with run_redis_server(tmp_path_factory.mktemp("redis")) as running:
        yield running


@asynccontextmanager
async def open_recorder(
    server: RedisServer, ttl_seconds: float = 60, max_prompts: int = 10
) -> AsyncIterator[PromptRecorder]:
    """Run a recorder whose store is ``server``."""
    async with open_redis(server.url, timeout_seconds=5, may_be_away=True) as store:
        recorder = PromptRecorder(store, ttl_seconds, max_prompts=max_prompts)
        async with open_background_task(recorder.run):
            yield recorder


def build_name(number: int) -> PromptName:
    """Return the name of a prompt."""
    return PromptName(f"{number:032x}", "chat_completions", "7")


async def wait_listed(recorder: PromptRecorder, names: list[PromptName]) -> None:
    """Wait until exactly ``names`` are kept."""
    with trio.fail_after(10):
        while sorted(map(str, await recorder.list_names())) != sorted(map(str, names)):  # noqa: ASYNC110 - no event
            await trio.sleep(0.01)


async def test_s6_4_prompts_are_kept_for_their_time(server: RedisServer) -> None:
    """Then neither the list nor the prompt is there."""
    async with open_recorder(server, ttl_seconds=0.2) as recorder:
        recorder.record(build_name(1), "héllo")
        await wait_listed(recorder, [build_name(1)])
        await wait_listed(recorder, [])
        assert await recorder.read(build_name(1)) is None


async def test_only_the_newest_prompts_are_kept(server: RedisServer) -> None:
    """One actor must not be able to fill Redis."""
    async with open_recorder(server, max_prompts=3) as recorder:
        for number in range(8):
            recorder.record(build_name(number), str(number))
        await wait_listed(recorder, [build_name(number) for number in (5, 6, 7)])
        assert await recorder.read(build_name(4)) is None
        assert await recorder.read(build_name(7)) == b"7"


async def test_long_prompts_are_cut(server: RedisServer) -> None:
    """To so many bytes."""
    async with open_recorder(server) as recorder:
        recorder.record(build_name(1), "é" * MAX_PROMPT_BYTES)
        await wait_listed(recorder, [build_name(1)])
        assert len(await recorder.read(build_name(1)) or b"") == MAX_PROMPT_BYTES


async def test_while_too_many_wait_prompts_are_dropped(server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    """The log has the name, and not the prompt."""
    async with open_redis(server.url, timeout_seconds=5, may_be_away=True) as store:
        recorder = PromptRecorder(store, 60)
        for number in range(MAX_WAITING + 1):
            recorder.record(build_name(number), "CANARY")
    (line,) = [record.getMessage() for record in caplog.records if record.name == "cgw.flagging"]
    assert line.startswith(f"flagged prompt {build_name(MAX_WAITING)} is not kept: ")
    assert "CANARY" not in line


async def test_without_redis_prompts_are_dropped(server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    """A warning, as in the reference; the recorder goes on. Reading is an outage."""
    async with open_recorder(server) as recorder:
        server.process.kill()
        server.process.wait()
        recorder.record(build_name(1), "CANARY")
        with trio.fail_after(20):
            while "is not kept" not in caplog.text:  # noqa: ASYNC110 - there is no event for it
                await trio.sleep(0.01)
        assert "CANARY" not in caplog.text
        with pytest.raises(StoreUnavailable):
            await recorder.read(build_name(1))
        with pytest.raises(StoreUnavailable):
            await recorder.list_names()


async def test_foreign_keys_are_an_outage(server: RedisServer) -> None:
    """A key of another type under the index's name does not end the task."""
    async with open_recorder(server) as recorder, open_redis(server.url, timeout_seconds=5, may_be_away=True) as store:
        await store.execute_command("SET", "cgw:{prompts}:index", "x")
        recorder.record(build_name(1), "x")
        with pytest.raises(StoreUnavailable, match="WRONGTYPE"):
            await recorder.list_names()
        await store.execute_command("DEL", "cgw:{prompts}:index")
        recorder.record(build_name(2), "x")
        with trio.fail_after(10):
            while build_name(2) not in await recorder.list_names():  # noqa: ASYNC110 - as above
                await trio.sleep(0.01)


@given(text=st.text(max_size=80) | st.from_regex(r"prompt:[0-9a-f]{32}:[a-z_]+:[^:]+", fullmatch=True))
def test_names_are_read_as_they_are_written(text: str) -> None:
    """Nothing else is a name: it is part of a key."""
    name = PromptName.parse(text)
    assert name is None or str(name) == text
