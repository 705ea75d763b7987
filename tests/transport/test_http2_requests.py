"""Requests over HTTP/2: what an exchange gets to see, what is refused and how, bodies, answers, leaving clients."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import trio
from h2.errors import ErrorCodes

from cgw.errors import ClientGone, Headers
from cgw.transport.client_side import ClientLimits, ClientSide
from cgw.transport.http2_client import Http2Client
from cgw.wire import http2_frames as frames
from cgw.wire.http2_frames import END_HEADERS
from tests.support.http2_engine import PSEUDO, Fields, echo, open_frames, open_http2_engine
from tests.support.waiting import wait_until


@pytest.fixture(autouse=True)
def _no_traceback(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert not [record for record in caplog.get_records("call") if record.exc_info]


def with_path(path: bytes, method: bytes = b"POST") -> Fields:
    return ((b":method", method), *PSEUDO[1:3], (b":path", path))


async def test_head_is_that_of_http1() -> None:
    """:authority is the host, cookies are one field again, te is left out, and the order of the others is kept."""
    seen: list[ClientSide] = []

    async def keep(client: Http2Client) -> None:
        seen.append(client)
        await echo(client)

    async with open_http2_engine(keep) as engine, open_frames(engine.port) as client:
        fields = [
            (b"b", b"1"),
            (b"te", b"trailers"),
            (b"cookie", b"x=1"),
            (b"a", b"2"),
            (b"cookie", b"y=2"),
            (b"b", b""),
        ]
        await client.send(client.request(1, fields, pseudo=with_path(b"/a?b=c", b"get")))
        assert (await client.wait_answer(1)).body == b"get /a?b=c "
        head = seen[0].head
        assert (head.method, head.target, head.http_version) == (b"get", b"/a?b=c", b"2")
        assert list(head.headers) == [
            (b"host", b"x"),
            (b"b", b"1"),
            (b"a", b"2"),
            (b"b", b""),
            (b"cookie", b"x=1; y=2"),
        ]
        assert seen[0].peer == "127.0.0.1"
        assert seen[0].begin_raw_body(None) is None


@pytest.mark.parametrize(
    ("pseudo", "fields", "status", "text"),
    [
        (with_path(b"/v1/messages?a HTTP/1.1"), (), 400, "visible ASCII"),
        (with_path("/v1/m\u00e9".encode()), (), 400, "visible ASCII"),
        (with_path(b"http://x/a"), (), 400, "must begin with /"),
        (with_path(b"*"), (), 400, "must begin with /"),
        (with_path(b"/" + b"a" * 8192), (), 414, "8192"),
        (((b":method", b"CONNECT"), (b":authority", b"x:443")), (), 400, "CONNECT"),
        (((b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/")), (), 400, "host"),
        ((*PSEUDO[:2], (b":authority", b"user@x"), PSEUDO[3]), (), 400, "authority"),
        ((PSEUDO[0], (b":scheme", b"ftp"), *PSEUDO[2:]), (), 400, "scheme"),
        (PSEUDO, [(b"a", b"b")] * 101, 431, "100 header fields"),
        (PSEUDO, [(b"a", b"b" * 65_400)], 431, "65536"),
    ],
    ids=["space", "non-ASCII", "absolute", "asterisk", "long", "CONNECT", "no host", "user", "scheme", "many", "large"],
)
async def test_request_that_is_not_served_is_answered(pseudo: Fields, fields: Fields, status: int, text: str) -> None:
    """A well-formed request that is refused gets a readable answer on its stream, and the connection goes on."""
    async with open_http2_engine() as engine, open_frames(engine.port) as client:
        await client.send(fragment(client.request(1, fields, pseudo=pseudo)))
        answer = await client.wait_answer(1)
        assert answer.status == status
        assert text.encode() in answer.body
        assert answer.is_complete
        assert answer.reset is None
        await client.send(client.request(3))
        assert (await client.wait_answer(3)).status == 200
        assert engine.handled == 1


def fragment(frame: bytes) -> bytes:
    """A HEADERS frame of any size, as frames of 16 KiB."""
    stream_id = int.from_bytes(frame[5:9], "big")
    return frames.pack_header_block(stream_id, frame[4] & ~END_HEADERS, frame[9:])


async def test_options_of_the_server_is_passed_on() -> None:
    """``OPTIONS *`` has the one target that is not a path (RFC 9113 §8.3.1)."""
    async with open_http2_engine() as engine, open_frames(engine.port) as client:
        await client.send(client.request(1, pseudo=with_path(b"*", b"OPTIONS")))
        assert (await client.wait_answer(1)).body == b"OPTIONS * "


async def test_largest_head_is_served() -> None:
    """The limit on the list of fields is exact, by RFC 9113's count: name, value, and 32 for each field."""
    limits = ClientLimits(max_head_bytes=2000)
    fixed = sum(len(name) + len(value) + 32 for name, value in PSEUDO) + len(b"a") + 32
    async with open_http2_engine(limits=limits) as engine, open_frames(engine.port) as client:
        for stream_id, size, status in ((1, 2000, 200), (3, 2001, 431)):
            await client.send(client.request(stream_id, [(b"a", b"b" * (size - fixed))]))
            assert (await client.wait_answer(stream_id)).status == status


