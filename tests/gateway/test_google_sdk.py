"""Google's SDK, ``google-genai``, with another base URL and key: synchronous and not, streams, counts, embeddings."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
import trio
from google import genai
from google.genai import errors, types

from cgw.service.lifecycle import Service
from cgw.testing.script import Breakage, Script
from cgw.testing.scripted_upstream import ScriptedUpstream, open_scripted_upstream
from tests.support.embeddings import LIMITS
from tests.support.gateway import DISABLED_TOKEN, TOKEN, open_gateway
from tests.support.limits import get_usage, open_http, read_recorded

KEY = "google-canary-of-the-tests"
MODEL = "gemini-2.5-flash"
EMBEDDER = "gemini-embedding-001"
ANSWER = "Good day to you."
BODY = {"contents": [{"role": "user", "parts": [{"text": "Good day"}]}]}
PATH = f"/google/v1beta/models/{MODEL}"

T = TypeVar("T")


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    """A scripted upstream that answers at once."""
    async with open_scripted_upstream(Script(answer=ANSWER, tokens_per_second=math.inf, api_key=KEY)) as upstream:
        yield upstream


@pytest.fixture
async def gateway(tmp_path: Path, upstream: ScriptedUpstream) -> AsyncIterator[Service]:
    """The complete gateway, in front of ``upstream``."""
    async with open_gateway(tmp_path, upstream.url, chat_lines=LIMITS, more=build_environ(upstream)) as service:
        yield service


def build_environ(upstream: ScriptedUpstream, **more: str) -> dict[str, str]:
    """Return the settings of Google's provider."""
    return {
        "CODY_GATEWAY_GOOGLE_API_URL": upstream.url,
        "CODY_GATEWAY_GOOGLE_ACCESS_TOKEN": KEY,
        "CODY_GATEWAY_REDIS_TIMEOUT": "20s",
        **more,
    }


def open_client(gateway: Service, key: str = TOKEN, version: str | None = None) -> genai.Client:
    """Return a client with the gateway's URL; without ``version`` the SDK chooses one."""
    options = types.HttpOptions(base_url=f"{gateway.url}/google", api_version=version, timeout=30_000)
    return genai.Client(api_key=key, http_options=options)


async def run(function: Callable[[genai.Client], T], gateway: Service, key: str = TOKEN, **more: Any) -> T:
    """Call ``function`` with a client, in a thread."""

    def call() -> T:
        with open_client(gateway, key, **more) as client:
            return function(client)

    with trio.fail_after(60):
        return await trio.to_thread.run_sync(call)


@pytest.mark.parametrize("version", [None, "v1beta"])
async def test_generate(gateway: Service, upstream: ScriptedUpstream, version: str | None) -> None:
    """A whole answer arrives with its usage, which is recorded; the body passed as the SDK sent it."""
    config = types.GenerateContentConfig(
        system_instruction="Be kind",
        max_output_tokens=50,
        thinking_config=types.ThinkingConfig(thinking_budget=7),
        tools=[types.Tool(function_declarations=[types.FunctionDeclaration(name="add", description="adds")])],
    )
    image = types.Part.from_bytes(data=b"\x89PNG", mime_type="image/png")
    answer = await run(
        lambda client: client.models.generate_content(model=MODEL, contents=["Good day", image], config=config),
        gateway,
        version=version,
    )
    assert answer.text == ANSWER
    assert answer.usage_metadata is not None
    (seen,) = upstream.requests
    assert seen.target == f"/{version or 'v1'}/models/{MODEL}:generateContent"
    assert seen.header("x-goog-api-key") == KEY
    sent = seen.json()
    assert sent["tools"][0]["functionDeclarations"][0]["name"] == "add"
    assert sent["contents"][0]["parts"][1]["inlineData"]["data"] == "iVBORw=="
    ((name, event),) = read_recorded(gateway.events_folder.parent)
    assert (name, event["model"], event["usage_quality"]) == ("CompletionsFinished", f"google/{MODEL}", "exact")
    assert event["completion_token_count"] == answer.usage_metadata.candidates_token_count
    assert event["prompt_character_count"] == len("Good day") + len("Be kind")
    assert await get_usage(gateway) == 1


