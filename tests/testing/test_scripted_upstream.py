"""The scripted upstream on the wire: timing, framing, recorded requests, and detection of peers that close."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import h11
import pytest
import trio

from cgw.testing.script import Breakage, Script, split_tokens
from cgw.testing.scripted_upstream import ScriptedUpstream, open_scripted_upstream

KEY = "sk-right"
FAST = Script(answer="One two three.", tokens_per_second=0, api_key=KEY)
MODEL = "claude-3-5-sonnet-20240620"


class H11Client:
    """One connection to the upstream, parsed by h11, for tests of framing and of closing."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.h11 = h11.Connection(h11.CLIENT)

    async def send(self, request: h11.Request, body: bytes) -> None:
        data = self.h11.send(request) + self.h11.send(h11.Data(data=body)) + self.h11.send(h11.EndOfMessage())
        await self.stream.send_all(data)

    async def next_event(self) -> h11.Event:
        while True:
            event = self.h11.next_event()
            if isinstance(event, h11.Event):
                return event
            self.h11.receive_data(await self.stream.receive_some(65536))

    async def receive_head(self) -> h11.Response:
        event = await self.next_event()
        assert isinstance(event, h11.Response)
        return event

    async def receive_body(self) -> bytes:
        body = b""
        while isinstance(event := await self.next_event(), h11.Data):
            body += event.data
        assert isinstance(event, h11.EndOfMessage)
        return body


@asynccontextmanager
async def open_h11_client(upstream: ScriptedUpstream) -> AsyncIterator[H11Client]:
    async with await trio.open_tcp_stream("127.0.0.1", int(upstream.url.rpartition(":")[2])) as stream:
        yield H11Client(stream)


def chat_request(body: bytes, **headers: str) -> h11.Request:
    fields = {"host": "x", "authorization": f"Bearer {KEY}", "content-length": str(len(body))} | headers
    return h11.Request(method="POST", target="/v1/chat/completions", headers=list(fields.items()))


def chat_body(**fields: Any) -> bytes:
    return json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}]} | fields).encode()


async def receive_until_closed(stream: trio.SocketStream) -> tuple[bytes, bool]:
    """Return all bytes up to the end of the connection, and whether it was a reset."""
    answer = b""
    try:
        while data := await stream.receive_some(65536):
            answer += data
    except trio.BrokenResourceError:
        return answer, True
    return answer, False


async def ask(client: H11Client, body: bytes, **headers: str) -> tuple[h11.Response, bytes]:
    await client.send(chat_request(body, **headers), body)
    return await client.receive_head(), await client.receive_body()


def field(response: h11.Response, name: bytes) -> bytes | None:
    return dict(response.headers).get(name)


def test_tokens_are_words_with_their_leading_blanks() -> None:
    """Joined tokens are the text again, also one that ends with blanks."""
    assert split_tokens("One two\n three. ") == ("One", " two", "\n three.", " ")
    assert split_tokens("") == ()


def test_a_script_never_shows_its_key() -> None:
    """The API key is not in the script's repr."""
    assert KEY not in repr(FAST)


async def test_streams_are_chunked_event_by_event_and_the_connection_is_kept() -> None:
    """Each event is a chunk of its own, and the connection is kept for the next request."""
    async with open_scripted_upstream(FAST) as upstream, open_h11_client(upstream) as client:
        body = chat_body(stream=True)
        for round_number in range(2):
            await client.send(chat_request(body), body)
            head = await client.receive_head()
            events = []
            while isinstance(event := await client.next_event(), h11.Data):
                events.append(bytes(event.data))
            assert field(head, b"transfer-encoding") == b"chunked"
            assert len(events) == 6, round_number
            assert all(event.startswith(b"data: ") and event.endswith(b"\n\n") for event in events)
            assert events[-1] == b"data: [DONE]\n\n"
            client.h11.start_next_cycle()
        assert [request.connection for request in upstream.requests] == [1, 1]


