"""The Slack webhook against servers that are slow, refuse, or break the connection."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from attrs import define, field

from cgw.errors import CgwError, ConfigError
from cgw.telemetry.logs import open_logging
from cgw.telemetry.slack import (
    SlackPostFailed,
    SlackWebhook,
    open_slack_webhook,
)
from tests.support.raw_server import open_raw_server, read_request
from tests.support.tls_peer import HOST, TlsAuthority

PATH = "/services/T0CANARY/B0CANARY/x7secretcanary"
PAYLOAD = {"text": "Grüße, \ud800 \U0001f600", "blocks": [{"type": "section"}]}

Play = Callable[[trio.SocketStream], Awaitable[None]]


def answer(status: str, body: bytes = b"", *headers: str) -> Play:
    """Return a handler that sends one answer."""
    fields = "".join(f"{header}\r\n" for header in headers)
    head = f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n{fields}\r\n"
    return lambda stream: stream.send_all(head.encode() + body)


OK = answer("200 OK", b"ok")


async def never(stream: trio.SocketStream) -> None:
    """Send nothing until the client disconnects."""
    while await stream.receive_some(100):
        pass


async def reset(stream: trio.SocketStream) -> None:
    """End the connection with an RST."""
    stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


async def hang_up(stream: trio.SocketStream) -> None:
    """End the connection without an answer."""


async def drip(stream: trio.SocketStream) -> None:
    """Send a head, and then a body that never ends."""
    await stream.send_all(b"HTTP/1.1 500 Internal Server Error\r\ntransfer-encoding: chunked\r\n\r\n")
    while True:
        await stream.send_all(b"1\r\nx\r\n")
        await trio.sleep(1)


async def babble(stream: trio.SocketStream) -> None:
    """Send something other than HTTP."""
    await stream.send_all(b"220 mail.example.com ESMTP\r\n")


@define
class Slack:
    """A server that answers each request with the next of ``plays``, and repeats the last one."""

    plays: list[Play]
    requests: list[tuple[str, str, str | None, bytes]] = field(factory=list)
    times: list[float] = field(factory=list)
    url: str = ""

    async def serve(self, stream: trio.SocketStream) -> None:
        received = await read_request(stream)
        assert received is not None
        request, body = received
        headers = {name.decode(): value.decode() for name, value in request.headers}
        self.requests.append((request.method.decode(), request.target.decode(), headers.get("content-type"), body))
        self.times.append(trio.current_time())
        await (self.plays.pop(0) if len(self.plays) > 1 else self.plays[0])(stream)


@asynccontextmanager
async def open_slack(*plays: Play) -> AsyncIterator[tuple[Slack, SlackWebhook]]:
    slack = Slack(list(plays))
    async with open_raw_server(slack.serve) as port:
        slack.url = f"http://127.0.0.1:{port}{PATH}"
        async with open_slack_webhook(slack.url) as webhook:
            yield slack, webhook


async def post_and_fail(webhook: SlackWebhook) -> str:
    with pytest.raises(SlackPostFailed) as caught:
        await webhook.post(PAYLOAD)
    assert isinstance(caught.value, CgwError)
    for text in (str(caught.value), repr(caught.value), repr(webhook)):
        assert "canary" not in text.lower()
    return str(caught.value).removeprefix("the Slack webhook at 127.0.0.1 ")


@pytest.fixture
def clock(autojump_clock: trio.testing.MockClock) -> trio.testing.MockClock:
    """A clock that jumps when nothing has happened for 10 ms."""
    autojump_clock.autojump_threshold = 0.01
    return autojump_clock


async def test_payload_is_posted_as_json() -> None:
    """Each message is one POST to the URL with the payload as JSON, whatever its text."""
    async with open_slack(OK) as (slack, webhook):
        await webhook.post(PAYLOAD)
        await webhook.post({"text": "again"})
    assert [request[:3] for request in slack.requests] == [("POST", PATH, "application/json")] * 2
    assert [json.loads(request[3]) for request in slack.requests] == [PAYLOAD, {"text": "again"}]


@pytest.mark.parametrize("success", ["200 OK", "201 Created", "204 No Content"])
async def test_any_success_will_do(success: str) -> None:
    """Every status 2xx means that the message was accepted."""
    async with open_slack(answer(success)) as (slack, webhook):
        await webhook.post(PAYLOAD)
    assert len(slack.requests) == 1


@pytest.mark.parametrize(
    "fault", [answer("500 Internal Server Error"), answer("503 Service Unavailable"), reset, hang_up, babble]
)
async def test_passing_failure_is_retried(clock: trio.testing.MockClock, fault: Play) -> None:
    """After 5xx or a broken connection the same message is retried, after one second, then after two."""
    async with open_slack(fault, fault, OK) as (slack, webhook):
        await webhook.post(PAYLOAD)
    assert slack.requests == slack.requests[:1] * 3
    first, second = slack.times[1] - slack.times[0], slack.times[2] - slack.times[1]
    assert 0.75 <= first <= 1.25
    assert 1.5 <= second <= 2.5


async def test_lasting_failure_ends_after_four_attempts(clock: trio.testing.MockClock) -> None:
    """The number of attempts is bounded; the error has the last one's reason, and their number."""
    async with open_slack(answer("502 Bad Gateway", b"<html>sorry</html>")) as (slack, webhook):
        assert await post_and_fail(webhook) == "answered 502; tried 4 times"
    assert len(slack.requests) == 4
    assert 7 * 0.75 <= trio.current_time() <= 7 * 1.25


