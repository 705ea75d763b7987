"""The scenarios that each client is run through, and what counts as passed.

A client's script gets the scenario's action as its last argument, and what it needs in the environment: ``CGW_URL``
(the API's base URL), ``CGW_KEY``, ``CGW_MODEL``. It prints one line of JSON with what its user would see: ``text``, the
number of ``pieces`` of a stream, the ``calls`` of tools, or an ``error`` with its ``type`` and ``status``.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import trio
from attrs import field, frozen

from cgw.testing.script import Breakage
from cgw.testing.scripted_upstream import SeenRequest
from compat.bench import ANSWER, SPENT, WRONG_TOKEN, Bench, build_token, read_reported
from compat.recorded import Recorded, count_logged, read_recorded
from compat.registry import MODELS, Client

SCENARIO_SECONDS = 400.0
"""More than any client retries by itself, on a machine that is busy."""
SETTLE_SECONDS = 10.0
"""The time that cgw has to record what a client left behind, and to close its upstream."""
MAX_ATTEMPTS = {"wrong key": 1, "quota used up": 3, "upstream 503": 6, "cut stream": 6}
"""What a client may send at most; the registry has exceptions."""
BASE_PATHS = {"anthropic": "/anthropic", "openai": "/openai/v1", "google": "/google"}
MAX_ERROR = 300
"""Characters of an error that are kept."""
UNAUTHORIZED = ""
"""For a token that nobody knows there is no event, but a line of the request log."""
SLOW = {"answer": "word " * 600, "tokens_per_second": 20.0}
CUT = {"answer": "word " * 40, "break_after_events": 9, "breakage": Breakage.CLOSE}


@frozen
class Scenario:
    """One scenario: the client's action, the upstream in front of it, and what must come of it.

    ``status`` is that of the error which the client must show; ``None`` for none, and 0 for an error without one.
    ``words`` are in its message. ``event`` and ``outcome`` are what cgw must have recorded.
    """

    name: str
    action: str
    script: Mapping[str, Any] = field(factory=dict)
    status: int | None = None
    words: str = ""
    event: str = "CompletionsFinished"
    outcome: str | None = "completed"


SCENARIOS = (
    Scenario("plain", "plain"),
    Scenario("stream", "stream"),
    Scenario("tools", "tools"),
    Scenario("wrong key", "plain", status=401, words="key", event=UNAUTHORIZED, outcome=None),
    Scenario("quota used up", "plain", status=429, words="limit", event="RateLimited", outcome=None),
    Scenario("upstream 503", "plain", {"status": 503}, 503, "is overloaded", outcome=None),
    Scenario("cut stream", "stream", CUT, 0, outcome="upstream_broken"),
    Scenario("abort", "abort", SLOW, outcome="client_gone"),
)


class Failed(Exception):
    """The client or cgw did not do what it should; the text says what it did."""


@frozen
class Passed:
    """The outcome of a scenario that a client passed: the error that it showed, and how often it asked."""

    error: str = ""
    attempts: int = 0


def name_actor(scenario: Scenario) -> str:
    """Return the actor whose events are those of ``scenario``."""
    names = {"quota used up": SPENT, "wrong key": "unknown"}
    return names.get(scenario.name, scenario.name.replace(" ", "-"))


async def run_scenario(bench: Bench, client: Client, command: Sequence[str], scenario: Scenario) -> Passed:
    """Run one scenario. Raises :exc:`Failed`."""
    script = dict(scenario.script)
    if scenario.action == "tools":
        script["calls"] = ((client.call,),)
    bench.play(**script)
    before = bench.upstream.request_count
    actor = name_actor(scenario)
    key = WRONG_TOKEN if scenario.name == "wrong key" else build_token(actor)
    with tempfile.TemporaryDirectory() as home:
        said = await run_script([*command, scenario.action], build_environ(bench, client, key, Path(home)))
    if scenario.action == "abort":
        await _check_hangup(bench, before)
    elif scenario.status is None:
        _check_answer(said, scenario, client)
    else:
        _check_error(said, scenario, client)
    asked = bench.upstream.requests[before:]
    if scenario.action == "stream" and not any(map(is_streamed, asked)):
        raise Failed("it asked for no stream")
    recorded = await _wait_recorded(bench, actor, scenario, len(asked))
    if scenario.status is None and scenario.action != "abort":
        check_usage(recorded, read_reported(asked))
    is_refused = scenario.event != "CompletionsFinished"
    if is_refused and asked:
        raise Failed("the upstream was asked")
    attempts = recorded.count if is_refused else len(asked)
    most = dict(client.attempts).get(scenario.name, MAX_ATTEMPTS.get(scenario.name))
    if most is not None and attempts > most:
        raise Failed(f"it asked {attempts} times; {most} would do")
    if scenario.status is None:
        return Passed()
    return Passed(steady_text(": ".join(filter(None, (said.get("type"), said["error"]))))[:MAX_ERROR], attempts)


def steady_text(text: str) -> str:
    """Return ``text`` without what differs from run to run: ports, ids, dates."""
    text = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1", text)
    text = re.sub(r"\b[0-9a-f]{32}\b", "ID", text)
    return re.sub(r"\b[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} [\d:]{8} GMT", "DATE", text)


def build_environ(bench: Bench, client: Client, key: str, home: Path) -> dict[str, str]:
    """Return the whole environment of a client's script."""
    return {
        "PATH": os.environ["PATH"],
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "PYTHONDONTWRITEBYTECODE": "1",
        "DO_NOT_TRACK": "1",
        **bench.outside.environ(),
        "HOME": str(home),
        "CGW_URL": bench.url + BASE_PATHS[client.api],
        "CGW_KEY": key,
        "CGW_MODEL": MODELS[client.api],
    }


