"""The OpenAI SDK on every route of OpenAI's API: answers, usage figures, and errors of its own types."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
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


@pytest.mark.parametrize("http2", [False, True], ids=["HTTP/1.1", "HTTP/2"])
async def test_a_response_streams(gateway: Service, http2: bool) -> None:
    """A streamed response arrives event by event up to the last one, and its figures are in the usage event."""
    async with (
        open_openai(gateway, http2=http2) as client,
        client.responses.stream(model=OPENAI_MODEL, input="Good day") as stream,
    ):
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


EMBEDDINGS = """
[actor.limits.embeddings]
limit = 1000
interval = "24h"
concurrent_requests = 1000
"""


@pytest.fixture
async def all_routes(tmp_path: Path, upstream: ScriptedUpstream) -> AsyncIterator[Service]:
    """A gateway whose actor may use every feature; the upstream knows every model."""
    upstream.scripts["*"] = Script(answer=ANSWER, tokens_per_second=0, api_key=OPENAI_KEY)
    async with open_gateway(tmp_path, upstream.url, chat_lines=EMBEDDINGS) as gateway:
        yield gateway


@pytest.mark.parametrize("value", ["Good day", ["Good", "day to you"], [1, 2, 3]], ids=["text", "texts", "tokens"])
async def test_embeddings(all_routes: Service, upstream: ScriptedUpstream, value: Any) -> None:
    """Vectors arrive as the SDK asks for them (in base64, which it decodes), and their tokens are an event."""
    async with open_openai(all_routes) as client:
        answer = await client.embeddings.create(model="openai/text-embedding-3-small", input=value)
        plain = await client.embeddings.create(
            model="text-embedding-3-small", input=value, encoding_format="float", dimensions=4
        )
    assert len(answer.data[0].embedding) == 8
    assert len(plain.data[0].embedding) == 4
    first, second = list_events(all_routes)
    assert first["tokens_used"] == second["tokens_used"] == answer.usage.total_tokens
    assert (first["model"], first["provider"]) == ("openai/text-embedding-3-small", "openai")
    assert (first["usage_quality"], first["batch_size"]) == ("exact", 2 if value == ["Good", "day to you"] else 1)
    assert upstream.requests[-1].json()["user"] == "acme:"


async def test_embeddings_need_their_own_limit(gateway: Service, upstream: ScriptedUpstream) -> None:
    """An actor without a limit for embeddings may not use them; a model of chat is none of embeddings."""
    async with open_openai(gateway) as client:
        with pytest.raises(openai.PermissionDeniedError, match="embeddings"):
            await client.embeddings.create(model="text-embedding-3-small", input="x")
    assert upstream.request_count == 0


async def test_embeddings_by_the_synchronous_client(all_routes: Service) -> None:
    """A model that is not served is refused with the setting that it is missing in."""
    with pytest.raises(openai.BadRequestError, match="CODY_GATEWAY_ALLOWED_EMBEDDINGS_MODELS"):
        await call_sync(all_routes, lambda client: client.embeddings.create(model=OPENAI_MODEL, input="x"))


async def test_older_completions(all_routes: Service) -> None:
    """The older API answers whole and streamed; without a request for the usage, a stream's is estimated."""
    model = "gpt-3.5-turbo-instruct"

    def read(client: openai.OpenAI) -> str:
        return "".join(
            choice.text
            for chunk in client.completions.create(model=model, prompt="Good day", stream=True)
            for choice in chunk.choices
        )

    async with open_openai(all_routes) as client:
        whole = await client.completions.create(model=model, prompt=["Good day", "and night"])
    assert whole.choices[0].text == ANSWER
    assert await call_sync(all_routes, read) == ANSWER
    await wait_until(lambda: len(list_events(all_routes)) == 2)
    first, second = list_events(all_routes)
    assert (first["usage_quality"], first["prompt_token_count"]) == ("exact", 4)
    assert (second["usage_quality"], second["completion_character_count"]) == ("estimated", len(ANSWER))


async def test_free_routes_leave_the_quota_alone(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """Moderations, counted tokens and lists of models cost nothing: they leave neither event nor usage."""
    upstream.scripts["*"] = Script(api_key=OPENAI_KEY)
    async with open_gateway(tmp_path, upstream.url, limit=1) as gateway, open_openai(gateway) as client:
        for _ in range(3):
            assert not (await client.moderations.create(input="Good day")).results[0].flagged
            assert (await client.responses.input_tokens.count(model=OPENAI_MODEL, input="a b c")).input_tokens == 3
            assert [model.id async for model in client.models.list()]
        await client.responses.create(model=OPENAI_MODEL, input="Good day")
        assert len(list_events(gateway)) == 1


async def test_stored_responses(gateway: Service, upstream: ScriptedUpstream) -> None:
    """What an actor has stored can be read, continued, referred to and deleted."""
    async with open_openai(gateway) as client:
        first = await client.responses.create(model=OPENAI_MODEL, input="Good day")
        assert (await client.responses.retrieve(first.id)).output_text == ANSWER
        items = await client.responses.input_items.list(first.id)
        assert items.data[0].type == "message"
        reference: Any = {"type": "item_reference", "id": first.output[0].id}
        second = await client.responses.create(
            model=OPENAI_MODEL, input=[reference, {"role": "user", "content": "More"}], previous_response_id=first.id
        )
        assert second.previous_response_id == first.id
        counted = await client.responses.input_tokens.count(
            model=OPENAI_MODEL, input="a", previous_response_id=second.id
        )
        assert counted.input_tokens == 1
        with pytest.raises(openai.BadRequestError, match="Cannot cancel a synchronous response"):
            await client.responses.cancel(first.id)
        await client.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError, match=first.id):
            await client.responses.retrieve(first.id)


