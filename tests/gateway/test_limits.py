"""Limits over HTTP: responses to refused and admitted requests, log lines for operators, and the counting."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime, parsedate_to_datetime
from pathlib import Path

import anthropic
import httpx
import openai
import pytest
import trio
from attrs import field, frozen

from cgw.gateway.answer import answer_status
from cgw.service.lifecycle import Service
from cgw.testing.script import Script
from cgw.testing.scripted_upstream import ScriptedUpstream
from tests.gateway.test_sdks import ask_anthropic, ask_openai, open_anthropic, open_openai
from tests.support.errors import read_error
from tests.support.gateway import ANTHROPIC_KEY, ANTHROPIC_MODEL, build_actors, build_environ
from tests.support.limits import (
    BOUNDED,
    MARKS,
    PROVIDER_BOUND,
    QUOTA,
    count_held,
    get_usage,
    open_http,
    open_patient_gateway,
    read_recorded,
    slow_down,
    wait_nothing_held,
)
from tests.support.process import start_cgw
from tests.support.redis_server import run_redis_server
from tests.support.requests import ROUTES, build_body
from tests.support.waiting import wait_until

PATH = "/v1/completions/anthropic-messages"
WORTHWHILE_MS = 60_000
OWN_DIALECTS = ("/anthropic/v1/messages", "/openai/v1/chat/completions")

ANSWER_TOKENS = 6
"""The tokens, in and out, of a request of :func:`build_body` and the response "Good day to you."."""


@frozen
class Case:
    """A limit that is about to refuse, after ``used`` requests, and one held in flight per provider if ``held``."""

    cause: str
    text: str
    limit: int
    remaining: int
    shortest_ms: int
    longest_ms: int
    chat_lines: str = ""
    settings: Mapping[str, str] = field(factory=dict)
    quota: int = 1000
    concurrent_requests: int = 1000
    used: int = 0
    held: bool = False


HALF_A_DAY_MS = 12 * 3_600_000
PROVIDERS_WITH_ONE_PLACE = {
    "CODY_GATEWAY_ANTHROPIC_MAX_IN_FLIGHT": "1",
    "CODY_GATEWAY_OPENAI_MAX_IN_FLIGHT": "1",
}
CASES = [
    Case(
        "quota",
        'rate limit of 2 requests per 24h for "chat_completions"',
        2,
        0,
        HALF_A_DAY_MS - 60_000,
        HALF_A_DAY_MS,
        quota=2,
        used=2,
    ),
    Case(
        "quota",
        'rate limit of 54 tokens per 24h for "chat_completions"',
        54,
        54 - ANSWER_TOKENS,
        WORTHWHILE_MS,
        HALF_A_DAY_MS,
        quota=54,  # a request reserves 52
        chat_lines='unit = "tokens"',
        used=1,
    ),
    Case(
        "concurrency",
        'concurrency limit of 2 requests per 1m for "chat_completions"',
        2,
        0,
        1,
        30_000,
        concurrent_requests=2,
        chat_lines='concurrent_requests_interval = "60s"',
        used=2,
    ),
    Case(
        "in_flight",
        'limit of 2 requests in flight for "chat_completions"',
        2,
        0,
        1,
        1_000,
        chat_lines="max_in_flight = 2",
        held=True,
    ),
    Case(
        "provider",
        "limit of 1 requests in flight to the provider",
        1,
        0,
        1,
        1_000,
        settings=PROVIDERS_WITH_ONE_PLACE,
        held=True,
    ),
]
EVENT_TEXTS = {
    "quota": "rate limit exceeded",
    "concurrency": '"chat_completions": concurrency limit exceeded',
    "in_flight": '"chat_completions": limit of requests in flight exceeded',
    "provider": "limit of requests in flight to the provider exceeded",
}
CASE_NAMES = ["requests", "tokens", "concurrency", "in flight", "provider"]


@asynccontextmanager
async def open_full_gateway(folder: Path, upstream: ScriptedUpstream, case: Case) -> AsyncIterator[Service]:
    """Run a gateway in which the limit of ``case`` refuses the next request, on any route."""
    async with AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(
            open_patient_gateway(
                folder,
                upstream.url,
                limit=case.quota,
                concurrent_requests=case.concurrent_requests,
                chat_lines=case.chat_lines,
                more=case.settings,
            )
        )
        client = await stack.enter_async_context(open_http(gateway))
        for _ in range(case.used):
            answer = await client.post(PATH, json=build_body(PATH, stream=False))
            assert answer.status_code == 200
        if case.held:
            slow_down(upstream)
            for path in OWN_DIALECTS:
                held = await stack.enter_async_context(client.stream("POST", path, json=build_body(path)))
                assert held.status_code == 200
        yield gateway


def read_message(path: str, answer: httpx.Response) -> str:
    """Return the message of a refusal, and check its shape, which depends on the dialect of ``path``."""
    body = read_error(answer)
    if path.startswith("/anthropic"):
        assert body == {
            "type": "error",
            "error": {"type": "rate_limit_error", "message": body["error"]["message"]},
        }
        return str(body["error"]["message"])
    if path.startswith("/openai"):
        message = body["error"]["message"]
        error = {"message": message, "type": "requests", "param": None, "code": "rate_limit_exceeded"}
        assert body == {"error": error}
        return str(message)
    assert list(body) == ["error"]
    return str(body["error"])


def check_refusal(case: Case, path: str, answer: httpx.Response) -> None:
    """Check status, headers and text of a refusal."""
    headers, message = answer.headers, read_message(path, answer)
    assert answer.status_code == 429
    assert (headers["x-ratelimit-limit"], headers["x-ratelimit-remaining"]) == (str(case.limit), str(case.remaining))
    assert message == f"you have exceeded the {case.text}. Retry after {headers['retry-after']}"
    wait_ms = int(headers["retry-after-ms"])
    assert case.shortest_ms <= wait_ms <= case.longest_ms
    retry_at = parsedate_to_datetime(headers["retry-after"])
    assert headers["retry-after"] == format_datetime(retry_at, usegmt=True)
    assert headers["retry-after"].endswith(" GMT")
    distance = retry_at - (datetime.now(UTC) + timedelta(milliseconds=wait_ms))
    assert abs(distance.total_seconds()) < 10
    assert headers.get("x-should-retry") == ("false" if wait_ms > WORTHWHILE_MS else None)
    assert '"quota";r=' in headers["ratelimit"]
    assert '"concurrency";q=' in headers["ratelimit-policy"]


@pytest.mark.parametrize("case", CASES, ids=CASE_NAMES)
async def test_a_refusal_names_its_limit_and_the_time_to_retry(
    tmp_path: Path, upstream: ScriptedUpstream, case: Case
) -> None:
    """On every route, in its dialect: 429 with the limit, its size, the time and all headers; nothing is consumed."""
    async with open_full_gateway(tmp_path, upstream, case) as gateway, open_http(gateway) as client:
        before = await get_usage(gateway), await count_held(gateway), upstream.request_count
        for path in ROUTES:
            check_refusal(case, path, await client.post(path, json=build_body(path, stream=False)))
        assert (await get_usage(gateway), await count_held(gateway), upstream.request_count) == before
    events = [metadata for name, metadata in read_recorded(tmp_path) if name == "RateLimited"]
    assert sum(event["count"] for event in events) == len(ROUTES)
    for event in events:
        assert (event["feature"], event["cause"], event["limit"]) == ("chat_completions", case.cause, case.limit)
        assert event["error"] == EVENT_TEXTS[case.cause]


@pytest.mark.parametrize("case", CASES, ids=CASE_NAMES)
async def test_the_sdks_raise_their_rate_limit_error(tmp_path: Path, upstream: ScriptedUpstream, case: Case) -> None:
    """Anthropic's and OpenAI's own SDKs raise RateLimitError with the text and the headers of the refusal."""
    async with open_full_gateway(tmp_path, upstream, case) as gateway:
        async with open_anthropic(gateway) as client:
            with pytest.raises(anthropic.RateLimitError) as refused:
                await ask_anthropic(client)
        async with open_openai(gateway) as openai_client:
            with pytest.raises(openai.RateLimitError) as openai_refused:
                await ask_openai(openai_client)
    for error in (refused.value, openai_refused.value):
        assert case.text in error.message
        assert int(error.response.headers["retry-after-ms"]) <= case.longest_ms
        assert error.response.headers["x-ratelimit-limit"] == str(case.limit)


async def test_the_sdks_wait_and_retry(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """After a short refusal each SDK retries by itself at the given time, and gets its response."""
    lines = 'concurrent_requests_interval = "1s"'
    async with open_patient_gateway(tmp_path, upstream.url, concurrent_requests=1, chat_lines=lines) as gateway:
        async with open_anthropic(gateway, retries=2) as client:
            await ask_anthropic(client)
            await ask_anthropic(client)
        async with open_openai(gateway, retries=2) as openai_client:
            await ask_openai(openai_client)
    assert upstream.request_count == 3
    refused = [metadata["cause"] for name, metadata in read_recorded(tmp_path) if name == "RateLimited"]
    assert refused
    assert set(refused) == {"concurrency"}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_a_response_has_the_state_of_its_limits(tmp_path: Path, upstream: ScriptedUpstream, stream: bool) -> None:
    """Every response has the quota's size and remainder, and all limits of its actor in the IETF's fields."""
    lines = "max_in_flight = 7"
    more = {"CODY_GATEWAY_ANTHROPIC_MAX_IN_FLIGHT": "9"}
    async with (
        open_patient_gateway(
            tmp_path, upstream.url, limit=24, concurrent_requests=20, chat_lines=lines, more=more
        ) as gateway,
        open_http(gateway) as client,
    ):
        for number, path in enumerate(ROUTES, 1):
            answer = await client.post(path, json=build_body(path, stream=stream))
            headers = answer.headers
            assert answer.status_code == 200
            assert (headers["x-ratelimit-limit"], headers["x-ratelimit-remaining"]) == ("24", str(24 - number))
            assert headers["ratelimit-policy"] == (
                '"quota";q=24;w=86400, "concurrency";q=20;w=10, "in_flight";q=7;qu="concurrent-requests"'
            )
            quota, _, in_flight = headers["ratelimit"].split(", ")
            assert quota == f'"quota";r={24 - number};t=3600'
            assert in_flight == '"in_flight";r=6'


async def test_one_feature_used_up_leaves_the_other(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """Each feature has limits of its own."""
    async with open_patient_gateway(tmp_path, upstream.url, limit=1) as gateway, open_http(gateway) as client:
        code = {"x-sourcegraph-feature": "code_completions"}
        body = build_body(PATH, stream=False)
        statuses = [
            (await client.post(PATH, json=body)).status_code,
            (await client.post(PATH, json=body)).status_code,
            (await client.post(PATH, json=body, headers=code)).status_code,
        ]
    assert statuses == [200, 429, 200]


# --- tokens -----------------------------------------------------------------------------------------------------------

TOKENS = 'unit = "tokens"'


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_tokens_are_charged_by_the_usage_in_the_response(
    tmp_path: Path, upstream: ScriptedUpstream, path: str, stream: bool
) -> None:
    """The reservation counts until the response ends; then the tokens that it really used are charged."""
    options = {"stream_options": {"include_usage": True}} if stream and "openai" in path else {}
    async with (
        open_patient_gateway(tmp_path, upstream.url, limit=10_000, chat_lines=TOKENS) as gateway,
        open_http(gateway) as client,
    ):
        answer = await client.post(path, json=build_body(path, stream=stream, **options))
        assert answer.status_code == 200
        assert answer.headers["x-ratelimit-remaining"] == str(10_000 - 52)  # 8 characters, and max_tokens
        assert answer.headers["ratelimit-policy"].startswith('"quota";q=10000;qu="tokens";w=86400')
        assert await get_usage(gateway) == ANSWER_TOKENS
        await wait_nothing_held(gateway)


async def test_a_stream_whose_client_left_is_charged_for_what_came(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """Of 4,000 reserved tokens, a stream whose client left early is charged for the part that arrived."""
    slow_down(upstream, "word " * 3_000)
    async with (
        open_patient_gateway(tmp_path, upstream.url, limit=10_000, chat_lines=TOKENS) as gateway,
        open_http(gateway) as client,
    ):
        async with client.stream("POST", PATH, json=build_body(PATH, max_tokens=4_000)) as answer:
            assert answer.headers["x-ratelimit-remaining"] == str(10_000 - 4_002)
            await (await upstream.wait_request()).wait_events_sent(6)
            assert await get_usage(gateway) == 4_002
        await wait_nothing_held(gateway)
        assert 2 < await get_usage(gateway) < 400


@pytest.mark.parametrize("status", [400, 429, 500, 529])
async def test_only_2xx_is_charged(tmp_path: Path, upstream: ScriptedUpstream, status: int) -> None:
    """A response with another status costs neither tokens nor requests."""
    upstream.scripts[ANTHROPIC_MODEL] = Script(status=status, api_key=ANTHROPIC_KEY)
    async with (
        open_patient_gateway(tmp_path, upstream.url, limit=10_000, chat_lines=TOKENS) as gateway,
        open_http(gateway) as client,
    ):
        answer = await client.post(PATH, json=build_body(PATH, stream=False))
        assert answer.status_code == answer_status(status)
        assert await get_usage(gateway) == 0
        code = {"x-sourcegraph-feature": "code_completions"}
        await client.post(PATH, json=build_body(PATH, stream=False), headers=code)
        assert await get_usage(gateway, "code_completions") == 0


# --- limits that change -----------------------------------------------------------------------------------------------


async def ask_until(gateway: Service, status: int, seconds: float = 20) -> None:
    """Send requests until a response has ``status``."""
    async with open_http(gateway) as client:
        with trio.fail_after(seconds):
            while (await client.post(PATH, json=build_body(PATH, stream=False))).status_code != status:
                pass


async def test_a_raised_limit_acts_without_restart(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """After a quota was raised in the file, the next refusal makes the gateway read it, and requests get through."""
    async with open_patient_gateway(tmp_path, upstream.url, limit=1) as gateway, open_http(gateway) as client:
        assert (await client.post(PATH, json=build_body(PATH, stream=False))).status_code == 200
        (tmp_path / "actors.toml").write_text(build_actors(limit=5))
        refused = await client.post(PATH, json=build_body(PATH, stream=False))
        assert refused.status_code == 429
        await ask_until(gateway, 200)
        limits = (await client.get("/v1/limits")).json()["chat_completions"]
        assert (limits["limit"], limits["usage"], limits["remaining"]) == (5, 2, 3)


async def test_a_broken_file_changes_nothing_and_is_logged(
    tmp_path: Path, upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    """While the file is wrong the earlier limits hold, and its problems are logged once."""
    async with open_patient_gateway(tmp_path, upstream.url, limit=1) as gateway, open_http(gateway) as client:
        assert (await client.post(PATH, json=build_body(PATH, stream=False))).status_code == 200
        (tmp_path / "actors.toml").write_text(build_actors(limit=0))
        for _ in range(3):
            assert (await client.post(PATH, json=build_body(PATH, stream=False))).status_code == 429
        await wait_until(lambda: gateway.gateway.refresher.statistics().failed == 1)
        code = {"x-sourcegraph-feature": "code_completions"}
        assert (await client.post(PATH, json=build_body(PATH, stream=False), headers=code)).status_code == 200
    lines = [record.getMessage() for record in caplog.records if record.name == "cgw.actors"]
    assert len(lines) == 1
    assert "actor[0].limits.chat_completions.limit: must be at least 1, not 0" in lines[0]


async def test_limits_that_cannot_be_enforced_are_refused_at_the_start(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    """Limits that are 0, negative, too large or per 0 s are named by their keys, and cgw exits with 1."""
    environ = build_environ(tmp_path, upstream.url)
    lines = 'max_in_flight = 0\nconcurrent_requests_interval = "0s"'
    text = build_actors(limit=0, concurrent_requests=-1, chat_lines=lines)
    text = text.replace("limit = 1000", f"limit = {2**60}")
    (tmp_path / "actors.toml").write_text(text)
    process = start_cgw(environ, tmp_path / "log")
    await wait_until(lambda: process.poll() is not None, seconds=20)
    assert process.returncode == 1
    problems = [line for line in (tmp_path / "log").read_text().splitlines() if line.startswith("cgw: ")]
    chat, code = "actor[0].limits.chat_completions", "actor[0].limits.code_completions"
    for start in (
        f"{chat}.limit: must be at least 1, not 0",
        f"{chat}.concurrent_requests: must be at least 1, not -1",
        f"{chat}.max_in_flight: must be from 1 to",
        f"{chat}.concurrent_requests_interval: ",
        f"{code}.limit: ",
    ):
        assert any(f"actors.toml: {start}" in problem for problem in problems), (start, problems)
    assert "Traceback" not in (tmp_path / "log").read_text()


# --- Redis ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ROUTES)
async def test_a_request_with_less_time_than_redis(tmp_path: Path, upstream: ScriptedUpstream, path: str) -> None:
    """An X-Timeout-Ms shorter than Redis's deadline is a 504 in time, in the dialect; nothing stays reserved."""
    with run_redis_server(tmp_path) as server:
        more = {"REDIS_ENDPOINT": server.url, "CODY_GATEWAY_REDIS_TIMEOUT": "5s", **PROVIDER_BOUND}
        async with (
            open_patient_gateway(tmp_path, upstream.url, chat_lines=BOUNDED, more=more) as gateway,
            open_http(gateway, x_timeout_ms="200") as client,
        ):
            await gateway.redis.execute_command("CLIENT", "PAUSE", "700", "ALL")
            started = trio.current_time()
            answer = await client.post(path, json=build_body(path))
            took = trio.current_time() - started
            assert answer.status_code == 504
            assert answer.headers["x-cody-resolved-model"].endswith(f"/{ROUTES[path]}")
            error = answer.json()["error"]
            assert "time was over" in (error if isinstance(error, str) else error["message"])
            assert 0.2 <= took < 0.5
            assert await get_usage(gateway) == 0
            await wait_nothing_held(gateway)
            keys = await gateway.redis.execute_command("KEYS", "cgw:*")
            assert all([await gateway.redis.execute_command("GET", key) in MARKS for key in keys])
    assert upstream.request_count == 0


