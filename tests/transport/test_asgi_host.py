"""ASGI apps on cgw's own engine: messages, hang-ups and failures, each of which costs its own request only."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from cgw.errors import Refusal
from cgw.transport.asgi_host import LEAVE_SECONDS, AsgiApp, Receive, Scope, Send, run_asgi_app
from cgw.transport.client_side import ClientLimits, ClientSide
from tests.support.http_engine import ERRORS, Engine, open_engine
from tests.support.raw_client import AnswerCut, ask, open_client
from tests.support.waiting import wait_until

GET = b"GET /a%20b?c=d HTTP/1.1\r\nHost: x\r\nX-Twice: 1\r\nx-twice: 2\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\n"


@asynccontextmanager
async def serve(app: AsgiApp, limits: ClientLimits | None = None) -> AsyncIterator[Engine]:
    """Serve ``app`` on a connection engine."""

    async def handle(client: ClientSide) -> None:
        await run_asgi_app(app, client, lambda refusal, path, request_id: ERRORS.render(refusal, request_id))

    async with open_engine(handle, limits) as engine:
        yield engine


async def respond(send: Send, body: bytes = b"ok", status: int = 200) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"X-Of-App", b"y")]})
    await send({"type": "http.response.body", "body": body})


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    await respond(send, (await receive())["body"])


async def test_scope_tells_the_request_as_it_came() -> None:
    """Method, path, query, header fields (repeated ones, too) and the client's address are in the scope."""
    scopes: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        await respond(send)

    async with serve(app) as engine, open_client(engine.port) as client:
        for target in (b"/a%20b?c=d", b"http://elsewhere/a%20b?c=d"):
            await client.ask(GET.replace(b"/a%20b?c=d", target))
    for scope in scopes:
        assert (scope["type"], scope["method"], scope["http_version"]) == ("http", "GET", "1.1")
        assert (scope["path"], scope["raw_path"], scope["query_string"]) == ("/a b", b"/a%20b", b"c=d")
        assert scope["headers"] == [(b"host", b"x"), (b"x-twice", b"1"), (b"x-twice", b"2")]
        assert scope["client"] == ("127.0.0.1", 0)


async def test_whole_response_has_its_length_and_the_apps_fields() -> None:
    """A response in one message is sent with a length, a date and the app's fields; HEAD gets them without a body."""
    async with serve(echo) as engine, open_client(engine.port) as client:
        answer = await client.ask(POST + b"Content-Length: 5\r\n\r\nhello")
        assert (answer.status, answer.body, answer.headers["x-of-app"]) == (200, b"hello", "y")
        assert {"date", "content-length"} <= answer.headers.keys()
        assert "transfer-encoding" not in answer.headers


BODIES = {
    "length": (b"Content-Length: 5\r\n\r\nhello", b"hello"),
    "chunked": (b"Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", b"hello"),
    "large": (b"Content-Length: 1000000\r\n\r\n" + b"x" * 1_000_000, b"x" * 1_000_000),
    "none": (b"\r\n", b""),
}


@pytest.mark.parametrize("name", BODIES)
async def test_body_is_one_message(name: str) -> None:
    """The whole body is given as one message, for every framing, and the connection is kept."""
    data, body = BODIES[name]
    async with serve(echo) as engine, open_client(engine.port) as client:
        for _ in range(2):
            answer = await client.ask(POST + data)
            assert (answer.status, answer.body) == (200, body)


async def test_continue_is_sent_only_when_the_app_wants_the_body() -> None:
    """``Expect: 100-continue`` is answered by 100 when the app reads; otherwise by the response, and the end."""

    async def ignore(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send)

    head = POST + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n"
    async with serve(ignore) as engine, open_client(engine.port) as client:
        answer = await client.ask(head)
        assert (answer.informational, answer.headers["connection"]) == ((), "close")
        assert await client.read_end() == b""
    async with serve(echo) as engine, open_client(engine.port) as client:
        await client.send(head)
        await trio.testing.wait_all_tasks_blocked()
        answer = await client.ask(b"hello")
        assert (answer.informational, answer.body) == ((100,), b"hello")


@pytest.mark.parametrize("data", [b"Content-Length: 11\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\nb\r\n"])
async def test_too_large_body_is_413(data: bytes) -> None:
    """A body over the limit is refused whether the app reads it itself or not."""
    async with serve(echo, ClientLimits(max_body_bytes=10)) as engine, open_client(engine.port) as client:
        answer = await client.ask(POST + data)
        assert (answer.status, answer.headers["connection"]) == (413, "close")