async def run_script(command: Sequence[str], environ: Mapping[str, str]) -> dict[str, Any]:
    """Run a client's script and return what it prints. Raises :exc:`Failed`."""
    # Files, because a program that the script leaves behind would keep pipes open.
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = await trio.lowlevel.open_process(
            list(command),
            env=dict(environ),
            cwd=environ["HOME"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            start_new_session=True,
        )
        try:
            with trio.move_on_after(SCENARIO_SECONDS) as deadline_scope:
                await process.wait()
        finally:
            # All that it started: a client that goes on would be counted in the next scenario.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with trio.CancelScope(shield=True):
                await process.wait()
        if deadline_scope.cancelled_caught:
            raise Failed(f"it did not end within {SCENARIO_SECONDS:g} s")
        return _read_said(output, errors, process.returncode)


def _read_said(output: BinaryIO, errors: BinaryIO, status: int | None) -> dict[str, Any]:
    output.seek(0)
    errors.seek(0)
    lines = [line for line in output.read().decode("utf-8", "replace").splitlines() if line.startswith("{")]
    try:
        said: dict[str, Any] = json.loads(lines[-1])
    except (IndexError, ValueError):
        words = errors.read().decode("utf-8", "replace").strip().splitlines() or ["nothing"]
        shown = next((line for line in reversed(words) if "Error" in line), words[-1])
        raise Failed(f"it ended with {status}: {shown[:200]}") from None
    return said


def _check_answer(said: Mapping[str, Any], scenario: Scenario, client: Client) -> None:
    shown = json.dumps(said)[:200]
    if scenario.action == "tools":
        want = [client.call.name, json.loads(client.call.arguments)]
        if [list(call) for call in said.get("calls", ())] != [want]:
            raise Failed(f"it did not show the call of {client.call.name}, but {shown}")
        if client.ends_with_call:
            return
    if said.get("text", "").strip() != ANSWER:
        raise Failed(f"it got {shown}")
    if scenario.action == "stream" and client.shows_pieces and said.get("pieces", 0) < 2:
        raise Failed("the stream came in one piece")


def _check_error(said: Mapping[str, Any], scenario: Scenario, client: Client) -> None:
    if "error" not in said:
        raise Failed(f"it took this for an answer: {json.dumps(said)[:100]}")
    status = dict(client.statuses).get(scenario.name, scenario.status)
    if status and said.get("status") != status:
        raise Failed(f"it says {said.get('status')} instead of {status}: {said['error'][:200]}")
    if scenario.name not in client.hides and scenario.words.lower() not in said["error"].lower():
        raise Failed(f"its message is without cgw's words: {said['error'][:200]}")


def is_streamed(request: SeenRequest) -> bool:
    """Return whether a request asks for a stream."""
    return ":streamGenerateContent" in request.target or request.json().get("stream") is True


async def _check_hangup(bench: Bench, before: int) -> None:
    upstream = bench.upstream
    if upstream.request_count == before:
        raise Failed("it asked nothing")
    for seen in upstream.requests[before:]:
        with trio.move_on_after(SETTLE_SECONDS):
            await seen.wait_over()
        if not seen.is_over:
            raise Failed(f"the upstream was still asked {SETTLE_SECONDS:g} s later")
    if all(seen.peer_closed_at is None for seen in upstream.requests[before:]):
        raise Failed("it did not leave before the end")


async def _wait_recorded(bench: Bench, actor: str, scenario: Scenario, asked: int) -> Recorded:
    """Return what cgw recorded of the actor, once it is what it should be. Raises :exc:`Failed`."""
    recorded = Recorded()
    if scenario.event == UNAUTHORIZED:
        return Recorded(await _wait_logged(bench, 401))
    with trio.move_on_after(SETTLE_SECONDS):
        while True:
            recorded = read_recorded(bench.folder, actor, scenario.event)
            if recorded.count >= max(asked, 1) and _is_expected(recorded, scenario):
                return recorded
            await trio.sleep(0.1)
    wanted = scenario.event if scenario.outcome is None else f"{scenario.event} ({scenario.outcome})"
    raise Failed(f"cgw recorded {recorded.describe()} for {asked} requests, instead of {wanted}")


async def _wait_logged(bench: Bench, status: int) -> int:
    """Return how many requests cgw logged with ``status`` since it started. Raises :exc:`Failed`."""
    with trio.move_on_after(SETTLE_SECONDS):
        while True:
            if count := count_logged(bench.folder, status):
                return count
            await trio.sleep(0.1)
    raise Failed(f"cgw logged no {status}")


def _is_expected(recorded: Recorded, scenario: Scenario) -> bool:
    if scenario.outcome is None:
        return True
    if scenario.outcome == "completed":
        return recorded.outcomes.keys() == {"completed"}
    # Agents make other requests besides, which complete.
    return recorded.outcomes.get(scenario.outcome, 0) >= 1


def check_usage(recorded: Recorded, reported: tuple[int, int]) -> None:
    """Raise :exc:`Failed` unless the events add up to what the upstream reported."""
    if (recorded.prompt_tokens, recorded.completion_tokens) != reported:
        found = f"{recorded.prompt_tokens} + {recorded.completion_tokens} tokens"
        raise Failed(f"cgw recorded {found}, while the upstream reported {reported[0]} + {reported[1]}")
