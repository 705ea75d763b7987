"""A client's HTTP/1.1 connection: requests are answered in order; slow or too large ones are refused readably."""

from __future__ import annotations

from functools import partial

import pytest
import trio
import trio.testing

from cgw.errors import ClientGone, Refusal
from cgw.transport.client_side import ClientLimits, ClientSide
from tests.support.http_engine import CHUNKED, HEAD, echo, open_engine, read_refusal
from tests.support.raw_client import Answer, AnswerCut, RawClient, ask, open_client
from tests.support.waiting import wait_until


async def test_absolute_form_is_served() -> None:
    """A target with scheme and authority, as proxies get it, names the same route (RFC 9112 §3.2.2)."""
    async with open_engine() as engine:
        answer = await ask(engine.port, b"POST http://x/fast?a=b HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nok")
        assert (answer.status, answer.body) == (200, b"http://x/fast?a=b ok")


async def test_blank_lines_before_a_request_are_ignored() -> None:
    """An empty line or two before a request line, as old clients send after a body, are skipped (RFC 9112 §2.2)."""
    async with open_engine() as engine, open_client(engine.port) as client:
        for blank in (b"\r\n", b"\r\n\r\n", b""):
            answer = await client.ask(blank + HEAD + b"Content-Length: 2\r\n\r\nok")
            assert answer.body == b"/fast ok"


async def test_blank_line_after_a_request_leaves_the_connection_idle(autojump_clock: trio.testing.MockClock) -> None:
    """A stray CR LF does not begin a request: the connection stays for the keep-alive timeout, without a 408."""
    autojump_clock.autojump_threshold = 0.01
    async with open_engine() as engine, open_client(engine.port) as client:
        await client.ask(HEAD + b"Content-Length: 2\r\n\r\nok\r\n")
        started = trio.current_time()
        assert await client.read_end() == b""
        assert trio.current_time() - started == pytest.approx(75, abs=1)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        pytest.param(HEAD + b"A: " + b"a" * 70_000 + b"\r\n\r\n", 431, id="one field too large"),
        pytest.param(HEAD + b"A: " + b"a" * 70_000, 431, id="a field that never ends"),
        pytest.param(HEAD + b"A: b\r\n" * 101 + b"\r\n", 431, id="too many fields"),
        pytest.param(b"POST /" + b"a" * 8192 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414, id="target too long"),
        pytest.param(b"POST /" + b"a" * 70_000, 414, id="a target that never ends"),
    ],
)
async def test_too_large_head_is_refused(data: bytes, status: int) -> None:
    """A head is refused once it is over its limits, complete or not."""
    async with open_engine() as engine, open_client(engine.port) as client:
        await client.send(data)
        await read_refusal(client, status)


async def test_largest_head_is_served() -> None:
    """The limit on the head is exact: one byte less is enough to be served."""
    limits = ClientLimits(max_head_bytes=2000)
    frame = len(HEAD + b"A: \r\nContent-Length: 2\r\n\r\n")
    async with open_engine(limits=limits) as engine:
        for size, status in ((2000, 200), (2001, 431)):
            filler = b"a" * (size - frame)
            answer = await ask(engine.port, HEAD + b"A: " + filler + b"\r\nContent-Length: 2\r\n\r\nok")
            assert answer.status == status


async def test_slow_head_gets_408(autojump_clock: trio.testing.MockClock) -> None:
    """The timeout of a head counts from its first byte: one byte a second does not extend it (slowloris)."""
    autojump_clock.autojump_threshold = 0.01
    async with open_engine(limits=ClientLimits(header_timeout_seconds=7)) as engine, open_client(engine.port) as client:
        started = trio.current_time()
        for byte in HEAD[:7]:
            await client.send(bytes([byte]))
            await trio.sleep(1)
        assert "7 seconds" in await read_refusal(client, 408)
        assert trio.current_time() - started == pytest.approx(7, abs=0.1)


@pytest.mark.parametrize("rest", [b"Content-Length: 100\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n64\r\n"])
async def test_slow_body_gets_408(autojump_clock: trio.testing.MockClock, rest: bytes) -> None:
    """The timeout of a body is for all of it, with a known length or not."""
    autojump_clock.autojump_threshold = 0.01
    async with open_engine(limits=ClientLimits(body_timeout_seconds=5)) as engine, open_client(engine.port) as client:
        started = trio.current_time()
        await client.send(HEAD + rest)
        for _ in range(5):
            await client.send(b"x")
            await trio.sleep(1)
        assert "5 seconds" in await read_refusal(client, 408)
        assert trio.current_time() - started == pytest.approx(5, abs=0.1)


