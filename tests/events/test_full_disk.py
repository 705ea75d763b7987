"""An event log on a disk that takes no more: short writes, no space, a folder that cannot be written to."""

from __future__ import annotations

import errno
import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import trio

from cgw.events.event_log import open_event_log
from cgw.events.imports import import_lines
from cgw.events.options import EventLogOptions
from cgw.events.reading import read_events
from cgw.events.segments import list_segments
from tests.events.conftest import StartPython, build_event, read_identifiers
from tests.support.waiting import wait_until

PRELUDE = """
import logging, os, resource, sys, trio
from pathlib import Path
from cgw.events.event_log import open_event_log
from cgw.events.options import EventLogOptions
from cgw.events.settings import EventSettings
from cgw.model import EventName, UsageEvent

logging.basicConfig(format="%(levelname)s %(message)s", level=logging.INFO)
folder, when_full = Path(sys.argv[1]), sys.argv[2]
SOFT, HARD = resource.getrlimit(resource.RLIMIT_FSIZE)

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size or SOFT, HARD))

def build(identifier):
    return UsageEvent(EventName.COMPLETIONS_FINISHED, "static", identifier, {"x": "y" * 4000, "odd": "\\u200b\\xad'"})

def say(event_log):
    print(event_log.is_accepting, event_log.statistics().dropped, event_log.describe(), sep=";", flush=True)

async def wait_until(is_true):
    with trio.fail_after(10):
        while not is_true():
            await trio.sleep(0.01)

def options(**more):
    return EventLogOptions(EventSettings(when_full=when_full), check_seconds=0.1, **more)
"""

FILL_DISK = """
async def main():
    async with open_event_log(folder, options()) as event_log:
        limit(100_000)
        while event_log.describe() is None:
            event_log.record(build("before"))
        limit(50_000)  # so that no new segment can be had either
        event_log.record(build("lost"))
        await trio.sleep(0.3)
        event_log.record(build("lost"))
        say(event_log)
        limit(None)
        await wait_until(lambda: event_log.describe() is None)
        event_log.record(build("after"))
        say(event_log)

trio.run(main)
"""

START_FULL = """
async def main():
    limit(50_000)
    async with open_event_log(folder, options()) as event_log:
        event_log.record(build("lost"))
        say(event_log)
        limit(None)
        await wait_until(lambda: event_log.describe() is None)
        event_log.record(build("after"))
        say(event_log)

trio.run(main)
"""

READ_ONLY = """
async def main():
    async with open_event_log(folder, options(segment_bytes=1000)) as event_log:
        os.chmod(folder, 0o555)
        if os.geteuid() == 0:
            os.seteuid(65534)  # to root, nothing is read-only
        for _ in range(3):
            event_log.record(build("kept"))
            await trio.sleep(0.3)
        say(event_log)
        os.seteuid(os.getuid())
        os.chmod(folder, 0o700)

trio.run(main)
"""


async def run(start_python: StartPython, script: str, folder: Path, when_full: str = "drop") -> tuple[list[str], str]:
    """Run a script to its end; return what it printed, by line, and its log."""
    process = start_python(PRELUDE + script, str(folder), when_full)
    output, log = await trio.to_thread.run_sync(process.communicate)
    assert process.returncode == 0, log
    return output.splitlines(), log


@pytest.mark.parametrize("when_full", ["drop", "refuse"])
async def test_full_disk_costs_no_event(folder: Path, start_python: StartPython, when_full: str) -> None:
    """What the disk does not take is in the log, and can be imported from there, once; the state is said once each."""
    (while_full, afterwards), log = await run(start_python, FILL_DISK, folder, when_full)
    is_accepting, dropped, detail = while_full.split(";", 2)
    assert is_accepting == str(when_full == "drop")
    assert detail.startswith("usage events cannot be written (")
    assert ("new requests are refused" in detail) == (when_full == "refuse")
    assert afterwards == f"True;{dropped};None"
    lost = [line for line in log.splitlines() if line.startswith("ERROR usage event not written: ")]
    assert len(lost) == int(dropped) >= 2
    assert log.count("ERROR usage events cannot be written (") == 1
    assert log.count("WARNING usage events are written again") == 1
    before = [event.identifier for event in read_events(folder)]
    assert before[-1] == "after"
    assert {path.suffix for path in folder.iterdir()} == {".ndjson"}
    first = import_lines(log.encode().splitlines(), folder)
    again = import_lines(log.encode().splitlines(), folder)
    assert (first.imported, first.known, first.damaged) == (len(lost), 0, 0)
    assert (again.imported, again.known, again.damaged) == (0, len(lost), 0)
    after = list(read_events(folder))
    assert len({event.id for event in after}) == len(after) == len(before) + len(lost)
    assert all(event.metadata == {"x": "y" * 4000, "odd": "\u200b\xad'"} for event in after)


