"""``/v1/embeddings`` and ``/v1/embeddings/models``, as the reference's §8 has them, with its defects mended."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing
from h2.events import DataReceived, ResponseReceived, StreamEnded

from cgw.errors import UpstreamError
from cgw.gateway.embeddings import map_in_parallel
from tests.support.embeddings import (
    ADA,
    FIREWORKS,
    FIREWORKS_KEY,
    LIMITS,
    METADATA,
    MPNET,
    PATH,
    SOURCEGRAPH_TOKEN,
    Asked,
    EmbeddingsBench,
    build_kserve_answer,
    build_openai_answer,
    build_row,
    encode_response,
    open_embeddings,
)
from tests.support.gateway import OPENAI_KEY
from tests.support.http2 import Http2Client
from tests.support.raw_client import ask, open_client
from tests.support.waiting import wait_until


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[EmbeddingsBench]:
    async with open_embeddings(tmp_path) as bench:
        yield bench


async def test_openai_embeddings(bench: EmbeddingsBench) -> None:
    """§8.4: the request that goes out, the response, its headers, sorted by index, with every digit."""
    answer = await bench.embed(ADA, ["a", "bc"], "x-sourcegraph-actor-uid: 7\r\n")
    (asked,) = bench.upstream.asked
    assert asked.target == "/v1/embeddings"
    assert asked.body == {"model": "text-embedding-ada-002", "input": ["a", "bc"], "user": "acme:7"}
    assert asked.headers["authorization"] == f"Bearer {OPENAI_KEY}"
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json; charset=utf-8")
    assert answer.headers["x-token-usage"] == "9"
    assert answer.headers["x-cody-resolved-model"] == ADA
    assert answer.headers["x-ratelimit-limit"] == "100000"
    body = answer.json()
    assert list(body) == ["embeddings", "model", "dimensions"]
    assert (body["model"], body["dimensions"]) == ("text-embedding-ada-002", 1536)
    assert [item["index"] for item in body["embeddings"]] == [0, 1]
    assert build_row(1, 1536).encode() in answer.body


async def test_sourcegraph_embeddings(bench: EmbeddingsBench) -> None:
    """§8.5: KServe's request and answer; the flat list is split into rows of 768, the model is the one asked for."""
    answer = await bench.embed(MPNET, ["a", "", "c"], isQuery=True)
    (asked,) = bench.upstream.asked
    assert asked.target == "/infer"
    assert asked.headers["sourcegraph-smega-inference-auth"] == SOURCEGRAPH_TOKEN
    assert len(asked.body.pop("id")) == 36
    assert asked.body == {"inputs": [{"name": "TEXT", "shape": [3], "datatype": "BYTES", "data": ["a", "", "c"]}]}
    body = answer.json()
    assert (answer.status, body["model"], body["dimensions"]) == (200, MPNET, 768)
    assert [(item["index"], len(item["data"])) for item in body["embeddings"]] == [(0, 768), (1, 768), (2, 768)]
    assert body["embeddings"][2]["data"][5] == 0.20005


async def test_tokens_are_charged(bench: EmbeddingsBench) -> None:
    """§8.3: the quota is charged what ``x-token-usage`` tells; without the upstream's figure that is an estimate."""
    assert (await bench.embed(ADA, ["a" * 400])).headers["x-token-usage"] == "9"
    assert await bench.read_usage() == 9
    answer = await bench.embed(MPNET, ["a" * 400, "b" * 400])
    assert answer.headers["x-token-usage"] == "200"
    assert await bench.read_usage() == 209