async def test_too_large_body_is_refused_before_it_comes() -> None:
    """A body gets 413 as soon as its length or a chunk size announces too much; one at the limit is served."""
    limits = ClientLimits(max_body_bytes=10)
    async with open_engine(limits=limits) as engine:
        for start in (
            HEAD + b"Content-Length: 11\r\n\r\n",
            CHUNKED + b"b\r\n",
            CHUNKED + b"a\r\n0123456789\r\n1\r\n",
            CHUNKED + b"FFFFFFFFFFFFFFFF\r\n",
        ):
            async with open_client(engine.port) as client:
                await client.send(start)
                assert "10 bytes" in await read_refusal(client, 413)
        for whole in (
            HEAD + b"Content-Length: 10\r\n\r\n0123456789",
            CHUNKED + b"4;a=b\r\n0123\r\n6\r\n456789\r\n0\r\nA: b\r\n\r\n",
        ):
            assert (await ask(engine.port, whole)).body == b"/fast 0123456789"


async def test_expectation_is_met_when_the_body_is_wanted() -> None:
    """Expect: 100-continue gets its 100 and then the answer; a client that did not wait gets the answer alone."""
    expecting = HEAD + b"Content-Length: 2\r\nExpect: 100-continue\r\n\r\n"
    async with open_engine() as engine, open_client(engine.port) as client:
        await client.send(expecting)
        assert (await client.stream.receive_some(100)).startswith(b"HTTP/1.1 100 ")
        assert (await client.ask(b"ok")).body == b"/fast ok"
        answer = await client.ask(expecting + b"ok")
        assert (answer.informational, answer.body) == ((), b"/fast ok")


async def test_expectation_gets_the_final_status_when_the_head_is_refused() -> None:
    """No 100 is sent for a body that is too large, or that is not read."""

    async def refuse(client: ClientSide) -> None:
        await client.send_response(401, (), b"no")

    expecting = HEAD + b"Content-Length: 20\r\nExpect: 100-continue\r\n\r\n"
    for handler, status in ((partial(echo), 413), (refuse, 401)):
        async with (
            open_engine(handler, limits=ClientLimits(max_body_bytes=10)) as engine,
            open_client(engine.port) as client,
        ):
            answer = await client.ask(expecting)
            assert (answer.informational, answer.status, answer.headers["connection"]) == ((), status, "close")
            assert await client.read_end() == b""


async def test_http_1_0_is_answered_and_closed() -> None:
    """An HTTP/1.0 client needs no Host, and its connection ends after the answer."""
    async with open_engine() as engine, open_client(engine.port) as client:
        answer = await client.ask(b"POST /fast HTTP/1.0\r\nContent-Length: 2\r\n\r\nok")
        assert (answer.status, answer.body, answer.headers["connection"]) == (200, b"/fast ok", "close")
        assert await client.read_end() == b""


async def send_without_length(client: ClientSide, *, is_broken_off: bool = False) -> None:
    """Send an answer without a length, which in HTTP/1.0 ends with the connection."""
    await client.receive_body()
    await client.send_head(200, (), is_stream=True)
    await client.send_chunk(b"x" * 10_000)
    if is_broken_off:
        client.break_off()
    else:
        await client.finish(b"end")


async def test_slow_reader_of_http_1_0_gets_all(autojump_clock: trio.testing.MockClock) -> None:
    """A complete answer ends without a reset, however slowly its client reads."""
    autojump_clock.autojump_threshold = 0.01
    async with open_engine(send_without_length) as engine:
        with trio.socket.socket() as sock:
            sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 4096)
            await sock.connect(("127.0.0.1", engine.port))
            client = RawClient(trio.SocketStream(sock))
            await client.send(b"POST /fast HTTP/1.0\r\nContent-Length: 0\r\n\r\n")
            await trio.sleep(60)
            assert engine.server.connection_count == 0
            assert (await client.read_answer()).body == b"x" * 10_000 + b"end"


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_broken_answer_does_not_look_whole(version: bytes) -> None:
    """An incomplete answer lacks its last chunk in HTTP/1.1; in HTTP/1.0 its connection is reset."""
    async with (
        open_engine(partial(send_without_length, is_broken_off=True)) as engine,
        open_client(engine.port) as client,
    ):
        await client.send(b"POST /fast HTTP/%b\r\nHost: x\r\nContent-Length: 0\r\n\r\n" % version)
        with pytest.raises(AnswerCut) as caught:
            await client.read_answer()
        assert caught.value.status == 200
        assert caught.value.is_reset or version == b"1.1"


