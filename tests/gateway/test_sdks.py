"""The real SDKs, with another base URL and key: responses, usage figures, and errors of their own types."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from cgw.events.report import summarise
from cgw.service.lifecycle import Service
from cgw.testing.script import Breakage, Script
from cgw.testing.scripted_upstream import ScriptedUpstream
from tests.support.gateway import (
    ANTHROPIC_KEY,
    ANTHROPIC_MODEL,
    DISABLED_TOKEN,
    OPENAI_KEY,
    OPENAI_MODEL,
    TOKEN,
    open_gateway,
)

# The OpenAI SDK leaves the generators of an ended stream to the garbage collector, which warns.
pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:Async generator:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
    ),
    pytest.mark.parametrize("http2", [False, True], ids=["HTTP/1.1", "HTTP/2"]),
]

ANSWER = "Good day to you."
WRONG_MESSAGES: Any = [{"role": "user", "content": 1}]


def open_anthropic(
    gateway: Service, key: str = TOKEN, retries: int = 0, *, http2: bool = False
) -> anthropic.AsyncAnthropic:
    http_client = anthropic.DefaultAsyncHttpxClient(http1=not http2, http2=http2)
    url = f"{gateway.url}/anthropic"
    return anthropic.AsyncAnthropic(base_url=url, api_key=key, max_retries=retries, http_client=http_client)


def open_openai(gateway: Service, key: str = TOKEN, retries: int = 0, *, http2: bool = False) -> openai.AsyncOpenAI:
    http_client = openai.DefaultAsyncHttpxClient(http1=not http2, http2=http2)
    url = f"{gateway.url}/openai/v1"
    return openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=retries, http_client=http_client)


async def ask_anthropic(client: anthropic.AsyncAnthropic, model: str = ANTHROPIC_MODEL) -> anthropic.types.Message:
    return await client.messages.create(model=model, max_tokens=50, messages=[{"role": "user", "content": "Good day"}])


async def ask_openai(
    client: openai.AsyncOpenAI, model: str = OPENAI_MODEL
) -> openai.types.chat.chat_completion.ChatCompletion:
    return await client.chat.completions.create(model=model, messages=[{"role": "user", "content": "Good day"}])


async def test_anthropic_message(gateway: Service, http2: bool) -> None:
    """A message that is not streamed arrives complete, with its usage."""
    async with open_anthropic(gateway, http2=http2) as client:
        message = await ask_anthropic(client)
    assert message.content[0].type == "text"
    assert message.content[0].text == ANSWER
    assert message.usage.output_tokens > 0
    (row,) = summarise(gateway.events_folder)
    assert (row.requests, row.completion_tokens) == (1, message.usage.output_tokens)
    assert (row.actor, row.feature, row.model) == ("acme", "chat_completions", f"anthropic/{ANTHROPIC_MODEL}")


async def test_anthropic_stream(gateway: Service, http2: bool) -> None:
    """A streamed message arrives text by text, ends with its usage, and the event log has the same figures."""
    async with (
        open_anthropic(gateway, http2=http2) as client,
        client.messages.stream(
            model=ANTHROPIC_MODEL, max_tokens=50, messages=[{"role": "user", "content": "Good day"}]
        ) as stream,
    ):
        texts = [text async for text in stream.text_stream]
        message = await stream.get_final_message()
    assert len(texts) > 1
    assert "".join(texts) == ANSWER
    (row,) = summarise(gateway.events_folder)
    assert (row.prompt_tokens, row.completion_tokens) == (message.usage.input_tokens, message.usage.output_tokens)


async def test_openai_completion(gateway: Service, http2: bool) -> None:
    """A completion that is not streamed arrives complete, with its usage."""
    async with open_openai(gateway, http2=http2) as client:
        completion = await ask_openai(client)
    assert completion.choices[0].message.content == ANSWER
    assert completion.usage is not None
    (row,) = summarise(gateway.events_folder)
    assert (row.prompt_tokens, row.completion_tokens) == (
        completion.usage.prompt_tokens,
        completion.usage.completion_tokens,
    )


async def test_openai_stream(gateway: Service, http2: bool) -> None:
    """A streamed completion arrives piece by piece, with the requested usage, which is recorded as well."""
    usage, texts = None, []
    async with open_openai(gateway, http2=http2) as client:
        stream = await client.chat.completions.create(
            model=OPENAI_MODEL,
            messages=[{"role": "user", "content": "Good day"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        async with stream:
            async for chunk in stream:
                texts += [choice.delta.content or "" for choice in chunk.choices]
                usage = chunk.usage or usage
    assert "".join(texts) == ANSWER
    assert usage is not None
    (row,) = summarise(gateway.events_folder)
    assert (row.prompt_tokens, row.completion_tokens) == (usage.prompt_tokens, usage.completion_tokens)


async def test_limits_reach_the_sdks(tmp_path: Path, upstream: ScriptedUpstream, http2: bool) -> None:
    """Over quota, each SDK raises its RateLimitError with the wait, and does not retry when the wait is hours."""
    async with open_gateway(tmp_path, upstream.url, limit=1) as gateway:
        async with open_anthropic(gateway, retries=2, http2=http2) as client:
            await ask_anthropic(client)
            with pytest.raises(anthropic.RateLimitError) as refused:
                await ask_anthropic(client)
        headers = refused.value.response.headers
        assert headers["x-ratelimit-remaining"] == "0"
        assert headers["retry-after"].endswith(" GMT")
        assert int(headers["retry-after-ms"]) > 0
        assert headers["x-should-retry"] == "false"
        assert "rate limit of 1 requests" in refused.value.message
        async with open_openai(gateway, retries=2, http2=http2) as openai_client:
            with pytest.raises(openai.RateLimitError):
                await ask_openai(openai_client)
    assert upstream.request_count == 1


async def test_errors_reach_anthropics_sdk(gateway: Service, upstream: ScriptedUpstream, http2: bool) -> None:
    """Each refusal, ours or the upstream's, is the exception that the SDK has for it."""
    async with open_anthropic(gateway, "wrong", http2=http2) as client:
        with pytest.raises(anthropic.AuthenticationError):
            await ask_anthropic(client)
    async with open_anthropic(gateway, DISABLED_TOKEN, http2=http2) as client:
        with pytest.raises(anthropic.PermissionDeniedError):
            await ask_anthropic(client)
    async with open_anthropic(gateway, http2=http2) as client:
        with pytest.raises(anthropic.BadRequestError, match="is not allowed, allowed"):
            await ask_anthropic(client, "no-such-model")
        with pytest.raises(anthropic.BadRequestError, match=r"messages\[0\]\.content"):
            await client.messages.create(model=ANTHROPIC_MODEL, max_tokens=1, messages=WRONG_MESSAGES)
        upstream.scripts[ANTHROPIC_MODEL] = Script(status=529, api_key=ANTHROPIC_KEY)
        with pytest.raises(anthropic.InternalServerError):
            await ask_anthropic(client)
        upstream.scripts[ANTHROPIC_MODEL] = Script(status=429, api_key=ANTHROPIC_KEY)
        with pytest.raises(anthropic.InternalServerError) as overloaded:
            await ask_anthropic(client)
    assert overloaded.value.status_code == 503
    assert overloaded.value.response.headers["retry-after"] == "2"