async def test_stream(gateway: Service, upstream: ScriptedUpstream) -> None:
    """A stream arrives chunk by chunk, and its last figures are recorded."""
    chunks = await run(
        lambda client: list(client.models.generate_content_stream(model=MODEL, contents="Good day")), gateway
    )
    assert "".join(chunk.text or "" for chunk in chunks) == ANSWER
    assert len(chunks) > 1
    assert upstream.requests[0].target.endswith(":streamGenerateContent?alt=sse")
    ((_, event),) = read_recorded(gateway.events_folder.parent)
    assert (event["stream"], event["completion_token_count"], event["usage_quality"]) == (True, len(chunks), "exact")


async def test_the_asynchronous_client(gateway: Service) -> None:
    """The SDK's asynchronous client works, with a stream and without."""

    async def ask() -> tuple[str | None, list[str | None]]:
        async with open_client(gateway).aio as client:
            answer = await client.models.generate_content(model=MODEL, contents="Good day")
            stream = await client.models.generate_content_stream(model=MODEL, contents="Good day")
            return answer.text, [chunk.text async for chunk in stream]

    with trio.fail_after(60):
        text, texts = await trio.to_thread.run_sync(lambda: asyncio.run(ask()))
    assert text == ANSWER
    assert "".join(text or "" for text in texts) == ANSWER
    assert await get_usage(gateway) == 2


async def test_a_stream_without_sse_is_an_array(gateway: Service, upstream: ScriptedUpstream) -> None:
    """Without ``alt=sse`` a stream is a JSON array, passed on as it is; its usage is read from that."""
    async with open_http(gateway) as client:
        answer = await client.post(f"{PATH}:streamGenerateContent", json=BODY)
    chunks = answer.json()
    assert len(chunks) == 4
    assert upstream.requests[0].target == f"/v1beta/models/{MODEL}:streamGenerateContent"
    ((_, event),) = read_recorded(gateway.events_folder.parent)
    assert (event["stream"], event["completion_token_count"], event["usage_quality"]) == (True, 4, "exact")
    assert event["completion_character_count"] == len(ANSWER)


async def test_counting_tokens_is_free(gateway: Service) -> None:
    """Counting works, uses no quota and leaves no event."""
    count = await run(lambda client: client.models.count_tokens(model=MODEL, contents="one two three"), gateway)
    assert count.total_tokens == 3
    async with open_http(gateway) as client:
        inner = {"generateContentRequest": {"model": f"models/{MODEL}", **BODY}}
        answer = await client.post(f"{PATH}:countTokens", json=inner)
        assert answer.json() == {"totalTokens": 2}
        assert answer.headers["ratelimit"].startswith('"free";r=59')
    assert await get_usage(gateway) == 0
    assert read_recorded(gateway.events_folder.parent) == []


async def test_embeddings(gateway: Service, upstream: ScriptedUpstream) -> None:
    """Texts are embedded, one or several, and count on the limits of embeddings."""
    answer = await run(lambda client: client.models.embed_content(model=EMBEDDER, contents=["one two", "a"]), gateway)
    assert [embedding.values for embedding in answer.embeddings or ()] == [[2.0, 0.5], [1.0, 0.5]]
    async with open_http(gateway) as client:
        body = {"content": {"parts": [{"text": "one two three"}]}}
        single = await client.post(f"/google/v1beta/models/{EMBEDDER}:embedContent", json=body)
        assert single.json()["embedding"]["values"] == [3.0, 0.5]
        other = await client.post(f"/google/v1beta/models/{MODEL}:embedContent", json=body)
        assert other.status_code == 400
    events = read_recorded(gateway.events_folder.parent)
    assert [name for name, _ in events] == ["EmbeddingsFinished"] * 2
    assert [event["tokens_used"] for _, event in events] == [3, 3]
    assert events[0][1]["model"] == f"google/{EMBEDDER}"
    assert await get_usage(gateway, "embeddings") > 0
    assert await get_usage(gateway) == 0
    assert upstream.request_count == 2