async def test_half_closed_http_1_0_client_sees_a_reset() -> None:
    """A client that closes its sending side counts as gone; if it reads on, it sees that the answer is incomplete."""
    gone = trio.Event()

    async def answer_until_gone(client: ClientSide) -> None:
        await client.receive_body()
        await client.send_head(200, (), is_stream=True)
        await client.send_chunk(b"part")
        await client.wait_gone()
        gone.set()

    async with open_engine(answer_until_gone) as engine, open_client(engine.port) as client:
        await client.send(b"POST /fast HTTP/1.0\r\nContent-Length: 0\r\n\r\n")
        await client.stream.send_eof()
        await gone.wait()
        with pytest.raises(AnswerCut) as caught:
            await client.read_answer()
        assert (caught.value.body, caught.value.is_reset) == (b"part", True)


async def test_one_connection_carries_many_requests() -> None:
    """Requests with both framings and without a body are answered one after the other on one connection."""
    async with open_engine() as engine, open_client(engine.port) as client:
        for body in (
            b"Content-Length: 2\r\n\r\nok",
            b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            b"\r\n",
        ):
            for _ in range(2):
                answer = await client.ask(HEAD + body)
                assert answer.body == (b"/fast ok" if b"ok" in body else b"/fast ")
        assert len(engine.connections) == 1


@pytest.mark.parametrize("count", [2, 10])
async def test_pipelined_requests_are_answered_in_order(count: int) -> None:
    """Pipelined requests, in one segment or cut in two at any byte, are answered in their order."""
    pieces = []
    for index in range(count):
        body = b"%d" % index * (index * 7 + 1)
        framing = b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        if index % 2:
            framing = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        pieces.append(b"POST http://x/fast?%d HTTP/1.1\r\nHost: x\r\n" % index + framing)
    data = b"".join(pieces)
    async with open_engine() as engine, open_client(engine.port) as client:
        for cut in range(0, len(data), 1 if count == 2 else 17):
            await client.send(data[:cut])
            await trio.testing.wait_all_tasks_blocked()
            await client.send(data[cut:])
            for index in range(count):
                answer = await client.read_answer()
                assert answer.body == b"http://x/fast?%d %b" % (index, b"%d" % index * (index * 7 + 1))


@pytest.mark.parametrize("pipelined", [b"", HEAD + b"\r\n"], ids=["alone", "behind a pipelined request"])
@pytest.mark.parametrize("is_half_closed", [True, False], ids=["half-closed", "closed"])
async def test_client_that_leaves_is_noticed(is_half_closed: bool, pipelined: bytes) -> None:
    """Closing the sending side counts as leaving, even behind unread data."""
    gone = trio.Event()

    async def wait_gone(client: ClientSide) -> None:
        await client.receive_body()
        await client.wait_gone()
        gone.set()
        raise ClientGone

    async with open_engine(wait_gone) as engine, open_client(engine.port) as client:
        await client.send(HEAD + b"Content-Length: 2\r\n\r\nok")
        await trio.testing.wait_all_tasks_blocked()
        await client.send(pipelined)
        await trio.testing.wait_all_tasks_blocked()
        assert not gone.is_set()
        if is_half_closed:
            await client.stream.send_eof()
        else:
            client.stream.socket.close()
        with trio.fail_after(1):
            await gone.wait()


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket", b"TLS/1.2"])
async def test_upgrades_are_ignored_on_hot_routes(protocol: bytes) -> None:
    """An upgrade may be ignored: the answer comes in HTTP/1.1 (RFC 9110 §7.8)."""
    upgrade = b"Connection: Upgrade\r\nUpgrade: %b\r\nContent-Length: 2\r\n\r\nok" % protocol
    async with open_engine() as engine, open_client(engine.port) as client:
        for _ in range(2):
            answer = await client.ask(HEAD + upgrade)
            assert (answer.status, answer.informational, answer.body) == (200, (), b"/fast ok")


