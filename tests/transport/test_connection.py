"""A client's connection: what is malformed, slow or too large is refused readably; what is in order is answered so."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
import trio.testing
from attrs import define, field

from cgw.errors import ClientGone, Refusal
from cgw.providers.error_styles import ReferenceErrors
from cgw.transport.client import ClientLimits
from cgw.transport.connection import Connection, ConnectionService, HotClient
from cgw.transport.replay import ReplayedStream
from cgw.transport.server import Server, open_listeners
from cgw.wire.heads import HTTP2_PREFACE
from tests.support.raw_client import Answer, AnswerCut, RawClient, ask, open_client
from tests.support.waiting import wait_until

ERRORS = ReferenceErrors()
HEAD = b"POST /hot HTTP/1.1\r\nHost: x\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"

Handler = Callable[[HotClient], Awaitable[None]]


async def echo(client: HotClient) -> None:
    """Answer with the target and the body, or with the refusal that reading it came to."""
    try:
        body = await client.receive_body()
    except Refusal as refusal:
        assert refusal.must_close
        client.close_after_response()
        headers, body = ERRORS.render(refusal)
        await client.send_response(refusal.status, headers, body)
    else:
        await client.send_response(200, [(b"content-type", b"text/plain")], client.head.target + b" " + body)


@define
class Engine:
    """Connections with nothing above them. ``handed_over`` is what the other engine got to read, by connection."""

    handler: Handler
    limits: ClientLimits
    server: Server = field(init=False)
    connections: list[Connection] = field(factory=list)
    handed_over: list[bytes] = field(factory=list)
    handled: int = 0
    is_draining: bool = False

    @property
    def port(self) -> int:
        return self.server.port

    async def serve_connection(self, stream: trio.SocketStream, nursery: trio.Nursery) -> None:
        service = ConnectionService(
            limits=self.limits,
            is_hot=lambda head: head.path == b"/hot",
            handle=self.handle,
            hand_over=self.take_over,
            render_refusal=ERRORS.render,
            is_draining=lambda: self.is_draining,
        )
        connection = Connection(stream, service)
        self.connections.append(connection)
        await connection.serve()

    async def handle(self, client: HotClient) -> None:
        self.handled += 1
        await self.handler(client)

    async def take_over(self, stream: ReplayedStream) -> None:
        index = len(self.handed_over)
        self.handed_over.append(b"")
        while data := await stream.receive_some():
            self.handed_over[index] += data

    def drain(self) -> None:
        """As the hot engine does it."""
        self.is_draining = True
        for connection in self.connections:
            if connection.is_idle:
                connection.idle_scope.cancel()


@asynccontextmanager
async def open_engine(handler: Handler = echo, limits: ClientLimits | None = None) -> AsyncIterator[Engine]:
    """Serve connections on a free port. At the end none may be left, since every client has left by then."""
    engine = Engine(handler, limits or ClientLimits())
    engine.server = Server(await open_listeners("127.0.0.1", 0), engine.serve_connection)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.server.run)
        try:
            yield engine
            await wait_until(lambda: engine.server.connection_count == 0)
        finally:
            nursery.cancel_scope.cancel()


async def read_refusal(client: RawClient, status: int) -> str:
    """The text of a refusal, which must be JSON, be the last answer on its connection, and end it properly."""
    answer = await client.read_answer()
    assert answer.status == status
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["connection"] == "close"
    assert await client.read_end() == b""
    text: str = answer.json()["error"]
    return text


MALFORMED_HEADS = {
    "TLS hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(32)), "not TLS"),
    "neither HTTP nor TLS": (b"\x00\x01\x02\x03", "plain HTTP"),
    "duplicate Host": (HEAD + b"Host: y\r\n\r\n", "Host"),
    "no Host": (b"POST /hot HTTP/1.1\r\n\r\n", "Host"),
    "obs-fold": (HEAD + b"A: b\r\n c\r\n\r\n", "obs-fold"),
    "obs-fold of the first field": (b"POST /hot HTTP/1.1\r\n Host: x\r\n\r\n", "obs-fold"),
    "bare LF": (b"POST /hot HTTP/1.1\nHost: x\n\n", "CR LF"),
    "one bare LF": (HEAD + b"A: b\nContent-Length: 2\r\n\r\n{}", "CR LF"),
    "bare CR": (HEAD + b"A: b\rContent-Length: 2\r\n\r\n{}", "CR LF"),
    "NUL": (HEAD + b"A: b\x00c\r\n\r\n", "NUL"),
    "NUL in the target": (b"POST /h\x00t HTTP/1.1\r\nHost: x\r\n\r\n", "NUL"),
    "space before the colon": (HEAD + b"Content-Length : 2\r\n\r\n{}", "malformed"),
    "no colon": (HEAD + b"Content-Length\r\n\r\n", "malformed"),
    "empty name": (HEAD + b": 2\r\n\r\n", "malformed"),
    "signed length": (HEAD + b"Content-Length: +5\r\n\r\nhello", "Content-Length"),
    "negative length": (HEAD + b"Content-Length: -5\r\n\r\n", "Content-Length"),
    "hexadecimal length": (HEAD + b"Content-Length: 0x5\r\n\r\nhello", "Content-Length"),
    "empty length": (HEAD + b"Content-Length:\r\n\r\n", "Content-Length"),
    "endless length": (HEAD + b"Content-Length: " + b"9" * 40 + b"\r\n\r\n", "Content-Length"),
    "two lengths": (HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!", "Content-Length"),
    "two lengths in one": (HEAD + b"Content-Length: 5, 6\r\n\r\nhello!", "Content-Length"),
    "unknown coding": (HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", "chunked"),
    "two codings": (HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "chunked"),
    "chunked twice": (HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", "Transfer-Encoding"),
    "TE and CL": (HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", "both"),
    "CL and TE": (HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "both"),
    "TE in HTTP/1.0": (b"POST /hot HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "HTTP/1.0"),
    "HTTP/0.9": (b"GET /hot\r\n\r\n", "METHOD TARGET HTTP/1.1"),
    "HTTP/2 in text": (b"POST /hot HTTP/2.0\r\nHost: x\r\n\r\n", "METHOD TARGET HTTP/1.1"),
    "lower-case protocol": (b"POST /hot http/1.1\r\nHost: x\r\n\r\n", "METHOD TARGET HTTP/1.1"),
    "two spaces": (b"POST  /hot HTTP/1.1\r\nHost: x\r\n\r\n", "METHOD TARGET HTTP/1.1"),
    "space in the target": (b"POST /hot x HTTP/1.1\r\nHost: x\r\n\r\n", "METHOD TARGET HTTP/1.1"),
    "method that is no token": (b"PO(ST /hot HTTP/1.1\r\nHost: x\r\n\r\n", "malformed"),
    "not quite HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", "METHOD TARGET HTTP/1.1"),
}

MALFORMED_BODIES = {
    "chunk size overflows": (b"FFFFFFFFFFFFFFFFF\r\n", "chunk-size"),
    "chunk size is no number": (b"xyz\r\nhello\r\n0\r\n\r\n", "chunk-size"),
    "chunk size is signed": (b"+5\r\nhello\r\n0\r\n\r\n", "chunk-size"),
    "chunk size is in C": (b"0x5\r\nhello\r\n0\r\n\r\n", "chunk-size"),
    "chunk size is empty": (b"\r\nhello\r\n0\r\n\r\n", "chunk-size"),
    "space before the chunk size": (b" 5\r\nhello\r\n0\r\n\r\n", "chunk-size"),
    "chunk size ends in LF": (b"5\nhello\r\n0\r\n\r\n", "chunk-size"),
    "LF hides in an extension": (b"5;a\nb\r\nhello\r\n0\r\n\r\n", "chunk-size"),
    "chunk is longer than said": (b"5\r\nhello!\r\n0\r\n\r\n", "CR LF"),
    "chunk is shorter than said": (b"5\r\nhell\r\n0\r\n\r\n", "CR LF"),
    "endless extension": (b"5;" + b"a" * 300, "too long"),
    "trailer ends in LF": (b"0\r\nA: b\n\r\n", "CR LF"),
    "trailer is malformed": (b"0\r\nA : b\r\n\r\n", "malformed"),
    "endless trailer": (b"0\r\n" + b"A: b\r\n" * 2000, "trailer"),
}


@pytest.mark.parametrize("name", MALFORMED_HEADS)
async def test_malformed_head_gets_400_and_the_end(name: str) -> None:
    """Each head that two parsers could read differently is refused, with what is wrong, and never handled."""
    data, word = MALFORMED_HEADS[name]
    async with open_engine() as engine:
        async with open_client(engine.port) as client:
            await client.send(data + b"POST /hot HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
            assert word in await read_refusal(client, 400)
        assert (engine.handled, engine.handed_over) == (0, [])


@pytest.mark.parametrize("name", MALFORMED_BODIES)
async def test_malformed_body_gets_400_and_the_end(name: str) -> None:
    """Each chunked body whose end is open to dispute is refused, whole or cut at any byte of it."""
    data, word = MALFORMED_BODIES[name]
    async with open_engine() as engine:
        for cut in [0, *range(1, min(len(data), 12))]:
            async with open_client(engine.port) as client:
                await client.send(CHUNKED + data[:cut])
                await trio.testing.wait_all_tasks_blocked()
                await client.send(data[cut:])
                assert word in await read_refusal(client, 400)


async def test_refusal_reaches_a_client_that_keeps_sending() -> None:
    """Neither a malformed head nor a body over its limit makes the kernel reset the answer away (RFC 9112 §9.6)."""
    flood = b"x" * 4_000_000
    limits = ClientLimits(max_body_bytes=1_000_000)
    async with open_engine(limits=limits) as engine:
        for head, status in [
            (b"BAD\r\n\r\n", 400),
            (HEAD + b"Content-Length: 4000000\r\n\r\n", 413),
            (CHUNKED + b"3d0900\r\n", 413),
        ]:
            async with open_client(engine.port) as client:
                await client.send(head)
                await client.send(flood)
                await read_refusal(client, status)


async def test_absolute_form_is_served() -> None:
    """A target with scheme and authority, as proxies get it, names the same route (RFC 9112 §3.2.2)."""
    async with open_engine() as engine:
        answer = await ask(engine.port, b"POST http://x/hot?a=b HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nok")
        assert (answer.status, answer.body) == (200, b"http://x/hot?a=b ok")


async def test_blank_lines_before_a_request_are_ignored() -> None:
    """An empty line or two before a request line, as old clients send after a body, are skipped (RFC 9112 §2.2)."""
    async with open_engine() as engine, open_client(engine.port) as client:
        for blank in (b"\r\n", b"\r\n\r\n", b""):
            answer = await client.ask(blank + HEAD + b"Content-Length: 2\r\n\r\nok")
            assert answer.body == b"/hot ok"


async def test_blank_line_after_a_request_leaves_the_connection_idle(autojump_clock: trio.testing.MockClock) -> None:
    """A stray CR LF is no request that is slow to come: the connection stays for the keep-alive time, without a 408."""
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
    """A head is refused once it is over its bounds, complete or not."""
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
    """A head has its time in total, from its first byte: one byte a second does not stretch it (slowloris)."""
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
    """A body has its time in total, whether its length is known or not."""
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
    """413 answers the announcement, of the whole or of a chunk; what is just within the limit is served."""
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
            assert (await ask(engine.port, whole)).body == b"/hot 0123456789"


async def test_expectation_is_met_when_the_body_is_wanted() -> None:
    """Expect: 100-continue gets its 100 and then the answer; a client that did not wait gets the answer alone."""
    expecting = HEAD + b"Content-Length: 2\r\nExpect: 100-continue\r\n\r\n"
    async with open_engine() as engine, open_client(engine.port) as client:
        await client.send(expecting)
        assert (await client.stream.receive_some(100)).startswith(b"HTTP/1.1 100 ")
        assert (await client.ask(b"ok")).body == b"/hot ok"
        answer = await client.ask(expecting + b"ok")
        assert (answer.informational, answer.body) == ((), b"/hot ok")


async def test_expectation_gets_the_final_status_when_the_head_is_refused() -> None:
    """Nobody is asked to send a body that is not wanted: too large, or not even looked at."""

    async def refuse(client: HotClient) -> None:
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
    """A client of HTTP/1.0 needs no Host, and its connection ends after the answer."""
    async with open_engine() as engine, open_client(engine.port) as client:
        answer = await client.ask(b"POST /hot HTTP/1.0\r\nContent-Length: 2\r\n\r\nok")
        assert (answer.status, answer.body, answer.headers["connection"]) == (200, b"/hot ok", "close")
        assert await client.read_end() == b""


async def send_without_length(client: HotClient, *, is_broken_off: bool = False) -> None:
    """An answer without length, which in HTTP/1.0 ends with the connection."""
    await client.receive_body()
    await client.send_head(200, (), is_stream=True)
    await client.send_chunk(b"x" * 10_000)
    if is_broken_off:
        client.break_off()
    else:
        await client.finish(b"end")


async def test_slow_reader_of_http_1_0_gets_all(autojump_clock: trio.testing.MockClock) -> None:
    """A whole answer ends without a reset, however long its client takes to read what the kernel holds for it."""
    autojump_clock.autojump_threshold = 0.01
    async with open_engine(send_without_length) as engine:
        with trio.socket.socket() as sock:
            sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 4096)
            await sock.connect(("127.0.0.1", engine.port))
            client = RawClient(trio.SocketStream(sock))
            await client.send(b"POST /hot HTTP/1.0\r\nContent-Length: 0\r\n\r\n")
            await trio.sleep(60)
            assert engine.server.connection_count == 0
            assert (await client.read_answer()).body == b"x" * 10_000 + b"end"


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_broken_answer_does_not_look_whole(version: bytes) -> None:
    """Broken off, HTTP/1.1 misses its last chunk; HTTP/1.0, where an end would look like success, is reset."""
    async with (
        open_engine(partial(send_without_length, is_broken_off=True)) as engine,
        open_client(engine.port) as client,
    ):
        await client.send(b"POST /hot HTTP/%b\r\nHost: x\r\nContent-Length: 0\r\n\r\n" % version)
        with pytest.raises(AnswerCut) as caught:
            await client.read_answer()
        assert caught.value.status == 200
        assert caught.value.is_reset or version == b"1.1"


async def test_half_closed_http_1_0_client_sees_a_reset() -> None:
    """A client that closes its sending side has left; if it still reads, it must not take the part it got for all."""
    gone = trio.Event()

    async def answer_until_gone(client: HotClient) -> None:
        await client.receive_body()
        await client.send_head(200, (), is_stream=True)
        await client.send_chunk(b"part")
        await client.wait_gone()
        gone.set()

    async with open_engine(answer_until_gone) as engine, open_client(engine.port) as client:
        await client.send(b"POST /hot HTTP/1.0\r\nContent-Length: 0\r\n\r\n")
        await client.stream.send_eof()
        await gone.wait()
        with pytest.raises(AnswerCut) as caught:
            await client.read_answer()
        assert (caught.value.body, caught.value.is_reset) == (b"part", True)


async def test_one_connection_carries_many_requests() -> None:
    """Keep-alive: bodies of both framings, and none, one after the other."""
    async with open_engine() as engine, open_client(engine.port) as client:
        for body in (
            b"Content-Length: 2\r\n\r\nok",
            b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            b"\r\n",
        ):
            for _ in range(2):
                answer = await client.ask(HEAD + body)
                assert answer.body == (b"/hot ok" if b"ok" in body else b"/hot ")
        assert len(engine.connections) == 1


@pytest.mark.parametrize("count", [2, 10])
async def test_pipelined_requests_are_answered_in_order(count: int) -> None:
    """Requests in one segment, or cut in two at any byte, get their answers in their order, bodies and all."""
    pieces = []
    for index in range(count):
        body = b"%d" % index * (index * 7 + 1)
        framing = b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        if index % 2:
            framing = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        pieces.append(b"POST http://x/hot?%d HTTP/1.1\r\nHost: x\r\n" % index + framing)
    data = b"".join(pieces)
    async with open_engine() as engine, open_client(engine.port) as client:
        for cut in range(0, len(data), 1 if count == 2 else 17):
            await client.send(data[:cut])
            await trio.testing.wait_all_tasks_blocked()
            await client.send(data[cut:])
            for index in range(count):
                answer = await client.read_answer()
                assert answer.body == b"http://x/hot?%d %b" % (index, b"%d" % index * (index * 7 + 1))


@pytest.mark.parametrize("pipelined", [b"", HEAD + b"\r\n"], ids=["alone", "behind a pipelined request"])
@pytest.mark.parametrize("is_half_closed", [True, False], ids=["half-closed", "closed"])
async def test_client_that_leaves_is_noticed(is_half_closed: bool, pipelined: bytes) -> None:
    """Closing the sending side counts as leaving, whatever bytes stand unread before it."""
    gone = trio.Event()

    async def wait_gone(client: HotClient) -> None:
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
    """A server may answer in the present protocol instead (RFC 9110 §7.8)."""
    upgrade = b"Connection: Upgrade\r\nUpgrade: %b\r\nContent-Length: 2\r\n\r\nok" % protocol
    async with open_engine() as engine, open_client(engine.port) as client:
        for _ in range(2):
            answer = await client.ask(HEAD + upgrade)
            assert (answer.status, answer.informational, answer.body) == (200, (), b"/hot ok")


async def test_http_2_and_other_routes_reach_the_other_engine() -> None:
    """The preface, in one piece or byte by byte, and whatever is not hot go there with every byte that was read."""
    get = b"GET /cold HTTP/1.1\r\nHost: x\r\n\r\n"
    async with open_engine() as engine:
        for index, data in enumerate([HTTP2_PREFACE + b"frames", get + HEAD + b"\r\n", get]):
            async with open_client(engine.port) as client:
                await client.ask(HEAD + b"Content-Length: 2\r\n\r\nok")
                for start in range(0, len(data), len(data) if index else 1):
                    await client.send(data[start : start + (len(data) if index else 1)])
                    await trio.testing.wait_all_tasks_blocked()
                await client.stream.send_eof()
                assert await client.read_end() == b""
            assert engine.handed_over[index] == data
        assert engine.handled == 3


@pytest.mark.parametrize(("first", "seconds"), [(b"", 10), (HEAD + b"Content-Length: 2\r\n\r\nok", 75)])
async def test_idle_connections_end(autojump_clock: trio.testing.MockClock, first: bytes, seconds: float) -> None:
    """Without a word: before the first request after the time for a head, later after the keep-alive time."""
    autojump_clock.autojump_threshold = 0.01
    async with open_engine() as engine, open_client(engine.port) as client:
        if first:
            await client.ask(first)
        started = trio.current_time()
        assert await client.read_end() == b""
        assert trio.current_time() - started == pytest.approx(seconds, abs=0.1)


@pytest.mark.parametrize("data", [b"", HEAD, HEAD + b"Content-Length: 100\r\n\r\nhalf", CHUNKED + b"64\r\nhalf"])
@pytest.mark.parametrize("is_reset", [False, True], ids=["closed", "reset"])
async def test_client_that_leaves_while_it_sends_leaves_nothing(data: bytes, is_reset: bool) -> None:
    """Whether in mid-head or mid-body, by an end or a reset: the connection's tasks end, and others go on."""
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
    """Who waits for nothing is gone at once; who waits for an answer gets it, with the word that it is the last."""
    proceed = trio.Event()

    async def wait_and_echo(client: HotClient) -> None:
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
        for client in (fresh, kept):
            assert await client.read_end() == b""
        await in_mid_head.send(request[10:])
        proceed.set()
        for client in (busy, in_mid_head):
            answer: Answer = await client.read_answer()
            assert (answer.body, answer.headers["connection"]) == (b"/hot ok", "close")
            assert await client.read_end() == b""


async def test_client_that_takes_nothing_is_dropped(autojump_clock: trio.testing.MockClock) -> None:
    """A reader that stands still is dropped after the stall time, and sees that its answer is not whole."""
    autojump_clock.autojump_threshold = 0.01
    dropped = trio.Event()

    async def flood(client: HotClient) -> None:
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
