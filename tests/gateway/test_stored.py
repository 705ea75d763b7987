"""Owners of stored objects: kept in Redis under their actor, bounded, and refused where they cannot be proven."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
import trio
from attrs import evolve

from cgw.errors import Refusal
from cgw.gateway import stored
from cgw.model import Actor
from cgw.service.lifecycle import Service
from cgw.testing.scripted_upstream import ScriptedUpstream
from tests.support.gateway import OPENAI_MODEL, TOKEN, open_gateway

ACME = Actor("acme", "Acme", "static", access_enabled=True)


async def test_an_id_is_its_actors_at_its_provider(gateway: Service) -> None:
    """What one actor stored is foreign to all others, to the same id of another source, and at another provider."""
    owned = gateway.gateway.stored
    owned.keep_later(ACME, "openai", {"resp_1", "msg_1"})
    assert await owned.find_foreign(ACME, "openai", ["resp_1", "msg_1"]) is None
    assert await owned.find_foreign(ACME, "openai", ["resp_1", "resp_2", "resp_3"]) == "resp_2"
    assert await owned.find_foreign(ACME, "other", ["resp_1"]) == "resp_1"
    assert await owned.find_foreign(evolve(ACME, id="evil"), "openai", ["resp_1"]) == "resp_1"
    assert await owned.find_foreign(evolve(ACME, source="other"), "openai", ["resp_1"]) == "resp_1"


async def test_ids_are_hashed_and_expire(gateway: Service) -> None:
    """Redis has no id in the clear, and forgets an actor's ids with the provider."""
    gateway.gateway.stored.keep_later(ACME, "openai", {"resp_secret"})
    await gateway.gateway.stored.find_foreign(ACME, "openai", ["resp_secret"])
    (key,) = await gateway.redis.execute_command("KEYS", "*stored*")
    assert b"acme" in key
    (member,) = await gateway.redis.execute_command("ZRANGE", key, 0, -1)
    assert len(member) == 16
    assert 0 < await gateway.redis.execute_command("TTL", key) <= stored.TTL_SECONDS


async def test_ids_are_bounded(gateway: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound the oldest are forgotten; a response of the provider's may not bring more than some at once."""
    monkeypatch.setattr(stored, "MAX_IDS", 30)
    monkeypatch.setattr(stored, "MAX_IDS_AT_ONCE", 20)
    owned = gateway.gateway.stored
    owned.keep_later(ACME, "openai", {f"msg_{number:03d}" for number in range(500)})
    await owned.find_foreign(ACME, "openai", ["x"])
    (key,) = await gateway.redis.execute_command("KEYS", "*stored*")
    assert await gateway.redis.execute_command("ZCARD", key) == 20
    for number in range(3):
        owned.keep_later(ACME, "openai", {f"new_{number}_{index}" for index in range(20)})
    assert await owned.find_foreign(ACME, "openai", [f"new_2_{index}" for index in range(20)]) is None
    assert await gateway.redis.execute_command("ZCARD", key) == 30


async def test_old_ids_are_forgotten(gateway: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """An id that is older than the provider keeps it is dropped with the next write."""
    owned = gateway.gateway.stored
    owned.keep_later(ACME, "openai", {"resp_old"})
    await owned.find_foreign(ACME, "openai", ["resp_old"])
    (key,) = await gateway.redis.execute_command("KEYS", "*stored*")
    await gateway.redis.execute_command("ZINCRBY", key, -stored.TTL_SECONDS - 1, stored._digest(["resp_old"])[0])
    owned.keep_later(ACME, "openai", {"resp_new"})
    assert await owned.find_foreign(ACME, "openai", ["resp_new", "resp_old"]) == "resp_old"


async def test_without_redis_nothing_is_proven(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """While Redis is away a request that refers to something gets 503 in the API's shape; others are served."""
    more = {"REDIS_ENDPOINT": "127.0.0.1:9", "CODY_GATEWAY_REDIS_TIMEOUT": "100ms"}
    async with (
        open_gateway(tmp_path, upstream.url, more=more) as gateway,
        httpx.AsyncClient(base_url=f"{gateway.url}/openai/v1", headers={"authorization": f"Bearer {TOKEN}"}) as client,
    ):
        with pytest.raises(Refusal) as refused:
            await gateway.gateway.stored.check_references(ACME, "openai", ["resp_1"])
        assert refused.value.status == 503
        body = {"model": OPENAI_MODEL, "input": "Good day"}
        assert (await client.post("/responses", json=body)).status_code == 200
        answer = await client.post("/responses", json={**body, "previous_response_id": "resp_1"})
        assert (answer.status_code, answer.json()["error"]["type"]) == (503, "server_error")
        assert answer.headers["retry-after"] == "1"
        assert (await client.get("/responses/resp_1")).status_code == 503
    assert upstream.request_count == 1


async def test_an_upstream_that_fails_is_told_in_the_apis_shape(gateway: Service, upstream: ScriptedUpstream) -> None:
    """Reading what is stored: a broken upstream is 502; another status passes with its body."""
    url, headers = f"{gateway.url}/openai/v1/responses", {"authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(headers=headers) as client:
        made = (await client.post(url, json={"model": OPENAI_MODEL, "input": "Good day"})).json()["id"]
        with trio.fail_after(10):
            assert (await client.get(f"{url}/{made}")).json()["id"] == made
            gateway.gateway.stored.keep_later(ACME, "openai", {"resp_gone"})
            missing = await client.get(f"{url}/resp_gone")
        assert (missing.status_code, missing.json()["error"]["message"]) == (
            404,
            "Response with id 'resp_gone' not found.",
        )
        assert missing.headers["x-request-id"].startswith("req_scripted")
        assert "set-cookie" not in missing.headers
