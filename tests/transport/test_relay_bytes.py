"""Both paths of the relay forward every byte, wherever the upstream cuts them, with every framing on both sides."""

from __future__ import annotations

import h11
import pytest
import trio
import trio.testing

from cgw.testing.bare_relay import open_bare_gateway
from cgw.transport.flat_relay import FlatRelay
from cgw.wire.messages import Origin
from tests.support.raw_server import open_raw_server, read_request
from tests.support.streams import STREAMS, encode_chunked, split_events

FRAMINGS = ["chunked", "content-length", "until-close"]


def build_response(body: bytes, framing: str, *, keeps_alive: bool) -> bytes:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
    head += b"" if keeps_alive else b"connection: close\r\n"
    if framing == "chunked":
        return head + b"transfer-encoding: chunked\r\n\r\n" + encode_chunked(split_events(body))
    if framing == "content-length":
        return head + b"content-length: %d\r\n\r\n" % len(body) + body
    return head + b"\r\n" + body


async def read_response(stream: trio.SocketStream, request: bytes) -> tuple[bytes, bool]:
    """Send ``request``; return the body of the answer, and whether the connection can be used again."""
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="POST", target="/", headers=[("host", "x"), ("content-length", "2")]))
    connection.send(h11.Data(data=b"{}"))
    connection.send(h11.EndOfMessage())
    await stream.send_all(request)
    body = b""
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(bytes(await stream.receive_some(65536)))
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            return body, connection.their_state is h11.DONE
        elif isinstance(event, h11.ConnectionClosed):
            raise AssertionError("the response is cut")


@pytest.mark.parametrize("path", ["plain", "flat"])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("keeps_alive", [True, False], ids=["keep-alive", "close"])
@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("dialect", list(STREAMS))
async def test_bytes_are_equal_for_every_cut(
    dialect: str, framing: str, keeps_alive: bool, version: str, path: str
) -> None:
    """A recorded stream cut in two at every byte of its body, and of its framing, arrives as it was."""
    body = STREAMS[dialect]
    flat = FlatRelay() if path == "flat" else None
    keeps_alive = keeps_alive and framing != "until-close"
    response = build_response(body, framing, keeps_alive=keeps_alive)
    cuts = iter(range(response.index(b"\r\n\r\n") - 2, len(response) + 1))
    cut_count = 0

    async def play(stream: trio.SocketStream) -> None:
        nonlocal cut_count
        while await read_request(stream) is not None:
            cut = next(cuts)
            cut_count += 1
            await stream.send_all(response[:cut])
            await trio.testing.wait_all_tasks_blocked()  # the relay has forwarded what it got
            await stream.send_all(response[cut:])
            if not keeps_alive:
                return

    request = b"POST / HTTP/%b\r\nhost: x\r\ncontent-length: 2\r\n%b\r\n{}" % (
        version.encode(),
        b"" if keeps_alive else b"connection: close\r\n",
    )
    async with (
        open_raw_server(play) as upstream_port,
        open_bare_gateway(Origin("http", "127.0.0.1", upstream_port), flat=flat) as gateway,
    ):
        stream: trio.SocketStream | None = None
        for _ in range(len(response) - response.index(b"\r\n\r\n") + 3):
            stream = stream or await trio.open_tcp_stream("127.0.0.1", gateway.port)
            got, is_reusable = await read_response(stream, request)
            assert got == body
            if not is_reusable:
                stream.socket.close()
                stream = None
        statistics = gateway.pool.statistics()
        if stream is not None:
            stream.socket.close()
    assert cut_count == len(response) - response.index(b"\r\n\r\n") + 3
    assert statistics.opened == (1 if keeps_alive else cut_count)