@pytest.mark.parametrize("when_down", ["local", "open", "closed"])
async def test_a_key_of_another_type_costs_its_own_limit_only(
    tmp_path: Path, upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture, when_down: str
) -> None:
    """With a foreign value in a quota's key, that limit acts as if Redis were away; one line names the key."""
    more = {"CODY_GATEWAY_LIMITS_WHEN_REDIS_DOWN": when_down}
    async with (
        open_patient_gateway(tmp_path, upstream.url, limit=3, more=more) as gateway,
        open_http(gateway) as client,
    ):
        await gateway.redis.execute_command("RPUSH", QUOTA, "not ours")
        body = build_body(PATH, stream=False)
        statuses = [(await client.post(PATH, json=body)).status_code for _ in range(4)]
        expected = {"local": [200, 200, 200, 429], "open": [200] * 4, "closed": [503] * 4}
        assert statuses == expected[when_down]
        code = {"x-sourcegraph-feature": "code_completions"}
        other = await client.post(PATH, json=body, headers=code)
        assert (other.status_code, other.headers["x-ratelimit-remaining"]) == (200, "999")
        health = await client.get("/-/healthz")
        assert (health.status_code, health.text) == (200, "healthz: ok")
        if when_down != "closed":
            await wait_until(lambda: gateway.gateway.limiter.statistics().backlog == 0)
        lines = [record.getMessage() for record in caplog.records if record.name == "cgw.limits"]
        assert len(lines) == 1, lines
        assert QUOTA in lines[0]
        await gateway.redis.execute_command("DEL", QUOTA)
        await ask_until(gateway, 200)
