"""Agents' loops: many requests on one connection, large prompts, tools in parallel, cancelling and going on."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
import trio

from cgw.events.report import summarise
from cgw.service.lifecycle import Service
from cgw.testing.script import Script
from cgw.testing.scripted_upstream import ScriptedUpstream
from tests.gateway.test_sdks import ANSWER, ask_anthropic, ask_openai, open_anthropic, open_openai
from tests.support.gateway import ANTHROPIC_KEY, ANTHROPIC_MODEL, OPENAI_MODEL, TOKEN, open_gateway
from tests.support.limits import get_usage, wait_nothing_held

TURNS = 300
MIB = 1024 * 1024

TOOLS: list[anthropic.types.ToolParam] = [
    {"name": name, "description": "reads a file", "input_schema": {"type": "object"}} for name in ("read", "list")
]


def build_history(turns: int) -> list[anthropic.types.MessageParam]:
    """Return a conversation in which each turn of the model calls two tools at once."""
    messages: list[Any] = [{"role": "user", "content": "look into it"}]
    for turn in range(turns):
        calls = [
            {"type": "tool_use", "id": f"toolu_{turn}_{name}", "name": name, "input": {"path": f"/{turn}"}}
            for name in ("read", "list")
        ]
        results = [{"type": "tool_result", "tool_use_id": call["id"], "content": "ok " * 20} for call in calls]
        messages += [{"role": "assistant", "content": calls}, {"role": "user", "content": results}]
    return messages


async def test_hundreds_of_turns_on_one_connection(gateway: Service, upstream: ScriptedUpstream) -> None:
    """A loop of 300 turns uses one connection on each side, and its events add up to what the upstream reported."""
    tokens = 0
    # One connection at most: a second one, where the first could not be kept, would have to wait for ever.
    limits = httpx.Limits(max_connections=1)
    async with httpx.AsyncClient(base_url=gateway.url, limits=limits, headers={"x-api-key": TOKEN}, timeout=30) as http:
        for turn in range(TURNS):
            body = {
                "model": ANTHROPIC_MODEL,
                "max_tokens": 50,
                "messages": build_history(turn % 10),
                "tools": TOOLS,
                "stream": turn % 2 == 0,
            }
            answer = await http.post("/anthropic/v1/messages?beta=true", json=body)
            assert answer.status_code == 200
            events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]
            usage = events[-2]["usage"] if events else answer.json()["usage"]
            tokens += usage["output_tokens"]
    assert (upstream.request_count, upstream.connection_count) == (TURNS, 1)
    (row,) = summarise(gateway.events_folder)
    assert (row.requests, row.completion_tokens) == (TURNS, tokens)
    assert await get_usage(gateway) == TURNS


async def test_calls_of_tools_pass_in_parallel(gateway: Service, upstream: ScriptedUpstream) -> None:
    """Twenty requests of one agent at once, each with calls of tools and their results, which pass unchanged."""
    history = build_history(3)
    async with open_anthropic(gateway) as client, trio.open_nursery() as nursery:

        async def ask() -> None:
            message = await client.messages.create(
                model=ANTHROPIC_MODEL, max_tokens=50, messages=history, tools=TOOLS, tool_choice={"type": "any"}
            )
            assert message.stop_reason == "end_turn"

        for _ in range(20):
            nursery.start_soon(ask)
    for seen in upstream.requests:
        assert seen.json()["messages"] == history
        assert seen.json()["tools"] == TOOLS
    assert await get_usage(gateway) == 20


@pytest.mark.parametrize("is_anthropic", [True, False], ids=["anthropic", "openai"])
async def test_prompts_of_a_megabyte(gateway: Service, upstream: ScriptedUpstream, is_anthropic: bool) -> None:
    """A prompt of 1 MB arrives whole, time after time on one connection."""
    text = "Grüße, 世界! " * (MIB // 17)
    assert len(text.encode()) > 0.9 * MIB
    for _ in range(3):
        if is_anthropic:
            async with open_anthropic(gateway) as client:
                message = await client.messages.create(
                    model=ANTHROPIC_MODEL, max_tokens=50, messages=[{"role": "user", "content": text}]
                )
                assert message.usage.input_tokens > 0
        else:
            async with open_openai(gateway) as openai_client:
                await openai_client.chat.completions.create(
                    model=OPENAI_MODEL, messages=[{"role": "user", "content": text}]
                )
        assert upstream.requests[-1].json()["messages"][0]["content"] == text


async def test_cancelling_in_the_middle_and_going_on(gateway: Service, upstream: ScriptedUpstream) -> None:
    """An agent that is interrupted stops its upstream at once, and the next turn works with the same client."""
    slow = Script(answer="word " * 400, tokens_per_second=20, api_key=ANTHROPIC_KEY)
    fast = upstream.scripts[ANTHROPIC_MODEL]
    async with open_anthropic(gateway) as client:
        for _ in range(3):
            upstream.scripts[ANTHROPIC_MODEL] = slow
            with trio.CancelScope() as scope:
                async with client.messages.stream(
                    model=ANTHROPIC_MODEL, max_tokens=500, messages=build_history(2)
                ) as stream:
                    async for _event in stream:
                        scope.cancel()
            assert scope.cancelled_caught
            seen = upstream.requests[-1]
            with trio.fail_after(5):
                await seen.wait_over()
            assert seen.peer_closed_at is not None
            upstream.scripts[ANTHROPIC_MODEL] = fast
            message = await ask_anthropic(client)
            assert message.content[0].type == "text"
            assert message.content[0].text == ANSWER
    await wait_nothing_held(gateway, 5)
    assert await get_usage(gateway) == 6


async def test_a_wrong_key_ends_a_loop_at_once(gateway: Service, upstream: ScriptedUpstream) -> None:
    """With retries left, a 401 is final: each SDK asks once, and has its API's own words, also for counting tokens."""
    with trio.fail_after(10):
        async with open_anthropic(gateway, "wrong", retries=5) as client:
            with pytest.raises(anthropic.AuthenticationError, match="invalid x-api-key") as refused:
                await ask_anthropic(client)
            with pytest.raises(anthropic.AuthenticationError, match="invalid x-api-key"):
                await client.messages.count_tokens(model=ANTHROPIC_MODEL, messages=[{"role": "user", "content": "a"}])
        async with open_openai(gateway, "wrong", retries=5) as openai_client:
            with pytest.raises(openai.AuthenticationError, match="Incorrect API key provided"):
                await ask_openai(openai_client)
    assert refused.value.response.headers["x-should-retry"] == "false"
    assert upstream.request_count == 0


