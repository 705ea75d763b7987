"""Lists of models: what the actor may use, in the form of each API."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest

from cgw.actors.tokens import hash_token
from cgw.service.lifecycle import Service
from tests.support.gateway import TOKEN, open_gateway

UPSTREAM = "http://127.0.0.1:9"  # never asked

ACTOR = """
[[actor]]
id = "acme"
token_sha256 = ["{token}"]
[actor.limits.chat_completions]
limit = 10
interval = "24h"
concurrent_requests = 10
allowed_models = [{models}]
"""

EVERYTHING = '"*"'


@asynccontextmanager
async def open_client(
    folder: Path, models: str = EVERYTHING, more: Mapping[str, str] | None = None
) -> AsyncIterator[tuple[Service, httpx.AsyncClient]]:
    """Run a gateway whose actor may use ``models``, and open a client with its token."""
    actors = folder / "actors-of-lists.toml"
    actors.write_text(ACTOR.format(token=hash_token(TOKEN), models=models))
    environ = {
        "CODY_GATEWAY_ACTORS_FILE": str(actors),
        "CODY_GATEWAY_GOOGLE_ACCESS_TOKEN": "k",
        "CODY_GATEWAY_FIREWORKS_ACCESS_TOKEN": "k",
        **(more or {}),
    }
    async with (
        open_gateway(folder, UPSTREAM, more=environ) as gateway,
        httpx.AsyncClient(base_url=gateway.url, headers={"authorization": f"Bearer {TOKEN}"}) as client,
    ):
        yield gateway, client


async def list_ids(client: httpx.AsyncClient, path: str = "/openai/v1/models") -> list[str]:
    answer = await client.get(path)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return [model.get("id") or model["name"] for model in body["data" if "data" in body else "models"]]


async def test_openais_list(tmp_path: Path) -> None:
    """The SDK lists and retrieves models; a name with a slash, encoded or not, is one of Fireworks'."""
    async with open_client(tmp_path) as (gateway, client):
        async with openai.AsyncOpenAI(base_url=f"{gateway.url}/openai/v1", api_key=TOKEN, max_retries=0) as sdk:
            models = [model async for model in sdk.models.list()]
            assert {"gpt-4o", "gpt-3.5-turbo-instruct"} <= {model.id for model in models}
            assert {(model.object, model.owned_by) for model in models} == {("model", "openai")}
            # A dated snapshot is in no list, and allowed by its name.
            assert (await sdk.models.retrieve("gpt-4o-2024-08-06")).id == "gpt-4o-2024-08-06"
            with pytest.raises(openai.NotFoundError) as missing:
                await sdk.models.retrieve("no-such-model")
        assert (missing.value.param, missing.value.code) == ("model", "model_not_found")
        name = "accounts/fireworks/models/gpt-oss-20b"
        assert name in await list_ids(client, "/fireworks/v1/models")
        for path in (name, name.replace("/", "%2F")):
            assert (await client.get(f"/fireworks/v1/models/{path}")).json()["id"] == name


async def test_anthropics_list(tmp_path: Path) -> None:
    """The SDK pages through the models, and retrieves one, with betas as well."""
    async with open_client(tmp_path) as (gateway, client):
        async with anthropic.AsyncAnthropic(base_url=f"{gateway.url}/anthropic", api_key=TOKEN, max_retries=0) as sdk:
            names = [model.id async for model in sdk.models.list(limit=7)]
            assert len(names) > 14
            assert len(names) == len(set(names))
            assert [model.id async for model in sdk.beta.models.list(limit=1000)] == names
            page = await sdk.models.list(limit=3, before_id=names[5])
            assert [model.id for model in page.data] == names[2:5]
            assert (await sdk.models.retrieve(names[0])).type == "model"
            with pytest.raises(anthropic.NotFoundError):
                await sdk.models.retrieve("no-such-model")
            with pytest.raises(anthropic.BadRequestError, match="limit"):
                await sdk.models.list(limit=0)
        answer = await client.get("/anthropic/v1/models?limit=1&after_id=nothing")
        assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")


async def test_googles_list(tmp_path: Path) -> None:
    """Models have the API's form and pages."""
    async with open_client(tmp_path) as (_, client):
        names = await list_ids(client, "/google/v1beta/models?pageSize=1000")
        first = (await client.get("/google/v1beta/models?pageSize=2")).json()
        second = (await client.get(f"/google/v1beta/models?pageSize=2&pageToken={first['nextPageToken']}")).json()
        assert [model["name"] for model in first["models"] + second["models"]] == names[:4]
        for version in ("v1beta", "v1"):
            one = (await client.get(f"/google/{version}/{names[0]}")).json()
            assert one["name"] == names[0]
            assert "generateContent" in one["supportedGenerationMethods"]
        missing = await client.get("/google/v1beta/models/no-such-model")
        assert (missing.status_code, missing.json()["error"]["status"]) == (404, "NOT_FOUND")
        wrong = await client.get("/google/v1beta/models?pageSize=x")
        assert wrong.json()["error"]["status"] == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    ("gateway_models", "actor_models", "listed"),
    [
        ("gpt-4o,gpt-4.1*", '"openai/gpt-4o"', ["gpt-4o"]),
        ("gpt-4o,gpt-4.1*", '"openai/gpt-4.1-mini", "openai/o3"', ["gpt-4.1-mini"]),
        ("gpt-4o,gpt-4.1", '"openai/gpt-4*"', ["gpt-4o", "gpt-4.1"]),
        ("gpt-4*", '"openai/gpt-4*"', []),
        ("gpt-4*", EVERYTHING, []),
        ("gpt-4o", '"anthropic/claude-3-haiku"', []),
    ],
)
async def test_a_list_has_what_both_lists_admit(
    tmp_path: Path, gateway_models: str, actor_models: str, listed: list[str]
) -> None:
    """Names of either list that the other admits; of patterns alone nothing is known."""
    more = {"CODY_GATEWAY_OPENAI_ALLOWED_MODELS": gateway_models, "CODY_GATEWAY_ALLOWED_EMBEDDINGS_MODELS": "openai/x"}
    async with open_client(tmp_path, actor_models, more) as (_, client):
        found = await list_ids(client)
        assert [name for name in found if "moderation" not in name] == listed
        is_there = (await client.get("/openai/v1/models/gpt-4.1-mini")).status_code == 200
        assert is_there == ("gpt-4.1-mini" in listed or (gateway_models == "gpt-4*" and "claude" not in actor_models))


async def test_lists_need_a_token_and_count_on_their_own_rate(tmp_path: Path) -> None:
    """Without a token 401 in the API's shape; beyond the rate of free requests 429, and the quota is untouched."""
    more = {"CODY_GATEWAY_FREE_REQUESTS_PER_MINUTE": "3"}
    async with open_client(tmp_path, more=more) as (_, client):
        nobody = await client.get("/openai/v1/models", headers={"authorization": ""})
        assert (nobody.status_code, nobody.json()["error"]["code"]) == (401, "invalid_api_key")
        statuses = [(await client.get("/openai/v1/models")).status_code for _ in range(4)]
        assert statuses == [200, 200, 200, 429]
        limits = (await client.get("/v1/limits")).json()
        assert limits["chat_completions"]["usage"] == 0


async def test_a_provider_without_a_key_has_no_list(tmp_path: Path) -> None:
    """There is nothing to use there, so the route is unknown, as its others are."""
    async with open_client(tmp_path, more={"CODY_GATEWAY_OPENAI_ACCESS_TOKEN": ""}) as (_, client):
        answer = await client.get("/openai/v1/models")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