async def test_a_stream_can_have_a_content_length() -> None:
    """``use_content_length`` sends the same body with its length instead of chunked."""
    async with open_scripted_upstream(FAST) as upstream, open_h11_client(upstream) as client:
        _, chunked = await ask(client, chat_body(stream=True))
        client.h11.start_next_cycle()
        upstream.scripts["*"] = Script(answer=FAST.answer, tokens_per_second=0, api_key=KEY, use_content_length=True)
        head, measured = await ask(client, chat_body(stream=True))
    assert field(head, b"content-length") == str(len(measured)).encode()
    assert len(measured) == len(chunked)


async def test_http_1_0_gets_a_body_that_ends_with_the_connection() -> None:
    """An HTTP/1.0 client gets no chunks; the end of the connection ends the body."""
    async with open_scripted_upstream(FAST) as upstream, open_h11_client(upstream) as client:
        body = chat_body(stream=True)
        head = (
            f"POST /v1/chat/completions HTTP/1.0\r\nauthorization: Bearer {KEY}\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        await client.stream.send_all(head.encode() + body)
        answer, _ = await receive_until_closed(client.stream)
    assert b"transfer-encoding" not in answer.lower()
    assert answer.endswith(b"data: [DONE]\n\n")


async def test_tokens_are_sent_when_they_are_due(autojump_clock: trio.testing.MockClock) -> None:
    """Tokens are sent after the script's delays and at its rate, exact to a millisecond of virtual time."""
    script = Script(
        answer="One two three.", tokens_per_second=4, head_delay_seconds=1, first_token_delay_seconds=2, api_key=KEY
    )
    # Virtual time jumps when all tasks wait, also while bytes are in a real socket: only streams in memory are exact.
    client_end, server_end = trio.testing.memory_stream_pair()
    upstream = ScriptedUpstream({"*": script}, None)
    client = h11.Connection(h11.CLIENT)
    body = chat_body(stream=True)
    data = client.send(chat_request(body)) + client.send(h11.Data(data=body)) + client.send(h11.EndOfMessage())
    times: list[float] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(upstream.serve_connection, server_end)
        await client_end.send_all(data)
        while True:
            event = client.next_event()
            if event is h11.NEED_DATA:
                client.receive_data(bytes(await client_end.receive_some()))
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                times.append(trio.current_time())
        nursery.cancel_scope.cancel()
    start = upstream.requests[0].received_at
    assert [round(time - start, 3) for time in times] == [1, 1, 3, 3.25, 3.5, 3.5, 3.5]


async def test_requests_are_recorded() -> None:
    """Method, target, headers and body of each request are kept, with the progress of its answer."""
    async with open_scripted_upstream(FAST) as upstream, open_h11_client(upstream) as client:
        body = chat_body(stream=True, user="acme:7")
        await ask(client, body, **{"x-extra": "1"})
        seen = await upstream.wait_request()
        await seen.wait_over()
    assert (seen.method, seen.target, seen.status, seen.events_sent) == ("POST", "/v1/chat/completions", 200, 6)
    assert seen.header("x-extra") == "1"
    assert seen.header("x-none") is None
    assert seen.json()["user"] == "acme:7"
    assert seen.body == body
    assert seen.answered_at is not None
    assert seen.peer_closed_at is None
    assert KEY not in repr(seen)


@pytest.mark.parametrize(
    ("script", "is_stream"),
    [
        pytest.param(Script(api_key=KEY, head_delay_seconds=600), True, id="before the head"),
        pytest.param(Script(api_key=KEY, first_token_delay_seconds=600), True, id="before the first token"),
        pytest.param(Script(api_key=KEY, tokens_per_second=0.01), True, id="between tokens"),
        pytest.param(Script(api_key=KEY, tokens_per_second=0.01), False, id="not streaming"),
        pytest.param(Script(api_key=KEY, answer="word " * 2_000_000, tokens_per_second=0), False, id="blocked in send"),
    ],
)
async def test_a_peer_that_closes_is_detected_within_milliseconds(script: Script, is_stream: bool) -> None:
    """In each phase of an answer, a close by the peer ends it, and its time is recorded."""
    async with open_scripted_upstream(script) as upstream:
        async with open_h11_client(upstream) as client:
            body = chat_body(stream=is_stream)
            await client.send(chat_request(body), body)
            seen = await upstream.wait_request()
            await trio.testing.wait_all_tasks_blocked(0.01)
        left_at = trio.current_time()
        with trio.fail_after(5):
            await seen.wait_over()
    assert seen.peer_closed_at is not None
    assert seen.peer_closed_at - left_at < 0.05
    assert seen.answered_at is None


async def test_pipelined_requests_are_answered_in_order() -> None:
    """A second request that arrives during the first answer is answered after it, and is not taken for a close."""
    script = Script(answer="a b", tokens_per_second=200, api_key=KEY)
    body = chat_body(stream=True)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
    request = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
    async with open_scripted_upstream(script) as upstream, open_h11_client(upstream) as client:
        await client.stream.send_all(request)
        await (await upstream.wait_request()).wait_events_sent(1)
        await client.stream.send_all(request)
        answer = b""
        while answer.count(b"[DONE]\n\n\r\n0\r\n\r\n") < 2:
            answer += await client.stream.receive_some(65536)
    assert answer.count(b"HTTP/1.1 200") == 2
    assert all(request.peer_closed_at is None for request in upstream.requests)


@pytest.mark.parametrize("breakage", [Breakage.RESET, Breakage.CLOSE])
async def test_a_stream_breaks_off_after_so_many_events(breakage: Breakage) -> None:
    """``break_after_events`` sends exactly that many events and then ends the connection as ``breakage`` says."""
    script = Script(api_key=KEY, tokens_per_second=0, break_after_events=2, breakage=breakage)
    async with open_scripted_upstream(script) as upstream, open_h11_client(upstream) as client:
        body = chat_body(stream=True)
        await client.send(chat_request(body), body)
        answer, was_reset = await receive_until_closed(client.stream)
        seen = upstream.requests[0]
        await seen.wait_over()
    assert answer.count(b"data: ") == 2
    assert was_reset is (breakage is Breakage.RESET)
    assert not answer.endswith(b"0\r\n\r\n")
    assert seen.answered_at is None
    assert seen.peer_closed_at is None


async def test_a_body_can_end_correctly_but_too_early() -> None:
    """``Breakage.END`` ends the HTTP body correctly, without the API's final event."""
    script = Script(api_key=KEY, tokens_per_second=0, break_after_events=2, breakage=Breakage.END)
    async with open_scripted_upstream(script) as upstream, open_h11_client(upstream) as client:
        _, answer = await ask(client, chat_body(stream=True))
    assert answer.count(b"data: ") == 2
    assert b"[DONE]" not in answer


async def test_a_body_that_is_not_streamed_breaks_in_its_middle() -> None:
    """Without streaming, a scripted break ends the body before its ``content-length``."""
    script = Script(api_key=KEY, tokens_per_second=0, break_after_events=0, breakage=Breakage.CLOSE)
    async with open_scripted_upstream(script) as upstream, open_h11_client(upstream) as client:
        with pytest.raises(h11.RemoteProtocolError, match="without sending complete message body"):
            await ask(client, chat_body())


@pytest.mark.parametrize(
    ("path", "method", "status", "kind"),
    [
        ("/v1/messages", "GET", 405, "invalid_request_error"),
        ("/v1/messages/none", "POST", 404, "not_found_error"),
        ("/v1/chat/completions", "GET", 405, None),
        ("/elsewhere", "POST", 404, None),
    ],
)
async def test_unknown_routes_and_methods_get_the_apis_own_errors(
    path: str, method: str, status: int, kind: str | None
) -> None:
    """The upstream answers 404, and 405 with ``allow``, in the format of the API that the path belongs to."""
    async with open_scripted_upstream(FAST) as upstream, open_h11_client(upstream) as client:
        await client.send(h11.Request(method=method, target=path, headers=[("host", "x")]), b"")
        head, body = await client.receive_head(), await client.receive_body()
    error = json.loads(body)["error"]
    assert head.status_code == status
    assert field(head, b"allow") == (b"POST" if status == 405 else None)
    assert error["type"] == (kind or "invalid_request_error")
    assert ("param" in error) == (kind is None)


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b'{"model": 1}', b'{"model": "gpt-4o"}', b'{"model": "gpt-4o", "messages": []}']
)
async def test_bad_bodies_get_400(body: bytes) -> None:
    """A body without a required field is refused in the API's format; the connection stays usable."""
    async with open_scripted_upstream(FAST) as upstream, open_h11_client(upstream) as client:
        head, answer = await ask(client, body)
        client.h11.start_next_cycle()
        good, _ = await ask(client, chat_body())
    assert head.status_code == 400
    assert json.loads(answer)["error"]["type"] == "invalid_request_error"
    assert good.status_code == 200


