"""``/v1/limits`` and ``/v1/limits/refresh``: reading an actor's limits, and fetching the actor again."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from cgw.service.lifecycle import Service
from cgw.testing.scripted_upstream import ScriptedUpstream
from tests.support.errors import read_error
from tests.support.gateway import DISABLED_TOKEN, TOKEN, build_actors
from tests.support.limits import open_http, open_patient_gateway
from tests.support.requests import build_body

PATH = "/v1/completions/anthropic-messages"
REFRESH = "/v1/limits/refresh"


async def spend(client: httpx.AsyncClient, count: int) -> None:
    """Send ``count`` requests of acme, which all succeed."""
    for _ in range(count):
        assert (await client.post(PATH, json=build_body(PATH, stream=False))).status_code == 200


async def test_limits_are_those_of_each_feature(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """Each feature with a limit has an entry in the reference's shape, with unit, rest and, if used, an expiry."""
    async with open_patient_gateway(tmp_path, upstream.url, limit=24) as gateway, open_http(gateway) as client:
        await spend(client, 3)
        answer = await client.get("/v1/limits")
        now = datetime.now(UTC)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    limits = answer.json()
    expiry = datetime.fromisoformat(limits["chat_completions"].pop("expiry"))
    assert abs(expiry - (now + timedelta(hours=3))) < timedelta(seconds=10)
    assert limits == {
        "code_completions": {
            "limit": 1000,
            "interval": "24h0m0s",
            "usage": 0,
            "remaining": 1000,
            "unit": "requests",
            "allowedModels": ["anthropic/claude-3-haiku-20240307"],
        },
        "chat_completions": {
            "limit": 24,
            "interval": "24h0m0s",
            "usage": 3,
            "remaining": 21,
            "unit": "requests",
            "allowedModels": ["*"],
        },
    }


async def test_limits_in_tokens_have_figures_in_tokens(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """A quota in tokens has that unit, and its figures count tokens."""
    async with (
        open_patient_gateway(tmp_path, upstream.url, limit=100, chat_lines='unit = "tokens"') as gateway,
        open_http(gateway) as client,
    ):
        await spend(client, 2)
        chat = (await client.get("/v1/limits")).json()["chat_completions"]
    assert (chat["limit"], chat["unit"], chat["usage"], chat["remaining"]) == (100, "tokens", 12, 88)


async def test_reading_limits_uses_nothing(gateway: Service) -> None:
    """Reading limits, by GET or HEAD, does not count on them."""
    async with open_http(gateway) as client:
        for _ in range(3):
            chat = (await client.get("/v1/limits")).json()["chat_completions"]
            assert (chat["usage"], chat["remaining"], "expiry" in chat) == (0, 1000, False)
        head = await client.head("/v1/limits")
    assert (head.status_code, head.content) == (200, b"")


async def test_anonymous_callers_share_limits(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """Without a token the response has the anonymous actor's limits, those for embeddings in tokens."""
    more = {"CODY_GATEWAY_ALLOW_ANONYMOUS": "true"}
    async with (
        open_patient_gateway(tmp_path, upstream.url, more=more) as gateway,
        httpx.AsyncClient(base_url=gateway.url) as client,
    ):
        limits = (await client.get("/v1/limits")).json()
        refreshed = await client.post(REFRESH)
    units = {feature: (entry["limit"], entry["unit"]) for feature, entry in limits.items()}
    assert units == {
        "code_completions": (1000, "requests"),
        "chat_completions": (50, "requests"),
        "embeddings": (100_000, "tokens"),
    }
    assert (refreshed.status_code, refreshed.content) == (200, b"")


async def test_refreshing_has_a_cool_down(gateway: Service) -> None:
    """The first refresh is 200 with an empty body; the next one at once is 429 with the wait in text and header."""
    async with open_http(gateway) as client:
        first, second = await client.post(REFRESH), await client.post(REFRESH)
    assert (first.status_code, first.content) == (200, b"")
    assert second.status_code == 429
    error = second.json()["error"]
    assert error.startswith("actor was recently updated - try again in ")
    assert error.removeprefix("actor was recently updated - try again in ") in ("4s", "3s", "2s")
    assert 3 <= int(second.headers["retry-after"]) <= 5


async def test_refreshing_brings_changed_limits(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """A change of the actors file takes effect as soon as the refresh is answered, in both engines."""
    async with open_patient_gateway(tmp_path, upstream.url, limit=1) as gateway, open_http(gateway) as client:
        await spend(client, 1)
        (tmp_path / "actors.toml").write_text(build_actors(limit=3))
        assert (await client.get("/v1/limits")).json()["chat_completions"]["limit"] == 1
        assert (await client.post(REFRESH)).status_code == 200
        await spend(client, 2)
        chat = (await client.get("/v1/limits")).json()["chat_completions"]
        assert (chat["limit"], chat["usage"], chat["remaining"]) == (3, 3, 0)
        assert (await client.post(PATH, json=build_body(PATH))).status_code == 429


async def test_refreshing_a_broken_file(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """A source that fails gives 500 without details, which are only logged; the limits stay as they were."""
    async with open_patient_gateway(tmp_path, upstream.url, limit=5) as gateway, open_http(gateway) as client:
        (tmp_path / "actors.toml").write_text("[[actor]]\nid = ")
        answer = await client.post(REFRESH)
        assert answer.status_code == 500
        assert read_error(answer) == {"error": "the actor could not be refreshed: its source failed"}
        assert (await client.get("/v1/limits")).json()["chat_completions"]["limit"] == 5


UNKNOWN = {"authorization": "Bearer cgw_nobody"}
NOT_ALLOWED = [("GET", REFRESH, "POST"), ("DELETE", REFRESH, "POST"), ("PUT", "/v1/limits", "GET, HEAD")]


@pytest.mark.parametrize("headers", [UNKNOWN, {"authorization": ""}], ids=["unknown", "none"])
async def test_unknown_tokens(gateway: Service, headers: Mapping[str, str]) -> None:
    """Without a known token, both routes answer 401 and do nothing."""
    async with httpx.AsyncClient(base_url=gateway.url, headers=headers) as client:
        for answer in (await client.get("/v1/limits"), await client.post(REFRESH)):
            assert answer.status_code == 401
            assert list(read_error(answer)) == ["error"]
    assert gateway.gateway.refresher.statistics().updated == 0


async def test_actors_without_access(gateway: Service) -> None:
    """An actor whose access is off gets 403, as on the other routes."""
    async with open_http(gateway, authorization=f"Bearer {DISABLED_TOKEN}") as client:
        assert (await client.get("/v1/limits")).status_code == 403
        assert (await client.post(REFRESH)).status_code == 403


@pytest.mark.parametrize(("method", "path", "allowed"), NOT_ALLOWED)
async def test_other_methods(gateway: Service, method: str, path: str, allowed: str) -> None:
    """Other methods get 405, with the allowed ones in Allow."""
    async with httpx.AsyncClient(base_url=gateway.url, headers={"authorization": f"Bearer {TOKEN}"}) as client:
        answer = await client.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