async def test_events(bench: EmbeddingsBench) -> None:
    """§13.2: an ``EmbeddingsFinished`` event for every request that passes the model look-up, success or not."""
    await bench.embed(ADA, ["a", "bc"])
    bench.upstream.answers.append(encode_response(500, b"{}"))
    await bench.embed(ADA, ["a"])
    await bench.embed("openai/none", ["a"])
    (first, done), (second, failed) = bench.read_events()
    assert {first, second} == {"EmbeddingsFinished"}
    assert isinstance(done.pop("upstream_request_duration_ms"), int)
    exchange = {
        key: done[key] for key in ("trace_id", "started_at", "ended_at", "time_to_first_byte_ms", "overhead_ms")
    }
    assert exchange["started_at"] < exchange["ended_at"]
    assert done == {
        "batch_size": 2,
        "feature": "embeddings",
        "model": ADA,
        "provider": "openai",
        "input_character_count": 3,
        "resolved_status_code": 200,
        "upstream_status_code": 200,
        "tokens_used": 9,
        "usage_quality": "exact",
        "actor_name": "Acme Inc.",
        "outcome": "completed",
        "request_bytes": 64,
        "response_bytes": done["response_bytes"],
        **exchange,
    }
    assert (failed["resolved_status_code"], failed["upstream_status_code"]) == (502, 500)
    assert "tokens_used" not in failed
    assert failed["outcome"] == "refused"


FAILURES = {
    "429": (encode_response(429, b"{}"), 503, "we're facing too much load at the moment, please retry later"),
    "503": (encode_response(503, b"{}"), 503, "we're facing too much load at the moment, please retry later"),
    "400": (encode_response(400, b"too long"), 400, "bad request: too long"),
    "401": (encode_response(401, OPENAI_KEY.encode()), 502, "the upstream provider openai failed with status 401"),
    "500": (encode_response(500, b"x" * 99_999), 502, "the upstream provider openai failed with status 500"),
    "redirect": (encode_response(302, b""), 502, "the upstream provider openai failed with status 302"),
    "no JSON": (encode_response(200, b"<html>"), 502, "failed to make request to upstream provider openai"),
    "no data": (encode_response(200, b"{}"), 502, "failed to make request to upstream provider openai"),
    "too few": (encode_response(200, b'{"data":[],"model":"m"}'), 502, "failed to make request to upstream provider"),
    "closed": (b"", 502, "failed to make request to upstream provider openai"),
    "cut": (
        encode_response(200, b"{}", "connection: close\r\n")[:-1],
        502,
        "failed to make request to upstream provider openai",
    ),
    "endless": (encode_response(200, b" " * 9_999_999), 502, "failed to make request to upstream provider openai"),
}


async def test_failures_of_openai(bench: EmbeddingsBench) -> None:
    """§8.4: one attempt; each failure has a status, the route's error shape and ``retry-after``, and is not charged."""
    for name, (answer, status, text) in FAILURES.items():
        bench.upstream.asked.clear()
        bench.upstream.answers = [answer, answer]  # the second for a kept connection that is closed before any answer
        got = await bench.embed(ADA, ["a"])
        assert (name, got.status) == (name, status)
        assert (name, got.json()["error"].startswith(text), OPENAI_KEY in str(got.body)) == (name, True, False)
        assert (name, got.headers.get("retry-after")) == (name, "60" if status >= 500 else None)
        assert (name, len(bench.upstream.asked)) == (name, 2 if name == "closed" else 1)
        bench.upstream.answers.clear()
    assert await bench.read_usage() == 0
    assert bench.gateway.gateway.pool.statistics().busy == 0


async def test_sourcegraph_is_asked_three_times(bench: EmbeddingsBench) -> None:
    """§8.5: any failure is retried twice, each time with the whole request; then 5xx with ``retry-after``, no 200."""
    bench.upstream.answers = [encode_response(404, b"gone"), b""]
    answer = await bench.embed(MPNET, ["a"])
    assert (answer.status, len(bench.upstream.asked)) == (200, 3)
    assert len({json.dumps(asked.body["inputs"]) for asked in bench.upstream.asked}) == 1
    used = await bench.read_usage()
    for failure, text in {
        encode_response(404, b"gone"): "the upstream provider sourcegraph failed with status 404",
        encode_response(200, b'{"outputs":[]}'): "failed to make request to upstream provider sourcegraph",
        encode_response(200, b'{"outputs":[{"data":[1,2,3]}]}'): "failed to make request to upstream provider",
        encode_response(200, b'{"outputs":[{"data":"text"}]}'): "failed to make request to upstream provider",
        encode_response(200, build_kserve_answer({"inputs": [{"data": ["a", "b"]}]})): "failed to make request",
    }.items():
        bench.upstream.asked.clear()
        bench.upstream.answers = [failure] * 3
        answer = await bench.embed(MPNET, ["a"])
        assert (answer.status, answer.headers["retry-after"], len(bench.upstream.asked)) == (502, "60", 3)
        assert answer.json()["error"].startswith(text)
    assert await bench.read_usage() == used