@pytest.mark.parametrize(
    "data", [b"\x16\x03\x01\x02\x00\r\n\r\n", b"POST /v1/messages HTTP/1.1\r\nbad header: x\r\n\r\n", b"GET\r\n\r\n"]
)
async def test_malformed_requests_get_400_and_are_closed(data: bytes) -> None:
    """A request that is not valid HTTP/1.1 gets 400, its connection is closed, and others are served as before."""
    async with open_scripted_upstream(FAST) as upstream:
        async with open_h11_client(upstream) as client:
            await client.stream.send_all(data)
            answer, _ = await receive_until_closed(client.stream)
        assert answer.startswith(b"HTTP/1.1 400")
        assert upstream.requests == []
        async with open_h11_client(upstream) as client:
            assert (await ask(client, chat_body()))[0].status_code == 200


async def test_expect_100_continue_is_answered() -> None:
    """A client that waits for 100 before it sends its body gets it (RFC 9110 §10.1.1)."""
    async with open_scripted_upstream(FAST) as upstream, open_h11_client(upstream) as client:
        body = chat_body()
        await client.stream.send_all(client.h11.send(chat_request(body, expect="100-continue")))
        assert isinstance(await client.next_event(), h11.InformationalResponse)
        rest = client.h11.send(h11.Data(data=body)) + client.h11.send(h11.EndOfMessage())
        await client.stream.send_all(rest)
        assert (await client.receive_head()).status_code == 200


