"""The event log: one write per event, safe from the death of the process, and honest about what it could not keep."""

from __future__ import annotations

import json
import logging
import math
import shutil
import signal
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import trio

from cgw.errors import ConfigError
from cgw.events.event_log import open_event_log
from cgw.events.imports import import_lines
from cgw.events.lines import MAX_LINE_BYTES
from cgw.events.options import EventLogOptions
from cgw.events.reading import read_events
from cgw.events.records import completions_finished
from cgw.events.segments import list_segments
from cgw.model import Actor, EventName, Feature, Usage, UsageEvent
from tests.events.conftest import StartPython, build_event, read_identifiers
from tests.support.counting import CallCounter
from tests.support.waiting import wait_until


def count_segments(folder: Path) -> tuple[int, int]:
    """Return how many segments are open and sealed."""
    counts = Counter(segment.is_open for segment in list_segments(folder))
    return counts[True], counts[False]


async def test_recorded_event_is_a_line_when_record_returns(folder: Path) -> None:
    """Anyone can read the whole event from the open segment at once, as JSON."""
    event = build_event(feature="chat_completions", stream=True, prompt_token_count=7)
    async with open_event_log(folder) as event_log:
        event_log.record(event)
        (segment,) = list_segments(folder)
        assert segment.is_open
        line = segment.path.read_bytes()
        assert event_log.describe() is None
    assert line.endswith(b"}\n")
    assert json.loads(line) == {
        "id": event.id,
        "name": "CompletionsFinished",
        "source": "static",
        "identifier": "acme",
        "created_at": event.created_at.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "metadata": {"feature": "chat_completions", "stream": True, "prompt_token_count": 7},
    }
    assert event_log.statistics().recorded == 1


async def test_recording_is_one_call_of_the_system(folder: Path) -> None:
    """Recording an event calls the operating system once, to write, and no other task runs meanwhile."""
    counter = CallCounter()
    async with open_event_log(folder) as event_log:
        events = [build_event(model="a/b") for _ in range(100)]
        with counter.count():
            for event in events:
                event_log.record(event)
    calls = {name: count for name, count in counter.calls.items() if name.startswith(("posix.", "_io.", "fcntl."))}
    assert calls == {"posix.write": 100}


async def test_time_is_written_in_utc_of_fixed_width(folder: Path) -> None:
    """Times sort as text, also those on a whole second and those that came in another zone."""
    zone = timezone(timedelta(hours=2))
    moments = (datetime(2026, 11, 23, 1, 30, tzinfo=zone), datetime(2026, 11, 22, 23, 30, 0, 5, tzinfo=UTC))
    async with open_event_log(folder) as event_log:
        for moment in moments:
            event_log.record(UsageEvent(EventName.UNAUTHORIZED, "dotcom", "unknown", created_at=moment))
    assert [event.created_at for event in read_events(folder)] == [
        "2026-11-22T23:30:00.000000Z",
        "2026-11-22T23:30:00.000005Z",
    ]


async def test_blank_identifier_is_dropped_and_counted(folder: Path) -> None:
    """An event without identifier is not kept and not an error, as in the reference."""
    async with open_event_log(folder) as event_log:
        event_log.record(build_event("  "))
        event_log.record(build_event(""))
    assert read_identifiers(folder) == []
    assert event_log.statistics().blank == 2


CYCLE: dict[str, Any] = {}
CYCLE["self"] = CYCLE


@pytest.mark.parametrize(
    ("metadata", "stored", "errors"),
    [
        (MappingProxyType({"a": 1}), {"a": 1}, 0),
        ({"a": 1, "model": "m\udfff"}, {"a": 1, "model": "m?"}, 0),
        ({"a": 1, "b": object}, {"a": 1, "b": "<class 'object'>"}, 1),
        ({"a": math.nan}, {"a": None}, 0),
        ({"a": math.nan, "b": {"m\udfff": [math.nan, True, 7]}}, {"a": None, "b": {"m?": [None, True, 7]}}, 0),
        ({"a": 2**70}, {"a": 2**70}, 0),
        (CYCLE, None, 1),
        ({"a": "x" * MAX_LINE_BYTES}, None, 1),
    ],
    ids=[
        "mapping",
        "surrogate",
        "not JSON",
        "not a number",
        "surrogate in a key",
        "large number",
        "cycle",
        "too large",
    ],
)
async def test_odd_metadata_never_costs_the_event(
    folder: Path, metadata: Mapping[str, Any], stored: dict[str, Any] | None, errors: int, caplog: Any
) -> None:
    """Whatever the metadata holds, the event is recorded, with as much of it as JSON can hold."""
    async with open_event_log(folder) as event_log:
        event_log.record(UsageEvent(EventName.RATE_LIMITED, "static", "acme", metadata))
    (event,) = read_events(folder)
    assert stored is None or event.metadata == stored
    assert len(event.metadata) >= 1
    assert sum(record.levelno == logging.ERROR for record in caplog.records) == errors