async def test_errors_reach_openais_sdk(gateway: Service, upstream: ScriptedUpstream, http2: bool) -> None:
    """Each refusal, ours or the upstream's, is the exception that the SDK has for it."""
    async with open_openai(gateway, "wrong", http2=http2) as client:
        with pytest.raises(openai.AuthenticationError):
            await ask_openai(client)
    async with open_openai(gateway, DISABLED_TOKEN, http2=http2) as client:
        with pytest.raises(openai.PermissionDeniedError):
            await ask_openai(client)
    async with open_openai(gateway, http2=http2) as client:
        with pytest.raises(openai.BadRequestError) as refused:
            await ask_openai(client, "no-such-model")
        assert (refused.value.param, refused.value.code) == ("model", "model_not_found")
        upstream.scripts[OPENAI_MODEL] = Script(status=429, api_key=OPENAI_KEY)
        with pytest.raises(openai.InternalServerError) as overloaded:
            await ask_openai(client)
    assert overloaded.value.status_code == 503
    assert overloaded.value.response.headers["retry-after"] == "30"


@pytest.mark.parametrize("breakage", [Breakage.RESET, Breakage.CLOSE])
async def test_a_broken_upstream_looks_broken(
    gateway: Service, upstream: ScriptedUpstream, breakage: Breakage, http2: bool
) -> None:
    """A stream that the upstream breaks off raises in both SDKs instead of ending normally."""
    broken = {"answer": "word " * 20, "tokens_per_second": 0.0, "break_after_events": 6, "breakage": breakage}
    upstream.scripts[ANTHROPIC_MODEL] = Script(api_key=ANTHROPIC_KEY, **broken)  # type: ignore[arg-type]
    upstream.scripts[OPENAI_MODEL] = Script(api_key=OPENAI_KEY, **broken)  # type: ignore[arg-type]

    async def read_anthropic() -> None:
        async with (
            open_anthropic(gateway, http2=http2) as client,
            client.messages.stream(
                model=ANTHROPIC_MODEL, max_tokens=50, messages=[{"role": "user", "content": "Good day"}]
            ) as stream,
        ):
            await stream.get_final_message()

    async def read_openai() -> None:
        async with (
            open_openai(gateway, http2=http2) as client,
            await client.chat.completions.create(
                model=OPENAI_MODEL, messages=[{"role": "user", "content": "Good day"}], stream=True
            ) as chunks,
        ):
            async for _ in chunks:
                pass

    # Here the SDKs do not wrap the errors of their HTTP libraries, one not even httpcore's.
    for read in (read_anthropic, read_openai):
        with pytest.raises(Exception, match=r"peer closed connection|Connection error|StreamReset"):
            await read()
