"""``/maintenance/…``: the table of the reference's §6.3."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from attrs import define

from cgw.control.maintenance import MAX_AT_ONCE, SCOPE
from cgw.testing.json_server import JsonAnswer
from cgw.testing.scripted_portal import CLIENT_ID, CLIENT_SECRET, ScriptedPortal, open_scripted_portal
from tests.support.errors import read_error
from tests.support.flagging import USER, USER_ID, FlaggingBench, open_flagging_bench
from tests.support.gateway import TOKEN

PATH = "/maintenance/flagged-requests"
READER, OTHER = "sams_at_reader", "sams_at_other"
SOME_KEY = f"prompt:{'0' * 32}:chat_completions:7"


@define
class Bench:
    """A gateway with flagged prompts, and the SAMS that knows their readers."""

    flagging: FlaggingBench
    sams: ScriptedPortal

    async def get(self, path: str = PATH, token: str = READER, method: str = "GET") -> tuple[int, str]:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        answer = await self.flagging.client.request(method, path, headers=headers)
        text = answer.text
        if answer.status_code >= 400 and answer.content:
            text = json.dumps(read_error(answer), separators=(",", ":")) + "\n"
        return answer.status_code, text


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_scripted_portal() as sams:
        sams.introspected[READER] = {"active": True, "scope": f"openid {SCOPE}"}
        sams.introspected[OTHER] = {"active": True, "scope": "openid profile"}
        settings = {
            "ANTHROPIC_BLOCKED_PROMPT_PATTERNS": "how to cook",
            "SAMS_URL": sams.url,
            "SAMS_CLIENT_ID": CLIENT_ID,
            "SAMS_CLIENT_SECRET": CLIENT_SECRET,
        }
        async with open_flagging_bench(tmp_path, settings) as flagging:
            yield Bench(flagging, sams)


async def test_s6_3_flagged_prompts_are_listed_and_read(bench: Bench) -> None:
    """Each with its key, trace id, feature and user; the prompt itself is plain text."""
    assert await bench.get() == (200, '{"prompts":[]}')
    assert (await bench.flagging.ask("how to cook ⚗", token=USER)).status_code == 200
    trace_id = bench.flagging.read_events()[0].metadata["trace_id"]
    client, headers = bench.flagging.client, {"authorization": f"Bearer {READER}"}
    (entry,) = (await client.get(PATH, headers=headers)).json()["prompts"]
    key = f"prompt:{trace_id}:chat_completions:{USER_ID}"
    assert entry == {"key": key, "traceId": trace_id, "feature": "chat_completions", "userId": USER_ID}
    for path in (key, key.replace(":", "%3A")):
        answer = await client.get(f"{PATH}/{path}", headers=headers)
        assert (answer.status_code, answer.text) == (200, "Human: how to cook ⚗\n\n")
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        (f"{PATH}/x", 400, "Invalid prompt key"),
        (f"{PATH}/prompt:*", 400, "Invalid prompt key"),
        (f"{PATH}/{SOME_KEY}%0A", 400, "Invalid prompt key"),
        (f"{PATH}/{SOME_KEY}", 404, "Prompt not found"),
        ("/maintenance/other", 404, "404 page not found"),
    ],
)
async def test_s6_3_keys_that_are_not_there(bench: Bench, path: str, status: int, text: str) -> None:
    """A malformed key is 400, so that no other key of Redis can be read; an unknown one, and another path, 404."""
    assert await bench.get(path) == (status, f'{{"error":"{text}"}}\n')


@pytest.mark.parametrize(
    ("token", "status", "text"),
    [
        ("", 401, "Unauthorized"),
        ("x" * 5000, 401, "Unauthorized"),
        (TOKEN, 401, "Unauthorized: Inactive token"),
        (OTHER, 403, "Forbidden: Missing required scope"),
    ],
    ids=["none", "long", "inactive", "scope"],
)
async def test_s6_3_who_may_not_read(bench: Bench, token: str, status: int, text: str) -> None:
    """Actors' tokens are none of SAMS, and its tokens need the scope; whatever the path is."""
    for path in (PATH, f"{PATH}/x", "/maintenance/other"):
        assert await bench.get(path, token) == (status, f'{{"error":"{text}"}}\n')


@pytest.mark.parametrize(
    "answer",
    [JsonAnswer({}, 500), JsonAnswer({}, 401), JsonAnswer({"active": "true"}), JsonAnswer(b"no json"), JsonAnswer([])],
    ids=["500", "401", "string", "no json", "list"],
)
async def test_s6_3_without_an_answer_from_sams_it_is_500(
    bench: Bench, answer: JsonAnswer, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody is let in; the reason is in the log, the token is not."""
    bench.sams.answer_next = lambda call: answer
    assert (await bench.get())[0] == 500
    assert "a token for /maintenance/ could not be checked: introspection by 127.0.0.1: " in caplog.text
    assert READER not in caplog.text


async def test_s6_3_other_methods_get_405(bench: Bench) -> None:
    """They change nothing."""
    assert (await bench.get(method="DELETE"))[0] == 405


async def test_introspections_at_once_are_bounded(bench: Bench) -> None:
    """Beyond the bound it is 503 at once: anybody can present tokens."""
    bench.sams.delay_seconds = 1.0
    statuses: list[int] = []

    async def ask() -> None:
        statuses.append((await bench.get())[0])

    async with trio.open_nursery() as nursery:
        for _ in range(MAX_AT_ONCE + 3):
            nursery.start_soon(ask)
    assert sorted(statuses) == [200] * MAX_AT_ONCE + [503] * 3


async def test_s6_3_without_a_sams_client_there_are_no_routes(tmp_path: Path) -> None:
    """404, as for any other unknown path."""
    async with open_flagging_bench(tmp_path, {}) as flagging:
        answer = await flagging.client.get(PATH, headers={"authorization": f"Bearer {READER}"})
        assert (answer.status_code, read_error(answer)) == (404, {"error": f"there is no route '{PATH}'"})
