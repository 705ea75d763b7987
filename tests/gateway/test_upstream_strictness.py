"""Answers of upstreams that two parsers could read differently: refused, or framed anew, and never a desync."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from tests.support.fault_bench import OK, PATH, Bench, open_bench, read_message
from tests.support.quiet_log import quiet_log
from tests.support.raw_client import AnswerCut, open_client
from tests.support.raw_server import read_request
from tests.support.requests import build_request

__all__ = ["quiet_log"]

VERSION = b"GET /-/__version HTTP/1.1\r\nhost: x\r\n\r\n"
JSON = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
SMUGGLED = b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nsmuggled"


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path) as bench:
        yield bench


PASSED = {
    "Connection names the length": (JSON + b"connection: content-length\r\ncontent-length: 2\r\n\r\n{}", 200, b"{}"),
    "Connection names all": (
        JSON + b"connection: close, Content-Length, transfer-encoding\r\ncontent-length: 2\r\n\r\n{}",
        200,
        b"{}",
    ),
    "Connection names the coding": (
        JSON + b"connection: transfer-encoding\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        200,
        b"{}",
    ),
    "204": (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
    "204 with a length": (b"HTTP/1.1 204 No Content\r\ncontent-length: 50\r\n\r\n", 204, b""),
    "204 with a coding": (b"HTTP/1.1 204 No Content\r\ntransfer-encoding: chunked\r\n\r\n", 204, b""),
    "204 and a response behind it": (b"HTTP/1.1 204 No Content\r\ncontent-length: 50\r\n\r\n" + SMUGGLED, 204, b""),
    "304 with a length": (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 50\r\n\r\n" + SMUGGLED, 304, b""),
    "304 with a coding": (b"HTTP/1.1 304 Not Modified\r\ntransfer-encoding: chunked\r\n\r\n", 304, b""),
    "length 0 and a response behind it": (JSON + b"content-length: 0\r\n\r\n" + SMUGGLED, 200, b""),
    "a response behind the body": (JSON + b"content-length: 2\r\n\r\n{}" + SMUGGLED, 200, b"{}"),
    "a response behind the last chunk": (
        JSON + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n" + SMUGGLED,
        200,
        b"{}",
    ),
    "reason with a tab": (JSON.replace(b"OK", b"O\tK") + b"content-length: 2\r\n\r\n{}", 200, b"{}"),
}


@pytest.mark.parametrize("name", PASSED)
@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_odd_answer_keeps_its_framing(bench: Bench, name: str, version: str) -> None:
    """The body ends where it ends for the upstream, and a pipelined request behind gets its own answer."""
    bench.upstream.answer, status, body = PASSED[name]
    async with open_client(bench.gateway.port) as client:
        await client.send(build_request(PATH, version=version) + VERSION)
        answer = await client.read_answer()
        assert (answer.status, answer.body) == (status, body)
        assert not {"transfer-encoding", "content-length"} <= answer.headers.keys()
        assert status != 204 or not {"transfer-encoding", "content-length"} & answer.headers.keys()
        if version == "1.1":
            assert (await client.read_answer()).body == b"0.1.0"
        else:
            assert await client.read_end() == b""


REFUSED = {
    "TE and CL": (JSON + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", "framing"),
    "CL and TE": (JSON + b"transfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n2\r\n{}\r\n0\r\n\r\n", "framing"),
    "TE and CL, both named in Connection": (
        JSON + b"connection: content-length\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "framing",
    ),
    "two codings": (JSON + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "broke HTTP/1.1"),
    "chunked in HTTP/1.0": (
        JSON.replace(b"1.1", b"1.0", 1) + b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "framing",
    ),
    "status 600": (b"HTTP/1.1 600 Odd\r\ncontent-length: 2\r\n\r\n{}", "600"),
    "status 999": (b"HTTP/1.1 999 Odd\r\ncontent-length: 2\r\n\r\n{}", "999"),
    "status 099": (b"HTTP/1.1 099 Odd\r\ncontent-length: 2\r\n\r\n{}", "the upstream"),
    "a control character in a value": (JSON + b"x-a: b\x01c\r\ncontent-length: 2\r\n\r\n{}", "control characters"),
    "an escape in a value": (JSON + b"x-a: \x1b[31m\r\ncontent-length: 2\r\n\r\n{}", "control characters"),
    "DEL in a value": (JSON + b"x-a: b\x7f\r\ncontent-length: 2\r\n\r\n{}", "control characters"),
    "a bare CR in a value": (JSON + b"x-a: b\rc: d\r\ncontent-length: 2\r\n\r\n{}", "the upstream"),
    "NUL in a value": (JSON + b"x-a: b\x00\r\ncontent-length: 2\r\n\r\n{}", "the upstream"),
    "a control character in a name": (JSON + b"x\x01a: b\r\ncontent-length: 2\r\n\r\n{}", "the upstream"),
    "two lengths": (JSON + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}", "the upstream"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_ambiguous_answer_is_502(bench: Bench, name: str) -> None:
    """The client reads 502 without hosts, ports or bytes of the upstream; the log says why; the connection goes on."""
    bench.upstream.answer, words = REFUSED[name]
    async with open_client(bench.gateway.port) as client:
        await client.send(build_request(PATH) + VERSION)
        answer = await client.read_answer()
        assert answer.status == 502
        assert read_message(PATH, answer) == "failed to make request to upstream provider anthropic"
        assert (await client.read_answer()).body == b"0.1.0"
    await bench.check(name, resolved=502, upstream=None)
    assert words in (bench.records[-1].error or "")


@pytest.mark.parametrize("line", [b"2;a\rb", b"2;a=\x01", b"2;a\x00", b"2;a\x7f", b"2 \r", b"2;" + b"a" * 300, b"2\n"])
@pytest.mark.parametrize("is_first", [True, False], ids=["first", "later"])
async def test_odd_chunk_line_breaks_the_answer_off(bench: Bench, line: bytes, is_first: bool) -> None:
    """What comes before the line is passed on, nothing after it; the answer does not look complete."""
    good = b"" if is_first else b"4\r\ngood\r\n"
    bench.upstream.answer = OK + b"transfer-encoding: chunked\r\n\r\n" + good + line + b"\r\n{}\r\n0\r\n\r\n"
    cut = await bench.ask_cut(build_request(PATH) + VERSION)
    assert (cut.status, cut.body) == (200, b"" if is_first else b"good")
    await bench.check(repr(line), resolved=200, upstream=200)


async def test_extensions_and_leading_zeros_pass(bench: Bench) -> None:
    """Valid extensions are skipped, and zeros before a size are allowed (RFC 9112 §7.1)."""
    bench.upstream.answer = OK + b'transfer-encoding: chunked\r\n\r\n0000000000000000004;a="b c"\r\ngood\r\n0;x\r\n\r\n'
    assert (await bench.ask()).body == b"good"


async def test_unreachable_host_is_for_the_log_only(tmp_path: Path) -> None:
    """A host of the operator's own is named in the log, and not to the client."""
    async with open_bench(tmp_path, {"CODY_GATEWAY_ANTHROPIC_API_URL": "http://127.0.0.1:9"}) as bench:
        answer = await bench.ask()
        assert answer.status == 502
        assert b"127.0.0.1" not in answer.body
        await bench.check("unreachable", resolved=502, upstream=None)
        assert "cannot connect to 127.0.0.1:9" in (bench.records[-1].error or "")


