"""The OpenAI SDK on every route of OpenAI's API: answers, usage figures, and errors of its own types."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
import trio

from cgw.events.reading import read_events
from cgw.service.lifecycle import Service
from cgw.testing.script import Breakage, Script, ScriptedCall
from cgw.testing.scripted_upstream import ScriptedUpstream
from tests.gateway.test_sdks import ANSWER, open_openai
from tests.support.gateway import OPENAI_KEY, OPENAI_MODEL, TOKEN, open_gateway
from tests.support.waiting import wait_until

pytestmark = pytest.mark.filterwarnings(
    "ignore:Async generator:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)

TOOLS: Any = [{"type": "function", "name": "look", "parameters": {"type": "object", "properties": {}}, "strict": False}]


def list_events(gateway: Service) -> list[dict[str, Any]]:
    return [dict(event.metadata) for event in read_events(gateway.events_folder)]


async def call_sync(gateway: Service, call: Callable[[openai.OpenAI], Any], key: str = TOKEN) -> Any:
    """Return what ``call`` returns in a thread with the SDK's synchronous client."""

    def run() -> Any:
        with openai.OpenAI(base_url=f"{gateway.url}/openai/v1", api_key=key, max_retries=0) as client:
            return call(client)

    return await trio.to_thread.run_sync(run)


async def test_a_response_arrives_whole(gateway: Service, upstream: ScriptedUpstream) -> None:
    """A response that is not streamed arrives with its text and its usage, which the event has as well."""
    async with open_openai(gateway) as client:
        response = await client.responses.create(
            model=f"openai/{OPENAI_MODEL}", input="Good day", instructions="Be kind"
        )
    assert response.output_text == ANSWER
    assert response.usage is not None
    (event,) = list_events(gateway)
    assert event["prompt_token_count"] == response.usage.input_tokens == 4
    assert event["completion_token_count"] == response.usage.output_tokens
    assert event["completion_character_count"] == len(ANSWER)
    assert event["prompt_character_count"] == len("Good day") + len("Be kind")
    assert (event["usage_quality"], event["model"]) == ("exact", f"openai/{OPENAI_MODEL}")
    assert upstream.requests[-1].json()["user"] == "acme:"


async def test_a_response_streams(gateway: Service) -> None:
    """A streamed response arrives event by event up to the last one, and its figures are in the usage event."""
    async with open_openai(gateway) as client, client.responses.stream(model=OPENAI_MODEL, input="Good day") as stream:
        deltas = [event.delta async for event in stream if event.type == "response.output_text.delta"]
        final = await stream.get_final_response()
    assert len(deltas) > 1
    assert "".join(deltas) == final.output_text == ANSWER
    assert final.usage is not None
    (event,) = list_events(gateway)
    assert event["completion_token_count"] == final.usage.output_tokens
    assert event["completion_character_count"] == len(ANSWER)
    assert event["usage_quality"] == "exact"


async def test_the_synchronous_client_streams_as_well(gateway: Service) -> None:
    """The synchronous client, which closes its connection at the last event, has the whole response."""

    def read(client: openai.OpenAI) -> list[str]:
        return [event.type for event in client.responses.create(model=OPENAI_MODEL, input="Good day", stream=True)]

    kinds = await call_sync(gateway, read)
    assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
    await wait_until(lambda: len(list_events(gateway)) == 1)
    assert list_events(gateway)[0]["usage_quality"] == "exact"


async def test_an_agents_loop(gateway: Service, upstream: ScriptedUpstream) -> None:
    """Calls of tools in parallel, their results, and the answer, each turn on what the caller's own last one stored."""
    calls = ((ScriptedCall("look", '{"at":"é"}'), ScriptedCall("look", "{}")), (ScriptedCall("look", '{"n":1}'),))
    upstream.scripts[OPENAI_MODEL] = Script(answer=ANSWER, tokens_per_second=0, api_key=OPENAI_KEY, calls=calls)
    seen: list[tuple[str, ...]] = []
    reported, text = 0, ""
    async with open_openai(gateway) as client:
        history: list[Any] = [{"role": "user", "content": "Look twice"}]
        while len(seen) < 3:
            async with client.responses.stream(model=OPENAI_MODEL, input=history, tools=TOOLS) as stream:
                response = await stream.get_final_response()
            assert response.usage is not None
            reported, text = reported + response.usage.output_tokens, response.output_text
            made = [item for item in response.output if item.type == "function_call"]
            seen.append(tuple(item.arguments for item in made))
            history += [item.model_dump(exclude={"status", "parsed_arguments"}) for item in response.output]
            history += [{"type": "function_call_output", "call_id": item.call_id, "output": "ok"} for item in made]
    assert seen == [('{"at":"é"}', "{}"), ('{"n":1}',), ()]
    assert text == ANSWER
    assert sum(event["completion_token_count"] for event in list_events(gateway)) == reported


