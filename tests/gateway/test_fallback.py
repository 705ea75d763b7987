"""The second base URL of a provider: asked once, where the first did not serve and nothing is lost by asking again."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.lowlevel

from cgw.providers.fallback import Fallback
from cgw.wire.messages import Origin, UpstreamRequest, encode_head
from tests.support.fault_bench import WHOLE, Bench, open_bench
from tests.support.gateway import ANTHROPIC_KEY
from tests.support.raw_server import open_raw_server, read_request
from tests.support.streams import ANTHROPIC


class Second:
    """The fallback: it answers all with ``answer`` and keeps what it was asked."""

    def __init__(self) -> None:
        self.answer = WHOLE
        self.asked: list[tuple[bytes, bytes, dict[bytes, bytes]]] = []

    async def serve(self, stream: trio.SocketStream) -> None:
        while (asked := await read_request(stream)) is not None:
            request, body = asked
            self.asked.append((bytes(request.target), body, dict(request.headers)))
            await stream.send_all(self.answer)


@asynccontextmanager
async def open_both(folder: Path, more: dict[str, str] | None = None) -> AsyncIterator[tuple[Bench, Second]]:
    """Run a gateway with two upstreams."""
    second = Second()
    async with open_raw_server(second.serve) as port:
        fallback = {"CODY_GATEWAY_ANTHROPIC_FALLBACK_API_URL": f"http://127.0.0.1:{port}/eu/"}
        async with open_bench(folder, fallback | (more or {})) as bench:
            yield bench, second


async def test_fallback_answers_for_5xx(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A 5xx of the first is followed by one request to the second, with its path, the same body and the same key."""
    caplog.set_level(logging.INFO, "cgw.exchange")
    async with open_both(tmp_path) as (bench, second):
        for status in (500, 503, 529):
            bench.upstream.answer = b"HTTP/1.1 %d x\r\ncontent-length: 2\r\n\r\n{}" % status
            answer = await bench.ask()
            assert (answer.status, answer.body) == (200, ANTHROPIC)
            await bench.check(str(status), resolved=200, upstream=200)
            assert f"answered {status}" in (bench.records[-1].warning or "")
        assert [target for target, _, _ in second.asked] == [b"/eu/v1/messages"] * 3
        assert second.asked[0][2][b"x-api-key"] == ANTHROPIC_KEY.encode()
        assert b"Good day" in second.asked[0][1]


async def test_fallback_is_asked_once(tmp_path: Path) -> None:
    """The answer of the second counts, whatever it is; other answers of the first are not asked again."""
    async with open_both(tmp_path) as (bench, second):
        bench.upstream.answer = second.answer = b"HTTP/1.1 500 x\r\ncontent-length: 2\r\n\r\n{}"
        assert (await bench.ask()).status == 500
        assert (bench.upstream.requests, len(second.asked)) == (1, 1)
        for answer, status in ((b"HTTP/1.1 429 x\r\ncontent-length: 0\r\n\r\n", 503), (b"", 502), (WHOLE, 200)):
            bench.upstream.answer = answer
            assert (await bench.ask()).status == status
        assert len(second.asked) == 1
        assert (await bench.ask("/openai/v1/chat/completions")).status == 200


async def test_fallback_answers_for_a_refused_connection(tmp_path: Path) -> None:
    """A first upstream that cannot be connected to is replaced by the second."""
    async with open_raw_server(Second().serve) as port:
        closed = f"http://127.0.0.1:{port}"
    async with open_both(tmp_path, {"CODY_GATEWAY_ANTHROPIC_API_URL": closed}) as (bench, second):
        assert (await bench.ask()).status == 200
        await bench.check("refused", resolved=200, upstream=200)
        assert len(second.asked) == 1


def test_redirected_request_has_the_other_path_and_host() -> None:
    """Of the target, only the base URL's path is replaced; the query stays."""
    fallback = Fallback.parse("https://a.example/one", "https://b.example:8443/two/")
    request = UpstreamRequest(Origin("https", "a.example", 443), b"/one/v1/x?q=1", ((b"x-api-key", b"k"),), b"{}")
    assert encode_head(fallback.redirect(request)) == (
        b"POST /two/v1/x?q=1 HTTP/1.1\r\nhost: b.example:8443\r\nx-api-key: k\r\ncontent-length: 2\r\n\r\n"
    )
