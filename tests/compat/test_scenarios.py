"""The runner's own checks, with SDKs that are here anyway and with clients that do the wrong thing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import trio
from attrs import evolve

from compat import scenarios
from compat.__main__ import ACTORS
from compat.bench import ANSWER, open_bench
from compat.install import SCRIPTS
from compat.outside import open_outside
from compat.registry import CLIENTS, Client
from compat.scenarios import SCENARIOS, Failed, run_scenario, run_script, steady_text

BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}
OPENAI = next(client for client in CLIENTS if client.name == "openai")


def find_client(name: str) -> tuple[Client, list[str]]:
    client = next(client for client in CLIENTS if client.name == name)
    return client, [sys.executable, str(SCRIPTS / client.script)]


def write_client(folder: Path, *lines: str) -> list[str]:
    script = folder / "client.py"
    script.write_text("\n".join(lines), "utf-8")
    return [sys.executable, str(script)]


@pytest.mark.parametrize("name", ["openai", "openai, Responses", "anthropic", "google-genai"])
async def test_sdks_pass_what_needs_no_waiting(name: str, tmp_path: Path) -> None:
    """SDKs that are dev dependencies pass these scenarios, each with what cgw recorded."""
    client, command = find_client(name)
    async with open_bench(tmp_path, ACTORS) as bench:
        for scenario in ("plain", "stream", "tools", "wrong key", "cut stream", "abort"):
            passed = await run_scenario(bench, client, command, BY_NAME[scenario])
            if scenario == "wrong key":
                assert "key" in passed.error
                assert passed.attempts == 1
        assert not bench.outside.hosts


ASKING = """
import httpx, json, os
body = {"model": os.environ["CGW_MODEL"], "messages": [{"role": "user", "content": "x"}]}
headers = {"authorization": "Bearer " + os.environ["CGW_KEY"]}
answer = httpx.post(os.environ["CGW_URL"] + "/chat/completions", json=body, headers=headers, timeout=60)
"""


WRONG = (
    ("plain", "print(json.dumps({'text': 'Good'}))", "it got"),
    ("plain", "print('Good day')", "it ended with 0: nothing"),
    ("plain", "raise SystemError('no such thing')", "SystemError: no such thing"),
    ("stream", f"print(json.dumps({{'text': {ANSWER!r}, 'pieces': 1}}))", "in one piece"),
    ("stream", f"print(json.dumps({{'text': {ANSWER!r}, 'pieces': 9}}))", "no stream"),
    ("tools", f"print(json.dumps({{'text': {ANSWER!r}}}))", "did not show the call of add"),
    ("wrong key", "print(json.dumps({'text': 'fine'}))", "took this for an answer"),
    ("wrong key", "print(json.dumps({'error': 'a key', 'status': 403}))", "says 403 instead of 401"),
    ("wrong key", "print(json.dumps({'error': 'oh', 'status': 401}))", "without cgw's words"),
    ("abort", "print(json.dumps({'text': 'word'}))", "did not leave before the end"),
)
"""Scenario, last line of the client, and what it is said to have done."""


async def test_clients_that_do_the_wrong_thing_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that shows something else than it was sent does not pass, and the words say what it did."""
    monkeypatch.setitem(scenarios.SLOW, "tokens_per_second", 0.0)  # or the client that does not leave waits for it
    (tmp_path / "data").mkdir()
    async with open_bench(tmp_path / "data", ACTORS) as bench:
        for scenario, line, complaint in WRONG:
            with pytest.raises(Failed, match=complaint):
                await run_scenario(bench, OPENAI, write_client(tmp_path, ASKING, line), BY_NAME[scenario])


async def test_events_that_do_not_add_up_fail(tmp_path: Path) -> None:
    """Where the events have other sums than the upstream's answers, the scenario is not passed."""
    (tmp_path / "data").mkdir()
    # It asks once more than the runner looks at: the event of the first request is one too many.
    script = write_client(tmp_path, ASKING, f"print(json.dumps({{'text': {ANSWER!r}}}))")
    async with open_bench(tmp_path / "data", ACTORS) as bench:
        await run_scenario(bench, OPENAI, script, BY_NAME["plain"])
        with pytest.raises(Failed, match=r"cgw recorded 2 [+] 18 tokens, while the upstream reported 1 [+] 9"):
            await run_scenario(bench, OPENAI, script, BY_NAME["plain"])


def test_errors_are_kept_without_what_differs_between_runs() -> None:
    """Ports, request ids and dates of an error are left out, so that a run that finds the same writes the same."""
    text = f"at http://127.0.0.1:4711/x, id {'ab' * 16}. Retry after Thu, 26 Nov 2026 22:57:42 GMT"
    assert steady_text(text) == "at http://127.0.0.1/x, id ID. Retry after DATE"


async def test_too_many_attempts_fail(tmp_path: Path) -> None:
    """A client that asks more often than it may with a wrong key does not pass, unless the registry allows it."""
    (tmp_path / "data").mkdir()
    script = write_client(tmp_path, ASKING, ASKING, "print(json.dumps({'error': 'wrong key', 'status': 401}))")
    async with open_bench(tmp_path / "data", ACTORS) as bench:
        with pytest.raises(Failed, match="asked 2 times"):
            await run_scenario(bench, OPENAI, script, BY_NAME["wrong key"])
    (tmp_path / "more").mkdir()
    async with open_bench(tmp_path / "more", ACTORS) as bench:
        patient = evolve(OPENAI, attempts=(("wrong key", 2),))
        assert (await run_scenario(bench, patient, script, BY_NAME["wrong key"])).attempts == 2


async def test_a_client_that_hangs_is_ended_with_all_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At its deadline a client fails, and neither it nor a program that it started goes on."""
    monkeypatch.setattr(scenarios, "SCENARIO_SECONDS", 1.0)
    beat = tmp_path / "beat"
    child = f"import time\nwhile True:\n    open({str(beat)!r}, 'a').write('.')\n    time.sleep(0.05)"
    lines = ("import subprocess, sys, time", f"subprocess.Popen([sys.executable, '-c', {child!r}])", "time.sleep(60)")
    with pytest.raises(Failed, match="did not end within 1 s"):
        await run_script(write_client(tmp_path, *lines), {"HOME": str(tmp_path)})
    size = beat.stat().st_size if beat.exists() else 0
    await trio.sleep(0.3)
    assert (beat.stat().st_size if beat.exists() else 0) == size


async def test_other_hosts_are_named_and_refused() -> None:
    """What is asked of another host through the proxy of the environment is refused, and its name is kept."""
    async with open_outside() as outside:
        for request in (
            b"CONNECT telemetry.example.com:443 HTTP/1.1\r\n\r\n",
            b"GET http://example.org/x HTTP/1.1\r\n\r\n",
        ):
            port = int(outside.url.rpartition(":")[2])
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.send_all(request)
                assert (await stream.receive_some(1000)).startswith(b"HTTP/1.1 403 ")
        assert outside.hosts == {"telemetry.example.com", "example.org"}
