"""Connections to upstreams: every way in which an upstream can fail, and which connections are used again."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing

from cgw.errors import UpstreamProtocolError, UpstreamTimeout, UpstreamUnreachable
from cgw.transport.upstream import UpstreamDeadlines, UpstreamPool, UpstreamResponse, build_tls_context
from tests.support.raw_server import Handler, open_raw_server, read_request
from tests.support.upstream_requests import HELLO, OK, build_request, fetch, open_response
from tests.support.waiting import wait_until

CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"
RST_ON_CLOSE = b"\1\0\0\0\0\0\0\0"

Stream = trio.SocketStream | trio.SSLStream[trio.SocketStream]


@pytest.fixture
async def pool() -> AsyncIterator[UpstreamPool]:
    pool = UpstreamPool(build_tls_context(None), UpstreamDeadlines())
    yield pool
    pool.close_idle()


def play(*answers: bytes) -> Handler:
    """Build a handler that answers requests of a connection one by one, and closes after the last answer."""

    async def handle(stream: trio.SocketStream) -> None:
        for answer in answers:
            if await read_request(stream) is None:
                return
            await stream.send_all(answer)

    return handle


async def reset(stream: Stream) -> None:
    """Make the next close a TCP reset."""
    transport = stream if isinstance(stream, trio.SocketStream) else stream.transport_stream
    transport.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST_ON_CLOSE)


async def wait_gone(stream: trio.SocketStream) -> None:
    """Return when the peer has closed its side or reset the connection."""
    try:
        while await stream.receive_some(65536):
            pass
    except trio.BrokenResourceError:
        return


async def test_refused_connection_is_unreachable(pool: UpstreamPool) -> None:
    """The error for a closed port has the system's reason."""
    with trio.socket.socket() as unused:
        await unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(UpstreamUnreachable, match=f"cannot connect to 127.0.0.1:{port}: Connection refused"):
        await fetch(pool, build_request(port))


async def test_unknown_name_is_unreachable(pool: UpstreamPool) -> None:
    """The error for an unknown host names it (RFC 6761 §6.4: .invalid never exists)."""
    with pytest.raises(UpstreamUnreachable, match=r"cannot connect to nowhere\.invalid:80: ."):
        await fetch(pool, build_request(80, host="nowhere.invalid"))


BROKEN_HEADS = {
    "nothing": b"",
    "part of a status line": b"HTTP/1.1 20",
    "part of a head": OK + b"content-le",
    "not HTTP": b"SSH-2.0-OpenSSH_9.6\r\n",
    "HTTP/2": b"\x00\x00\x12\x04\x00\x00\x00\x00\x00",
    "status that is no number": b"HTTP/1.1 OK\r\n\r\n",
    "field without a name": OK + b": x\r\n\r\n",
    "space before the colon": OK + b"content-length : 5\r\n\r\nhello",
    "NUL": OK + b"a: b\x00c\r\n\r\n",
    "two lengths": OK + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
    "length and chunked": OK + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "chunked in HTTP/1.0": CHUNKED.replace(b"1.1", b"1.0", 1) + b"5\r\nhello\r\n0\r\n\r\n",
    "signed length": OK + b"content-length: +5\r\n\r\nhello",
    "unknown coding": OK + b"transfer-encoding: gzip\r\n\r\nhello",
    "endless field": OK + b"a: " + b"a" * 70_000,
    "endless fields": OK + b"a: b\r\n" * 20_000,
    "switching protocols": b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
    "too many 1xx": b"HTTP/1.1 103 Early Hints\r\n\r\n" * 17 + HELLO,
    "1xx and nothing after": b"HTTP/1.1 100 Continue\r\n\r\n",
}

BROKEN_BODIES = {
    "shorter than its length": OK + b"content-length: 6\r\n\r\nhello",
    "no last chunk": CHUNKED + b"5\r\nhello\r\n",
    "cut in mid-chunk": CHUNKED + b"9\r\nhello",
    "cut in a size line": CHUNKED + b"5\r\nhello\r\n5",
    "chunk longer than its size": CHUNKED + b"5\r\nhello!\r\n0\r\n\r\n",
    "chunk shorter than its size": CHUNKED + b"5\r\nhello\r\n6\r\nhell\r\n0\r\n\r\n",
    "size that is no number": CHUNKED + b"5\r\nhello\r\nfive\r\n",
    "negative size": CHUNKED + b"5\r\nhello\r\n-1\r\n",
    "size that overflows": CHUNKED + b"5\r\nhello\r\nFFFFFFFFFFFFFFFFFFFFF\r\n",
    "endless size line": CHUNKED + b"5\r\nhello\r\n5;" + b"a" * 70_000,
}


