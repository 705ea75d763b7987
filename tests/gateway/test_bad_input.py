"""Errors of callers: each has its status, in the shape of the route's API, and contains no secret."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from cgw.actors.tokens import hash_token
from cgw.events.reading import read_events as read_recorded
from cgw.service.lifecycle import Service
from cgw.testing.scripted_upstream import ScriptedUpstream
from tests.support.errors import take_request_id
from tests.support.gateway import ANTHROPIC_KEY, ANTHROPIC_MODEL, DISABLED_TOKEN, OPENAI_KEY, TOKEN, open_gateway
from tests.support.raw_client import Answer, open_client
from tests.support.raw_client import ask as ask_raw
from tests.support.requests import HEADERS, ROUTES, build_body
from tests.support.waiting import wait_until

SECRETS = (TOKEN, DISABLED_TOKEN, ANTHROPIC_KEY, OPENAI_KEY, "stranger-of-the-tests")

ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    405: "invalid_request_error",
    413: "request_too_large",
    504: "timeout_error",
}
OPENAI_TYPES = {504: "server_error"}


@pytest.fixture(autouse=True)
def no_secret_is_logged(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> Iterator[None]:
    """Check after every test that no key and no token is in a log line or in the event log."""
    caplog.set_level(logging.DEBUG)
    yield
    records = [*caplog.get_records("setup"), *caplog.get_records("call")]
    logged = "".join(caplog.handler.format(record) + repr(vars(record)) for record in records)
    stored = b"".join(path.read_bytes() for path in tmp_path.glob("events/*"))
    for secret in SECRETS:
        assert secret not in logged
        assert secret.encode() not in stored


def build(path: str, body: bytes | None = None, /, **headers: str | None) -> bytes:
    """Build a request for ``path``; headers replace the usual ones (``_`` for ``-``), ``None`` omits one."""
    if body is None:
        body = json.dumps(build_body(path, stream=False)).encode()
    fields: dict[str, str | None] = {"host": "gateway", **HEADERS, "content-length": str(len(body))}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items() if value is not None)
    return f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode("latin-1") + body


async def ask(gateway: Service, data: bytes) -> Answer:
    """Send one request; return the response, after a check that it contains no secret."""
    answer = await ask_raw(gateway.port, data)
    shown = repr(answer)
    assert not [secret for secret in SECRETS if secret in shown]
    return answer


def read_error(path: str, answer: Answer) -> dict[str, Any]:
    """Return the error in ``answer``, after a check that it has the shape of the API at ``path``."""
    assert answer.headers["content-type"] == "application/json"
    body = take_request_id(answer.json(), answer.headers["x-cgw-request-id"])
    if path.startswith("/anthropic/"):
        assert body.keys() == {"type", "error"}
        assert body["type"] == "error"
        assert body["error"].keys() == {"type", "message"}
        assert body["error"]["type"] == ANTHROPIC_TYPES[answer.status]
    elif path.startswith("/openai/"):
        assert body.keys() == {"error"}
        assert body["error"].keys() == {"message", "type", "param", "code"}
        assert body["error"]["type"] == OPENAI_TYPES.get(answer.status, "invalid_request_error")
    else:
        assert body.keys() == {"error"}
        return {"message": body["error"]}
    error: dict[str, Any] = body["error"]
    return error


def read_events(gateway: Service) -> list[tuple[str, str]]:
    """Return name and identifier of each event in the event log."""
    return [(event.name, event.identifier) for event in read_recorded(gateway.events_folder)]


def count_refusals(gateway: Service) -> int:
    """Return how many refusals the events stand for: those that repeat each other within a second share one."""
    return sum(event.metadata.get("count", 1) for event in read_recorded(gateway.events_folder))


UNKNOWN, MISSING = "invalid or unknown access token", "no access token provided"
NOT_LET_IN: list[tuple[dict[str, str | None], int, str]] = [
    # header fields, and the status and a part of the message on the reference's routes
    ({"authorization": None}, 401, MISSING),
    ({"authorization": ""}, 401, MISSING),
    ({"authorization": "Bearer"}, 400, "token type missing"),
    ({"authorization": TOKEN}, 400, "token type missing"),
    ({"authorization": f"Basic {TOKEN}"}, 400, "invalid token type Basic"),
    ({"authorization": f"{TOKEN} Bearer"}, 400, "invalid token type ****"),
    ({"authorization": f"Bearer{TOKEN} x"}, 400, "invalid token type ****"),
    ({"authorization": "Bearer stranger-of-the-tests"}, 401, UNKNOWN),
    ({"authorization": "Bearer \xff\xfe"}, 401, UNKNOWN),
    ({"authorization": "Bearer " + "x" * 60_000}, 401, UNKNOWN),
    ({"authorization": None, "x_api_key": "stranger-of-the-tests"}, 401, UNKNOWN),
    ({"authorization": "Bearer stranger-of-the-tests", "x_api_key": TOKEN}, 401, UNKNOWN),
    ({"authorization": f"Bearer {DISABLED_TOKEN}"}, 403, "access not enabled"),
]
WORDS = {
    "anthropic": {UNKNOWN: "invalid x-api-key", MISSING: "x-api-key header is required"},
    "openai": {UNKNOWN: "Incorrect API key provided", MISSING: "You didn't provide an API key"},
}


async def test_authentication_is_refused(gateway: Service, caplog: pytest.LogCaptureFixture) -> None:
    """A missing or unknown token gets 401 that says not to retry, in each API's words; a disabled actor 403 and its
    event. Another scheme than Bearer is 400 on the reference's routes, and a missing key on those for SDKs."""
    for headers, status, words in NOT_LET_IN:
        for path in ROUTES:
            answer = await ask(gateway, build(path, **headers))
            expected_status, expected = status, words
            api = path.split("/")[1]
            if api in WORDS:
                expected_status = 401 if status == 400 else status
                expected = WORDS[api].get(MISSING if status == 400 else words, words)
            assert (headers, answer.status) == (headers, expected_status)
            assert answer.headers.get("x-should-retry") == ("false" if answer.status == 401 else None)
            error = read_error(path, answer)
            assert expected in error["message"]
            if api == "openai" and answer.status == 401:
                assert error["code"] == "invalid_api_key"
    await wait_until(lambda: count_refusals(gateway) == len(ROUTES))
    assert set(read_events(gateway)) == {("AccessDenied", "initech")}
    lines = len(NOT_LET_IN) * len(ROUTES)
    await wait_until(lambda: [record.name for record in caplog.records].count("cgw.exchange") == lines)
    assert gateway.gateway.pool.statistics().opened == 0


