"""The scripted upstream with the real SDKs as clients, without a gateway between them."""

from __future__ import annotations

import anthropic
import openai
import pytest
from anthropic.types import MessageParam
from openai.types.chat import ChatCompletionChunk

from cgw.testing.script import Breakage, Script
from cgw.testing.scripted_upstream import open_scripted_upstream

# openai does not close its stream's async generators after `[DONE]`, and Trio warns about that.
pytestmark = pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")

FAST = Script(answer="One two three.", tokens_per_second=0, api_key="sk-right")
CLAUDE = "claude-3-5-sonnet-20240620"
GPT = "gpt-4o"


def anthropic_client(url: str, key: str = "sk-right", max_retries: int = 0) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=url, api_key=key, max_retries=max_retries)


def openai_client(url: str, key: str = "sk-right", max_retries: int = 0) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=max_retries)


async def test_anthropic_sdk_reads_a_stream_with_usage_and_stop_reason() -> None:
    """The anthropic SDK accumulates a streamed message with its text, usage and request id."""
    messages: list[MessageParam] = [{"role": "user", "content": "say four words please"}]
    async with (
        open_scripted_upstream(FAST) as upstream,
        anthropic_client(upstream.url) as client,
        client.messages.stream(model=CLAUDE, max_tokens=50, messages=messages) as stream,
    ):
        texts = [text async for text in stream.text_stream]
        message = await stream.get_final_message()
        request_id = stream.response.headers["request-id"]
    assert texts == ["One", " two", " three."]
    assert message.model == CLAUDE
    assert message.stop_reason == "end_turn"
    assert (message.usage.input_tokens, message.usage.output_tokens) == (4, 3)
    assert request_id.startswith("req_")


async def test_anthropic_sdk_reads_a_whole_message_cut_at_max_tokens() -> None:
    """Without streaming, the anthropic SDK gets one message, cut at ``max_tokens``."""
    async with open_scripted_upstream(FAST) as upstream, anthropic_client(upstream.url) as client:
        message = await client.messages.create(
            model=CLAUDE, max_tokens=2, system="Be brief", messages=[{"role": "user", "content": "count"}]
        )
    block = message.content[0]
    assert isinstance(block, anthropic.types.TextBlock)
    assert block.text == "One two"
    assert message.stop_reason == "max_tokens"
    assert (message.usage.input_tokens, message.usage.output_tokens) == (3, 2)
    assert message._request_id is not None


async def test_openai_sdk_reads_a_stream_with_role_content_finish_and_usage() -> None:
    """The openai SDK gets role, tokens, finish reason and the requested usage chunk, in this order."""
    async with open_scripted_upstream(FAST) as upstream, openai_client(upstream.url) as client:
        stream = await client.chat.completions.create(
            model=GPT,
            messages=[{"role": "user", "content": "say three words"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        request_id = stream.response.headers["x-request-id"]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].delta.content for chunk in chunks[1:4]] == ["One", " two", " three."]
    assert chunks[4].choices[0].finish_reason == "stop"
    assert chunks[5].choices == []
    assert chunks[5].usage is not None
    assert (chunks[5].usage.prompt_tokens, chunks[5].usage.completion_tokens) == (3, 3)
    assert all(chunk.usage is None for chunk in chunks[:5])
    assert len(chunks) == 6
    assert request_id.startswith("req_")


async def test_openai_sdk_sees_no_usage_chunk_unless_it_asked() -> None:
    """Without ``stream_options``, no chunk has usage."""
    async with open_scripted_upstream(FAST) as upstream, openai_client(upstream.url) as client:
        stream = await client.chat.completions.create(
            model=GPT, messages=[{"role": "user", "content": "hi"}], stream=True
        )
        chunks = [chunk async for chunk in stream]
    assert len(chunks) == 5
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


async def test_openai_sdk_reads_a_whole_completion() -> None:
    """Without streaming, the openai SDK gets one completion with usage, cut at ``max_completion_tokens``."""
    async with open_scripted_upstream(FAST) as upstream, openai_client(upstream.url) as client:
        completion = await client.chat.completions.create(
            model=GPT, messages=[{"role": "user", "content": "hi"}], max_completion_tokens=1
        )
    assert completion.choices[0].message.content == "One"
    assert completion.choices[0].finish_reason == "length"
    assert completion.usage is not None
    assert completion.usage.total_tokens == 2
    assert completion._request_id is not None


async def test_a_wrong_key_is_an_authentication_error_to_both_sdks() -> None:
    """A wrong key makes each SDK raise its ``AuthenticationError``."""
    async with (
        open_scripted_upstream(FAST) as upstream,
        anthropic_client(upstream.url, "sk-wrong") as claude,
        openai_client(upstream.url, "sk-wrong") as gpt,
    ):
        with pytest.raises(anthropic.AuthenticationError) as of_anthropic:
            await claude.messages.create(model=CLAUDE, max_tokens=9, messages=[{"role": "user", "content": "hi"}])
        with pytest.raises(openai.AuthenticationError) as of_openai:
            await gpt.chat.completions.create(model=GPT, messages=[{"role": "user", "content": "hi"}])
    assert of_anthropic.value.body is not None
    assert "authentication_error" in str(of_anthropic.value.body)
    assert of_openai.value.code == "invalid_api_key"


async def test_scripted_errors_reach_the_sdks_as_their_own_exceptions() -> None:
    """429 with ``retry-after``, 500 and 529 raise the exceptions that the real APIs cause."""
    scripts = {
        "busy": Script(api_key="sk-right", status=429, error_headers=(("retry-after", "7"),)),
        "broken": Script(api_key="sk-right", status=500),
        "overloaded": Script(api_key="sk-right", status=529, error_message="Overloaded"),
    }
    async with (
        open_scripted_upstream(scripts) as upstream,
        anthropic_client(upstream.url) as claude,
        openai_client(upstream.url) as gpt,
    ):
        with pytest.raises(openai.RateLimitError) as limited:
            await gpt.chat.completions.create(model="busy", messages=[{"role": "user", "content": "hi"}])
        with pytest.raises(openai.InternalServerError):
            await gpt.chat.completions.create(model="broken", messages=[{"role": "user", "content": "hi"}])
        with pytest.raises(anthropic.APIStatusError) as overloaded:
            await claude.messages.create(model="overloaded", max_tokens=9, messages=[{"role": "user", "content": "x"}])
        with pytest.raises(openai.NotFoundError):
            await gpt.chat.completions.create(model="nobody", messages=[{"role": "user", "content": "hi"}])
    assert limited.value.response.headers["retry-after"] == "7"
    assert limited.value.code == "rate_limit_exceeded"
    assert overloaded.value.status_code == 529
    assert "overloaded_error" in str(overloaded.value.body)


async def test_a_stream_that_breaks_off_looks_broken_to_the_sdk() -> None:
    """A connection that is closed within the body raises in the SDK, after the events before it."""
    script = Script(api_key="sk-right", tokens_per_second=0, break_after_events=3, breakage=Breakage.CLOSE)
    texts: list[str | None] = []
    async with open_scripted_upstream(script) as upstream, openai_client(upstream.url) as client:
        stream = await client.chat.completions.create(
            model=GPT, messages=[{"role": "user", "content": "hi"}], stream=True
        )
        with pytest.raises(openai.APIConnectionError):
            await _read_into(texts, stream)
    assert texts == ["", "Hello", " from"]


async def _read_into(texts: list[str | None], stream: openai.AsyncStream[ChatCompletionChunk]) -> None:
    async for chunk in stream:
        texts.append(chunk.choices[0].delta.content)  # noqa: PERF401 - the chunks before the break must be kept
