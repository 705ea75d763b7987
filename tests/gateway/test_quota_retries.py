"""Clients that retry silently, and a quota that is used up."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anthropic
import openai
import pytest
import trio

from cgw.actors.tokens import hash_token
from cgw.service.lifecycle import Service
from cgw.testing.scripted_upstream import ScriptedUpstream
from tests.gateway.test_sdks import ask_anthropic, ask_openai, open_anthropic, open_openai
from tests.support.gateway import TOKEN
from tests.support.instance import Instance
from tests.support.limits import open_http, open_patient_gateway, read_recorded
from tests.support.requests import build_body

PATH = "/v1/completions/anthropic-messages"
SDK_PATH = "/anthropic/v1/messages"
QUOTA = 60
BODY = build_body(PATH, stream=False)


@asynccontextmanager
async def open_used_up_gateway(folder: Path, upstream: ScriptedUpstream, interval: str) -> AsyncIterator[Service]:
    """Run a gateway whose actor has used up its quota of :data:`QUOTA` requests per ``interval``."""
    actors = folder / "used-up.toml"
    actors.write_text(
        f'[[actor]]\nid = "acme"\ntoken_sha256 = ["{hash_token(TOKEN)}"]\n[actor.limits.chat_completions]\n'
        f'limit = {QUOTA}\ninterval = "{interval}"\nconcurrent_requests = 100000\n'
    )
    async with open_patient_gateway(folder, upstream.url, more={"CODY_GATEWAY_ACTORS_FILE": str(actors)}) as gateway:
        async with open_http(gateway) as client:
            while (await client.post(PATH, json=BODY)).status_code == 200:
                pass
        yield gateway


async def test_a_used_up_quota_does_not_set_off_silent_retries(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """60 requests of an instance cause 60 attempts, and as many more as were admitted; its refusals are few events."""
    statuses: list[int] = []
    # A request is refilled each second: the exact wait is one that instances retry after, silently, up to 20 times.
    async with open_used_up_gateway(tmp_path, upstream, "60s") as gateway, open_http(gateway) as client:
        instance = Instance(client)

        async def ask() -> None:
            statuses.append((await instance.post(PATH, BODY)).status_code)

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for _ in range(60):
                    nursery.start_soon(ask)
        assert statuses.count(429) + statuses.count(200) == 60
        assert instance.attempts <= 60 + statuses.count(200)
        # The exact wait of SDK routes is one that the stand-in retries after: it would have shown a storm.
        retried = Instance(client)
        assert (await retried.post(SDK_PATH, BODY)).status_code == 200
        assert retried.attempts > 1
        refused = 1 + instance.attempts - statuses.count(200) + retried.attempts - 1
    events = [metadata for name, metadata in read_recorded(tmp_path) if name == "RateLimited"]
    assert {event["error"] for event in events} == {"rate limit exceeded"}
    assert sum(event["count"] for event in events) == refused
    assert len(events) < refused / 3


@pytest.mark.parametrize(("interval", "is_worthwhile"), [("30m", True), ("2h", False)])
async def test_sdks_get_the_exact_wait_up_to_a_minute(
    tmp_path: Path, upstream: ScriptedUpstream, interval: str, is_worthwhile: bool
) -> None:
    """An SDK is told the exact time, 30 s here, and not to retry by itself when that is more than 60 s, 120 s here."""
    async with open_used_up_gateway(tmp_path, upstream, interval) as gateway:
        async with open_anthropic(gateway) as client:
            with pytest.raises(anthropic.RateLimitError) as refused:
                await ask_anthropic(client)
        async with open_openai(gateway) as openai_client:
            with pytest.raises(openai.RateLimitError) as openai_refused:
                await ask_openai(openai_client)
    longest_ms = 30_000 if is_worthwhile else 120_000
    for headers in (refused.value.response.headers, openai_refused.value.response.headers):
        assert longest_ms - 20_000 < int(headers["retry-after-ms"]) <= longest_ms
        assert headers.get("x-should-retry") == (None if is_worthwhile else "false")