@pytest.mark.parametrize("name", BROKEN_HEADS)
async def test_broken_head_is_no_response(pool: UpstreamPool, name: str) -> None:
    """Data that is not an HTTP/1.1 response is an error at once, and its connection is not kept."""
    async with open_raw_server(play(BROKEN_HEADS[name])) as port:
        with pytest.raises(UpstreamProtocolError):
            await fetch(pool, build_request(port))
        statistics = pool.statistics()
        assert (statistics.opened, statistics.retried, statistics.busy, statistics.idle) == (1, 0, 0, 0)


@pytest.mark.parametrize("name", BROKEN_BODIES)
async def test_broken_body_yields_its_good_part_and_an_error(pool: UpstreamPool, name: str) -> None:
    """Data before a fault is returned; the fault never looks like the end of the body."""
    got: list[bytes] = []

    async def receive_all(response: UpstreamResponse) -> None:
        while (chunk := await response.receive_chunk()) is not None:
            got.append(chunk)

    async with open_raw_server(play(BROKEN_BODIES[name])) as port, open_response(pool, build_request(port)) as response:
        assert pool.statistics().busy == 1
        with pytest.raises(UpstreamProtocolError):
            await receive_all(response)
    assert b"".join(got).startswith(b"hello")
    assert (pool.statistics().busy, pool.statistics().idle) == (0, 0)


@pytest.mark.parametrize("data", [b"", OK, CHUNKED + b"5\r\nhello\r\n"], ids=["at once", "in the head", "in the body"])
async def test_reset_is_an_error(pool: UpstreamPool, data: bytes) -> None:
    """The error for a reset differs from that for a connection that could not be opened."""

    async def handle(stream: trio.SocketStream) -> None:
        await read_request(stream)
        await stream.send_all(data)
        await trio.testing.wait_all_tasks_blocked()
        await reset(stream)

    async with open_raw_server(handle) as port:
        with pytest.raises(UpstreamProtocolError, match="reset the connection"):
            await fetch(pool, build_request(port))
        assert pool.statistics().idle == 0


WHOLE = {
    "plain": (HELLO, b"hello"),
    "1xx first": (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + HELLO, b"hello"),
    "sixteen heads": (b"HTTP/1.1 103 Early Hints\r\n\r\n" * 15 + HELLO, b"hello"),
    "204": (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    "204 with a length": (b"HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n", b""),
    "304": (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n", b""),
    "extensions and trailers": (CHUNKED + b"5;a=b\r\nhello\r\n0;c\r\nd: e\r\n\r\n", b"hello"),
    "empty": (OK + b"content-length: 0\r\n\r\n", b""),
    "empty chunked": (CHUNKED + b"0\r\n\r\n", b""),
    "status without a phrase": (b"HTTP/1.1 529\r\ncontent-length: 5\r\n\r\nhello", b"hello"),
}


@pytest.mark.parametrize("name", WHOLE)
async def test_unusual_responses_are_read_to_their_end(pool: UpstreamPool, name: str) -> None:
    """Two responses on one connection, cut at every byte, both have their proper end."""
    data, body = WHOLE[name]

    async def handle(stream: trio.SocketStream) -> None:
        while await read_request(stream) is not None:
            for index in range(len(data)):
                await stream.send_all(data[index : index + 1])

    async with open_raw_server(handle) as port:
        for _ in range(2):
            assert (await fetch(pool, build_request(port)))[1] == body
        statistics = pool.statistics()
        assert (statistics.opened, statistics.reused, statistics.idle) == (1, 1, 1)
        pool.close_idle()
        assert pool.statistics().idle == 0


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(OK + b"connection: close\r\ncontent-length: 5\r\n\r\nhello", id="connection: close"),
        pytest.param(OK + b"\r\nhello", id="until close"),
        pytest.param(b"HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello", id="HTTP/1.0"),
        pytest.param(HELLO + b"!", id="more than announced"),
        pytest.param(b"HTTP/1.1 204 No Content\r\n\r\nhello", id="body of a 204"),
    ],
)
async def test_connections_that_cannot_go_on_are_closed(pool: UpstreamPool, answer: bytes) -> None:
    """After a body that ended with its connection, or with data behind it, the next request gets a new one."""
    async with open_raw_server(play(answer)) as port:
        for _ in range(2):
            await fetch(pool, build_request(port))
        statistics = pool.statistics()
        assert (statistics.opened, statistics.reused, statistics.retried, statistics.idle) == (2, 0, 0, 0)


