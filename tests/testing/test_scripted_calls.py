"""Calls of tools by the scripted upstream, as the real SDKs read them."""

from __future__ import annotations

import json

import anthropic
import openai
import pytest
import trio
from google import genai
from google.genai import types

from cgw.testing.script import Script, ScriptedCall
from cgw.testing.scripted_upstream import open_scripted_upstream

pytestmark = pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")

CALLS = (ScriptedCall("add", '{"first": 1, "second": 12345678}'), ScriptedCall("show", "{}"))
SCRIPT = Script(answer="Done.", tokens_per_second=0, api_key="sk-right", calls=(CALLS,))
WANTED = [(call.name, json.loads(call.arguments)) for call in CALLS]
SCHEMA: dict[str, object] = {"type": "object", "properties": {}}


@pytest.mark.parametrize("streamed", [True, False])
async def test_anthropic_sdk_reads_calls_and_gives_back_results(streamed: bool) -> None:
    """Two calls of one turn arrive whole, with their tokens; with both results the answer follows."""
    tools: list[anthropic.types.ToolParam] = [{"name": "add", "input_schema": SCHEMA}]
    messages: list[anthropic.types.MessageParam] = [{"role": "user", "content": "Good day"}]
    async with (
        open_scripted_upstream(SCRIPT) as upstream,
        anthropic.AsyncAnthropic(base_url=upstream.url, api_key="sk-right") as client,
    ):

        async def ask() -> anthropic.types.Message:
            if not streamed:
                return await client.messages.create(model="m", max_tokens=50, messages=messages, tools=tools)
            async with client.messages.stream(model="m", max_tokens=50, messages=messages, tools=tools) as stream:
                return await stream.get_final_message()

        message = await ask()
        uses = [block for block in message.content if block.type == "tool_use"]
        assert [(use.name, use.input) for use in uses] == WANTED
        assert message.stop_reason == "tool_use"
        assert message.usage.output_tokens == 5
        messages += [
            {"role": "assistant", "content": message.content},
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "2"} for use in uses],
            },
        ]
        answer = await ask()
        assert [block.text for block in answer.content if block.type == "text"] == ["Done."]


@pytest.mark.parametrize("streamed", [True, False])
async def test_openai_sdk_reads_calls_and_gives_back_results(streamed: bool) -> None:
    """Two calls of one turn arrive whole, with their tokens; with both results the answer follows."""
    tools: list[openai.types.chat.ChatCompletionToolParam] = [
        {"type": "function", "function": {"name": "add", "strict": True, "parameters": dict(SCHEMA)}}
    ]
    messages: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "Good day"}]
    async with (
        open_scripted_upstream(SCRIPT) as upstream,
        openai.AsyncOpenAI(base_url=f"{upstream.url}/v1", api_key="sk-right") as client,
    ):

        async def ask() -> openai.types.chat.ChatCompletion:
            if not streamed:
                return await client.chat.completions.create(model="m", messages=messages, tools=tools)
            async with client.chat.completions.stream(
                model="m", messages=messages, tools=tools, stream_options={"include_usage": True}
            ) as stream:
                return await stream.get_final_completion()

        completion = await ask()
        choice = completion.choices[0]
        calls = [call for call in choice.message.tool_calls or () if call.type == "function"]
        assert [(call.function.name, json.loads(call.function.arguments)) for call in calls] == WANTED
        assert choice.finish_reason == "tool_calls"
        assert completion.usage is not None
        assert completion.usage.completion_tokens == 5
        asked = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.function.name, "arguments": call.function.arguments},
            }
            for call in calls
        ]
        messages.append({"role": "assistant", "tool_calls": asked})  # type: ignore[typeddict-item]
        for call in calls:
            messages.append({"role": "tool", "tool_call_id": call.id, "content": "2"})  # noqa: PERF401 - a union
        answer = await ask()
        assert answer.choices[0].message.content == "Done."


async def test_google_sdk_reads_calls_and_gives_back_results() -> None:
    """The calls of a turn arrive whole, with their tokens; with the results the answer follows."""
    tool = types.Tool(function_declarations=[types.FunctionDeclaration(name="add")])
    config = types.GenerateContentConfig(tools=[tool])
    script, contents = SCRIPT, [types.Content(role="user", parts=[types.Part(text="Good day")])]
    async with open_scripted_upstream(script) as upstream:
        client = genai.Client(api_key="sk-right", http_options=types.HttpOptions(base_url=upstream.url))

        def ask(streamed: bool) -> types.GenerateContentResponse:
            if not streamed:
                return client.models.generate_content(model="m", contents=contents, config=config)
            return list(client.models.generate_content_stream(model="m", contents=contents, config=config))[-1]

        for streamed in (True, False):
            found = await trio.to_thread.run_sync(ask, streamed)
            assert [(call.name, call.args) for call in found.function_calls or ()] == WANTED
            assert found.usage_metadata is not None
            assert found.usage_metadata.candidates_token_count == 5
        answer = await trio.to_thread.run_sync(ask, False)
        assert answer.candidates is not None
        results = [types.Part.from_function_response(name=call.name, response={"sum": 2}) for call in CALLS]
        content = answer.candidates[0].content
        assert content is not None
        contents += [content, types.Content(role="user", parts=results)]
        assert (await trio.to_thread.run_sync(ask, False)).text == "Done."