async def test_a_short_wait_is_waited_for(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """A short-term rate that is used up makes the SDKs wait as they are told, and then go on; nothing is lost."""
    lines = 'concurrent_requests_interval = "1s"'
    more = {"CODY_GATEWAY_REDIS_TIMEOUT": "20s"}
    async with (
        open_gateway(tmp_path, upstream.url, concurrent_requests=2, chat_lines=lines, more=more) as gateway,
        open_anthropic(gateway, retries=5) as client,
    ):
        with trio.fail_after(30):
            for _ in range(6):
                await ask_anthropic(client)
    assert upstream.request_count == 6


async def test_a_long_wait_ends_a_loop(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """A quota that is back in hours only is final for both SDKs: they ask once more, and stop."""
    async with open_gateway(tmp_path, upstream.url, limit=1) as gateway:
        with trio.fail_after(20):
            async with open_anthropic(gateway, retries=5) as client:
                await ask_anthropic(client)
                with pytest.raises(anthropic.RateLimitError) as refused:
                    await ask_anthropic(client)
            async with open_openai(gateway, retries=5) as openai_client:
                with pytest.raises(openai.RateLimitError):
                    await ask_openai(openai_client)
    assert refused.value.response.headers["x-should-retry"] == "false"
    assert int(refused.value.response.headers["retry-after-ms"]) > 60_000
    assert upstream.request_count == 1


async def test_an_overload_is_retried_and_the_answer_then_complete(
    gateway: Service, upstream: ScriptedUpstream
) -> None:
    """What the upstream refuses for a moment is a 503 that SDKs retry by themselves; only the success is charged."""
    upstream.scripts[ANTHROPIC_MODEL] = Script(status=529, error_headers=(("retry-after", "0"),), api_key=ANTHROPIC_KEY)
    async with open_anthropic(gateway, retries=5) as client, trio.open_nursery() as nursery:

        async def recover() -> None:
            await upstream.wait_request(2)
            upstream.scripts[ANTHROPIC_MODEL] = Script(answer=ANSWER, tokens_per_second=math.inf, api_key=ANTHROPIC_KEY)

        nursery.start_soon(recover)
        message = await ask_anthropic(client)
    assert message.content[0].type == "text"
    assert message.content[0].text == ANSWER
    assert await get_usage(gateway) == 1
