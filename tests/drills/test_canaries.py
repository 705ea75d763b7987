"""Marked keys, tokens and prompts go through every path of a process, and are in nothing that it leaves behind.

The only exceptions are those that operators are told of (docs/operations.md, Flagging): Redis keeps the flagged prompts
of Sourcegraph.com's users, and their usage events have the beginning of them.
"""

from __future__ import annotations

import base64
import json
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import trio

from tests.support.canaries import build_canaries, check_nothing_found
from tests.support.canary_bench import CanaryBench, open_canary_bench
from tests.support.raw_client import AnswerCut, open_client
from tests.support.waiting import wait_until

CLAUDE, MIXTRAL = "claude-sonnet-4-5", "accounts/fireworks/models/mixtral-8x7b-instruct"
MESSAGES = "/v1/completions/anthropic-messages"
EMBEDDINGS = "/v1/embeddings"
ECHOES: tuple[int | str, ...] = (400, 401, 403, 404, 429, 500, 503, 529, "broken head", "broken body")


@asynccontextmanager
async def open_bench(
    tmp_path: Path, factory: pytest.TempPathFactory, log_format: str, *, with_settings: bool = False
) -> AsyncIterator[CanaryBench]:
    """Open the bench, and look through all outputs when the block and the process have ended."""
    async with open_canary_bench(tmp_path, factory.mktemp("r"), log_format) as bench:
        yield bench
        check_nothing_found(bench.canaries, await bench.read_outputs(with_settings=with_settings))
        bench.gateway.terminate()
        assert await bench.gateway.wait() == 0
        last = [("log", bench.gateway.log_path.read_bytes()), *bench.read_posts()]
        assert {"spans"} <= {name for name, _ in last}  # flushed at the end, at the latest
        check_nothing_found(bench.canaries, last)
        check_nothing_found(bench.canaries, [("replies", reply) for reply in bench.replies])


def open_http(bench: CanaryBench) -> httpx.AsyncClient:
    """Return a client whose every reply is kept."""

    async def keep(response: httpx.Response) -> None:
        bench.replies.append(str(response.headers.raw).encode() + await response.aread())

    return httpx.AsyncClient(base_url=bench.gateway.url, timeout=30, event_hooks={"response": [keep]})


def build_bodies(bench: CanaryBench, word: str = "") -> dict[str, dict[str, Any]]:
    """Return a body for each provider route, with marked prompts in every place that one can be."""
    words = bench.canaries
    prompt = f"{words['prompt']} {word}"
    messages = [{"role": "user", "content": prompt}]
    tools = [{"name": "t", "description": words["tool argument"], "input_schema": {"type": "object"}}]
    claude = {
        "model": CLAUDE,
        "max_tokens": 100,
        "system": words["system prompt"],
        "messages": messages,
        "tools": tools,
        "metadata": {"user_id": words["key of a body"]},
    }
    chat = {"model": "gpt-4o", "messages": messages, "user": words["key of a body"]}
    mixtral = {**chat, "model": MIXTRAL}
    google = {"model": "gemini-2.5-pro", "contents": [{"role": "user", "parts": [{"text": prompt}]}]}
    return {
        MESSAGES: claude,
        "/anthropic/v1/messages": claude,
        "/v1/completions/anthropic": {"model": "claude-2", "prompt": prompt, "max_tokens_to_sample": 100},
        "/v1/completions/openai": chat,
        "/openai/v1/chat/completions": chat,
        "/v1/completions/fireworks": mixtral,
        "/v1/completions/google": google,
        "/v1/completions/my-server": {**chat, "model": "org/model-a"},
        "/my-server/v1/chat/completions": {**chat, "model": "org/model-a"},
        EMBEDDINGS: {"model": "openai/text-embedding-ada-002", "input": [f"{words['embedded text']} {word}"]},
    }


def build_headers(bench: CanaryBench, token: str = "static token") -> dict[str, str]:
    return {"authorization": f"Bearer {bench.canaries[token]}", "x-sourcegraph-feature": "chat_completions"}