async def test_metadata_model(tmp_path: Path) -> None:
    """§8.6: each text is described, at most 15 at once, and the descriptions are embedded; all tokens are charged."""
    async with open_embeddings(tmp_path, FIREWORKS) as bench:
        active = most = 0

        async def count(asked: Asked) -> None:
            nonlocal active, most
            active += 1
            most = max(most, active)
            await trio.testing.wait_all_tasks_blocked(0.01)
            active -= 1

        bench.upstream.before = count
        texts = [f"code {index} {{}}" for index in range(40)]
        answer = await bench.embed(METADATA, texts)
        assert (answer.status, answer.json()["model"], len(answer.json()["embeddings"])) == (200, METADATA, 40)
        *described, embedded = bench.upstream.asked
        assert (most, len(described)) == (15, 40)
        assert {asked.target for asked in described} == {"/inference/v1/chat/completions"}
        assert described[0].headers["authorization"] == f"Bearer {FIREWORKS_KEY}"
        chosen = {name: described[0].body[name] for name in ("model", "max_tokens", "temperature", "top_p")}
        model = "accounts/fireworks/models/llama-v3-8b-instruct"
        assert chosen == {"model": model, "max_tokens": 2000, "temperature": 0, "top_p": 1}
        assert embedded.body["inputs"][0]["data"] == [f"about {text}" for text in texts]
        tokens = int(answer.headers["x-token-usage"])
        assert tokens == 40 * 7 + -(-sum(len(f"about {text}") for text in texts) // 4)
        assert await bench.read_usage() == tokens


async def test_metadata_model_fails_visibly(tmp_path: Path) -> None:
    """§16, 11: a description that fails is 5xx with an event, never an empty 200; a client that leaves stops all."""
    async with open_embeddings(tmp_path, FIREWORKS) as bench:
        for failure in (encode_response(500, b"{}"), encode_response(200, b'{"choices":[]}')):
            bench.upstream.answers = [failure] * 15
            answer = await bench.embed(METADATA, ["a", "b"])
            assert (answer.status, answer.headers["retry-after"]) == (502, "60")
            bench.upstream.answers.clear()
        left = trio.Event()

        async def hold(asked: Asked) -> None:
            left.set()
            await trio.sleep_forever()

        bench.upstream.before = hold
        async with open_client(bench.gateway.port) as client:
            await client.send(bench.build(METADATA, ["a", "b", "c"]))
            await left.wait()
        await wait_until(lambda: len(bench.read_events()) == 3)
        statuses = [event["resolved_status_code"] for _, event in bench.read_events()]
        assert (statuses, await bench.read_usage()) == ([502, 502, 499], 0)
        await wait_until(lambda: bench.gateway.gateway.pool.statistics().busy == 0)


async def test_timeouts_are_504(tmp_path: Path) -> None:
    """§8.3: a deadline is 504 with the provider's name, and is not retried."""
    async with open_embeddings(tmp_path, {"CODY_GATEWAY_UPSTREAM_HEAD_TIMEOUT": "60ms"}) as bench:

        async def hold(asked: Asked) -> None:
            await trio.sleep_forever()

        bench.upstream.before = hold
        answer = await bench.embed(MPNET, ["a"])
        text = "request to upstream provider sourcegraph timed out"
        assert (answer.status, answer.json()["error"], answer.headers["retry-after"]) == (504, text, "60")
        assert len(bench.upstream.asked) == 1
        answer = await bench.embed(ADA, ["a"], "x-timeout-ms: 30\r\n")
        assert (answer.status, answer.headers["retry-after"]) == (504, "60")
        assert [event["resolved_status_code"] for _, event in bench.read_events()] == [504, 504]


async def test_a_client_that_leaves_stops_the_upstream(bench: EmbeddingsBench) -> None:
    """The upstream's connection is closed at once, an event is left, and nothing is charged."""
    left = trio.Event()

    async def hold(asked: Asked) -> None:
        left.set()
        await trio.sleep_forever()

    bench.upstream.before = hold
    async with open_client(bench.gateway.port) as client:
        await client.send(bench.build(MPNET, ["a"]))
        await left.wait()
    await wait_until(lambda: len(bench.read_events()) == 1)
    assert bench.read_events()[0][1]["resolved_status_code"] == 499
    assert await bench.read_usage() == 0


WRONG_BODIES = {
    b"": ("failed to parse request body", None),
    b"[]": ("failed to parse request body", None),
    b'{"input":["a"]}': ("failed to parse request body: model", "model"),
    b'{"model":"openai/text-embedding-ada-002"}': ("failed to parse request body: input", "input"),
    b'{"model":"openai/text-embedding-ada-002","input":"a"}': ("failed to parse request body: input", "input"),
    b'{"model":"openai/text-embedding-ada-002","input":[1]}': ("failed to parse request body: input[0]", "input[0]"),
    b'{"model":"openai/text-embedding-ada-002","input":[]}': ("input: must have at least one string", "input"),
    b'{"model":"openai/text-embedding-ada-002","input":["a",""]}': (
        "cannot generate embeddings for an empty string",
        "input[1]",
    ),
    b'{"model":"openai/text-embedding-ada-002","input":[%b]}' % b",".join([b'"a"'] * 2049): ("input: must have at", ""),
    b'{"model":"openai/other","input":["a"]}': ('model "openai/other" is not allowed', "model"),
    b'{"model":"OpenAI/text-embedding-ada-002","input":["a"]}': (
        'model "OpenAI/text-embedding-ada-002" not known',
        "model",
    ),
}


async def test_wrong_requests_are_400(bench: EmbeddingsBench) -> None:
    """§8.3: what is wrong is named, before the upstream or a limit is touched."""
    good = bench.build(ADA, ["a"])
    head = good.partition(b"content-length")[0]
    for body, (text, _) in WRONG_BODIES.items():
        answer = await ask(bench.gateway.port, head + b"content-length: %d\r\n\r\n%b" % (len(body), body))
        assert (body[:80], answer.status, text in answer.json()["error"]) == (body[:80], 400, True)
    assert (bench.upstream.asked, bench.read_events(), await bench.read_usage()) == ([], [], 0)


async def test_models_by_actor(tmp_path: Path) -> None:
    """§8.2: all models, enabled are those that the actor may use and that have their keys; using others is 400."""
    limits = LIMITS + f'allowed_models = ["{MPNET}", "{METADATA}"]\n'
    async with open_embeddings(tmp_path, limits=limits) as bench:
        answer = await bench.get(f"{PATH}/models")
        assert answer.status == 200
        assert answer.json() == [
            {"name": ADA, "dimensions": 1536, "enabled": False, "deprecated": False},
            {"name": MPNET, "dimensions": 768, "enabled": True, "deprecated": False},
            {"name": METADATA, "dimensions": 768, "enabled": False, "deprecated": False},
        ]
        assert [(await bench.embed(model, ["a"])).status for model in (ADA, METADATA, MPNET)] == [400, 400, 200]


async def test_actor_without_embeddings_is_403(tmp_path: Path) -> None:
    """An actor without a limit for embeddings has none of the models."""
    async with open_embeddings(tmp_path, limits="") as bench:
        assert (await bench.embed(ADA, ["a"])).status == 403
        assert not any(model["enabled"] for model in (await bench.get(f"{PATH}/models")).json())


async def test_each_model_needs_its_own_keys_only(tmp_path: Path) -> None:
    """§16, 12: without OpenAI's key Sourcegraph's model is served; without any key there is no route."""
    no_openai = {"CODY_GATEWAY_OPENAI_ACCESS_TOKEN": ""}
    async with open_embeddings(tmp_path, no_openai) as bench:
        assert [(await bench.embed(model, ["a"])).status for model in (MPNET, ADA)] == [200, 400]
    async with open_embeddings(tmp_path, {"CODY_GATEWAY_SOURCEGRAPH_EMBEDDINGS_API_TOKEN": ""}) as bench:
        assert [(await bench.embed(model, ["a"])).status for model in (MPNET, ADA)] == [400, 200]
    async with open_embeddings(tmp_path, FIREWORKS) as bench:
        assert [(await bench.embed(model, ["a"])).status for model in (METADATA, MPNET, ADA)] == [200, 200, 200]
    none = {**no_openai, "CODY_GATEWAY_SOURCEGRAPH_EMBEDDINGS_API_TOKEN": ""}
    async with open_embeddings(tmp_path, none) as bench:
        assert (await bench.embed(ADA, ["a"])).status == 404
        assert (await bench.get(f"{PATH}/models")).status == 404


async def test_allowed_models_setting(tmp_path: Path) -> None:
    """§8.1: the operator's list bounds the models; a name that cgw does not know is allowed, and not known."""
    async with open_embeddings(tmp_path, {"CODY_GATEWAY_ALLOWED_EMBEDDINGS_MODELS": f"{ADA},openai/new"}) as bench:
        answers = [await bench.embed(model, ["a"]) for model in (ADA, MPNET, "openai/new")]
        assert [answer.status for answer in answers] == [200, 400, 400]
        assert "is not allowed" in answers[1].json()["error"]
        assert answers[2].json()["error"] == 'model "openai/new" not known'


async def test_quota_of_tokens_refuses(tmp_path: Path) -> None:
    """A used-up quota is 429 with the reference's words, before the upstream is asked."""
    async with open_embeddings(tmp_path, limits=LIMITS.replace("100000", "50")) as bench:
        assert (await bench.embed(MPNET, ["a" * 200])).status == 200
        answer = await bench.embed(MPNET, ["a" * 200])
        assert (answer.status, "embeddings" in answer.json()["error"]) == (429, True)
        assert len(bench.upstream.asked) == 1


async def test_embeddings_over_http_2(bench: EmbeddingsBench) -> None:
    """A response larger than HTTP/2's windows is complete, and its length is announced."""
    async with open_client(bench.gateway.port) as client:
        http2 = Http2Client(client.stream)
        await http2.post(PATH, json.dumps({"model": MPNET, "input": ["a"] * 20}).encode())
        data, fields, has_ended = b"", {}, False
        while not has_ended:
            for event in http2.connection.receive_data(await client.stream.receive_some(65536)):
                if isinstance(event, ResponseReceived):
                    fields = dict(event.headers or [])
                elif isinstance(event, DataReceived):
                    data += event.data or b""
                    http2.connection.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id or 0)
                has_ended = has_ended or isinstance(event, StreamEnded)
            await http2.flush()
    assert len(json.loads(data)["embeddings"]) == 20
    assert (fields[b":status"], int(fields[b"content-length"])) == (b"200", len(data))