async def test_a_completion_keeps_what_json_can_hold(folder: Path, caplog: Any) -> None:
    """Half a surrogate pair in a prompt that is kept costs a completion that character, and none of its figures."""
    actor = Actor(id="acme", name="", source="static", access_enabled=True)
    event = completions_finished(
        actor,
        feature=Feature.CHAT_COMPLETIONS,
        model="openai/gpt-4o",
        provider="openai",
        usage=Usage(prompt_token_count=3),
        resolved_status=200,
        metadata={"stream": True, "full_prompt": "a\udfff"},
        sg_actor_id="7",
    )
    async with open_event_log(folder) as event_log:
        event_log.record(event)
    (stored,) = read_events(folder)
    assert stored.metadata == {
        "stream": True,
        "full_prompt": "a?",
        "feature": "chat_completions",
        "model": "openai/gpt-4o",
        "provider": "openai",
        "prompt_token_count": 3,
        "usage_quality": "estimated",
        "resolved_status_code": 200,
        "sg_actor_id": "7",
        "sg.actor": {"UID": 7},
    }
    assert datetime.fromisoformat(stored.created_at) == event.created_at


async def test_segments_are_sealed_by_size_by_age_and_at_the_end(folder: Path) -> None:
    """A full segment is replaced by a new one; an old one too, but not an empty one; closing seals the last."""
    options = EventLogOptions(segment_bytes=1000, check_seconds=0.01)
    async with open_event_log(folder, options) as event_log:
        event_log.record(build_event("a", x="y" * 1000))
        await wait_until(lambda: count_segments(folder) == (1, 1))
        event_log.record(build_event("b"))
        await trio.sleep(0.05)
        assert count_segments(folder) == (1, 1)
    assert count_segments(folder) == (0, 2)
    options = EventLogOptions(segment_seconds=0.001, check_seconds=0.01)
    async with open_event_log(folder, options) as event_log:
        await trio.sleep(0.05)
        assert count_segments(folder) == (1, 2)
        event_log.record(build_event("c"))
        await wait_until(lambda: count_segments(folder) == (1, 3))
    assert count_segments(folder) == (0, 3)
    assert read_identifiers(folder) == ["a", "b", "c"]


