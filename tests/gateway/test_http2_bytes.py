"""Over HTTP/2 the whole gateway forwards every byte, wherever the upstream cuts them."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
import trio
import trio.testing

from tests.support.gateway import open_gateway
from tests.support.raw_server import open_raw_server, read_request
from tests.support.requests import HEADERS, build_body
from tests.support.streams import STREAMS, encode_chunked, pick_cuts, split_events

PATHS = {"anthropic": "/anthropic/v1/messages", "openai": "/openai/v1/chat/completions"}
CUT_AT_EACH_BYTE = ("anthropic", "chunked")
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"


@pytest.mark.parametrize("framing", ["chunked", "content-length"])
@pytest.mark.parametrize("dialect", list(STREAMS))
async def test_bytes_are_equal_for_every_cut(tmp_path: Path, dialect: str, framing: str) -> None:
    """A recorded stream cut in two anywhere in its body, and in its framing, arrives as it was.

    Its framing by HTTP/2 is the same for every dialect: one of them is cut at each byte.
    """
    body = STREAMS[dialect]
    if framing == "chunked":
        response = HEAD + b"transfer-encoding: chunked\r\n\r\n" + encode_chunked(split_events(body))
    else:
        response = HEAD + b"content-length: %d\r\n\r\n" % len(body) + body
    begin = response.index(b"\r\n\r\n") - 2
    cuts = [
        *(begin + cut for cut in pick_cuts(response[begin:], each_byte=(dialect, framing) == CUT_AT_EACH_BYTE)),
        *(begin, len(response)),
    ]
    waiting = iter(cuts)

    async def play(stream: trio.SocketStream) -> None:
        while await read_request(stream) is not None:
            cut = next(waiting)
            await stream.send_all(response[:cut])
            await trio.testing.wait_all_tasks_blocked()  # the relay has forwarded what it got
            await stream.send_all(response[cut:])

    async with (
        open_raw_server(play) as port,
        open_gateway(tmp_path, f"http://127.0.0.1:{port}") as gateway,
        httpx.AsyncClient(base_url=gateway.url, headers=HEADERS, http1=False, http2=True, timeout=30) as client,
    ):
        for _ in cuts:
            answer = await client.post(PATHS[dialect], json=build_body(PATHS[dialect]))
            assert (answer.status_code, answer.http_version) == (200, "HTTP/2")
            assert answer.content == body
    assert next(waiting, None) is None
