"""Tasks of several turns, which agents do unattended; the scripted upstream plays the model."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import trio
from attrs import evolve

from compat.bench import ANSWER, Bench, build_token, read_reported
from compat.recorded import Recorded, read_recorded
from compat.registry import Client, Task
from compat.scenarios import SETTLE_SECONDS, Failed, build_environ, check_usage, run_script

TASK = "task"
EVENT = "CompletionsFinished"


async def run_task(bench: Bench, client: Client, command: Sequence[str]) -> str:
    """Run the client's task and return its figures. Raises :exc:`Failed`."""
    task = client.task
    assert task is not None
    before = bench.upstream.request_count
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "work"
        folder.mkdir()
        calls = [evolve(call, arguments=call.arguments.replace("$FOLDER", str(folder))) for call in task.calls]
        bench.play(calls=tuple((call,) for call in calls))
        environ = build_environ(bench, client, build_token(TASK), Path(home)) | {"CGW_FOLDER": str(folder)}
        said = await run_script([*command, "task"], environ)
        _check_work(task, folder)
    shown = [list(call) for call in said.get("calls", ())]
    wanted = [[call.name, json.loads(call.arguments)] for call in calls]
    if shown != wanted or said.get("text", "").strip() != ANSWER:
        raise Failed(f"it showed {json.dumps(said)[:400]}")
    asked = bench.upstream.requests[before:]
    if any(seen.status != 200 or seen.answered_at is None for seen in asked):
        raise Failed("not all requests were answered")
    if len(asked) <= len(calls):
        raise Failed(f"it asked {len(asked)} times for {len(calls)} calls and an answer")
    recorded = await _wait_recorded(bench, len(asked))
    if recorded.count != len(asked) or recorded.outcomes.keys() != {"completed"}:
        raise Failed(f"cgw recorded {recorded.describe()} for {len(asked)} requests")
    reported = read_reported(asked)
    check_usage(recorded, reported)
    sums = f"{reported[0]} + {reported[1]} tokens"
    return f"{len(calls)} calls of tools in {len(asked)} requests; {sums} in the events, as the upstream reported"


async def _wait_recorded(bench: Bench, count: int) -> Recorded:
    """Return what was recorded, once it is ``count`` events, or some time later."""
    with trio.move_on_after(SETTLE_SECONDS):
        while True:
            recorded = read_recorded(bench.folder, TASK, EVENT)
            if recorded.count >= count:
                return recorded
            await trio.sleep(0.1)
    return read_recorded(bench.folder, TASK, EVENT)


def _check_work(task: Task, folder: Path) -> None:
    path = folder / task.path
    found = path.read_text("utf-8") if path.exists() else None
    if found != task.content:
        raise Failed(f"{task.path} has {found!r} instead of {task.content!r}")