async def test_response_that_is_not_read_to_its_end_costs_its_connection(pool: UpstreamPool) -> None:
    """Leaving the block early closes the connection at once; it is never used again."""
    gone = trio.Event()

    async def handle(stream: trio.SocketStream) -> None:
        await read_request(stream)
        await stream.send_all(CHUNKED + b"5\r\nhello\r\n")
        await wait_gone(stream)
        gone.set()

    async with open_raw_server(handle) as port:
        async with open_response(pool, build_request(port)) as response:
            assert await response.receive_chunk() == b"hello"
        with trio.fail_after(1):
            await gone.wait()
        assert (pool.statistics().idle, pool.statistics().busy) == (0, 0)


async def test_silence_is_bounded_in_each_phase(pool: UpstreamPool, autojump_clock: trio.testing.MockClock) -> None:
    """A TLS handshake, a head, and a pause in the body that take too long all end with a timeout."""
    autojump_clock.autojump_threshold = 0.01
    pool = UpstreamPool(
        build_tls_context(None), UpstreamDeadlines(connect_seconds=3, head_seconds=7, silence_seconds=5)
    )

    def stay_silent(data: bytes, pause_seconds: float = 0) -> Handler:
        async def handle(stream: trio.SocketStream) -> None:
            await stream.send_all(data)
            await trio.sleep(pause_seconds)
            await stream.send_all(b"5\r\nworld\r\n" if pause_seconds else b"")
            await wait_gone(stream)

        return handle

    for scheme, data, pause, seconds, words in [
        ("https", b"", 0, 3, "no connection within 3 seconds"),
        ("http", b"", 0, 7, "no response head within 7 seconds"),
        ("http", OK, 0, 7, "no response head within 7 seconds"),
        ("http", CHUNKED, 0, 5, "silent for 5 seconds"),
        ("http", CHUNKED + b"5\r\nhello\r\n", 4, 9, "silent for 5 seconds"),
    ]:
        async with open_raw_server(stay_silent(data, pause)) as port:
            started = trio.current_time()
            with pytest.raises(UpstreamTimeout, match=words):
                await fetch(pool, build_request(port, scheme=scheme))
            assert trio.current_time() - started == pytest.approx(seconds, abs=0.2)
            assert (pool.statistics().busy, pool.statistics().idle) == (0, 0)


async def test_connection_that_ended_while_idle_is_not_used(pool: UpstreamPool) -> None:
    """An end, a reset or data that came while a connection was idle is noticed before a request is sent."""
    for is_reset, unasked in ((False, b""), (True, b""), (False, b"HTTP/1.1 408 Request Timeout\r\n\r\n")):
        closed = trio.Event()

        async def handle(
            stream: trio.SocketStream, is_reset: bool = is_reset, unasked: bytes = unasked, closed: trio.Event = closed
        ) -> None:
            await read_request(stream)
            await stream.send_all(HELLO)
            await trio.testing.wait_all_tasks_blocked()
            if is_reset:
                await reset(stream)
            await stream.send_all(unasked)
            stream.socket.close()
            closed.set()

        async with open_raw_server(handle) as port:
            before = pool.statistics()
            await fetch(pool, build_request(port))
            await closed.wait()
            await fetch(pool, build_request(port))
            after = pool.statistics()
            assert (after.opened - before.opened, after.reused - before.reused, after.retried) == (2, 0, 0)


@pytest.mark.parametrize("is_reset", [False, True], ids=["closed", "reset"])
async def test_stale_connection_is_replaced_once(pool: UpstreamPool, is_reset: bool) -> None:
    """A kept connection that breaks before the first byte of a response leads to one retry on a new connection."""
    requests = 0

    async def handle(stream: trio.SocketStream) -> None:
        nonlocal requests
        while await read_request(stream) is not None:
            requests += 1
            if requests == 2:
                if is_reset:
                    await reset(stream)
                return
            await stream.send_all(HELLO)

    async with open_raw_server(handle) as port:
        for _ in range(2):
            assert (await fetch(pool, build_request(port)))[1] == b"hello"
        statistics = pool.statistics()
        assert requests == 3
        assert (statistics.opened, statistics.reused, statistics.retried, statistics.idle) == (2, 1, 1, 1)


