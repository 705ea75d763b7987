"""``/-/actor/sync-all-sources`` of a gateway in front of a scripted Sourcegraph.com (the reference's §6.2)."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from cgw.service.lifecycle import Service
from cgw.testing.json_server import JsonAnswer
from cgw.testing.scripted_sourcegraph import ScriptedSourcegraph, ScriptedSubscription, open_scripted_sourcegraph
from tests.support.errors import read_error
from tests.support.sourcegraph_gateway import SECRET, open_dotcom_gateway
from tests.support.sources import subscription_token
from tests.support.waiting import wait_until

PATH = "/-/actor/sync-all-sources"
KEPT, REVOKED = subscription_token("kept"), subscription_token("revoked")
LISTING = "ListProductSubscriptions"


@pytest.fixture
async def sourcegraph() -> AsyncIterator[ScriptedSourcegraph]:
    """A Sourcegraph.com with two subscriptions."""
    async with open_scripted_sourcegraph() as scripted:
        scripted.subscriptions = [
            ScriptedSubscription(f"00000000-0000-0000-0000-00000000000{number}", (token,))
            for number, token in enumerate((KEPT, REVOKED))
        ]
        yield scripted


@pytest.fixture
async def gateway(tmp_path: Path, sourcegraph: ScriptedSourcegraph) -> AsyncIterator[Service]:
    """A gateway that has synced once, and does not do it again by itself."""
    async with open_dotcom_gateway(tmp_path, sourcegraph) as service:
        await wait_until(lambda: sourcegraph.counts[LISTING] == 1)
        yield service


async def ask(gateway: Service, method: str = "POST", secret: str | None = SECRET) -> httpx.Response:
    """Request a sync."""
    headers = {} if secret is None else {"authorization": f"Bearer {secret}"}
    async with httpx.AsyncClient(base_url=gateway.url, headers=headers, timeout=30) as client:
        return await client.request(method, PATH)


async def get_status(gateway: Service, token: str) -> int:
    """Return the status of a request with ``token``."""
    async with httpx.AsyncClient(base_url=gateway.url) as client:
        return (await client.get("/v1/limits", headers={"authorization": f"Bearer {token}"})).status_code


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_s6_2_it_syncs_now_and_says_how_that_went(
    gateway: Service, sourcegraph: ScriptedSourcegraph, method: str
) -> None:
    """200, and a JSON object per source; what is no longer listed stops working, all others go on."""
    assert [await get_status(gateway, token) for token in (KEPT, REVOKED)] == [200, 200]
    del sourcegraph.subscriptions[1]
    answer = await ask(gateway, method)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    line = json.loads(answer.text)
    assert line.pop("sync_duration").endswith("s")
    assert line == {"level": "info", "source": "dotcom-product-subscriptions", "seen": 1, "removed": 1}
    assert sourcegraph.counts[LISTING] == 2
    # The process's own memory of a token is a few seconds long.
    statuses = [await get_status(gateway, token) for token in (KEPT, REVOKED)]
    assert statuses[0] == 200
    assert KEPT not in answer.text


async def test_s6_2_a_source_that_fails_is_500(gateway: Service, sourcegraph: ScriptedSourcegraph) -> None:
    """The body says what was wrong; nothing is removed on a partial listing."""
    assert await get_status(gateway, REVOKED) == 200
    sourcegraph.page_size = 1
    sourcegraph.answer_next = lambda call: JsonAnswer(status=502) if b"after" in call.body else None
    answer = await ask(gateway)
    assert answer.status_code == 500
    line = json.loads(answer.text)
    assert (line["level"], line["source"]) == ("error", "dotcom-product-subscriptions")
    assert "502" in line["error"]
    keys = await gateway.redis.execute_command("KEYS", "cgw:{actors:dotcom-product-subscriptions}:token:*")
    assert len(keys) == 2


@pytest.mark.parametrize(("secret", "status"), [(None, 401), ("wrong", 401), (f"{SECRET}x", 401)])
async def test_s6_2_without_the_secret_nothing_is_synced(
    gateway: Service, sourcegraph: ScriptedSourcegraph, secret: str | None, status: int
) -> None:
    """401 with an empty body."""
    answer = await ask(gateway, secret=secret)
    assert (answer.status_code, answer.content) == (status, b"")
    assert sourcegraph.counts[LISTING] == 1


async def test_a_gateway_without_a_secret_does_not_sync_on_request(
    tmp_path: Path, sourcegraph: ScriptedSourcegraph
) -> None:
    """403 names the setting."""
    async with open_dotcom_gateway(tmp_path, sourcegraph, {"CODY_GATEWAY_DIAGNOSTICS_SECRET": ""}) as gateway:
        answer = await ask(gateway)
    assert answer.status_code == 403
    assert "CODY_GATEWAY_DIAGNOSTICS_SECRET" in answer.json()["error"]


async def test_a_malformed_authorization_is_400(gateway: Service) -> None:
    """As on every other route."""
    async with httpx.AsyncClient(base_url=gateway.url) as client:
        answer = await client.post(PATH, headers={"authorization": SECRET})
    assert (answer.status_code, list(read_error(answer))) == (400, ["error"])


async def test_other_methods_get_405(gateway: Service) -> None:
    """With the allowed ones in Allow."""
    answer = await ask(gateway, "DELETE")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, POST")


async def test_a_gateway_without_synced_sources_has_nothing_to_do(
    tmp_path: Path, sourcegraph: ScriptedSourcegraph
) -> None:
    """200 with an empty body."""
    more = {"CODY_GATEWAY_DOTCOM_ACCESS_TOKEN": ""}
    async with open_dotcom_gateway(tmp_path, sourcegraph, more) as gateway:
        answer = await ask(gateway)
    assert (answer.status_code, answer.content) == (200, b"")
    assert sourcegraph.calls == []