async def test_feature_must_be_known(gateway: Service) -> None:
    """A wrong feature gets 400 everywhere, a missing one only on reference routes: SDKs do not send the header."""
    for path in ROUTES:
        for value in ("embeddings", "chat", ""):
            answer = await ask(gateway, build(path, x_sourcegraph_feature=value))
            assert answer.status == 400
            assert "allowed: chat_completions, code_completions" in read_error(path, answer)["message"]
        answer = await ask(gateway, build(path, x_sourcegraph_feature=None))
        if path.startswith("/v1/"):
            assert answer.status == 400
            assert "X-Sourcegraph-Feature header is required" in read_error(path, answer)["message"]
        else:
            assert answer.status == 200


async def test_feature_must_be_granted(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """An actor without a limit for the feature gets 403, and no event: no upstream was asked."""
    actors = tmp_path / "narrow.toml"
    actors.write_text(
        f'[[actor]]\nid = "narrow"\ntoken_sha256 = ["{hash_token(TOKEN)}"]\n'
        '[actor.limits.code_completions]\nlimit = 10\ninterval = "1h"\n'
    )
    async with open_gateway(tmp_path, upstream.url, more={"CODY_GATEWAY_ACTORS_FILE": str(actors)}) as gateway:
        for path in ROUTES:
            answer = await ask(gateway, build(path))
            assert answer.status == 403
            assert read_error(path, answer)["message"] == "no access to feature chat_completions"
        assert read_events(gateway) == []
    assert upstream.request_count == 0


async def test_code_completions_are_not_for_openai(gateway: Service) -> None:
    """Code completions get 400 on OpenAI's routes, which do not support them, as in the reference."""
    for path in ROUTES:
        answer = await ask(gateway, build(path, x_sourcegraph_feature="code_completions"))
        if "openai" in path:
            assert answer.status == 400
            assert "currently not supported for OpenAI" in read_error(path, answer)["message"]
        else:
            assert answer.status == 200


MESSAGE = {"role": "user", "content": "hi"}
WRONG_BODIES: dict[str, tuple[bytes | dict[str, Any], str, str | None]] = {
    # body (a mapping replaces fields of a valid one), a part of the message, OpenAI's param
    "empty": (b"", "the body is empty", None),
    "blank": (b" \n", "the body is empty", None),
    "no JSON": (b"model=gpt-4o", "invalid JSON", None),
    "cut off": (b'{"model": "gpt-4o", "messages": [', "unexpected end", None),
    "two values": (b"{} {}", "invalid JSON", None),
    "a list": (b"[]", "expected a JSON object, got a list", None),
    "null": (b"null", "expected a JSON object, got null", None),
    "not UTF-8": (b'{"model": "\xff"}', "not valid UTF-8 (byte 11)", None),
    "a byte order mark": (b"\xef\xbb\xbf{}", "invalid JSON", None),
    "nested too deeply": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply", None),
    "a number of 5000 digits": (b'{"model": ' + b"9" * 5000 + b"}", "out of range", None),
    "model is a number": ({"model": 4}, "model: expected a string, got a number", "model"),
    "model is null": ({"model": None}, "model: expected a string, got null", "model"),
    "no messages": ({"messages": None}, 'must contain "messages"', "messages"),
    "empty messages": ({"messages": []}, 'must contain "messages"', "messages"),
    "messages is an object": ({"messages": {}}, "messages: expected a list, got an object", "messages"),
    "message is a string": ({"messages": ["hi"]}, "messages[0]: expected an object, got a string", "messages[0]"),
    "role is missing": (
        {"messages": [MESSAGE, {"content": "hi"}]},
        "messages[1].role: required field is missing",
        "messages[1].role",
    ),
    "content is a number": (
        {"messages": [{"role": "user", "content": 1}]},
        "messages[0].content: expected a string or a list of parts, got a number",
        "messages[0].content",
    ),
    "text is null": (
        {"messages": [MESSAGE, {"role": "user", "content": [{"type": "text", "text": None}]}]},
        "messages[1].content[0].text: expected a string, got null",
        "messages[1].content[0].text",
    ),
    "stream is a string": ({"stream": "yes"}, "stream: expected true or false, got a string", "stream"),
    "max_tokens is a fraction": ({"max_tokens": 1.5}, "max_tokens: expected an integer", "max_tokens"),
    "several": ({"stream": 1, "temperature": "hot"}, "temperature: expected a number, got a string", None),
}


async def test_body_must_be_valid(gateway: Service) -> None:
    """Each wrong body gets 400 that names the problem by its path, and the connection stays usable."""
    for path in ROUTES:
        async with open_client(gateway.port) as client:
            for name, (wrong, words, param) in WRONG_BODIES.items():
                body = (
                    wrong if isinstance(wrong, bytes) else json.dumps(build_body(path, stream=False) | wrong).encode()
                )
                answer = await client.ask(build(path, body))
                assert (name, answer.status) == (name, 400)
                error = read_error(path, answer)
                assert words in error["message"], name
                if path.startswith("/openai/") and param is not None:
                    assert error["param"] == param
            assert (await client.ask(build(path))).status == 200
    assert read_events(gateway) == [("CompletionsFinished", "acme")] * len(ROUTES)


async def test_max_tokens_has_a_cap_on_the_references_route(gateway: Service) -> None:
    """More than the cap gets 400 on the reference's Anthropic route; the SDK route has no cap."""
    for path in ROUTES:
        body = json.dumps(build_body(path, stream=False, max_tokens=4001)).encode()
        answer = await ask(gateway, build(path, body))
        if path == "/v1/completions/anthropic-messages":
            assert answer.status == 400
            assert read_error(path, answer)["message"] == "max_tokens exceeds maximum allowed value of 4000: 4001"
        else:
            assert answer.status == 200


async def test_request_without_a_body_is_refused(gateway: Service) -> None:
    """A POST without framing has an empty body, which is refused."""
    for path in ROUTES:
        answer = await ask(gateway, build(path, b"", content_length=None))
        assert answer.status == 400
        assert "the body is empty" in read_error(path, answer)["message"]


async def test_too_large_body_is_refused(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """More than CODY_GATEWAY_MAX_BODY_BYTES gets 413, by its length or as soon as a chunk exceeds it, then a close."""
    async with open_gateway(tmp_path, upstream.url, more={"CODY_GATEWAY_MAX_BODY_BYTES": "1024"}) as gateway:
        for path in ROUTES:
            announced = build(path, b"", content_length="1025")
            chunked = build(
                path, b"400\r\n" + b" " * 1024 + b"\r\n1\r\n", content_length=None, transfer_encoding="chunked"
            )
            for data in (announced, chunked):
                async with open_client(gateway.port) as client:
                    answer = await client.ask(data)
                    assert (answer.status, answer.headers["connection"]) == (413, "close")
                    assert "1024 bytes" in read_error(path, answer)["message"]
                    assert await client.read_end() == b""


async def test_model_must_be_allowed(gateway: Service) -> None:
    """A model that is unknown, or not in the actor's list for the feature, gets 400 with the allowed names."""
    for path in ROUTES:
        provider = "anthropic" if "anthropic" in path else "openai"
        body = json.dumps(build_body(path, stream=False) | {"model": "gpt-0"}).encode()
        error = read_error(path, await ask(gateway, build(path, body)))
        assert error["message"].startswith(f'model "{provider}/gpt-0" is not allowed, allowed: [{provider}/')
        assert error.get("code", "model_not_found") == "model_not_found"
    path = "/anthropic/v1/messages"
    body = json.dumps(build_body(path) | {"model": "claude-sonnet-4-5"}).encode()
    error = read_error(path, await ask(gateway, build(path, body, x_sourcegraph_feature="code_completions")))
    assert error["message"].endswith(
        f"is not allowed, allowed: [anthropic/{ANTHROPIC_MODEL}] (by the caller's own list)"
    )


async def test_wrong_method_gets_405_with_allow(gateway: Service) -> None:
    """A wrong method gets 405 in the shape of the route; HEAD too, but without a body."""
    for method in ("GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"):
        for path in ROUTES:
            async with open_client(gateway.port) as client:
                await client.send(f"{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
                head, _, body = (await client.read_end()).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 405 ")
            assert b"\r\nallow: POST" in head
            assert bool(body) == (method != "HEAD")
            if body:
                request_id = head.partition(b"\r\nx-cgw-request-id: ")[2][:32].decode()
                fields = {"content-type": "application/json", "x-cgw-request-id": request_id}
                answer = Answer(405, fields, body)
                assert f"method {method} is not allowed" in read_error(path, answer)["message"]
    for path in ("/v1/limits", "/-/healthz", "/-/__version"):
        answer = await ask_raw(gateway.port, f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n".encode())
        assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")


NO_ROUTES = (
    "/",
    "/v1",
    "/v1/completions/openai/",
    "/v1/completions//openai",
    "/v1/completions/OpenAI",
    "/v1/completions/%6fpenai",
    "/v1/../v1/completions/openai",
    "/v1/completions/fireworks",
    "/openai/v1/chat/completions/x",
    "*",
    "http://x/nowhere",
)


async def test_unknown_route_gets_404(gateway: Service) -> None:
    """Unknown paths get 404 with any method; paths are compared exactly, without normalisation."""
    for method in ("GET", "POST"):
        for path in NO_ROUTES:
            answer = await ask(gateway, f"{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n".encode())
            assert (path, answer.status) == (path, 404)
            error = answer.json()["error"]
            # Below an SDK's prefix every error has the shape of its API.
            assert "there is no route" in (error["message"] if isinstance(error, dict) else error)


async def test_absolute_form_and_query_reach_the_route(gateway: Service) -> None:
    """Routes are found for targets in absolute form, and for targets with a query."""
    for path in ROUTES:
        for target in (f"http://gateway{path}", f"{path}?beta=true"):
            answer = await ask(gateway, build(path).replace(path.encode(), target.encode(), 1))
            assert (target, answer.status) == (target, 200)


async def test_malformed_http_gets_400_from_the_gateway(gateway: Service) -> None:
    """Malformed HTTP gets 400 in its route's shape; no part of the head is repeated in it."""
    for lines in (
        f"Host: gateway\r\nAuthorization : Bearer {TOKEN}",
        f"Host: gateway\r\nAuthorization: Bearer\r\n {TOKEN}",
        f"Host: gateway\r\nAuthorization Bearer {TOKEN}",
        f"Host: gateway\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\nAuthorization: Bearer {TOKEN}",
        f"Host: {TOKEN}\r\nHost: {TOKEN}",
        f"Host: gateway\r\nContent-Length: {TOKEN}",
        f"Authorization: Bearer {TOKEN}",
    ):
        for path in ROUTES:
            answer = await ask(gateway, f"POST {path} HTTP/1.1\r\n{lines}\r\n\r\n".encode())
            assert (answer.status, answer.headers["connection"]) == (400, "close")
            assert read_error(path, answer)["message"].startswith("malformed request: ")


async def test_timeout_must_be_positive(gateway: Service) -> None:
    """X-Timeout-Ms of zero or less gets 400; a value that is not a number is ignored, a huge one capped."""
    for path in ROUTES:
        for value in ("0", "-5"):
            answer = await ask(gateway, build(path, x_timeout_ms=value))
            assert answer.status == 400
            assert "X-Timeout-Ms must be a positive number" in read_error(path, answer)["message"]
        for value in ("soon", "", "1.5", "9" * 400, "9" * 5000):
            assert (await ask(gateway, build(path, x_timeout_ms=value))).status == 200


async def test_timeout_that_passes_gets_504(gateway: Service, upstream: ScriptedUpstream) -> None:
    """An exchange whose upstream exceeds X-Timeout-Ms gets 504 in time, is recorded, and is not charged."""
    upstream.scripts = {model: evolve(script, head_delay_seconds=60) for model, script in upstream.scripts.items()}
    for path in ROUTES:
        answer = await ask(gateway, build(path, x_timeout_ms="30"))
        assert answer.status == 504
        assert "timed out" in read_error(path, answer)["message"]
    assert read_events(gateway) == [("CompletionsFinished", "acme")] * len(ROUTES)
    head = f"GET /v1/limits HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\n\r\n".encode()
    assert (await ask(gateway, head)).json()["chat_completions"]["usage"] == 0


async def test_control_routes_refuse_bad_tokens(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """/v1/limits and a protected /-/healthz answer each wrong token with 401, 400 or 403, never with 500."""
    more = {"CODY_GATEWAY_DIAGNOSTICS_SECRET": "secret-of-the-diagnostics"}
    async with open_gateway(tmp_path, upstream.url, more=more) as gateway:
        for authorization, limits_status, health_status in [
            (b"", 401, 401),
            (b"Bearer stranger-of-the-tests", 401, 401),
            (b"Bearer", 400, 400),
            (b"Basic " + TOKEN.encode(), 400, 400),
            (b"Bearer " + DISABLED_TOKEN.encode(), 403, 401),
            (b"Bearer " + TOKEN.encode(), 200, 401),
            (b"Bearer secret-of-the-diagnostics", 401, 200),
        ]:
            field = b"authorization: " + authorization + b"\r\n" if authorization else b""
            for path, status in ((b"/v1/limits", limits_status), (b"/-/healthz", health_status)):
                answer = await ask(gateway, b"GET %b HTTP/1.1\r\nhost: x\r\n%b\r\n" % (path, field))
                assert (path, authorization, answer.status) == (path, authorization, status)
