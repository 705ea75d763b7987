"""``POST /v1/attribution``: the table of the reference's §7."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from cgw.control.attribution import MAX_AT_ONCE, MAX_BODY_BYTES
from cgw.service.lifecycle import Service
from cgw.testing.json_server import JsonAnswer
from cgw.testing.scripted_sourcegraph import (
    ScriptedSourcegraph,
    ScriptedSubscription,
    ScriptedUser,
    build_error,
    open_scripted_sourcegraph,
)
from tests.support.errors import read_error
from tests.support.gateway import TOKEN
from tests.support.sourcegraph_gateway import open_dotcom_gateway
from tests.support.sources import subscription_token, user_token

PATH = "/v1/attribution"
INSTANCE, DISABLED, USER = subscription_token("acme"), subscription_token("without access"), user_token("alice")
NAMES = ["github.com/acme/one", "github.com/acme/two"]


@pytest.fixture
async def sourcegraph() -> AsyncIterator[ScriptedSourcegraph]:
    """A Sourcegraph.com with a subscription, one without access, and a user."""
    async with open_scripted_sourcegraph() as scripted:
        scripted.subscriptions = [
            ScriptedSubscription("00000000-0000-0000-0000-000000000001", (INSTANCE,)),
            ScriptedSubscription("00000000-0000-0000-0000-000000000002", (DISABLED,), enabled=False),
        ]
        scripted.users[USER] = ScriptedUser(7)
        yield scripted


@pytest.fixture
async def gateway(tmp_path: Path, sourcegraph: ScriptedSourcegraph) -> AsyncIterator[Service]:
    """A gateway in front of it."""
    async with open_dotcom_gateway(tmp_path, sourcegraph) as service:
        yield service


async def ask(gateway: Service, content: Any, token: str = INSTANCE) -> httpx.Response:
    """Send a request, with ``content`` as JSON unless it is bytes."""
    headers = {"authorization": f"Bearer {token}"} if token else {}
    async with httpx.AsyncClient(base_url=gateway.url, headers=headers, timeout=30) as client:
        if isinstance(content, bytes):
            return await client.post(PATH, content=content)
        return await client.post(PATH, json=content)


def list_searches(sourcegraph: ScriptedSourcegraph) -> list[dict[str, Any]]:
    """Return the variables of the searches that were made."""
    return [call.json()["variables"] for call in sourcegraph.calls if call.target.endswith("?SnippetAttribution")]


async def test_s7_repositories_are_returned_under_a_capital_r(gateway: Service) -> None:
    """The shape of the answer, which clients of instances decode."""
    answer = await ask(gateway, {"snippet": "func main() {}", "limit": 2})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json() == {"Repositories": [{"name": name} for name in NAMES], "totalCount": 2}


async def test_s7_without_a_match_repositories_is_null(gateway: Service, sourcegraph: ScriptedSourcegraph) -> None:
    """``totalCount`` and ``limitHit`` are left out when they are zero; ``Repositories`` is not."""
    sourcegraph.attribution = ()
    assert (await ask(gateway, {"snippet": "x", "limit": 1})).content == b'{"Repositories":null}'


async def test_s7_limit_hit(gateway: Service) -> None:
    """More repositories than were asked for are said to exist."""
    answer = (await ask(gateway, {"snippet": "x", "limit": 1})).json()
    assert answer == {"Repositories": [{"name": NAMES[0]}], "totalCount": 2, "limitHit": True}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"snippet": "a\nb"}, {"snippet": "a\nb", "first": 4}),
        ({"snippet": "a", "limit": 0}, {"snippet": "a", "first": 4}),
        ({"snippet": "a", "limit": None}, {"snippet": "a", "first": 4}),
        ({"snippet": "a", "limit": 3}, {"snippet": "a", "first": 3}),
        ({"snippet": "a", "limit": 4}, {"snippet": "a", "first": 4}),
        ({"snippet": "a", "limit": 5}, {"snippet": "a", "first": 4}),
        ({"snippet": "a", "limit": -1}, {"snippet": "a", "first": 4}),
        ({"limit": 1, "other": True}, {"snippet": "", "first": 1}),
    ],
)
async def test_s7_the_limit_is_from_1_to_4(
    gateway: Service, sourcegraph: ScriptedSourcegraph, content: Any, expected: Any
) -> None:
    """Any other limit, or none, is 4."""
    assert (await ask(gateway, content)).status_code == 200
    assert list_searches(sourcegraph) == [expected]


async def test_s7_it_works_with_access_off(gateway: Service) -> None:
    """The endpoint grant: instances that use their own provider keys."""
    assert (await ask(gateway, {"snippet": "x"}, DISABLED)).status_code == 200


@pytest.mark.parametrize("token", [TOKEN, USER], ids=["static", "user"])
async def test_s7_other_sources_get_401(gateway: Service, sourcegraph: ScriptedSourcegraph, token: str) -> None:
    """It is for instances only, checked before the body."""
    answer = await ask(gateway, b"no json", token)
    assert answer.status_code == 401
    assert read_error(answer) == {"error": "only available for enterprise product subscriptions"}
    assert list_searches(sourcegraph) == []


@pytest.mark.parametrize("token", ["", subscription_token("nobody")], ids=["none", "unknown"])
async def test_s7_unknown_callers_get_401(gateway: Service, sourcegraph: ScriptedSourcegraph, token: str) -> None:
    """Nobody is granted an endpoint without an actor, the second time neither (quirk 5)."""
    for _ in range(2):
        assert (await ask(gateway, {"snippet": "x"}, token)).status_code == 401
    assert list_searches(sourcegraph) == []


@pytest.mark.parametrize(
    "more", [{"CODY_GATEWAY_ENABLE_ATTRIBUTION_SEARCH": ""}, {"CODY_GATEWAY_ENABLE_ATTRIBUTION_SEARCH": "F"}]
)
async def test_s7_while_it_is_off_it_is_503(
    tmp_path: Path, sourcegraph: ScriptedSourcegraph, more: dict[str, str]
) -> None:
    """Off by default; checked after the source and before the body."""
    async with open_dotcom_gateway(tmp_path, sourcegraph, more) as gateway:
        answer = await ask(gateway, b"no json")
        assert (answer.status_code, read_error(answer)) == (503, {"error": "attribution search not enabled"})
        assert (await ask(gateway, b"no json", TOKEN)).status_code == 401


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no json",
        b"[]",
        b'{"snippet": 1}',
        b'{"limit": "1"}',
        b'{"limit": 1.5}',
        b'{"snippet": "\xff"}',
        b'{"snippet": "\\ud800"}',
        b'{"other": ' + b"[" * 100_000,
    ],
    ids=lambda content: content[:20].decode("latin-1"),
)
async def test_s7_a_wrong_body_is_400(gateway: Service, sourcegraph: ScriptedSourcegraph, content: bytes) -> None:
    """Nothing is searched for."""
    answer = await ask(gateway, content)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("the body is not a valid attribution request: ")
    assert list_searches(sourcegraph) == []


async def test_a_large_body_is_413(gateway: Service, sourcegraph: ScriptedSourcegraph) -> None:
    """Up to the bound it is searched for."""
    assert (await ask(gateway, {"snippet": "x" * MAX_BODY_BYTES})).status_code == 413

    async def stream() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b" " * (MAX_BODY_BYTES // 2)

    headers = {"authorization": f"Bearer {INSTANCE}"}
    async with httpx.AsyncClient(base_url=gateway.url, headers=headers, timeout=30) as client:
        assert (await client.post(PATH, content=stream())).status_code == 413
    assert (await ask(gateway, {"snippet": "x" * (MAX_BODY_BYTES - 20)})).status_code == 200
    assert len(list_searches(sourcegraph)) == 1


@pytest.mark.parametrize(
    "answer",
    [
        build_error("canary of the other side"),
        JsonAnswer(b"<html>canary</html>", headers=((b"content-type", b"text/html"),)),
        JsonAnswer({"data": {"snippetAttribution": None}}),
        JsonAnswer(b"canary", 500),
        JsonAnswer(is_broken=True),
    ],
    ids=["errors", "html", "null", "500", "broken"],
)
async def test_s7_without_an_answer_from_sourcegraph_it_is_502(
    gateway: Service, sourcegraph: ScriptedSourcegraph, caplog: pytest.LogCaptureFixture, answer: JsonAnswer
) -> None:
    """What Sourcegraph.com said is in the log, without the snippet, and not in the response."""
    sourcegraph.answer_next = lambda call: answer if call.target.endswith("?SnippetAttribution") else None
    with caplog.at_level(logging.WARNING, "cgw.control"):
        response = await ask(gateway, {"snippet": "SNIPPET-CANARY"})
    assert response.status_code == 502
    assert read_error(response) == {"error": "fetching SnippetAttribution from sourcegraph.com failed"}
    (line,) = [record.getMessage() for record in caplog.records if record.name == "cgw.control"]
    assert line.startswith("attribution search for actor 00000000-0000-0000-0000-000000000001 failed: ")
    assert "SNIPPET-CANARY" not in line
    assert INSTANCE not in line


async def test_searches_at_once_are_bounded(gateway: Service, sourcegraph: ScriptedSourcegraph) -> None:
    """Above the bound it is 503 at once, with a time to come back; below it again, all is as before."""
    assert (await ask(gateway, {"snippet": "x"})).status_code == 200
    sourcegraph.delay_seconds = 2.0
    statuses: list[int] = []

    async def search() -> None:
        response = await ask(gateway, {"snippet": "x"})
        statuses.append(response.status_code)
        if response.status_code == 503:
            assert response.headers["retry-after"] == "1"

    async with trio.open_nursery() as nursery:
        for _ in range(MAX_AT_ONCE + 5):
            nursery.start_soon(search)
    assert sorted(statuses) == [200] * MAX_AT_ONCE + [503] * 5
    sourcegraph.delay_seconds = 0.0
    assert (await ask(gateway, {"snippet": "x"})).status_code == 200


async def test_a_search_ends_when_its_client_leaves(gateway: Service, sourcegraph: ScriptedSourcegraph) -> None:
    """Clients that give up do not use up the bound."""
    assert (await ask(gateway, {"snippet": "x"})).status_code == 200
    sourcegraph.answer_next = lambda call: JsonAnswer(delay_seconds=60)

    async def leave() -> None:
        with trio.move_on_after(0.5):
            await ask(gateway, {"snippet": "x"})

    async with trio.open_nursery() as nursery:
        for _ in range(MAX_AT_ONCE):
            nursery.start_soon(leave)
    sourcegraph.answer_next = None
    with trio.fail_after(5):
        while (await ask(gateway, {"snippet": "x"})).status_code != 200:  # noqa: ASYNC110 - there is no event for it
            await trio.sleep(0.1)


async def test_other_methods_get_405(gateway: Service) -> None:
    """With the allowed one in Allow."""
    async with httpx.AsyncClient(base_url=gateway.url) as client:
        answer = await client.get(PATH)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


async def test_s7_it_counts_on_no_limit(gateway: Service) -> None:
    """Neither the quota nor the short-term rate of the subscription is used."""
    for _ in range(3):
        assert (await ask(gateway, {"snippet": "x"})).status_code == 200
    assert await gateway.redis.execute_command("KEYS", "cgw:{dotcom-product-subscriptions:*") == []