async def test_start_on_a_full_disk(folder: Path, start_python: StartPython) -> None:
    """A full disk does not keep cgw from starting; recording begins when there is space."""
    (while_full, afterwards), log = await run(start_python, START_FULL, folder)
    assert while_full.startswith("True;1;usage events cannot be written (")
    assert afterwards == "True;1;None"
    assert log.count("usage event not written: ") == 1
    assert [event.identifier for event in read_events(folder)] == ["after"]


async def test_folder_that_becomes_read_only_keeps_its_segment(folder: Path, start_python: StartPython) -> None:
    """Where no new segment can be started, the present one goes on, and one error says so."""
    (state,), log = await run(start_python, READ_ONLY, folder)
    assert state == "True;0;None"
    assert log.count("Permission denied; the present one goes on") == 1
    assert [event.identifier for event in read_events(folder)] == ["kept"] * 3


@pytest.mark.parametrize("is_cut", [True, False])
async def test_short_write_costs_its_own_event_only(
    folder: Path, is_cut: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What was written of a line is cut off again, or, if that fails, set aside; the event is in the log."""
    write = os.write

    def write_short(descriptor: int, data: bytes) -> int:
        return write(descriptor, data[:30])

    def fail(descriptor: int, length: int) -> None:
        raise OSError(errno.EIO, "")

    async with open_event_log(folder, EventLogOptions(check_seconds=0.02)) as event_log:
        event_log.record(build_event("before"))
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", write_short)
            if not is_cut:
                patch.setattr(os, "ftruncate", fail)
            event_log.record(build_event("lost"))
        await wait_until(lambda: event_log.describe() is None)
        event_log.record(build_event("after"))
    assert read_identifiers(folder) == ["before", "after"]
    assert len(list(folder.glob("*.torn"))) == (0 if is_cut else 1)
    assert import_lines([record.getMessage().encode() for record in caplog.records], folder).imported == 1
    assert sorted(read_identifiers(folder)) == ["after", "before", "lost"]


def test_log_of_a_terminal_and_of_a_container_can_be_imported(folder: Path) -> None:
    """Events are found in text with a prefix, in Cloud Logging's entries, and in those wrapped once more."""
    lines = []
    for number, wrap in enumerate((wrap_text, wrap_json, wrap_docker, wrap_export)):
        event = {"id": f"id-{number}", "name": "RateLimited", "source": "static", "identifier": "acme"}
        event |= {"created_at": "2026-11-23T00:00:00.000000Z", "metadata": {"error": 'a "quoted" word\n'}}  # type: ignore[dict-item]
        lines.append(wrap("usage event not written: " + json.dumps(event)).encode())
    noise = [b"{", b"not an event", b'{"message":"ok"}', b"\xff\xfe", b'"usage event not written: "', b"[" * 100_000]
    noise += [b"ERROR usage event not written: {...", b'{"message":"usage event not written: {\\"id\\":\\"x"}']
    counts = import_lines([*lines, *noise], folder)
    assert (counts.imported, counts.known, counts.damaged) == (4, 0, 3)
    assert [event.metadata["error"] for event in read_events(folder)] == ['a "quoted" word\n'] * 4
    (segment,) = list_segments(folder)
    assert import_lines(segment.path.read_bytes().splitlines(), folder).known == 4


def wrap_text(message: str) -> str:
    return f"Nov 25 12:00:00 host cgw[7]: 12:00:00.000 ERROR    {message}"


def wrap_json(message: str) -> str:
    return json.dumps({"severity": logging.getLevelName(logging.ERROR), "message": message})


def wrap_docker(message: str) -> str:
    return json.dumps({"log": wrap_json(message) + "\n", "stream": "stderr"})


def wrap_export(message: str) -> str:
    payload: dict[str, Any] = {"jsonPayload": {"message": message}, "labels": {"a": ["b"]}}
    return json.dumps(payload)
