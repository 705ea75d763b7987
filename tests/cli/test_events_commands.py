"""``cgw events``: what is shipped, what failed, and what is recorded now."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trio

from cgw.events.event_log import open_event_log
from cgw.events.following import Follower
from cgw.events.lines import render_line
from cgw.events.segments import create_segment, list_segments
from cgw.events.shipping.cursor import CursorFile, get_sink_folder
from cgw.events.shipping.failed import set_aside
from tests.cli.conftest import RunCgw
from tests.events.conftest import build_event


async def record(data_dir: Path, *names: str) -> None:
    async with open_event_log(data_dir / "events") as event_log:
        for name in names:
            event_log.record(build_event(name))


async def test_status_says_how_far_each_sink_is(run_cgw: RunCgw, tmp_path: Path) -> None:
    """What it has, what it lacks and how old that is, what failed, and why it takes nothing."""
    folder = tmp_path / "events"
    await record(tmp_path, "a", "b", "c")
    (segment,) = list_segments(folder)
    line, size = render_line(build_event("a")), segment.path.stat().st_size
    CursorFile(get_sink_folder(folder, "http")).advance({segment.name: len(line)}, "since today: the quota is used up")
    CursorFile(get_sink_folder(folder, "stdout")).advance({segment.name: size})
    set_aside(get_sink_folder(folder, "http"), [(line, "bad row")])
    option = f"--data-dir={tmp_path}"
    completed = run_cgw("events", "status", "--json", option)
    assert (completed.returncode, completed.stderr) == (0, "")
    http, stdout = json.loads(completed.stdout)
    assert 0 <= http.pop("oldest_age_seconds") < 600
    assert http == {
        "sink": "http",
        "segments": 1,
        "shipped_bytes": len(line),
        "unshipped_segments": 1,
        "unshipped_bytes": size - len(line),
        "unshipped_events": 2,
        "failed_events": 1,
        "trouble": "since today: the quota is used up",
    }
    assert (stdout["unshipped_bytes"], stdout["oldest_age_seconds"], stdout["trouble"]) == (0, None, None)
    text = run_cgw("events", "status", option).stdout
    assert "http takes nothing since today: the quota is used up" in text
    assert "http rejected 1 events: see `cgw events failed`" in text
    assert re.search(r"^stdout +\d+ +0 +0 +– +0$", text, re.MULTILINE)


async def test_status_without_a_sink_says_so(run_cgw: RunCgw, tmp_path: Path) -> None:
    """It is no error."""
    await record(tmp_path, "a")
    completed = run_cgw("events", "status", f"--data-dir={tmp_path}")
    assert (completed.returncode, completed.stdout) == (0, "")
    assert "nothing was shipped" in completed.stderr
    assert run_cgw("events", "status", "--json", f"--data-dir={tmp_path}").stdout == "[]\n"


async def test_a_damaged_cursor_is_reported_in_one_sentence(run_cgw: RunCgw, tmp_path: Path) -> None:
    """And left alone: the service sets it aside."""
    await record(tmp_path, "a")
    path = get_sink_folder(tmp_path / "events", "http") / "cursor.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"garbage")
    completed = run_cgw("events", "status", f"--data-dir={tmp_path}")
    assert completed.returncode == 1
    assert completed.stderr.startswith(f"cgw: the cursor {path} is damaged")
    assert path.read_bytes() == b"garbage"


async def test_failed_events_are_printed_and_sent_again(run_cgw: RunCgw, tmp_path: Path) -> None:
    """Each with its sink and reason; after `retry` they are in a segment of the sink's own, once."""
    await record(tmp_path, "a")
    folder, option = tmp_path / "events", f"--data-dir={tmp_path}"
    sink_folder = get_sink_folder(folder, "http")
    lines = [render_line(build_event(name)) for name in ("x", "y")]
    set_aside(sink_folder, [(lines[0], "bad row"), (lines[1], "bad\nrow")])
    found = [json.loads(line) for line in run_cgw("events", "failed", option).stdout.splitlines()]
    assert [(event["sink"], event["reason"], event["event"]["identifier"]) for event in found] == [
        ("http", "bad row", "x"),
        ("http", "bad\nrow", "y"),
    ]
    completed = run_cgw("events", "retry", "--sink", "http", option)
    assert (completed.returncode, completed.stderr) == (0, "http: 2 events are sent again\n")
    (segment,) = list_segments(sink_folder)
    assert segment.path.read_bytes() == b"".join(lines)
    assert run_cgw("events", "failed", option).stdout == ""
    assert run_cgw("events", "retry", option).stderr == "http: 0 events are sent again\n"
    completed = run_cgw("events", "failed", "--sink", "bigquery", option)
    assert completed.returncode == 1
    assert "nothing was ever shipped to bigquery" in completed.stderr


async def test_tail_prints_the_last_events(run_cgw: RunCgw, tmp_path: Path) -> None:
    """As lines of JSON, over segments."""
    await record(tmp_path, "a", "b")
    await record(tmp_path, "c", "d")
    completed = run_cgw("events", "tail", "--no-follow", "-n", "3", f"--data-dir={tmp_path}")
    assert [json.loads(line)["identifier"] for line in completed.stdout.splitlines()] == ["b", "c", "d"]
    assert run_cgw("events", "tail", "--no-follow", "-n", "0", f"--data-dir={tmp_path}").stdout == ""


def test_tail_follows_live(tmp_path: Path) -> None:
    """An event is printed while the command runs."""
    trio.run(record, tmp_path, "a")
    process = subprocess.Popen(
        [sys.executable, "-m", "cgw", "events", "tail", f"--data-dir={tmp_path}"], stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["identifier"] == "a"
        segment = create_segment(tmp_path / "events")
        segment.append(render_line(build_event("b")))
        assert json.loads(process.stdout.readline())["identifier"] == "b"
        segment.seal()
    finally:
        process.kill()
        process.communicate()


def test_following_goes_over_rotation(tmp_path: Path) -> None:
    """Of several processes, each segment open or sealed, deleted or new; no line twice, none missed, none torn."""
    follower = Follower(tmp_path)
    segments = [create_segment(tmp_path) for _ in range(2)]
    seen: list[bytes] = []
    expected = []
    for turn in range(60):
        line = render_line(build_event(f"e{turn}"))
        expected.append(line.rstrip())
        index = turn % 2
        if turn % 7 == 3:
            segments[index].seal()
            segments[index] = create_segment(tmp_path)
        segments[index].append(line)
        if turn % 3 == 0:
            seen += follower.read_new()
        if turn == 30:
            list_segments(tmp_path)[0].path.unlink()
    os.write(segments[0].descriptor, b'{"half')
    seen += follower.read_new()
    assert sorted(seen) == sorted(expected)
    for segment in segments:
        segment.seal()


@pytest.mark.parametrize("command", ["status", "tail", "failed", "retry"])
def test_a_folder_that_is_none_is_reported(run_cgw: RunCgw, tmp_path: Path, command: str) -> None:
    """With exit status 1, at once."""
    started = time.monotonic()
    completed = run_cgw("events", command, f"--data-dir={tmp_path}")
    assert completed.returncode == 1
    assert "is not a data directory of cgw" in completed.stderr
    assert time.monotonic() - started < 20