@pytest.mark.parametrize(
    ("play", "reason"),
    [
        (answer("404 Not Found", b"no_service"), "answered 404 no_service"),
        (answer("400 Bad Request", b"invalid_payload\n"), "answered 400 invalid_payload"),
        (answer("403 Forbidden", b"secretcanary"), "answered 403"),
        (answer("403 Forbidden", b"cannot post to " + PATH.encode()), "answered 403"),
        (answer("410 Gone", b"x" * 100_000), "answered 410"),
        (answer("302 Found", b"", "location: /elsewhere"), "answered 302"),
    ],
)
async def test_refusal_is_final(play: Play, reason: str) -> None:
    """A refusal is not retried, nor a redirect followed; the error has Slack's code for the reason."""
    async with open_slack(play, OK) as (slack, webhook):
        assert await post_and_fail(webhook) == reason
    assert len(slack.requests) == 1


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [
        ("retry-after: 30", 30, 30),
        ("retry-after: 86400", 60, 60),
        ("retry-after: 0", 0.75, 1.25),
        ("retry-after: soon", 0.75, 1.25),
        ("retry-after: -5", 0.75, 1.25),
    ],
)
async def test_retry_after_is_honoured(clock: trio.testing.MockClock, header: str, least: float, most: float) -> None:
    """After 429 the next attempt waits for as long as the server says, from the backoff up to a minute."""
    async with open_slack(answer("429 Too Many Requests", b"", header), OK) as (slack, webhook):
        await webhook.post(PAYLOAD)
    assert least <= slack.times[1] - slack.times[0] <= most + 0.01


@pytest.mark.parametrize("play", [never, drip])
async def test_slow_server_times_out(clock: trio.testing.MockClock, play: Play) -> None:
    """An attempt may take 15 s, even if bytes keep coming; four attempts take a bounded time."""
    async with open_slack(play) as (slack, webhook):
        assert await post_and_fail(webhook) == "did not answer within 15 s; tried 4 times"
    assert len(slack.requests) == 4
    assert 60 + 7 * 0.75 <= trio.current_time() <= 60 + 7 * 1.25 + 0.01


async def test_refused_connection_is_reported(clock: trio.testing.MockClock) -> None:
    """A refused connection is retried, and then reported with its reason."""
    with trio.socket.socket() as listener:
        await listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    async with open_slack_webhook(f"http://127.0.0.1:{port}{PATH}") as webhook:
        text = await post_and_fail(webhook)
    assert text == "cannot be reached: Connection refused; tried 4 times"


@pytest.mark.parametrize("play", [never, answer("500 Internal Server Error")], ids=["waiting", "between attempts"])
async def test_cancellation_ends_a_post(clock: trio.testing.MockClock, play: Play) -> None:
    """A post that waits for an answer or for its next attempt is cancelled at once, and closes its connection."""
    left = trio.Event()

    async def note_end(stream: trio.SocketStream) -> None:
        await play(stream)
        await never(stream)
        left.set()

    async with open_slack(note_end) as (_, webhook):
        with trio.move_on_after(0.5) as post_scope:
            await webhook.post(PAYLOAD)
        assert post_scope.cancelled_caught
        assert trio.current_time() == pytest.approx(0.5)
        with trio.fail_after(1):
            await left.wait()


async def test_url_stays_out_of_the_log(clock: trio.testing.MockClock) -> None:
    """Even with the debug lines of all libraries, no log line of a good or a failed post has the path."""
    stream = io.StringIO()
    with open_logging(stream, level="DEBUG"):
        async with open_slack(OK, answer("404 Not Found"), reset) as (_, webhook):
            await webhook.post(PAYLOAD)
            for _ in range(2):
                with pytest.raises(SlackPostFailed):
                    await webhook.post(PAYLOAD)
            logging.getLogger("cgw.test").info("reached the end")
    assert "reached the end" in stream.getvalue()
    assert "canary" not in stream.getvalue().lower()


async def test_tls_context_decides_which_servers_are_trusted(clock: trio.testing.MockClock) -> None:
    """A server with a trusted authority gets the message; with the system's authorities alone it does not."""
    authority = TlsAuthority()
    server_context = authority.build_server_context(ssl.TLSVersion.TLSv1_3)

    async def serve(stream: trio.SocketStream) -> None:
        tls_stream = trio.SSLStream(stream, server_context, server_side=True)
        received = b""
        with contextlib.suppress(trio.BrokenResourceError):
            while b'{"text"' not in received:
                received += await tls_stream.receive_some(4096)
            await tls_stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            await stream.wait_send_all_might_not_block()

    async with open_raw_server(serve) as port:
        url = f"https://{HOST}:{port}{PATH}"
        async with open_slack_webhook(url, tls_context=authority.build_client_context()) as webhook:
            await webhook.post(PAYLOAD)
        async with open_slack_webhook(url) as webhook:
            text = await post_and_fail(webhook)
    assert (
        text == "cannot be reached: the certificate is not valid: unable to get local issuer certificate; tried 4 times"
    )


@pytest.mark.parametrize("url", ["http://[::1", "https://example.com:port/x"])
async def test_invalid_url_is_refused(url: str) -> None:
    """A URL that is not valid gives a configuration problem, not a traceback."""
    with pytest.raises(ConfigError, match="the URL of the Slack webhook is not valid"):
        async with open_slack_webhook(url):
            pass


def test_httpx_is_not_imported_before_a_webhook_is_opened() -> None:
    """A process without a webhook does not import httpx."""
    code = "import sys, cgw.telemetry.slack; sys.exit('httpx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