async def test_keep_requests_bounds_the_record() -> None:
    """With ``keep_requests``, only the newest requests are kept, and all are counted."""
    async with open_scripted_upstream(FAST, keep_requests=2) as upstream, open_h11_client(upstream) as client:
        for number in range(4):
            await ask(client, chat_body(user=str(number)))
            client.h11.start_next_cycle()
    assert [request.json()["user"] for request in upstream.requests] == ["2", "3"]
    assert upstream.request_count == 4


async def test_leaving_the_block_closes_all_connections() -> None:
    """At the end of the block, an unfinished answer breaks off and the port is free again."""
    body = chat_body(stream=True)
    async with AsyncExitStack() as after:
        async with open_scripted_upstream(Script(api_key=KEY, first_token_delay_seconds=600)) as upstream:
            client = await after.enter_async_context(open_h11_client(upstream))
            await client.send(chat_request(body), body)
            await (await upstream.wait_request()).wait_events_sent(1)
            port = int(upstream.url.rpartition(":")[2])
            assert upstream.open_connections == 1
        assert upstream.open_connections == 0
        answer, _ = await receive_until_closed(client.stream)
        assert answer.count(b"data: ") == 1
        assert not answer.endswith(b"0\r\n\r\n")
    async with open_scripted_upstream(FAST, port=port) as again:
        assert again.url == upstream.url


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/chat/completions"])
@pytest.mark.parametrize("headers", [{}, {"authorization": "Basic eA=="}, {"x-api-key": ""}])
async def test_a_missing_key_gets_401(path: str, headers: dict[str, str]) -> None:
    """A request without a key, or with one in another scheme, is refused in the API's format."""
    async with open_scripted_upstream(FAST) as upstream, open_h11_client(upstream) as client:
        fields = {"host": "x", "content-length": "2"} | headers
        await client.send(h11.Request(method="POST", target=path, headers=list(fields.items())), b"{}")
        head, body = await client.receive_head(), await client.receive_body()
    assert head.status_code == 401
    is_anthropic = path == "/v1/messages"
    assert json.loads(body)["error"]["type"] == ("authentication_error" if is_anthropic else "invalid_request_error")