async def test_stream_is_sent_as_it_comes_and_head_has_no_body() -> None:
    """Each message of a streamed response is sent at once, chunked; a client of HTTP/1.0 reads to the end."""
    proceed = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": True})
        await proceed.wait()
        await send({"type": "http.response.body", "body": b"two", "more_body": True})
        await send({"type": "http.response.body"})

    async with serve(app) as engine, open_client(engine.port) as client:
        await client.send(GET)
        data = b""
        while b"one" not in data:
            data += await client.stream.receive_some(65536)
        assert b"transfer-encoding: chunked" in data
        proceed.set()
        while not data.endswith(b"0\r\n\r\n"):
            data += await client.stream.receive_some(65536)
        assert data.endswith(b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n")
        await client.send(GET.replace(b"GET", b"HEAD") + GET.replace(b"HTTP/1.1", b"HTTP/1.0"))
        rest = await client.read_end()
        head, _, after = rest.partition(b"\r\n\r\n")
        assert b"200" in head
        assert after.startswith(b"HTTP/1.1 200")
        assert after.endswith(b"\r\n\r\nonetwo")


async def test_app_that_fails_before_its_response_is_500(caplog: pytest.LogCaptureFixture) -> None:
    """An exception is one error line and a 500; the connection goes on."""

    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("bug")

    async with serve(fail) as engine, open_client(engine.port) as client:
        for _ in range(2):
            answer = await client.ask(GET)
            assert (answer.status, answer.json()["error"]) == (500, "internal error")
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [record.getMessage() for record in errors] == ["the control app failed at /a%20b"] * 2


async def test_app_that_fails_in_its_response_is_broken_off(caplog: pytest.LogCaptureFixture) -> None:
    """After the head nothing but a visible break can tell of an exception."""

    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"part", "more_body": True})
        raise RuntimeError("bug")

    async with serve(fail) as engine, open_client(engine.port) as client:
        with pytest.raises(AnswerCut) as caught:
            await client.ask(GET)
        assert caught.value.body == b"part"
    assert len(caplog.records) == 1


async def forget(scope: Scope, receive: Receive, send: Send) -> None:
    return


async def start_only(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})


async def talk_nonsense(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.body", "body": b"x"})


@pytest.mark.parametrize("app", [forget, start_only, talk_nonsense])
async def test_app_without_a_response_is_500(app: AsgiApp) -> None:
    """An app that returns without a whole response, or violates ASGI, is answered for."""
    async with serve(app) as engine:
        assert (await ask(engine.port, GET)).status == 500


async def test_messages_after_the_response_are_refused_to_the_app() -> None:
    """An app that sends more than one response fails; the client has the first one, whole."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send)
        with pytest.raises(RuntimeError):
            await respond(send)
        assert (await receive())["type"] == "http.request"
        assert (await receive())["type"] == "http.disconnect"

    async with serve(app) as engine:
        assert (await ask(engine.port, GET)).body == b"ok"


LEAVING = {
    "without a body": b"\r\n",
    "after its body": b"Content-Length: 2\r\n\r\nok",
    "with a body that is not read": b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n",
    "while it expects 100": b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n",
}


@pytest.mark.parametrize("name", LEAVING)
async def test_app_that_does_not_return_is_cancelled_after_its_client(
    autojump_clock: trio.testing.MockClock, name: str
) -> None:
    """An app that waits for something else ends a second after its client has left; nothing remains."""
    autojump_clock.autojump_threshold = 0.02
    ended: list[float] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await trio.sleep(3600)
        finally:
            ended.append(trio.current_time())

    async with serve(app) as engine:
        async with open_client(engine.port) as client:
            await client.send(POST + LEAVING[name])
            await trio.sleep(10)
            assert not ended
            left_at = trio.current_time()
        await trio.sleep(LEAVE_SECONDS + 1)
        assert ended == [pytest.approx(left_at + LEAVE_SECONDS, abs=0.5)]


@pytest.mark.parametrize("reads_body", [True, False])
async def test_app_hears_of_the_clients_leaving(reads_body: bool) -> None:
    """``http.disconnect`` comes once the client has left, and what is sent after that goes nowhere."""
    messages: list[dict[str, Any]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        messages.append(await receive())
        messages.append(await receive())
        await respond(send)

    data = b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" if reads_body else b"\r\n"
    async with serve(app) as engine:
        async with open_client(engine.port) as client:
            await client.send(POST + data)
            await wait_until(lambda: len(messages) == 1)
        await wait_until(lambda: len(messages) == 2)
    assert [message["type"] for message in messages] == ["http.request", "http.disconnect"]


async def test_client_that_leaves_in_mid_body_ends_the_app() -> None:
    """An app that reads a body which never comes is ended, without a line in the log."""
    outcome: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await receive()
        finally:
            outcome.append("ended")

    async with serve(app) as engine:
        async with open_client(engine.port) as client:
            await client.send(POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhe")
            await wait_until(lambda: bool(engine.handled))
        await wait_until(lambda: outcome == ["ended"])


async def test_refusal_of_the_app_itself_is_rendered() -> None:
    """A refusal that leaves the app is answered with its status and fields."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise Refusal(429, "slow down", headers=[(b"retry-after", b"7")])

    async with serve(app) as engine:
        answer = await ask(engine.port, GET)
        assert (answer.status, answer.headers["retry-after"]) == (429, "7")