async def ask_all(bench: CanaryBench, headers: Mapping[str, str], word: str = "") -> set[int]:
    """Ask every provider route, with and without streaming; return the statuses."""
    statuses = set()
    async with open_http(bench) as client:
        for path, body in build_bodies(bench, word).items():
            for stream in (False, True) if path != EMBEDDINGS else (False,):
                try:
                    content = {**body, "stream": stream} if path != EMBEDDINGS else body
                    answer = await client.post(path, json=content, headers=headers)
                    statuses.add(answer.status_code)
                except httpx.RemoteProtocolError:
                    statuses.add(0)  # the upstream broke off, and so does cgw
    return statuses


@pytest.mark.parametrize("offset", range(4))
def test_the_search_finds_each_form(offset: int) -> None:
    """As it is, in any case, in URLs, JSON, hexadecimal, and base64 of text that it is in the middle of."""
    canaries = build_canaries()
    for canary in canaries:
        data = canary.value.encode()
        inside = b"x" * offset + data + b"yz"
        for text in (
            *(inside, inside.upper(), inside.hex().encode(), base64.b64encode(inside)),
            *(quote(inside).encode(), json.dumps(inside.decode()).encode(), repr(inside.decode()).encode()),
        ):
            assert canaries.find("log", text), canary.name
    assert not canaries.find("log", b"nothing of the kind")


