"""The level at run time: set, set for a while, toggled and restored."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from cgw.lifetime import open_background_task
from cgw.telemetry.log_level import LogLevel


@pytest.fixture(autouse=True)
def info_level() -> Iterator[None]:
    """The configured level is INFO; the former one is restored."""
    root = logging.getLogger()
    former = root.level
    root.setLevel(logging.INFO)
    yield
    root.setLevel(former)


async def test_a_level_for_a_while_ends_by_itself(mock_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """After its seconds the configured level is back, and the log says both changes."""
    level = LogLevel()
    async with open_background_task(level.run):
        level.set("DEBUG", 60)
        assert (level.name, level.configured_name, level.seconds_left) == ("DEBUG", "INFO", 60)
        mock_clock.jump(59)
        await trio.testing.wait_all_tasks_blocked()
        assert level.name == "DEBUG"
        mock_clock.jump(1)
        await trio.testing.wait_all_tasks_blocked()
        assert (level.name, level.seconds_left) == ("INFO", None)
    texts = [record.getMessage() for record in caplog.records]
    assert texts == ["the log level is DEBUG now", "the log level is INFO now"]


@pytest.mark.parametrize("change", ["set", "restore", "toggle", "shorter", "longer"])
async def test_the_last_change_counts(mock_clock: MockClock, change: str) -> None:
    """Whatever changes the level again also takes the end of the former level away, or replaces it."""
    level = LogLevel()
    async with open_background_task(level.run):
        level.set("DEBUG", 60)
        await trio.testing.wait_all_tasks_blocked()
        expected = {"set": ("WARNING", math.inf), "restore": ("INFO", math.inf), "toggle": ("INFO", math.inf)}
        if change == "set":
            level.set("WARNING")
        elif change == "restore":
            level.restore()
        elif change == "toggle":
            level.toggle_debug()
        else:
            level.set("ERROR", 30 if change == "shorter" else 90)
        name, end = expected.get(change, ("ERROR", 30 if change == "shorter" else 90))
        for seconds in (29, 2, 30, 30):  # at 29, 31, 61 and 91 s
            mock_clock.jump(seconds)
            await trio.testing.wait_all_tasks_blocked()
            assert level.name == (name if trio.current_time() < end else "INFO")


async def test_toggling_goes_to_debug_and_back(mock_clock: MockClock) -> None:
    """From any level the first switch is to DEBUG, the second to the configured level."""
    level = LogLevel()
    level.set("ERROR")
    level.toggle_debug()
    assert level.name == "DEBUG"
    level.toggle_debug()
    assert level.name == "INFO"