async def test_a_streamed_response_is_the_actors_at_once(gateway: Service) -> None:
    """The request that follows on the last event of a stream may refer to it, as agents do."""
    previous: str | None = None
    async with open_openai(gateway) as client:
        for _ in range(20):
            async with client.responses.stream(
                model=OPENAI_MODEL, input="Good day", previous_response_id=previous or openai.omit
            ) as stream:
                previous = (await stream.get_final_response()).id


async def test_stored_responses_of_others_are_not_there(
    tmp_path: Path, gateway: Service, upstream: ScriptedUpstream
) -> None:
    """Another actor's response is neither read, continued, referred to, cancelled nor deleted, by whatever route."""
    (tmp_path / "two").mkdir()
    async with open_openai(gateway) as client:
        theirs = await client.responses.create(model=OPENAI_MODEL, input="A secret")
    # Another gateway's actor on the same account: for this one, the response might as well be a guess.
    async with open_gateway(tmp_path / "two", upstream.url) as other, open_openai(other) as client:
        count, item = upstream.request_count, theirs.output[0].id
        reference: Any = [{"type": "item_reference", "id": item}]
        thought: Any = [{"type": "reasoning", "id": item, "summary": []}]
        for call, kind in (
            (client.responses.retrieve(theirs.id), openai.NotFoundError),
            (client.responses.delete(theirs.id), openai.NotFoundError),
            (client.responses.cancel(theirs.id), openai.NotFoundError),
            (client.responses.input_items.list(theirs.id), openai.NotFoundError),
            (client.responses.create(model=OPENAI_MODEL, input=reference), openai.NotFoundError),
            (client.responses.create(model=OPENAI_MODEL, input=thought), openai.NotFoundError),
            (
                client.responses.create(model=OPENAI_MODEL, input="x", previous_response_id=theirs.id),
                openai.BadRequestError,
            ),
            (
                client.responses.input_tokens.count(model=OPENAI_MODEL, input="x", previous_response_id=theirs.id),
                openai.BadRequestError,
            ),
            (client.responses.create(model=OPENAI_MODEL, input="x", conversation="conv_1"), openai.BadRequestError),
            (client.responses.create(model=OPENAI_MODEL, input="x", background=True), openai.BadRequestError),
        ):
            with pytest.raises(kind) as refused:
                await call
            assert refused.value.type == "invalid_request_error"
        assert upstream.request_count == count


async def test_a_response_that_is_not_stored_is_nobodys(gateway: Service, upstream: ScriptedUpstream) -> None:
    """With ``store`` false nothing is kept, and its id is refused like any other that is unknown."""
    async with open_openai(gateway) as client:
        made = await client.responses.create(model=OPENAI_MODEL, input="Good day", store=False)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(made.id)
    assert upstream.request_count == 1


async def test_routes_below_responses_have_methods(gateway: Service) -> None:
    """A wrong method is 405 with those that there are, in the API's shape; anything else below is 404."""
    headers = {"authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(base_url=f"{gateway.url}/openai/v1", headers=headers) as client:
        for method, path, status, allow in (
            ("PUT", "/responses/resp_1", 405, "GET, DELETE"),
            ("GET", "/responses/resp_1/cancel", 405, "POST"),
            ("GET", "/responses/input_tokens", 405, "POST"),
            ("POST", "/models", 405, "GET, HEAD"),
            ("GET", "/responses/resp_1/nothing", 404, None),
            ("GET", "/responses/resp_1%2F..", 404, None),
            ("GET", "/responses/resp_1?stream=true", 400, None),
        ):
            answer = await client.request(method, path)
            assert (path, answer.status_code) == (path, status)
            assert answer.json()["error"]["type"] == "invalid_request_error"
            assert answer.headers.get("allow") == allow


async def test_no_pass_route_leads_to_stored_responses(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """A pattern that covers stored responses does not open them: they stay their actors' own."""
    more = {"CODY_GATEWAY_OPENAI_PASS_ROUTES": "/v1/responses/*, /v1/responses/*/input_items, /v1/*/*"}
    async with (
        open_gateway(tmp_path, upstream.url, more=more) as gateway,
        httpx.AsyncClient(base_url=gateway.url, headers={"authorization": f"Bearer {TOKEN}"}) as client,
    ):
        for path in ("resp_1", "resp_1/input_items", "resp%5F1", "%72esp_1"):
            assert (await client.get(f"/openai/v1/responses/{path}")).status_code == 404
        assert (await client.get("/openai/v1/%72esponses/resp_1")).status_code == 404
    assert upstream.request_count == 0