async def test_success_leaves_no_trace(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Every route, by the tokens of every source."""
    async with open_bench(tmp_path, tmp_path_factory, "json", with_settings=True) as bench:
        for token in ("static token", "user token", "subscription token"):
            statuses = await ask_all(bench, build_headers(bench, token))
            assert statuses <= {200, 403}, statuses  # these users have no embeddings
        key = {"x-api-key": bench.canaries["static token"]}
        assert 200 in await ask_all(bench, key)
        await wait_until(lambda: "events" in {name for name, _ in bench.read_posts()}, seconds=20)


@pytest.mark.parametrize("log_format", ["json", "text"])
async def test_upstreams_that_repeat_what_they_get(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, log_format: str
) -> None:
    """Errors with key and prompt in them, malformed heads, broken bodies: clients see no key, others nothing."""
    async with open_bench(tmp_path, tmp_path_factory, log_format) as bench:
        for mode, is_body_first in product(ECHOES, (True, False)):
            bench.upstream.mode, bench.upstream.is_body_first = mode, is_body_first
            assert 200 not in await ask_all(bench, build_headers(bench)) - {200 if mode == "broken body" else 0}


@pytest.mark.parametrize("log_format", ["json", "text"])
async def test_crashes(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, log_format: str) -> None:
    """Bugs whose exceptions quote the whole request leave a stack trace, and nothing of the request."""
    async with open_bench(tmp_path, tmp_path_factory, log_format) as bench:
        assert 500 in await ask_all(bench, build_headers(bench), "crash early")
        assert 500 in await ask_all(bench, build_headers(bench), "crash late")
        async with open_http(bench) as client:
            crashed = await client.get("/v1/limits", headers={**build_headers(bench), "x-crash": "1"})
            assert crashed.status_code == 500
        # A thread writes the log: it may have the last crash a moment after the client.
        for text in ("crash_in_prepare", "crash_in_relay", "crash_in_control", "KeyError"):
            await wait_until(lambda text=text: text in bench.gateway.log_path.read_text())  # type: ignore[misc]
        bench.receiver.wait_for(lambda: len(bench.receiver.events()) >= 3)


async def test_refusals(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Unknown, malformed and disabled tokens, wrong bodies and models, exhausted limits, blocked prompts."""
    async with open_bench(tmp_path, tmp_path_factory, "json") as bench:
        words = bench.canaries
        for token in ("unknown token", "unknown user token", "disabled token", "odd token"):
            assert not {200} & await ask_all(bench, build_headers(bench, token))
        for headers in (
            {"authorization": words["odd token"]},
            {"authorization": f"Basic {words['odd token']}"},
            {"authorization": f"Bearer {words['odd token']} {words['unknown token']}"},
            {"x-api-key": words["odd token"], "authorization": f"Bearer {words['unknown token']}"},
        ):
            assert not {200} & await ask_all(bench, headers)
        async with open_http(bench) as client:
            for body in build_wrong_bodies(bench):
                for path in build_bodies(bench):
                    answer = await client.post(path, content=body, headers=build_headers(bench))
                    assert answer.status_code in (400, 422), (path, body[:80])
            code = {**build_headers(bench), "x-sourcegraph-feature": "code_completions"}
            claude = build_bodies(bench)[MESSAGES]
            asked = [await client.post(MESSAGES, json=claude, headers=code) for _ in range(6)]
            assert asked[-1].status_code == 429
            for token in ("static token", "user token"):
                flagged = {
                    "model": CLAUDE,
                    "max_tokens": 100,
                    "messages": [{"role": "user", "content": words["flagged prompt"]}],
                }
                answer = await client.post(MESSAGES, json=flagged, headers=build_headers(bench, token))
                assert answer.status_code == 400
        events = [path.read_bytes() for path in (bench.folder / "events").iterdir() if path.is_file()]
        assert b"RequestBlocked" in b"".join(events)


def build_wrong_bodies(bench: CanaryBench) -> list[bytes]:
    """Return bodies that are refused, each with a marked prompt where an error could quote it."""
    prompt, key = bench.canaries["prompt"], bench.canaries["key of a body"]
    wrong: list[Any] = [
        prompt,
        [prompt],
        {"model": CLAUDE, "messages": prompt},
        {"model": CLAUDE, "messages": [{"role": key, "content": {prompt: prompt}}]},
        {
            "model": CLAUDE,
            "max_tokens": prompt,
            "messages": [prompt],
            "contents": prompt,
            "prompt": [prompt],
            "input": {},
        },
        {"model": CLAUDE, key: prompt},
    ]
    texts = [json.dumps(body).encode() for body in wrong]
    return [*texts, texts[3][:-3], b"\xff" + texts[2], texts[4] + texts[4], prompt.encode()]


async def test_malformed_requests(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Heads and bodies that are no HTTP, with tokens and prompts in every part of them; requests that are cut."""
    async with open_bench(tmp_path, tmp_path_factory, "text") as bench:
        token, prompt = bench.canaries["static token"], bench.canaries["prompt"]
        odd = bench.canaries["odd token"]
        bearer = f"authorization: Bearer {token}\r\n"
        body = json.dumps(build_bodies(bench)[MESSAGES])
        for data in (
            f"Bearer {token} HTTP/1.1\r\n\r\n",
            f"x-api-key: {odd}\r\n\r\n",
            f"GET /v1/limits?key={odd}&api_key={token} HTTP/1.1\r\nhost: x\r\n\r\n",
            f"GET /v1/limits HTTP/1.1\r\nhost: x\r\n{bearer}\x00bad\r\n\r\n",
            f"GET /v1/limits HTTP/1.1\nhost: x\n{bearer}\n",
            f"GET /v1/limits HTTP/3.7\r\nhost: x\r\n{bearer}\r\n",
            f"POST {MESSAGES} HTTP/1.1\r\nhost: x\r\n{bearer}content-length: -1\r\n\r\n{body}",
            f"POST {MESSAGES} HTTP/1.1\r\nhost: x\r\n{bearer}transfer-encoding: chunked\r\n\r\n{prompt}\r\n{body}",
            f"POST {MESSAGES} HTTP/1.1\r\nhost: x\r\n{bearer}content-length: 9999\r\n\r\n{body}",
            f"POST {MESSAGES}?token={odd} HTTP/1.1\r\nhost: x\r\n{bearer}content-length: 99999999999\r\n\r\n{body}",
            f"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n{bearer}{body}",
            f"GET /v1/limits HTTP/1.1\r\nhost: x\r\n{bearer}a: {'b' * 70_000}\r\n\r\n",
        ):
            async with open_client(bench.gateway.port) as client:
                try:
                    await client.send(data.encode("latin-1"))
                    await client.stream.send_eof()
                    with trio.move_on_after(1):
                        bench.replies.append((await client.read_answer()).body)
                except (AnswerCut, trio.BrokenResourceError):
                    pass
        async with open_http(bench) as http:
            assert (await http.get("/v1/limits", headers=build_headers(bench))).status_code == 200


READS = (
    *("/v1/limits", "/v1/embeddings/models", "/anthropic/v1/models", "/openai/v1/models", "/nowhere", MESSAGES),
    *("/-/healthz", "/-/readyz", "/-/__version", "/-/actor/sync-all-sources", "/-/log-level", "/-/metrics"),
    *("/maintenance/flagged-requests", "/maintenance/flagged-requests/prompt:x"),
)
BEARERS = (
    *("static token", "subscription token", "user token", "unknown token"),
    *("diagnostics secret", "wrong secret", "reader token"),
)


async def test_control_routes_and_signals(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Right and wrong secrets on every control route, services that repeat what they get, and every signal."""
    async with open_bench(tmp_path, tmp_path_factory, "json") as bench:
        words = bench.canaries
        async with open_http(bench) as client:
            for token in (*BEARERS, *BEARERS):
                headers = {"authorization": f"Bearer {words[token]}"}
                for path in READS:
                    await client.get(f"{path}?key={words['wrong secret']}", headers=headers)
                await client.post("/v1/limits/refresh", headers=headers)
                await client.post("/v1/attribution", headers=headers, json={"snippet": words["snippet"]})
                await client.post("/v1/attribution", headers=headers, content=words["snippet"].encode())
                await client.post("/-/log-level", headers=headers, data={"level": words["prompt"]})
                await client.delete("/v1/limits", headers=headers)
                if token == BEARERS[-1]:
                    bench.sourcegraph.answer_next = bench.portal.answer_next = bench.echo
            await ask_all(bench, build_headers(bench, "unknown user token"))
            operator = {"authorization": f"Bearer {words['diagnostics secret']}"}
            assert (await client.post("/-/log-level?level=INFO", headers=operator)).status_code == 200
        for number, text in (
            (signal.SIGQUIT, "stacks of tasks and threads follow"),
            (signal.SIGUSR1, "the log level is DEBUG now"),
            (signal.SIGHUP, "SIGHUP: reloading"),
        ):
            bench.gateway.process.send_signal(number)
            await wait_until(lambda text=text: text in bench.gateway.log_path.read_text())  # type: ignore[misc]


async def test_outages(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Redis that refuses its password, and then is gone; a Slack that refuses alerts; nothing of it names a secret."""
    async with open_bench(tmp_path, tmp_path_factory, "json") as bench:
        code = {**build_headers(bench), "x-sourcegraph-feature": "code_completions"}
        await ask_all(bench, code)  # uses a quota of three: an alert
        await wait_until(lambda: "Slack webhook" in bench.gateway.log_path.read_text(), seconds=30)
        await bench.ask_redis("CONFIG", "SET", "requirepass", bench.canaries["wrong secret"])
        await bench.ask_redis_with(bench.canaries["wrong secret"], "CLIENT", "KILL", "TYPE", "normal")
        await ask_all(bench, build_headers(bench))
        await bench.ask_redis_with(
            bench.canaries["wrong secret"], "CONFIG", "SET", "requirepass", bench.canaries["redis password"]
        )
        async with open_http(bench) as client:
            headers = {"authorization": f"Bearer {bench.canaries['diagnostics secret']}"}
            with trio.fail_after(20):
                while "redis" in (await client.get("/-/healthz", headers=headers)).text.lower():  # noqa: ASYNC110
                    await trio.sleep(0.1)
        assert "Redis" in bench.gateway.log_path.read_text()