async def test_retry_is_not_retried(pool: UpstreamPool) -> None:
    """When the new connection breaks as well, the request fails."""
    requests = 0

    async def handle(stream: trio.SocketStream) -> None:
        nonlocal requests
        while await read_request(stream) is not None:
            requests += 1
            if requests > 1:
                return
            await stream.send_all(HELLO)

    async with open_raw_server(handle) as port:
        await fetch(pool, build_request(port))
        with pytest.raises(UpstreamProtocolError):
            await fetch(pool, build_request(port))
        assert (requests, pool.statistics().retried) == (3, 1)


@pytest.mark.parametrize("data", [b"H", b"HTTP/1.1 100 Continue\r\n\r\n", CHUNKED + b"5\r\nhello\r\n"])
async def test_nothing_is_retried_after_the_first_byte(pool: UpstreamPool, data: bytes) -> None:
    """After one byte of a response a request is never sent again."""
    requests = 0

    async def handle(stream: trio.SocketStream) -> None:
        nonlocal requests
        while await read_request(stream) is not None:
            requests += 1
            await stream.send_all(HELLO if requests == 1 else data)
            if requests > 1:
                return

    async with open_raw_server(handle) as port:
        await fetch(pool, build_request(port))
        with pytest.raises(UpstreamProtocolError):
            await fetch(pool, build_request(port))
        assert (requests, pool.statistics().retried) == (2, 0)


@pytest.mark.parametrize("is_kept", [False, True], ids=["fresh", "kept"])
async def test_answer_that_comes_before_the_body_is_read_counts(pool: UpstreamPool, is_kept: bool) -> None:
    """An upstream that responds after the head and closes has answered: the request is not sent again."""
    refusal = b"HTTP/1.1 413 Content Too Large\r\nconnection: close\r\ncontent-length: 5\r\n\r\nlarge"
    refusals = 0

    async def handle(stream: trio.SocketStream) -> None:
        nonlocal refusals
        if is_kept and not refusals:
            await read_request(stream)
            await stream.send_all(HELLO)
        if await stream.receive_some(1000):
            refusals += 1
            await stream.send_all(refusal)

    async with open_raw_server(handle) as port:
        if is_kept:
            await fetch(pool, build_request(port))
        head, body = await fetch(pool, build_request(port, body=b"x" * 20_000_000))
        assert (head.status, body, refusals) == (413, b"large", 1)
        assert (pool.statistics().retried, pool.statistics().idle) == (0, 0)


async def test_cancelling_closes_the_connection_in_each_phase(pool: UpstreamPool) -> None:
    """Cancellation before the head or within the body closes the connection at once."""
    for data in (b"", OK, CHUNKED + b"5\r\nhello\r\n"):
        seen, gone = trio.Event(), trio.Event()

        async def handle(
            stream: trio.SocketStream, data: bytes = data, seen: trio.Event = seen, gone: trio.Event = gone
        ) -> None:
            await read_request(stream)
            await stream.send_all(data)
            seen.set()
            await wait_gone(stream)
            gone.set()

        async with open_raw_server(handle) as port, trio.open_nursery() as nursery:
            nursery.start_soon(fetch, pool, build_request(port))
            await seen.wait()
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True), trio.fail_after(1):
                await gone.wait()
        assert (pool.statistics().busy, pool.statistics().idle) == (0, 0)


async def test_idle_connections_are_bounded_in_number_and_time() -> None:
    """At most ``max_idle`` connections per origin are kept; ``run`` closes idle ones, and all of them at its end."""
    pool = UpstreamPool(build_tls_context(None), UpstreamDeadlines(), max_idle=2, idle_seconds=0.02)
    async with open_raw_server(play(HELLO, HELLO)) as port, trio.open_nursery() as nursery:
        async with (
            open_response(pool, build_request(port)) as first,
            open_response(pool, build_request(port)) as second,
            open_response(pool, build_request(port)) as third,
        ):
            assert pool.statistics().busy == 3
            for response in (first, second, third):
                while await response.receive_chunk() is not None:
                    pass
        assert (pool.statistics().idle, pool.statistics().opened) == (2, 3)
        nursery.start_soon(pool.run)
        await wait_until(lambda: pool.statistics().idle == 0)
        await fetch(pool, build_request(port))
        nursery.cancel_scope.cancel()
    assert pool.statistics().idle == 0