async def test_no_descriptor_for_the_upstream_is_cgws_own_503(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a descriptor for the upstream the answer is 503 with retry-after, as the provider is not at fault."""

    async def fail(host: str, port: int) -> trio.SocketStream:
        await trio.lowlevel.checkpoint()
        group = ExceptionGroup("all", [OSError(errno.EMFILE, "Too many open files")])
        raise OSError("all attempts to connect failed") from group

    async with open_client(bench.gateway.port) as client:
        with monkeypatch.context() as patch:
            patch.setattr(trio, "open_tcp_stream", fail)
            answer = await client.ask(build_request(PATH))
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert "too many open connections" in read_message(PATH, answer)
    await bench.check("no descriptor", resolved=503, upstream=None)
    record = bench.records[-1]
    assert (record.outcome.value, record.status) == ("refused", 503)
    assert "Too many open files" in (record.error or "")


async def test_upstream_connection_is_not_used_after_surplus(bench: Bench) -> None:
    """Bytes that come behind a response, while its connection is idle, are not taken for the next response."""

    sent = trio.Event()

    async def play(stream: trio.SocketStream) -> None:
        nonlocal sent
        sent = trio.Event()
        await read_request(stream)
        await stream.send_all(JSON + b"content-length: 2\r\n\r\n{}")
        await trio.sleep(0.02)
        await stream.send_all(SMUGGLED)
        sent.set()
        while await stream.receive_some(65536):
            pass

    bench.upstream.handler = play
    async with open_client(bench.gateway.port) as client:
        for _ in range(3):
            answer = await client.ask(build_request(PATH))
            assert answer.body == b"{}"
            await sent.wait()


async def test_client_sees_a_cut_not_a_second_answer(bench: Bench) -> None:
    """A body that is shorter than its length breaks the connection off, and the pipelined request is not answered."""
    bench.upstream.answer = JSON + b"content-length: 10\r\n\r\n{}"
    async with open_client(bench.gateway.port) as client:
        await client.send(build_request(PATH) + VERSION)
        with pytest.raises(AnswerCut):
            await client.read_answer()