async def test_errors_reach_the_sdk(gateway: Service, upstream: ScriptedUpstream) -> None:
    """Each refusal, ours or the upstream's, is the SDK's exception, with code, status and message."""

    async def fail(key: str = TOKEN, model: str = MODEL) -> errors.APIError:
        with pytest.raises(errors.APIError) as failure:
            await run(lambda client: client.models.generate_content(model=model, contents="Good day"), gateway, key)
        return failure.value

    unknown = await fail("wrong")
    assert (unknown.code, unknown.status) == (401, "UNAUTHENTICATED")
    assert "API key not valid" in (unknown.message or "")
    denied = await fail(DISABLED_TOKEN)
    assert (denied.code, denied.status) == (403, "PERMISSION_DENIED")
    wrong = await fail(model="gemini-0")
    assert (wrong.code, wrong.status) == (400, "INVALID_ARGUMENT")
    assert 'model "google/gemini-0" is not allowed' in (wrong.message or "")
    upstream.scripts["*"] = Script(status=503, api_key=KEY)
    busy = await fail()
    assert (busy.code, busy.status) == (503, "UNAVAILABLE")
    upstream.scripts["*"] = Script(status=400, api_key=KEY)
    assert (await fail()).message == "This error was scripted."


async def test_quota(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """A quota that is used up is RESOURCE_EXHAUSTED, with the wait."""
    async with open_gateway(tmp_path, upstream.url, limit=1, more=build_environ(upstream)) as gateway:
        await run(lambda client: client.models.generate_content(model=MODEL, contents="a"), gateway)
        with pytest.raises(errors.ClientError) as refused:
            await run(lambda client: client.models.generate_content(model=MODEL, contents="a"), gateway)
    assert (refused.value.code, refused.value.status) == (429, "RESOURCE_EXHAUSTED")
    assert refused.value.response.headers["retry-after"].endswith(" GMT")


# The SDK leaves the connection of a broken stream to the garbage collector, which warns.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("breakage", [Breakage.RESET, Breakage.CLOSE])
async def test_a_broken_stream_looks_broken(gateway: Service, upstream: ScriptedUpstream, breakage: Breakage) -> None:
    """A stream that breaks off raises instead of ending, and is charged as far as it came."""
    upstream.scripts["*"] = Script(
        answer="word " * 20, tokens_per_second=0.0, break_after_events=6, breakage=breakage, api_key=KEY
    )
    # The SDK does not wrap the error of its HTTP library.
    with pytest.raises(Exception, match="peer closed connection"):
        await run(lambda client: list(client.models.generate_content_stream(model=MODEL, contents="a")), gateway)
    ((_, event),) = read_recorded(gateway.events_folder.parent)
    assert event["usage_quality"] == "partial"


async def test_every_way_to_send_the_key(
    gateway: Service, upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    """The key comes in either header or in the query, from which it reaches no log, no upstream and no event."""
    caplog.set_level("DEBUG")
    async with httpx.AsyncClient(base_url=gateway.url) as client:
        url = f"{PATH}:generateContent"
        for headers in ({"x-goog-api-key": TOKEN}, {"authorization": f"Bearer {TOKEN}"}):
            assert (await client.post(url, headers=headers, json=BODY)).status_code == 200
        escaped = TOKEN.replace("-", "%2D")
        for query in (f"key={TOKEN}", f"alt=json&key={escaped}", f"key=&key={TOKEN}"):
            assert (await client.post(f"{url}?{query}", json=BODY)).status_code == 200
        stream = await client.post(f"{PATH}:streamGenerateContent?key={TOKEN}&alt=sse&fields=candidates", json=BODY)
        assert stream.headers["content-type"].startswith("text/event-stream")
        refused = await client.post(f"{url}?key=wrong-{TOKEN}", json=BODY)
        assert refused.status_code == 401
        missing = await client.get(f"/google/v1beta/nowhere?key={TOKEN}")
        assert missing.status_code == 404
        wrong = await client.get(f"{url}?key={TOKEN}")
        assert wrong.status_code == 405
        # Elsewhere a key in the query is none.
        assert (await client.post(f"/openai/v1/chat/completions?key={TOKEN}", json={})).status_code == 401
    for seen in upstream.requests:
        assert TOKEN not in seen.target
        assert all(TOKEN.encode() not in value for _, value in seen.headers)
    assert upstream.requests[-1].target.endswith(":streamGenerateContent?alt=sse")
    everything = [record.getMessage() + str(record.__dict__) for record in caplog.records if record.name[:3] == "cgw"]
    assert everything
    assert not [line for line in everything if TOKEN in line or escaped in line]
    recorded = b"".join(path.read_bytes() for path in gateway.events_folder.rglob("*") if path.is_file())
    assert TOKEN.encode() not in recorded
    for answer in (refused, missing, wrong):
        assert TOKEN not in answer.text


async def test_bodies_pass_byte_for_byte(gateway: Service, upstream: ScriptedUpstream) -> None:
    """What a client writes reaches the upstream as it is: blanks, escapes, unknown fields, the API's other names."""
    body = (
        b'{ "contents": [{"parts":[{"text":"\\u0047ood \\ud83d\\ude00"}]}],\n "system_instruction": {"parts": '
        b'{"text":"x"}}, "unknown": 1.0E+2, "generation_config":{"max_output_tokens":7} }'
    )
    async with open_http(gateway) as client:
        answer = await client.post(f"{PATH}:generateContent", content=body)
    assert answer.status_code == 200
    assert upstream.requests[0].body == body


async def test_a_field_that_is_there_twice_is_refused(gateway: Service, upstream: ScriptedUpstream) -> None:
    """Which of the two counts would be for the upstream to choose, and the gateway has checked one only."""
    contents = json.dumps(BODY["contents"]).encode()
    async with open_http(gateway) as client:
        answer = await client.post(f"{PATH}:generateContent", content=b'{"contents":%b,"contents":[]}' % contents)
        again = await client.post(f"{PATH}:generateContent", content=b'{"contents":[],"contents":%b}' % contents)
    assert (answer.status_code, again.status_code) == (400, 400)
    assert "it occurs twice" in again.json()["error"]["message"]
    assert upstream.request_count == 0


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (f"{PATH}:generateContent", {}, "contents"),
        (f"{PATH}:generateContent", {**BODY, "cachedContent": "cachedContents/a"}, "cachedContent"),
        (f"{PATH}:generateContent", {**BODY, "cached_content": "cachedContents/a"}, "cached_content"),
        (f"{PATH}:generateContent", {**BODY, "model": "models/gemini-2.5-pro"}, "model"),
        (f"{PATH}:generateContent", {"contents": [{"parts": [{"text": 1}]}]}, "contents[0].parts[0].text"),
        (f"{PATH}:streamGenerateContent?alt=media", BODY, "alt"),
        (
            f"{PATH}:countTokens",
            {"generateContentRequest": {**BODY, "model": "models/gemini-2.5-pro"}},
            "generateContentRequest.model",
        ),
        (
            f"/google/v1/models/{EMBEDDER}:batchEmbedContents",
            {"requests": [{"model": "models/other", "content": {"parts": []}}]},
            "requests[0].model",
        ),
        (f"/google/v1/models/{EMBEDDER}:batchEmbedContents", {"requests": []}, "requests"),
        (f"/google/v1beta/models/{MODEL}%2F..:generateContent", BODY, "model"),
        ("/google/v1beta/models/:generateContent", BODY, "model"),
    ],
)
async def test_refused_bodies(
    gateway: Service, upstream: ScriptedUpstream, path: str, body: dict[str, Any], param: str
) -> None:
    """What must not pass is refused with the path of the field, in Google's shape, before the upstream is asked."""
    async with open_http(gateway) as client:
        answer = await client.post(path, content=json.dumps(body))
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], error["status"]) == (400, "INVALID_ARGUMENT")
    assert error["details"][0]["fieldViolations"][0]["field"] == param
    assert upstream.request_count == 0


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/google/v1alpha/models/gemini-2.5-flash:generateContent", 404, "NOT_FOUND"),
        ("/google/v1beta/tunedModels/a:generateContent", 404, "NOT_FOUND"),
        ("/google", 404, "NOT_FOUND"),
        # Below the list of models, which is for reading.
        ("/google/v1beta/models/gemini-2.5-flash:predict", 404, "NOT_FOUND"),
        ("/google/v1beta/models/gemini-2.5-flash", 405, "UNIMPLEMENTED"),
        ("/google/v1beta/models/a/gemini-2.5-flash:generateContent", 404, "NOT_FOUND"),
    ],
)
async def test_other_paths_have_googles_shape(gateway: Service, path: str, status: int, code: str) -> None:
    """Anything else below the prefix is 404 or 405, in Google's shape."""
    async with open_http(gateway) as client:
        missing = await client.post(path, json=BODY)
        wrong = await client.get(f"{PATH}:generateContent")
    assert (missing.status_code, missing.json()["error"]["status"]) == (status, code)
    assert (wrong.status_code, wrong.json()["error"]["code"], wrong.headers["allow"]) == (405, 405, "POST")
