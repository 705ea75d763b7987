"""``/anthropic/v1/messages/count_tokens``: for SDKs and Claude Code, on a rate of its own."""

from __future__ import annotations

from pathlib import Path

import anthropic
import httpx
import pytest

from cgw.service.lifecycle import Service
from cgw.testing.script import Script
from cgw.testing.scripted_upstream import ScriptedUpstream
from tests.gateway.test_sdks import open_anthropic
from tests.support.gateway import ANTHROPIC_KEY, ANTHROPIC_MODEL, DISABLED_TOKEN, TOKEN, open_gateway
from tests.support.limits import get_usage, open_http, read_recorded

PATH = "/anthropic/v1/messages/count_tokens"
BODY = {"model": ANTHROPIC_MODEL, "messages": [{"role": "user", "content": "one two three"}]}


async def test_the_sdk_counts_tokens_and_pays_nothing(gateway: Service, upstream: ScriptedUpstream) -> None:
    """Both forms of the SDK's method work; no quota is touched, and no usage event is left."""
    async with open_anthropic(gateway) as client:
        messages: list[anthropic.types.MessageParam] = [{"role": "user", "content": "one two three"}]
        count = await client.messages.count_tokens(model=ANTHROPIC_MODEL, messages=messages, system="four five")
        assert count.input_tokens == 5
        beta = await client.beta.messages.count_tokens(
            model=f"anthropic/{ANTHROPIC_MODEL}",
            messages=[{"role": "user", "content": "one"}],
            betas=["token-counting-2024-11-01", "context-1m-2025-08-07"],
        )
        assert beta.input_tokens == 1
    seen = upstream.requests[-1]
    assert seen.target.partition("?")[0] == "/v1/messages/count_tokens"
    # The SDK adds one of its own.
    assert seen.header("anthropic-beta") == "token-counting-2024-11-01,context-1m-2025-08-07,token-counting-2024-11-01"
    assert seen.json() == {"model": ANTHROPIC_MODEL, "messages": [{"role": "user", "content": "one"}]}
    assert (seen.header("x-api-key"), seen.header("authorization")) == (ANTHROPIC_KEY, None)
    assert await get_usage(gateway) == 0
    assert read_recorded(gateway.events_folder.parent) == []


async def test_betas_pass_on_messages_and_their_counts(gateway: Service, upstream: ScriptedUpstream) -> None:
    """The query and all ``anthropic-beta`` fields of a client pass, on both routes."""
    fields = [
        ("authorization", f"Bearer {TOKEN}"),
        ("anthropic-beta", "claude-code-20250219,oauth-2025-04-20"),
        ("anthropic-beta", "interleaved-thinking-2025-05-14"),
        ("anthropic-version", "2023-06-02"),
    ]
    async with httpx.AsyncClient(base_url=gateway.url) as client:
        for path, more in (("/anthropic/v1/messages", {"max_tokens": 9}), (PATH, {})):
            answer = await client.post(f"{path}?beta=true", headers=fields, json={**BODY, **more})
            assert answer.status_code == 200
            seen = upstream.requests[-1]
            assert seen.target == f"{path.removeprefix('/anthropic')}?beta=true"
            assert [value for name, value in seen.headers if name == b"anthropic-beta"] == [
                b"claude-code-20250219,oauth-2025-04-20",
                b"interleaved-thinking-2025-05-14",
            ]
            assert seen.header("anthropic-version") == "2023-06-02"


async def test_the_rate_refuses_in_the_apis_shape(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """Beyond the rate: 429 with the wait, in Anthropic's shape, and an event; the quota still serves."""
    more = {"CODY_GATEWAY_FREE_REQUESTS_PER_MINUTE": "3", "CODY_GATEWAY_REDIS_TIMEOUT": "20s"}
    async with open_gateway(tmp_path, upstream.url, more=more) as gateway, open_http(gateway) as client:
        for remaining in (2, 1, 0):
            answer = await client.post(PATH, json=BODY)
            assert answer.status_code == 200
            assert answer.headers["ratelimit"].startswith(f'"free";r={remaining};t=')
        refused = await client.post(PATH, json=BODY)
        assert refused.status_code == 429
        assert refused.json()["error"] == {
            "type": "rate_limit_error",
            "message": refused.json()["error"]["message"],
        }
        assert "rate of 3 requests that cost nothing per 1m" in refused.json()["error"]["message"]
        assert 0 < int(refused.headers["retry-after-ms"]) <= 20_000
        assert refused.headers["retry-after"].endswith(" GMT")
        assert "x-should-retry" not in refused.headers
        served = await client.post("/anthropic/v1/messages", json={**BODY, "max_tokens": 5})
        assert served.status_code == 200
        assert await get_usage(gateway) == 1
    events = read_recorded(tmp_path)
    assert [name for name, _ in events] == ["RateLimited", "CompletionsFinished"]
    assert (events[0][1]["cause"], events[0][1]["limit"]) == ("free", 3)
    assert upstream.request_count == 4


async def test_what_the_upstream_refuses_costs_nothing(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """As with every limit, only what the upstream answered 2xx counts; a quota that is used up does not matter."""
    more = {"CODY_GATEWAY_FREE_REQUESTS_PER_MINUTE": "1", "CODY_GATEWAY_REDIS_TIMEOUT": "20s"}
    async with open_gateway(tmp_path, upstream.url, limit=1, more=more) as gateway, open_http(gateway) as client:
        assert (await client.post("/anthropic/v1/messages", json={**BODY, "max_tokens": 5})).status_code == 200
        upstream.scripts[ANTHROPIC_MODEL] = Script(status=400, api_key=ANTHROPIC_KEY)
        for _ in range(3):
            assert (await client.post(PATH, json=BODY)).status_code == 400
        upstream.scripts[ANTHROPIC_MODEL] = Script(api_key=ANTHROPIC_KEY)
        assert (await client.post(PATH, json=BODY)).status_code == 200
        assert (await client.post(PATH, json=BODY)).status_code == 429


@pytest.mark.parametrize(
    ("body", "token", "status", "kind"),
    [
        ({**BODY, "model": "no-such-model"}, TOKEN, 400, "invalid_request_error"),
        ({"model": ANTHROPIC_MODEL}, TOKEN, 400, "invalid_request_error"),
        ({**BODY, "fallbacks": ["claude-opus-4-1"]}, TOKEN, 400, "invalid_request_error"),
        (BODY, "wrong", 401, "authentication_error"),
        (BODY, DISABLED_TOKEN, 403, "permission_error"),
    ],
    ids=["model", "messages", "further models", "unknown token", "no access"],
)
async def test_refusals(
    gateway: Service, upstream: ScriptedUpstream, body: object, token: str, status: int, kind: str
) -> None:
    """What messages refuse is refused here, too, before it reaches the upstream."""
    async with open_http(gateway, authorization=f"Bearer {token}") as client:
        answer = await client.post(PATH, json=body)
    assert (answer.status_code, answer.json()["error"]["type"]) == (status, kind)
    assert upstream.request_count == 0