async def test_a_null_vector_passes(bench: EmbeddingsBench) -> None:
    """OpenAI's null vectors are passed on: instances ask again for those (§14.2)."""
    body = build_openai_answer({"input": ["a"]})
    bench.upstream.answers = [encode_response(200, body.replace(build_row(0, 1536).encode(), b"null"))]
    assert (await bench.embed(ADA, ["a"])).json()["embeddings"] == [{"index": 0, "data": None}]


async def test_calls_are_bounded_and_end_with_the_first_failure(autojump_clock: trio.testing.MockClock) -> None:
    """At most so many calls are under way; results keep their order; a failure cancels the rest, and is raised."""
    active = most = 0

    async def work(text: str) -> str:
        nonlocal active, most
        active += 1
        most = max(most, active)
        try:
            await trio.sleep(1 if text != "bad" else 2)
            if text == "bad":
                raise UpstreamError("bad")
        finally:
            active -= 1
        return text.upper()

    assert await map_in_parallel(work, list("abcdefg"), 3) == list("ABCDEFG")
    assert (most, active) == (3, 0)
    with pytest.raises(UpstreamError, match="bad"):
        await map_in_parallel(work, ["bad", *"abcdefghijkl"], 3)
    assert (active, trio.current_time()) == (0, 5)
    with trio.CancelScope() as outer_scope:
        outer_scope.deadline = trio.current_time() + 0.5
        try:
            await map_in_parallel(work, list("abc"), 3)
        except trio.Cancelled:
            active -= 100
            raise
    assert (outer_scope.cancelled_caught, active) == (True, -100)
