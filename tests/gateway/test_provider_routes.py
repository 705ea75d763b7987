"""Every provider's routes through the whole gateway, in front of an upstream that plays each API."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from attrs import define

from cgw.events.reading import read_events
from cgw.service.lifecycle import Service
from cgw.testing.script import Script
from cgw.testing.scripted_upstream import ScriptedUpstream, open_scripted_upstream
from tests.support.provider_routes import CASES, HELLO, KEY, RouteCase, open_full_gateway

ANSWER = "Viele Grüße zurück, 世界 👋!"
PROMPT_TOKENS, ANSWER_TOKENS = 3, 5

EACH_CASE = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
STREAMED = pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])


@define
class Bench:
    """A gateway with all routes, its upstream, and a client."""

    gateway: Service
    upstream: ScriptedUpstream
    client: httpx.AsyncClient

    async def post(self, case: RouteCase, *, stream: bool) -> httpx.Response:
        return await self.client.post(case.path, json=case.build_body(stream=stream), headers=case.build_headers())


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    script = Script(answer=ANSWER, tokens_per_second=math.inf, api_key=KEY)
    async with (
        open_scripted_upstream(script) as upstream,
        open_full_gateway(tmp_path, upstream.url) as gateway,
        httpx.AsyncClient(base_url=gateway.url) as client,
    ):
        yield Bench(gateway, upstream, client)


@EACH_CASE
@STREAMED
async def test_a_completion_reaches_the_client_and_its_event(bench: Bench, case: RouteCase, stream: bool) -> None:
    """The upstream's API is asked with the provider's key, and the event has the model and the tokens."""
    answer = await bench.post(case, stream=stream)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-cody-resolved-model"] == case.model
    assert ("text/event-stream" in answer.headers["content-type"]) == stream
    assert "👋" in answer.text
    seen = bench.upstream.requests[-1]
    assert seen.target == (case.stream_path if stream and case.stream_path else case.upstream_path)
    (event,) = [event.metadata for event in read_events(bench.gateway.events_folder)]
    assert (event["model"], event["feature"], event["stream"]) == (case.model, case.feature, stream)
    assert event["prompt_character_count"] == len(HELLO)
    assert event["completion_character_count"] == len(ANSWER)
    if case.path == "/v1/completions/anthropic":
        # This API sends no figures.
        assert event["usage_quality"] == "estimated"
        assert "prompt_token_count" not in event
    else:
        assert (event["prompt_token_count"], event["completion_token_count"]) == (PROMPT_TOKENS, ANSWER_TOKENS)
        assert event["usage_quality"] == "exact"
