"""Faults of upstreams: each is visible to the client, is recorded, and leaves nothing behind."""

from __future__ import annotations

import gzip
import json
import logging
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing
from h2.events import ResponseReceived, StreamEnded, StreamReset

from cgw.telemetry.exchange_record import ExchangeRecord, Outcome
from cgw.transport.http1_connection import Http1Connection
from tests.support.fault_bench import EVENTS, OK, PART, PATH, WHOLE, Bench, check_502, open_bench, read_message
from tests.support.gateway import ANTHROPIC_KEY
from tests.support.http2 import Http2Client
from tests.support.raw_client import AnswerCut, ask, open_client
from tests.support.raw_server import read_request
from tests.support.requests import ROUTES, build_body, build_request
from tests.support.streams import ANTHROPIC, encode_chunked
from tests.support.waiting import wait_until


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path) as bench:
        yield bench


BROKEN_HEADS = {
    "closed at once": (b"", "the upstream"),
    "part of a head": (OK + b"content-le", "the upstream broke HTTP/1.1"),
    "status that is no number": (b"HTTP/1.1 OK\r\n\r\n", "illegal status line"),
    "malformed field": (OK + b"x-key : secret\r\n\r\n", "illegal header line"),
    "two lengths": (OK + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello!", "Content-Length"),
    "endless headers": (OK + b"a: b\r\n" * 20_000, "head is larger"),
    "switching protocols": (b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", "the upstream"),
    "many 1xx": (b"HTTP/1.1 103 Early Hints\r\n\r\n" * 20 + WHOLE, "too many 1xx"),
}


async def test_upstream_that_sends_no_response_is_502(bench: Bench) -> None:
    """Invalid bytes, a close or a reset: 502 in the route's shape, without those bytes, and no charge."""
    for is_reset in (False, True):
        for name, (answer, words) in BROKEN_HEADS.items():
            bench.upstream.answer, bench.upstream.is_reset = answer, is_reset
            await check_502(bench, name, "the upstream" if is_reset else words)
    assert bench.upstream.requests == 2 * len(ROUTES) * len(BROKEN_HEADS)
    assert bench.gateway.gateway.pool.statistics().idle == 0


BROKEN_STREAMS = {
    "closed after two events": OK + b"transfer-encoding: chunked\r\n\r\n" + PART,
    "closed in mid-chunk": OK + b"transfer-encoding: chunked\r\n\r\n" + PART + b"ff\r\nevent: content_bl",
    "closed in a size line": OK + b"transfer-encoding: chunked\r\n\r\n" + PART + b"f",
    "closed in the last chunk": OK + b"transfer-encoding: chunked\r\n\r\n" + PART + b"0\r\n",
    "chunk longer than its size": OK + b"transfer-encoding: chunked\r\n\r\n" + PART + b"5\r\nhello!\r\n0\r\n\r\n",
    "chunk shorter than its size": OK + b"transfer-encoding: chunked\r\n\r\n" + PART + b"6\r\nhell\r\n0\r\n\r\n",
    "size that is no number": OK + b"transfer-encoding: chunked\r\n\r\n" + PART + b"five\r\nhello\r\n0\r\n\r\n",
    "size that overflows": OK + b"transfer-encoding: chunked\r\n\r\n" + PART + b"F" * 17 + b"\r\nhello\r\n0\r\n\r\n",
    "broken after an extension": OK + b"transfer-encoding: chunked\r\n\r\n" + PART + b"5;a=b\r\nhello\r\nx\r\n",
    "shorter than its length": OK + b"content-length: 1000\r\n\r\n" + b"".join(EVENTS[:2]),
}


@pytest.mark.parametrize("is_reset", [False, True], ids=["closed", "reset"])
async def test_broken_stream_looks_broken(bench: Bench, is_reset: bool) -> None:
    """A broken stream is passed on without an end, in every HTTP version; it is recorded as partial, and charged."""
    good = b"".join(EVENTS[:2])
    for name, answer in BROKEN_STREAMS.items():
        bench.upstream.answer, bench.upstream.is_reset = answer, is_reset
        cuts = [
            await bench.ask_cut(build_request(PATH)),
            await bench.ask_cut(build_request(PATH), after_control=True),
            await bench.ask_cut(build_request(PATH, version="1.0")),
        ]
        assert (name, [cut.status for cut in cuts[:2]]) == (name, [200, 200])
        assert (name, cuts[2].is_reset or "1000" in str(answer)) == (name, True)
        if not is_reset:
            assert (name, [cut.body.startswith(good) for cut in cuts[:2]]) == (name, [True, True])
        for event in await bench.check(name, resolved=200, upstream=200, count=3):
            assert event["usage_quality"] != "exact"
            assert event["model"] == "anthropic/claude-3-haiku-20240307"


async def test_broken_stream_is_reset_in_http_2(bench: Bench) -> None:
    """A broken stream resets one HTTP/2 stream; the connection stays usable, and its next response is complete."""
    async with open_client(bench.gateway.port) as client:
        http2 = Http2Client(client.stream)
        for answer, expected in [*((answer, StreamReset) for answer in BROKEN_STREAMS.values()), (WHOLE, StreamEnded)]:
            bench.upstream.answer = answer
            stream_id = await http2.post(PATH, json.dumps(build_body(PATH)).encode())
            ends: list[StreamReset | StreamEnded] = []
            while not ends:
                events = http2.connection.receive_data(await client.stream.receive_some(65536))
                ends = [event for event in events if isinstance(event, StreamReset | StreamEnded)]
            assert (type(ends[0]), ends[0].stream_id) == (expected, stream_id)
            await http2.flush()
    await bench.check("HTTP/2", resolved=200, upstream=200, count=len(BROKEN_STREAMS) + 1)


async def test_broken_response_that_is_not_streamed_looks_broken(bench: Bench) -> None:
    """A broken response that is not streamed is truncated, too, whether its length is known or not."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
    for name, answer in {
        "length, nothing": head + b"content-length: 10\r\n\r\n",
        "length, part": head + b'content-length: 10\r\n\r\n{"id":',
        "chunked, nothing": head + b"transfer-encoding: chunked\r\n\r\n",
        "chunked, part": head + b'transfer-encoding: chunked\r\n\r\n6\r\n{"id":\r\n',
    }.items():
        bench.upstream.answer = answer
        for after_control in (False, True):
            cut = await bench.ask_cut(build_request(PATH, stream=False), after_control=after_control)
            assert (name, cut.body) in [(name, b""), (name, b'{"id":')]
        await bench.check(name, resolved=200, upstream=200, count=2)


async def test_end_of_connection_is_an_end_only_without_reset(bench: Bench) -> None:
    """A body that ends with the connection is complete after a FIN, for every client, and truncated after a reset."""
    unfinished = ANTHROPIC[: ANTHROPIC.index(b"event: message_stop")]
    bench.upstream.answer = OK + b"\r\n" + unfinished
    for version in ("1.1", "1.0"):
        assert (await bench.ask(version=version)).body == unfinished
    await bench.check("closed", resolved=200, upstream=200, count=2)
    bench.upstream.is_reset = True
    assert (await bench.ask_cut(build_request(PATH))).status == 200
    assert (await bench.ask_cut(build_request(PATH, version="1.0"))).is_reset
    await bench.check("reset", resolved=200, upstream=200, count=2)


async def wait_peer(stream: trio.SocketStream) -> None:
    """Wait until the peer disconnects."""
    while await stream.receive_some(65536):
        pass


async def test_silence_has_a_timeout(tmp_path: Path) -> None:
    """A silent upstream is closed: 504 in the route's shape before the head, a truncated response in mid-stream."""
    more = {"CODY_GATEWAY_UPSTREAM_HEAD_TIMEOUT": "250ms", "CODY_GATEWAY_UPSTREAM_SILENCE_TIMEOUT": "250ms"}
    closed = 0

    async def stay_silent(stream: trio.SocketStream) -> None:
        nonlocal closed
        await read_request(stream)
        await stream.send_all(slow.upstream.answer)
        await wait_peer(stream)
        closed += 1

    async with open_bench(tmp_path, more) as slow:
        slow.upstream.handler = stay_silent
        for answer in (b"", OK):
            slow.upstream.answer = answer
            for path in ROUTES:
                got = await slow.ask(path)
                assert got.status == 504
                assert "timed out" in read_message(path, got)
            await slow.check("before the head", resolved=504, upstream=None, count=len(ROUTES))
        for framing in (b"transfer-encoding: chunked\r\n\r\n" + PART, b"content-length: 999\r\n\r\nhi", b"\r\nhi"):
            slow.upstream.answer = OK + framing
            cuts = [await slow.ask_cut(build_request(PATH, version=version)) for version in ("1.1", "1.0")]
            assert cuts[0].status == 200
            assert cuts[1].is_reset or b"length" in framing
            await slow.check("in mid-stream", resolved=200, upstream=200, count=2)
        await wait_until(lambda: closed == 2 * len(ROUTES) + 6)


async def test_the_clients_own_timeout_is_also_that_of_the_head(tmp_path: Path) -> None:
    """``X-Timeout-Ms`` may be longer than the time for the first byte, as in the reference."""

    async def answer_late(stream: trio.SocketStream) -> None:
        await read_request(stream)
        await trio.sleep(0.3)
        await stream.send_all(WHOLE)

    async with open_bench(tmp_path, {"CODY_GATEWAY_UPSTREAM_HEAD_TIMEOUT": "100ms"}) as bench:
        bench.upstream.handler = answer_late
        statuses = []
        for value in (b"5000", b"5 s"):
            data = build_request(PATH).replace(b"host:", b"x-timeout-ms: %b\r\nhost:" % value, 1)
            statuses.append((await ask(bench.gateway.port, data)).status)
        assert statuses == [200, 504]


async def test_total_deadline_cuts_a_stream(bench: Bench) -> None:
    """X-Timeout-Ms also applies in mid-stream: an endless upstream is closed."""

    async def go_on(stream: trio.SocketStream) -> None:
        await read_request(stream)
        await stream.send_all(OK + b"transfer-encoding: chunked\r\n\r\n")
        while True:
            await stream.send_all(b"2\r\n: \r\n")
            await trio.sleep(0.005)

    bench.upstream.handler = go_on
    data = build_request(PATH).replace(b"host:", b"x-timeout-ms: 60\r\nhost:", 1)
    for after_control in (False, True):
        cut = await bench.ask_cut(data, after_control=after_control)
        assert cut.status == 200
        assert cut.body.startswith(b": : ")
    await bench.check("deadline", resolved=200, upstream=200, count=2)


async def test_deadline_that_passes_as_the_answer_comes(bench: Bench) -> None:
    """Whichever is first: a whole answer or a 504, each with its event; the connection serves the next request."""
    # The first at once: a process that is cold needs the whole time for it.
    delays = [0.0, *(0.03 + 0.001 * index for index in range(64))]

    async def answer_late(stream: trio.SocketStream) -> None:
        while await read_request(stream) is not None:
            await trio.sleep(delays[len(statuses)])
            await stream.send_all(WHOLE)

    bench.upstream.handler = answer_late
    data = build_request(PATH).replace(b"host:", b"x-timeout-ms: 50\r\nhost:", 1)
    statuses: list[int] = []
    async with open_client(bench.gateway.port) as client:
        for _ in delays:
            answer = await client.ask(data)
            statuses.append(answer.status)
            assert answer.status == 504 or answer.body == ANTHROPIC
    assert set(statuses) == {200, 504}
    await wait_until(lambda: bench.gateway.gateway.in_flight.count == 0)
    assert [event["resolved_status_code"] for event in bench.read_events()] == statuses


JSON = b'{"content":[{"type":"text","text":"hello"}],"usage":{"input_tokens":3,"output_tokens":4}}'
JSON_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(JSON)
CHUNKED_HEAD = OK + b"transfer-encoding: chunked\r\n\r\n"

LATE_ANSWERS = {  # what is there before, what comes in the moment, and the body
    "at once": (b"", JSON_HEAD + JSON, JSON),
    "with a length": (JSON_HEAD + JSON[:10], JSON[10:], JSON),
    "at once, as a stream": (b"", WHOLE, ANTHROPIC),
    "as a stream": (CHUNKED_HEAD + PART, encode_chunked(EVENTS[2:]), ANTHROPIC),
    "up to the last event": (CHUNKED_HEAD, encode_chunked(EVENTS).removesuffix(b"0\r\n\r\n"), ANTHROPIC),
}


@pytest.mark.parametrize("name", LATE_ANSWERS)
async def test_deadline_that_passes_in_the_turn_in_which_the_answer_comes(bench: Bench, name: str) -> None:
    """It ends the exchange as late, or not at all: an answer that is there is sent, whichever task is first."""
    first, last, body = LATE_ANSWERS[name]

    async def answer_late(stream: trio.SocketStream) -> None:
        while await read_request(stream) is not None:
            await stream.send_all(first)
            await trio.sleep(0.005)
            stream.socket._sock.send(last)  # type: ignore[attr-defined]
            (connection,) = bench.gateway.http_engine._callbacks.connections
            assert isinstance(connection, Http1Connection)
            connection._scope.set_deadline(trio.current_time() - 1)
            if name == "up to the last event":
                await trio.sleep(0.005)
                await stream.send_all(b"0\r\n\r\n")

    bench.upstream.handler = answer_late
    for _ in range(16):
        async with open_client(bench.gateway.port) as client:
            try:
                answer = await client.ask(build_request(PATH))
            except AnswerCut as cut:
                assert first
                assert cut.status == 200
            else:
                assert answer.status == 504 or answer.body == body
        await bench.wait_rest()
    assert Outcome.SHUTDOWN not in {record.outcome for record in bench.records}
    assert len(bench.read_events()) == 16


async def test_late_head_in_http_2_costs_its_stream_only(tmp_path: Path) -> None:
    """A stream whose upstream is too slow gets 504; the streams beside it, and after it, are served."""

    async def answer_late(stream: trio.SocketStream) -> None:
        _, body = await read_request(stream) or (b"", b"")
        await trio.sleep(20 if b"slow" in body else 0.2)
        await stream.send_all(WHOLE)

    async with (
        open_bench(tmp_path, {"CODY_GATEWAY_UPSTREAM_HEAD_TIMEOUT": "300ms"}) as bench,
        open_client(bench.gateway.port) as client,
    ):
        bench.upstream.handler = answer_late
        http2 = Http2Client(client.stream)
        answers: dict[int, bytes] = {}
        texts = ("slow", "quick", "slow", "quick")
        ids = [
            await http2.post(PATH, json.dumps(build_body(PATH, messages=[{"role": "user", "content": text}])).encode())
            for text in texts
        ]
        while len(answers) < len(ids):
            for event in http2.connection.receive_data(await client.stream.receive_some(65536)):
                if isinstance(event, ResponseReceived):
                    answers[event.stream_id] = dict(event.headers or ())[b":status"]
            await http2.flush()
        assert [answers[stream_id] for stream_id in ids] == [b"504", b"200", b"504", b"200"]


ODD_BUT_WHOLE = {
    "1xx first": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + WHOLE,
    "extensions and trailers": OK
    + b"transfer-encoding: chunked\r\n\r\n%x;a=b\r\n%b\r\n0\r\nx: y\r\n\r\n" % (len(ANTHROPIC), ANTHROPIC),
    "content-length": OK + b"content-length: %d\r\n\r\n%b" % (len(ANTHROPIC), ANTHROPIC),
    "HTTP/1.0": (OK + b"\r\n" + ANTHROPIC).replace(b"1.1", b"1.0", 1),
}


async def test_unusual_complete_responses_pass_unchanged(bench: Bench) -> None:
    """Sent byte by byte, with everything that HTTP allows, the body arrives unchanged, and its usage is exact."""

    async def dribble(stream: trio.SocketStream) -> None:
        await read_request(stream)
        for index in range(len(bench.upstream.answer)):
            await stream.send_all(bench.upstream.answer[index : index + 1])

    for handler in (None, dribble):
        bench.upstream.handler = handler
        for name, answer in ODD_BUT_WHOLE.items():
            bench.upstream.answer = answer
            for version in ("1.1", "1.0"):
                got = await bench.ask(version=version)
                assert (name, got.status, got.informational, got.body) == (name, 200, (), ANTHROPIC)
            for event in await bench.check(name, resolved=200, upstream=200, count=2):
                assert (event["usage_quality"], event["completion_token_count"]) == ("exact", 3)


async def test_log_counts_each_byte_of_a_body_once(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """The log counts each byte once, on both HTTP servers and for every framing and split of the body."""
    caplog.set_level(logging.INFO, "cgw.exchange")
    for answer in ODD_BUT_WHOLE.values():
        bench.upstream.answer = answer
        for data in (build_request(PATH), build_request(PATH, version="1.0")):
            for after_control in (b"", b"GET /-/__version HTTP/1.1\r\nhost: x\r\n\r\n"):
                caplog.clear()
                async with open_client(bench.gateway.port) as client:
                    if after_control:
                        await client.ask(after_control)
                    await client.ask(data)
                    await wait_until(lambda: bool(caplog.records))
                (record,) = caplog.records
                assert isinstance(record.msg, ExchangeRecord)
                assert record.msg.response_bytes == len(ANTHROPIC)


async def test_answers_without_a_body_pass(bench: Bench) -> None:
    """A 204, and an empty 200 of either framing, are complete, recorded, and charged."""
    for answer, status in [
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204),
        (OK + b"content-length: 0\r\n\r\n", 200),
        (OK + b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n", 200),
        (OK + b"connection: close\r\n\r\n", 200),
    ]:
        bench.upstream.answer = answer
        for version in ("1.1", "1.0"):
            got = await bench.ask(version=version)
            assert (got.status, got.body) == (status, b"")
        await bench.check(repr(answer), resolved=status, upstream=status, count=2)


LONG = b": a comment that compresses well\n\n" * 20_000 + ANTHROPIC
"""Many times larger than what it is compressed to."""


async def test_compressed_answer_is_decoded(bench: Bench) -> None:
    """A response that is compressed although cgw asked for none is decoded: usage is read, secrets are masked."""
    for coding, body in {
        "gzip": gzip.compress(ANTHROPIC),
        "deflate": zlib.compress(ANTHROPIC),
        "x-gzip": gzip.compress(LONG),
    }.items():
        field = f"content-encoding: {coding}\r\n".encode()
        for framing in (b"content-length: %d\r\n\r\n%b" % (len(body), body), b"\r\n" + body):
            bench.upstream.answer = OK + field + framing
            for version in ("1.1", "1.0"):
                answer = await bench.ask(version=version)
                assert (answer.status, answer.headers.get("content-encoding")) == (200, None)
                assert answer.body == (LONG if coding == "x-gzip" else ANTHROPIC)
            for event in await bench.check(coding, resolved=200, upstream=200, count=2):
                assert event["usage_quality"] == "exact"
    error = gzip.compress(b'{"error":"wrong key %b"}' % ANTHROPIC_KEY.encode())
    bench.upstream.answer = b"HTTP/1.1 401 x\r\ncontent-encoding: gzip\r\n\r\n" + error
    answer = await bench.ask()
    assert (answer.status, ANTHROPIC_KEY in str(answer.body), b"wrong key" in answer.body) == (401, False, True)
    await bench.check("error", resolved=401, upstream=401)


async def test_compressed_answer_that_cannot_be_decoded_is_no_success(bench: Bench) -> None:
    """Another content coding is 502; compressed data that is cut off, or not valid, looks broken to the client."""
    for coding in ("br", "zstd", "gzip, gzip", "gzip\r\ncontent-encoding: gzip"):
        bench.upstream.answer = OK + f"content-encoding: {coding}\r\n\r\n".encode() + b"data"
        await check_502(bench, coding, "content coding")
    body = gzip.compress(b"".join(EVENTS[:2]))
    for wrong in (body[:-20], b"no gzip", body + b"more"):
        bench.upstream.answer = OK + b"content-encoding: gzip\r\ncontent-length: %d\r\n\r\n%b" % (len(wrong), wrong)
        assert (await bench.ask_cut(build_request(PATH))).status == 200
    await bench.check("cut", resolved=200, upstream=200, count=3)


async def test_refusals_of_the_upstream_pass_with_their_bodies(bench: Bench) -> None:
    """Refusals of the upstream reach the client with status, type and body, and are not charged."""
    body = b'{"type":"error","error":{"type":"api_error","message":"no"}}'
    for status in (400, 401, 404, 413, 500):
        bench.upstream.answer = (
            b"HTTP/1.1 %d x\r\ncontent-type: application/json\r\ncontent-length: %d\r\nrequest-id: r\r\n\r\n%b"
            % (status, len(body), body)
        )
        for path in ROUTES:
            answer = await bench.ask(path)
            assert (answer.status, answer.headers["request-id"], answer.body) == (status, "r", body)
            assert "retry-after" not in answer.headers
        await bench.check(str(status), resolved=status, upstream=status, count=len(ROUTES))


async def test_overloaded_upstream_is_503_in_the_gateways_words(bench: Bench) -> None:
    """429, 503 and 529 become 503 with the upstream's ``retry-after`` or the default, and with a body of cgw's own.

    The upstream's quota is the operator's: its ``rate_limit_error``, which clients would take for a limit of theirs,
    and its fields about it do not pass; request ids do. The upstream's words are in the log.
    """
    body = b'{"error":{"type":"rate_limit_error","message":"Rate limit reached in org-1234"}}'
    fields = (
        b"content-type: application/json\r\nrequest-id: r\r\nx-request-id: x\r\nx-ratelimit-remaining-tokens: 0\r\n"
    )
    for status in (429, 503, 529):
        for told, expected in ((b"retry-after: 17\r\n", ["17"] * 4), (b"", ["2", "30", "2", "30"])):
            bench.upstream.answer = b"HTTP/1.1 %d x\r\n%b%bcontent-length: %d\r\n\r\n%b" % (
                status,
                told,
                fields,
                len(body),
                body,
            )
            answers = [await bench.ask(path) for path in ROUTES]
            assert [answer.status for answer in answers] == [503] * 4
            assert [answer.headers["retry-after"] for answer in answers] == expected
            assert all(answer.headers["request-id"] == "r" for answer in answers)
            assert not any("x-ratelimit-remaining-tokens" in answer.headers for answer in answers)
            for path, answer in zip(ROUTES, answers, strict=True):
                assert "please retry later" in read_message(path, answer)
                assert b"rate_limit" not in answer.body
                assert b"org-1234" not in answer.body
            await bench.check(str(status), resolved=503, upstream=status, count=4)
            assert "org-1234" in (bench.records[-1].error or "")


async def test_overloaded_upstream_whose_body_does_not_come(bench: Bench) -> None:
    """The body of a 429 that is endless, silent or cut off delays the answer for at most a second."""
    for framing in (
        b"content-length: 99\r\n\r\nshort",
        b"transfer-encoding: chunked\r\n\r\nzz",
        b"\r\n" + b"x" * 999_999,
    ):
        bench.upstream.answer = b"HTTP/1.1 429 x\r\n" + framing
        assert (await bench.ask()).status == 503
    await bench.check("body", resolved=503, upstream=429, count=3)


async def test_fields_of_the_providers_account_do_not_pass(bench: Bench, tmp_path: Path) -> None:
    """The provider's rate limits, organization and project pass only where the operator wants it."""
    names = [
        "x-ratelimit-remaining-requests",
        "anthropic-ratelimit-tokens-reset",
        "openai-organization",
        "openai-project",
        "anthropic-organization-id",
    ]
    fields = "".join(f"{name}: v\r\n" for name in names) + "openai-processing-ms: 5\r\nopenai-version: 1\r\n"
    for connection in ("", "connection: x-a\r\n"):
        bench.upstream.answer = WHOLE.replace(b"transfer", (connection + fields).encode() + b"transfer", 1)
        headers = (await bench.ask()).headers
        assert not set(names) & headers.keys()
        assert headers["openai-processing-ms"] == "5"
    await bench.check("fields", resolved=200, upstream=200, count=2)
    folder = tmp_path / "passing"
    folder.mkdir()
    async with open_bench(folder, {"CODY_GATEWAY_PASS_PROVIDER_HEADERS": "yes"}) as passing:
        passing.upstream.answer = bench.upstream.answer
        assert set(names) <= (await passing.ask()).headers.keys()


async def test_fields_of_another_hop_do_not_pass(bench: Bench) -> None:
    """Cookies, alternative services and hop-by-hop fields are removed; streams carry ``x-accel-buffering: no``."""
    dropped = ["set-cookie", "alt-svc", "keep-alive", "upgrade", "x-internal", "proxy-authenticate", "te", "trailer"]
    fields = "".join(f"{name}: v\r\n" for name in dropped) + "connection: x-internal\r\nrequest-id: r\r\n"
    bench.upstream.answer = WHOLE.replace(b"transfer", fields.encode() + b"transfer", 1)
    for after_control in (False, True):
        async with open_client(bench.gateway.port) as client:
            if after_control:
                await client.ask(b"GET /-/__version HTTP/1.1\r\nhost: x\r\n\r\n")
            answer = await client.ask(build_request(PATH))
        assert not {*dropped, "connection"} & answer.headers.keys()
        assert answer.headers["request-id"] == "r"
        assert answer.headers["x-accel-buffering"] == "no"
        assert answer.headers["x-cody-resolved-model"] == "anthropic/claude-3-haiku-20240307"
        assert answer.headers["x-ratelimit-limit"] == "1000"
    await bench.check("fields", resolved=200, upstream=200, count=2)


async def test_stale_connection_costs_the_client_nothing(bench: Bench) -> None:
    """A reused connection that breaks before its first byte is replaced once; after that byte nothing is retried."""
    requests = 0

    async def play(stream: trio.SocketStream) -> None:
        nonlocal requests
        while await read_request(stream) is not None:
            requests += 1
            if requests == 2:
                return
            if requests == 4:
                await stream.send_all(b"HTTP/1.1 20")
                return
            await stream.send_all(WHOLE)

    bench.upstream.handler = play
    assert [(await bench.ask()).status for _ in range(3)] == [200, 200, 502]
    assert requests == 4
    statistics = bench.gateway.gateway.pool.statistics()
    assert (statistics.opened, statistics.reused, statistics.retried, statistics.idle) == (2, 2, 1, 0)
    await bench.wait_rest()
    assert [event["resolved_status_code"] for event in bench.read_events()] == [200, 200, 502]


async def test_answer_before_the_body_is_read_passes(bench: Bench) -> None:
    """The response of an upstream that refuses a large request by its head, and closes, reaches the client."""

    async def refuse(stream: trio.SocketStream) -> None:
        await stream.receive_some(1000)
        await stream.send_all(b"HTTP/1.1 413 Too Large\r\ncontent-length: 5\r\nconnection: close\r\n\r\nlarge")

    bench.upstream.handler = refuse
    answer = await bench.ask(messages=[{"role": "user", "content": "x" * 20_000_000}])
    assert (answer.status, answer.body) == (413, b"large")
    await bench.check("early", resolved=413, upstream=413)


async def test_pipelined_exchange_follows_a_failed_one(bench: Bench) -> None:
    """A 502 keeps the client's connection open: the next request, already pipelined, is answered normally."""
    requests = 0

    async def play(stream: trio.SocketStream) -> None:
        nonlocal requests
        while await read_request(stream) is not None:
            requests += 1
            if requests == 1:
                return
            await stream.send_all(WHOLE)

    bench.upstream.handler = play
    async with open_client(bench.gateway.port) as client:
        await client.send(build_request(PATH) + build_request(PATH))
        assert [(await client.read_answer()).status for _ in range(2)] == [502, 200]
    await bench.wait_rest()
    assert [event["resolved_status_code"] for event in bench.read_events()] == [502, 200]
