"""Repeated refusals: one event at once, then one with a count for each second; none is lost but by kill -9."""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from cgw.events.event_log import open_event_log
from cgw.events.reading import read_events
from cgw.events.repeats import MAX_WINDOWS, WINDOW_SECONDS, RepeatedEvents
from cgw.lifetime import open_background_task
from cgw.model import EventName, UsageEvent
from tests.events.conftest import StartPython


def build_refusal(identifier: str = "acme", cause: str = "quota", **more: Any) -> UsageEvent:
    metadata = {"error": "e", "feature": "chat_completions", "cause": cause, **more, "count": 1}
    return UsageEvent(EventName.RATE_LIMITED, "static", identifier, metadata)


def read_counts(folder: Path) -> list[tuple[str, str, int]]:
    """Return identifier, cause and count of each recorded event."""
    return [(event.identifier, event.metadata["cause"], event.metadata["count"]) for event in read_events(folder)]


async def test_a_second_of_refusals_is_two_events(folder: Path, mock_clock: MockClock) -> None:
    """The first is recorded at once, the others together when the second is over; a quiet second ends it."""
    async with open_event_log(folder) as event_log:
        repeats = RepeatedEvents(event_log)

        def refuse(event: UsageEvent) -> None:
            if not repeats.absorb(event):
                event_log.record(event)

        async def pass_time(seconds: float) -> None:
            mock_clock.jump(seconds)
            await trio.testing.wait_all_tasks_blocked()

        async with open_background_task(repeats.run):
            await trio.testing.wait_all_tasks_blocked()
            for number in range(1_000):
                refuse(build_refusal(retry_after_ms=number))
            assert read_counts(folder) == [("acme", "quota", 1)]
            await pass_time(WINDOW_SECONDS / 2)
            refuse(build_refusal(retry_after_ms=5))
            refuse(build_refusal(cause="concurrency"))
            refuse(build_refusal("initech"))
            refuse(build_refusal("initech"))
            assert len(read_counts(folder)) == 3
            await pass_time(WINDOW_SECONDS / 2)
            assert read_counts(folder)[3:] == [("acme", "quota", 1_000)]
            gathered = list(read_events(folder))[3]
            assert gathered.metadata["retry_after_ms"] == 5  # of the latest
            refuse(build_refusal())
            refuse(build_refusal())
            await pass_time(WINDOW_SECONDS)  # initech's second, begun half a second later, is over as well
            assert sorted(read_counts(folder)[4:]) == [("acme", "quota", 2), ("initech", "quota", 1)]
            await pass_time(WINDOW_SECONDS)
            await pass_time(WINDOW_SECONDS)
            refuse(build_refusal())
            assert read_counts(folder)[6:] == [("acme", "quota", 1)]
    ids = [event.id for event in read_events(folder)]
    assert len(ids) == len(set(ids))


async def test_counts_are_recorded_at_shutdown(folder: Path) -> None:
    """What was counted when the service ends is in the event log; what comes later is recorded one by one."""
    async with open_event_log(folder) as event_log:
        repeats = RepeatedEvents(event_log)
        assert not repeats.absorb(build_refusal())  # not before it runs
        async with open_background_task(repeats.run):
            await trio.testing.wait_all_tasks_blocked()
            absorbed = [repeats.absorb(build_refusal()) for _ in range(10)]
            assert absorbed == [False] + [True] * 9
        assert not repeats.absorb(build_refusal())
    assert read_counts(folder) == [("acme", "quota", 9)]


async def test_the_windows_are_bounded(folder: Path) -> None:
    """With refusals of more actors than fit, those of further ones are recorded one by one, and none is lost."""
    async with open_event_log(folder) as event_log:
        repeats = RepeatedEvents(event_log)
        async with open_background_task(repeats.run):
            await trio.testing.wait_all_tasks_blocked()
            for number in range(MAX_WINDOWS):
                assert not repeats.absorb(build_refusal(f"actor-{number}"))
            for _ in range(3):
                assert not repeats.absorb(build_refusal("one too many"))
            assert repeats.absorb(build_refusal("actor-0"))
    assert read_counts(folder) == [("actor-0", "quota", 1)]


KILLED = """
import sys, trio
from functools import partial
from pathlib import Path
from cgw.events.event_log import open_event_log
from cgw.events.repeats import RepeatedEvents
from cgw.lifetime import open_background_task
from cgw.model import EventName, UsageEvent

async def main() -> None:
    async with open_event_log(Path(sys.argv[1])) as event_log:
        repeats = RepeatedEvents(event_log)
        async with open_background_task(repeats.run):
            await trio.sleep(0)
            for number in range(100_000):
                event = UsageEvent(EventName.RATE_LIMITED, "static", "acme", {"cause": "quota", "count": 1})
                if not repeats.absorb(event):
                    event_log.record(event)
                print(number, trio.current_time(), flush=True)
                await trio.sleep(0.01)

trio.run(main)
"""


async def test_a_kill_loses_a_second_of_counts_at_most(folder: Path, start_python: StartPython) -> None:
    """After kill -9 the events account for all refusals but those of the last second."""
    process = start_python(KILLED, str(folder))
    assert process.stdout is not None
    read_line = partial(trio.to_thread.run_sync, process.stdout.readline)
    times: list[float] = []
    with trio.fail_after(60):
        while not times or times[-1] - times[0] < 2.5 * WINDOW_SECONDS:
            times.append(float((await read_line()).split()[1]))
    process.send_signal(signal.SIGKILL)
    rest, _ = await trio.to_thread.run_sync(process.communicate)
    times += [float(line.split()[1]) for line in rest.splitlines() if len(line.split()) == 2]
    counted = sum(count for _, _, count in read_counts(folder))
    unaccounted = times[counted:]
    assert 1 < counted <= len(times)
    assert not unaccounted or times[-1] - unaccounted[0] <= WINDOW_SECONDS + 0.5


@pytest.mark.parametrize("feature", ["chat_completions", "code_completions"])
async def test_each_feature_counts_for_itself(folder: Path, feature: str) -> None:
    """Refusals of different features are not repeats of each other, as an event has one feature."""
    async with open_event_log(folder) as event_log:
        repeats = RepeatedEvents(event_log)
        async with open_background_task(repeats.run):
            await trio.testing.wait_all_tasks_blocked()
            assert not repeats.absorb(build_refusal(feature="embeddings"))
            assert not repeats.absorb(build_refusal(feature=feature))