async def test_a_cut_response_looks_cut(gateway: Service, upstream: ScriptedUpstream) -> None:
    """A stream that the upstream breaks off raises in the SDK, and is recorded as partial."""
    upstream.scripts[OPENAI_MODEL] = Script(
        answer="word " * 20, tokens_per_second=0, api_key=OPENAI_KEY, break_after_events=8, breakage=Breakage.RESET
    )
    async with open_openai(gateway) as client:
        with pytest.raises(Exception, match=r"peer closed connection|Connection error"):
            async with client.responses.stream(model=OPENAI_MODEL, input="Good day") as stream:
                await stream.get_final_response()
    (event,) = list_events(gateway)
    assert event["usage_quality"] == "partial"
    assert event["completion_character_count"] > 0


async def test_an_abandoned_response_stops_the_upstream(gateway: Service, upstream: ScriptedUpstream) -> None:
    """A client that leaves in the middle of a response stops the upstream, and what came is recorded."""
    upstream.scripts[OPENAI_MODEL] = Script(answer="word " * 500, tokens_per_second=50, api_key=OPENAI_KEY)
    async with open_openai(gateway) as client:
        stream = await client.responses.create(model=OPENAI_MODEL, input="Good day", stream=True)
        async for event in stream:
            if event.type == "response.output_text.delta":
                break
        await stream.close()
    seen = await upstream.wait_request()
    await seen.wait_over()
    assert seen.peer_closed_at is not None
    await wait_until(lambda: len(list_events(gateway)) == 1)


async def test_an_incomplete_response_is_complete_for_http(gateway: Service) -> None:
    """``response.incomplete`` ends a stream as well: the figures are exact."""
    async with open_openai(gateway) as client:
        stream = await client.responses.create(model=OPENAI_MODEL, input="Good day", max_output_tokens=2, stream=True)
        kinds = [event.type async for event in stream]
    assert kinds[-1] == "response.incomplete"
    (event,) = list_events(gateway)
    assert (event["completion_token_count"], event["usage_quality"]) == (2, "exact")


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "streamed"])
async def test_refusals_are_the_sdks_own_errors(gateway: Service, upstream: ScriptedUpstream, is_stream: bool) -> None:
    """A wrong key, a wrong model, and an upstream's 503 are the exceptions that the SDK has for them."""

    async def ask(client: openai.AsyncOpenAI, model: str = OPENAI_MODEL) -> None:
        made = await client.responses.create(model=model, input="Good day", stream=is_stream)
        assert made is not None

    async with open_openai(gateway, "wrong", retries=2) as client:
        with pytest.raises(openai.AuthenticationError, match="Incorrect API key provided"):
            await ask(client)
    async with open_openai(gateway) as client:
        with pytest.raises(openai.BadRequestError) as refused:
            await ask(client, "no-such-model")
        assert (refused.value.param, refused.value.code) == ("model", "model_not_found")
        upstream.scripts[OPENAI_MODEL] = Script(status=503, api_key=OPENAI_KEY)
        with pytest.raises(openai.InternalServerError) as overloaded:
            await ask(client)
    assert overloaded.value.status_code == 503
    assert overloaded.value.response.headers["retry-after"] == "30"


async def test_a_used_up_quota_ends_the_loop(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """Over quota the SDK raises its RateLimitError at once, as the wait is hours."""
    async with open_gateway(tmp_path, upstream.url, limit=1) as gateway, open_openai(gateway, retries=2) as client:
        await client.responses.create(model=OPENAI_MODEL, input="Good day")
        with pytest.raises(openai.RateLimitError) as refused:
            await client.responses.create(model=OPENAI_MODEL, input="Good day")
        assert refused.value.response.headers["x-should-retry"] == "false"
    assert upstream.request_count == 1