@pytest.mark.parametrize("size", [0, 1, 16_384, 65_535, 65_536, 3_000_000])
async def test_body_arrives_whole(size: int) -> None:
    """A body larger than the windows arrives, since they are opened as it is buffered; what was sent comes back."""
    async with open_http2_engine() as engine, open_frames(engine.port) as client:
        body = bytes(range(256)) * (size // 256 + 1)
        window = 65_535
        await client.send(client.window_update(0, 2**30) + client.head(1))
        await client.send(client.window_update(1, 2**30))
        for start in range(0, size, 16_384):
            piece = body[start : min(start + 16_384, size)]
            await client.receive_until(lambda: window + client.window_updates.get(1, 0) >= start + len(piece))  # noqa: B023
            await client.send(client.data(1, piece))
        await client.send(client.data(1, is_ended=True))
        answer = await client.wait_answer(1)
        assert answer.body == b"POST /a " + body[:size]
        assert answer.fields["content-length"] == str(size + 8)


async def test_window_is_not_given_back_before_the_body_is_wanted() -> None:
    """Until an exchange asks for the body, 64 KiB are all that a client can make cgw hold for a stream."""
    wanted = trio.Event()

    async def wait(client: Http2Client) -> None:
        await wanted.wait()
        await echo(client)

    async with open_http2_engine(wait) as engine, open_frames(engine.port) as client:
        body = b"a" * 65_535
        await client.send(
            client.head(1) + b"".join(client.data(1, body[at : at + 16_384]) for at in range(0, 65_535, 16_384))
        )
        await client.wait_pong()
        assert 1 not in client.window_updates
        wanted.set()
        await client.receive_until(lambda: client.window_updates.get(1, 0) >= 900_000)
        await client.send(client.window_update(0, 2**20) + client.window_update(1, 2**20))
        await client.send(client.data(1, is_ended=True))
        assert (await client.wait_answer(1)).status == 200


async def test_padding_is_given_back() -> None:
    """Padding counts against the windows (RFC 9113 §6.1), and nobody ever consumes it: it is given back at once."""
    async with open_http2_engine() as engine, open_frames(engine.port) as client:
        await client.send(client.head(1))
        padded = frames.pack_frame(frames.DATA, frames.PADDED, 1, b"\xff" + b"a" + bytes(255))
        for _ in range(20):
            await client.send(padded * 100)
            await client.wait_pong()
        await client.send(client.data(1, is_ended=True))
        assert (await client.wait_answer(1)).body == b"POST /a " + b"a" * 2000


async def test_too_large_body_is_413() -> None:
    """Announced or not: the answer comes, then NO_ERROR tells the client to stop (RFC 9113 §8.1)."""
    limits = ClientLimits(max_body_bytes=10)
    async with open_http2_engine(limits=limits) as engine, open_frames(engine.port) as client:
        await client.send(client.head(1, [(b"content-length", b"11")]))
        await client.send(client.head(3) + client.data(3, b"01234567890"))
        for stream_id in (1, 3):
            answer = await client.wait_answer(stream_id)
            assert answer.status == 413
            assert await client.wait_reset(stream_id) == ErrorCodes.NO_ERROR
        await client.send(client.head(5) + client.data(5, b"0123456789", is_ended=True))
        assert (await client.wait_answer(5)).status == 200


async def test_expectation_is_met_when_the_body_is_wanted() -> None:
    """100 comes once the exchange asks for the body; not to a client that sent it already, nor before a refusal."""

    async def refuse_some(client: Http2Client) -> None:
        if client.stream_id == 5:
            await client.send_response(401, [], b"no")
        else:
            await echo(client)

    expect = [(b"expect", b"100-continue")]
    async with open_http2_engine(refuse_some) as engine, open_frames(engine.port) as client:
        await client.send(client.head(1, expect))
        await client.receive_until(lambda: client.answer(1).informational == ["100"])
        await client.send(client.data(1, b"ok", is_ended=True))
        assert (await client.wait_answer(1)).body == b"POST /a ok"
        await client.send(client.head(3, expect) + client.data(3, b"ok", is_ended=True))
        assert (await client.wait_answer(3)).informational == []
        await client.send(client.head(5, expect))
        assert (await client.wait_answer(5)).informational == []


async def test_early_answers_on_100_streams() -> None:
    """Found by attack: DATA after an early 401 ended the connection, with the streams of all users behind a proxy."""

    async def refuse(client: Http2Client) -> None:
        await client.send_response(401, [], b"no")

    async with open_http2_engine(refuse) as engine, open_frames(engine.port) as client:
        streams = range(1, 201, 2)
        await client.send(b"".join(client.head(stream_id, [(b"content-length", b"40000")]) for stream_id in streams))
        piece = b"a" * 10_000
        for _ in range(4):
            # Whether the answer is there already or not: more of the body comes, and trailers.
            await client.send(b"".join(client.data(stream_id, piece) for stream_id in streams))
        await client.send(b"".join(client.request(stream_id, [(b"t", b"1")], pseudo=()) for stream_id in streams))
        for stream_id in streams:
            answer = await client.wait_answer(stream_id)
            assert (answer.status, answer.body) == (401, b"no")
            assert answer.reset in (None, ErrorCodes.NO_ERROR)
        await client.wait_pong()
        assert not client.goaways
        # The connection's window got back what nobody read, or uploads would stop after a while.
        window = engine.connections[0].protocol._h2.inbound_flow_control_window
        assert window >= 8 * 1024 * 1024


async def test_bytes_of_late_frames_go_back_to_the_connections_window() -> None:
    """40 MB of late DATA, 16 MiB of window: the client is never stopped."""

    async def refuse(client: Http2Client) -> None:
        await client.send_response(401, [], b"no")

    async with open_http2_engine(refuse) as engine, open_frames(engine.port) as client:
        await client.send(client.head(1))
        await client.wait_answer(1)
        sent = 0
        for _ in range(2500):
            await client.receive_until(lambda: 65_535 + client.window_updates.get(0, 0) - sent >= 16_000)  # noqa: B023
            await client.send(client.data(1, b"a" * 16_000))
            sent += 16_000
        await client.wait_pong()
        assert not client.goaways


@pytest.mark.parametrize("how", ["reset", "close", "half-close"])
async def test_client_that_leaves_is_noticed(how: str) -> None:
    """RST_STREAM, a close and a half-close return ``wait_gone`` within 50 ms; a reset leaves other streams alone."""
    gone_after: list[float] = []
    left_at = 0.0

    async def wait_gone(client: Http2Client) -> None:
        if client.stream_id == 3:
            await echo(client)
            return
        await client.send_head(200, [], is_stream=True)
        await client.wait_gone()
        gone_after.append(trio.current_time() - left_at)
        with pytest.raises(ClientGone):
            await client.send_chunk(b"x")

    async with open_http2_engine(wait_gone) as engine, open_frames(engine.port) as client:
        await client.send(client.request(1))
        await client.receive_until(lambda: client.answer(1).status == 200)
        left_at = trio.current_time()
        if how == "reset":
            await client.send(client.reset(1) + client.request(3))
            assert (await client.wait_answer(3)).status == 200
        elif how == "close":
            await client.stream.aclose()
        else:
            await client.stream.send_eof()
        await wait_until(lambda: engine.running == 0)
        assert gone_after[0] < 0.05


async def test_client_that_leaves_while_its_body_is_read() -> None:
    """``receive_body`` raises ClientGone when the stream is reset, and when the connection ends."""
    outcomes: list[str] = []

    async def read(client: Http2Client) -> None:
        try:
            await client.receive_body()
        except ClientGone:
            outcomes.append("gone")

    async with open_http2_engine(read) as engine:
        async with open_frames(engine.port) as client:
            await client.send(client.head(1) + client.data(1, b"x") + client.reset(1) + client.head(3))
            await client.wait_pong()
            assert outcomes == ["gone"]
        await wait_until(lambda: engine.running == 0)
        assert outcomes == ["gone", "gone"]


@pytest.mark.parametrize("how", ["break_off", "return", "raise", "short", "long"])
async def test_answer_that_is_not_whole_looks_so(how: str, caplog: pytest.LogCaptureFixture) -> None:
    """RST_STREAM INTERNAL_ERROR, never END_STREAM: broken off, left without an end, or not as long as announced."""

    async def answer(client: Http2Client) -> None:
        headers: Headers = [(b"content-length", b"10")] if how in ("short", "long") else []
        await client.send_head(200, headers, is_stream=True)
        await client.send_chunk(b"12345")
        if how == "break_off":
            client.break_off()
        elif how == "raise":
            raise RuntimeError("a bug")
        elif how == "long":
            await client.send_chunk(b"67890a")
        elif how == "short":
            await client.finish()

    async with open_http2_engine(answer) as engine, open_frames(engine.port) as client:
        await client.send(client.request(1))
        got = await client.wait_answer(1)
        assert (got.status, got.body, got.is_complete) == (200, b"12345", False)
        assert got.reset == ErrorCodes.INTERNAL_ERROR
        await client.wait_pong()
    bugs = [record for record in caplog.records if record.exc_info]
    assert len(bugs) == (how == "raise")
    caplog.clear()


async def test_fields_of_an_answer() -> None:
    """Names in lower case, nothing of HTTP/1.1's connections, the date as it was given."""
    date = b"Tue, 01 Jan 2030 00:00:00 GMT"

    async def answer(client: Http2Client) -> None:
        fields = [(b"X-Id", b" 1 "), (b"connection", b"close"), (b"transfer-encoding", b"chunked"), (b"date", date)]
        await client.send_head(200, fields, is_stream=False)
        await client.finish(b"ok")

    async with open_http2_engine(answer) as engine, open_frames(engine.port) as client:
        await client.send(client.request(1))
        got = await client.wait_answer(1)
        ids = {name: got.fields.pop(name) for name in ("x-cgw-request-id", "x-trace", "x-trace-span")}
        assert [len(value) for value in ids.values()] == [32, 32, 16]
        assert got.fields == {":status": "200", "x-id": "1", "date": date.decode()}


@pytest.mark.parametrize("field", [(b"x", b"a\r\nb: c"), (b"x", b"a\x00"), (b"x y", b"a"), (b"", b"a")])
async def test_field_that_must_not_be_sent_is_not(field: tuple[bytes, bytes], caplog: pytest.LogCaptureFixture) -> None:
    """A line end or a NUL in an answer's field is a bug above, and never reaches the client."""

    async def answer(client: Http2Client) -> None:
        await client.send_response(200, [field], b"ok")

    async with open_http2_engine(answer) as engine, open_frames(engine.port) as client:
        await client.send(client.request(1))
        assert await client.wait_reset(1) == ErrorCodes.INTERNAL_ERROR
        assert client.answer(1).fields == {}
    caplog.clear()


@pytest.mark.parametrize(("method", "status"), [(b"HEAD", 200), (b"GET", 204), (b"GET", 304)])
async def test_answers_without_a_body(method: bytes, status: int) -> None:
    """HEAD, 204 and 304 have no DATA, whatever length is named."""

    async def answer(client: Http2Client) -> None:
        await client.send_head(status, [(b"content-length", b"2")], is_stream=False)
        await client.finish(b"ok" if method == b"HEAD" else b"")

    async with open_http2_engine(answer) as engine, open_frames(engine.port) as client:
        await client.send(client.request(1, pseudo=with_path(b"/", method)))
        got = await client.wait_answer(1)
        assert (got.status, got.body, got.is_complete) == (status, b"", True)
        assert got.fields["content-length"] == "2"


async def test_large_table_of_the_client_is_not_used() -> None:
    """A client that offers a table of 4 GiB gets 4096 bytes of it: memory, and a linear search, are ours."""

    async def answer(client: Http2Client) -> None:
        await client.send_response(200, [(b"x-%d" % client.stream_id, b"a" * 200)], b"")

    async with open_http2_engine(answer) as engine, open_frames(engine.port, settings={1: 2**32 - 1}) as client:
        for stream_id in range(1, 101, 2):
            await client.send(client.request(stream_id))
            assert (await client.wait_answer(stream_id)).status == 200
        table = engine.connections[0].protocol._h2.encoder.header_table
        assert sum(len(name) + len(value) + 32 for name, value in table.dynamic_entries) <= 4096


async def test_refusal_by_an_exchange_is_not_its_end() -> None:
    """The limits on time are the exchange's: a body that does not come is 408 on its stream only."""
    limits = ClientLimits(body_timeout_seconds=0.05)
    async with open_http2_engine(limits=limits) as engine, open_frames(engine.port) as client:
        await client.send(client.head(1))
        assert (await client.wait_answer(1)).status == 408
        assert await client.wait_reset(1) == ErrorCodes.NO_ERROR
        await client.send(client.request(3))
        assert (await client.wait_answer(3)).status == 200


async def test_exchanges_of_reset_streams_are_counted() -> None:
    """Rapid reset: streams that are reset while their exchanges can't end yet do not add up without bound."""
    may_end = trio.Event()

    async def end_slowly(client: Http2Client) -> None:
        with trio.CancelScope(shield=True):
            await may_end.wait()

    async with open_http2_engine(end_slowly) as engine, open_frames(engine.port) as client:
        await client.send(b"".join(client.request(stream) + client.reset(stream) for stream in range(1, 801, 2)))
        await client.wait_pong()
        assert engine.running == 200
        may_end.set()
        await wait_until(lambda: engine.running == 0)
        await client.send(client.request(801))
        await client.wait_answer(801)


async def test_handler_that_raises_costs_its_stream(caplog: pytest.LogCaptureFixture) -> None:
    """An error that a handler lets escape is logged and resets its stream; the connection serves the next one."""

    async def fail(client: Http2Client) -> None:
        if client.stream_id == 1:
            raise RuntimeError("a bug")
        await echo(client)

    async with open_http2_engine(fail) as engine, open_frames(engine.port) as client:
        await client.send(client.request(1) + client.request(3))
        assert await client.wait_reset(1) == ErrorCodes.INTERNAL_ERROR
        assert (await client.wait_answer(3)).status == 200
    assert [record.message for record in caplog.records] == ["an exchange failed"]
    caplog.clear()


async def test_rest_of_a_body_is_read_after_an_early_answer() -> None:
    """curl takes RST_STREAM after an early answer for a broken one: within bounds the rest is read, and dropped."""

    async def refuse(client: Http2Client) -> None:
        await client.send_response(401, [], b"no")

    async with open_http2_engine(refuse) as engine, open_frames(engine.port) as client:
        await client.send(client.head(1, [(b"content-length", b"200000")]))
        assert (await client.wait_answer(1)).status == 401
        for sent in range(0, 200_000, 10_000):
            await client.receive_until(lambda: 65_535 + client.window_updates.get(1, 0) >= sent + 10_000)  # noqa: B023
            await client.send(client.data(1, b"a" * 10_000, is_ended=sent == 190_000))
        await client.wait_pong()
        assert client.answer(1).reset is None
        # Not without end: a second, or a megabyte.
        await client.send(client.head(3))
        for sent in range(0, 2_000_000, 10_000):
            if client.answer(3).reset is not None:
                break
            await client.receive_until(
                lambda: client.answer(3).reset is not None or 65_535 + client.window_updates.get(3, 0) >= sent + 10_000  # noqa: B023
            )
            await client.send(client.data(3, b"a" * 10_000))
        assert client.answer(3).status == 401
        assert await client.wait_reset(3) == ErrorCodes.NO_ERROR
        assert not client.goaways


@pytest.mark.parametrize("how", ["trailers", "length"])
async def test_malformed_end_of_a_request_that_was_answered(how: str) -> None:
    """Found by arbitrary frames: the stream is closed on both sides then, and nothing can be sent on it."""

    async def refuse(client: Http2Client) -> None:
        await client.send_response(401, [], b"no")

    async with open_http2_engine(refuse) as engine, open_frames(engine.port) as client:
        await client.send(client.head(1, [(b"content-length", b"5")]))
        await client.wait_answer(1)
        if how == "trailers":
            await client.send(client.data(1, b"12345") + client.request(1, pseudo=PSEUDO))
        else:
            await client.send(client.data(1, b"1234", is_ended=True))
        await client.wait_pong()
        assert client.answer(1).is_complete
        assert client.answer(1).reset is None
        await client.send(client.request(3))
        assert (await client.wait_answer(3)).status == 401