@pytest.mark.parametrize(("first", "seconds"), [(b"", 10), (HEAD + b"Content-Length: 2\r\n\r\nok", 75)])
async def test_idle_connections_end(autojump_clock: trio.testing.MockClock, first: bytes, seconds: float) -> None:
    """Idle connections are closed: before a first request after the head's timeout, later after keep-alive's."""
    autojump_clock.autojump_threshold = 0.01
    async with open_engine() as engine, open_client(engine.port) as client:
        if first:
            await client.ask(first)
        started = trio.current_time()
        assert await client.read_end() == b""
        assert trio.current_time() - started == pytest.approx(seconds, abs=0.1)


async def test_a_connection_whose_request_was_shed_is_kept(autojump_clock: trio.testing.MockClock) -> None:
    """It serves the next request, and is idle for the keep-alive timeout, without a 408."""
    autojump_clock.autojump_threshold = 0.01
    refused = Refusal(503, "overloaded")
    whole = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"
    async with (
        open_engine(
            check_load=lambda head: refused if b"shed" in head.target else None, encode_shed=lambda head: whole
        ) as engine,
        open_client(engine.port) as client,
    ):
        request = HEAD + b"Content-Length: 2\r\n\r\nok"
        shed = request.replace(b"/fast", b"/shed")
        assert [(await client.ask(data)).status for data in (shed, request, shed)] == [503, 200, 503]
        assert engine.handled == 1
        started = trio.current_time()
        assert await client.read_end() == b""
        assert trio.current_time() - started == pytest.approx(75, abs=0.1)


@pytest.mark.parametrize("data", [b"", HEAD, HEAD + b"Content-Length: 100\r\n\r\nhalf", CHUNKED + b"64\r\nhalf"])
@pytest.mark.parametrize("is_reset", [False, True], ids=["closed", "reset"])
async def test_client_that_leaves_while_it_sends_leaves_nothing(data: bytes, is_reset: bool) -> None:
    """A client that leaves in the middle of a head or body ends the tasks of its connection only."""
    async with open_engine() as engine:
        async with open_client(engine.port) as client:
            await client.send(data)
            await wait_until(lambda: engine.server.connection_count == 1)
            await trio.testing.wait_all_tasks_blocked()
            if is_reset:
                client.stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await wait_until(lambda: engine.server.connection_count == 0)
        assert (await ask(engine.port, HEAD + b"Content-Length: 2\r\n\r\nok")).status == 200


async def test_draining_ends_idle_connections_and_finishes_busy_ones() -> None:
    """When draining, idle connections are closed at once; others get their answer, with ``Connection: close``."""
    proceed = trio.Event()

    async def wait_and_echo(client: ClientSide) -> None:
        await proceed.wait()
        await echo(client)

    request = HEAD + b"Content-Length: 2\r\n\r\nok"
    async with (
        open_engine(wait_and_echo) as engine,
        open_client(engine.port) as fresh,
        open_client(engine.port) as kept,
        open_client(engine.port) as busy,
        open_client(engine.port) as in_mid_head,
    ):
        await kept.send(request)
        proceed.set()
        assert "connection" not in (await kept.read_answer()).headers
        proceed = trio.Event()
        await busy.send(request)
        await in_mid_head.send(request[:10])
        await trio.testing.wait_all_tasks_blocked()
        engine.drain()
        await in_mid_head.send(request[10:])
        for client in (kept, fresh):
            assert await client.read_end() == b""
        proceed.set()
        for client in (busy, in_mid_head):
            answer: Answer = await client.read_answer()
            assert (answer.body, answer.headers["connection"]) == (b"/fast ok", "close")
            assert await client.read_end() == b""


async def test_client_that_takes_nothing_is_dropped(autojump_clock: trio.testing.MockClock) -> None:
    """A client that stops reading is cut after the stall timeout, and sees that its answer is incomplete."""
    autojump_clock.autojump_threshold = 0.01
    dropped = trio.Event()

    async def flood(client: ClientSide) -> None:
        await client.receive_body()
        await client.send_head(200, (), is_stream=True)
        try:
            while True:
                await client.send_chunk(b"x" * 100_000)
        finally:
            dropped.set()

    limits = ClientLimits(stall_timeout_seconds=30)
    async with open_engine(flood, limits=limits) as engine, open_client(engine.port) as client:
        started = trio.current_time()
        await client.send(HEAD + b"Content-Length: 2\r\n\r\nok")
        await dropped.wait()
        assert trio.current_time() - started == pytest.approx(30, abs=1)
        with pytest.raises(AnswerCut):
            await client.read_answer()