async def test_what_comes_after_closing_goes_to_the_log(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A closed event log loses nothing silently either."""
    async with open_event_log(folder) as event_log:
        pass
    event = build_event()
    event_log.record(event)
    assert event.id in caplog.text
    assert event_log.statistics().dropped == 1


async def test_events_are_sealed_although_the_block_is_cancelled(folder: Path) -> None:
    """Cancelling does not keep the segment from being sealed."""
    with trio.CancelScope() as scope:
        async with open_event_log(folder) as event_log:
            event_log.record(build_event())
            scope.cancel()
            await trio.sleep_forever()
    assert count_segments(folder) == (0, 1)


@pytest.mark.parametrize("what", ["the folder", "the segment", "replaced"])
async def test_removed_segment_is_noticed(folder: Path, what: str, caplog: pytest.LogCaptureFixture) -> None:
    """Events do not vanish into a file that somebody deleted: those since the last check are in the new one."""
    async with open_event_log(folder, EventLogOptions(check_seconds=0.05)) as event_log:
        event_log.record(build_event("before"))
        await trio.sleep(0.2)
        (segment,) = list_segments(folder)
        if what == "the folder":
            shutil.rmtree(folder)
        else:
            segment.path.unlink()
        if what == "replaced":
            segment.path.write_text("")
        event_log.record(build_event("meanwhile"))
        await wait_until(lambda: "was removed or renamed" in caplog.text)
        await wait_until(lambda: folder.exists() and "meanwhile" in read_identifiers(folder))
        event_log.record(build_event("after"))
    assert read_identifiers(folder) == ["meanwhile", "after"]
    assert caplog.text.count("was removed or renamed") == 1


async def test_deleted_segment_that_cannot_be_replaced_is_left(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where no new segment can be had either, events go to the log, those that the deleted one took included."""
    async with open_event_log(folder, EventLogOptions(check_seconds=0.02)) as event_log:
        shutil.rmtree(folder)
        event_log.record(build_event("into the deleted file"))
        folder.write_text("in the way")
        await wait_until(lambda: event_log.statistics().dropped == 1)
        event_log.record(build_event("into the log"))
        folder.unlink()
        await wait_until(lambda: event_log.describe() is None)
        event_log.record(build_event("again"))
    assert read_identifiers(folder) == ["again"]
    assert import_lines([record.getMessage().encode() for record in caplog.records], folder).imported == 2
    assert event_log.statistics().recorded == 1


async def test_unusable_folder_is_a_config_error(tmp_path: Path) -> None:
    """A folder that cannot be created is named in one sentence."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"usage events cannot be kept in .*/file/events: Not a directory"):
        async with open_event_log(tmp_path / "file" / "events"):
            pass


async def test_files_are_private(folder: Path) -> None:
    """Folder and segments are readable by their owner only."""
    async with open_event_log(folder):
        (segment,) = list_segments(folder)
        assert segment.path.stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700


RECORD_UNTIL_KILLED = """
import sys, trio
from pathlib import Path
from cgw.events.event_log import open_event_log
from cgw.model import EventName, UsageEvent

async def main():
    async with open_event_log(Path(sys.argv[1])) as event_log:
        while True:
            event = UsageEvent(EventName.COMPLETIONS_FINISHED, "static", "acme", {"model": "a/b"})
            event_log.record(event)
            if event_log.must_wait:  # the disk was slow for a moment
                await event_log.wait_durable()
            print(event.id, flush=True)

trio.run(main)
"""


async def test_recorded_events_survive_kill_9(folder: Path, start_python: StartPython) -> None:
    """Every event whose record() returned is there after kill -9 under load, once; the next start adopts them."""
    processes = [start_python(RECORD_UNTIL_KILLED, str(folder)) for _ in range(2)]
    announced: list[str] = []
    for process in processes:
        assert process.stdout is not None
        announced += [process.stdout.readline().strip() for _ in range(500)]
    for process in processes:
        process.send_signal(signal.SIGKILL)
        rest, _ = process.communicate()
        announced += rest.split("\n")[:-1]
    assert count_segments(folder) == (2, 0)
    async with open_event_log(folder) as event_log:
        assert count_segments(folder) == (1, 2)
        event_log.record(build_event())
    stored = Counter(event.id for event in read_events(folder))
    assert {event_id for event_id in announced if len(event_id) == 36} <= set(stored)
    assert set(stored.values()) == {1}


RECORD_HUNDRED = """
import sys, trio
from pathlib import Path
from cgw.events.event_log import open_event_log
from cgw.events.options import EventLogOptions
from cgw.model import EventName, UsageEvent

async def main():
    for _ in range(10):
        options = EventLogOptions(segment_bytes=500, check_seconds=0.002)
        async with open_event_log(Path(sys.argv[1]), options) as event_log:
            for _ in range(10):
                event_log.record(UsageEvent(EventName.COMPLETIONS_FINISHED, "static", "acme"))
                await trio.sleep(0.001)

trio.run(main)
"""


async def test_processes_share_a_folder(folder: Path, start_python: StartPython) -> None:
    """Four processes that open, adopt, replace and seal segments in one folder lose nothing and disturb nobody."""
    processes = [start_python(RECORD_HUNDRED, str(folder)) for _ in range(4)]
    for process in processes:
        _, errors = await trio.to_thread.run_sync(process.communicate)
        assert (process.returncode, errors) == (0, "")
    stored = Counter(event.id for event in read_events(folder))
    assert (len(stored), set(stored.values())) == (400, {1})
    assert count_segments(folder)[0] == 0
