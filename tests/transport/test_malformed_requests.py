"""Requests that two parsers could read differently are refused with 400 and never handled (RFC 9112 §11.2)."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from cgw.transport.client_side import ClientLimits
from tests.support.http_engine import CHUNKED, HEAD, open_engine, read_refusal
from tests.support.raw_client import open_client

MALFORMED_HEADS = {
    "TLS hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(32)), "not TLS"),
    "neither HTTP nor TLS": (b"\x00\x01\x02\x03", "plain HTTP"),
    "duplicate Host": (HEAD + b"Host: y\r\n\r\n", "Host"),
    "no Host": (b"POST /fast HTTP/1.1\r\n\r\n", "Host"),
    "obs-fold": (HEAD + b"A: b\r\n c\r\n\r\n", "obs-fold"),
    "obs-fold of the first field": (b"POST /fast HTTP/1.1\r\n Host: x\r\n\r\n", "obs-fold"),
    "bare LF": (b"POST /fast HTTP/1.1\nHost: x\n\n", "CR LF"),
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
    "TE in HTTP/1.0": (b"POST /fast HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "HTTP/1.0"),
    "HTTP/0.9": (b"GET /fast\r\n\r\n", "METHOD TARGET HTTP/1.1"),
    "HTTP/2 in text": (b"POST /fast HTTP/2.0\r\nHost: x\r\n\r\n", "METHOD TARGET HTTP/1.1"),
    "lower-case protocol": (b"POST /fast http/1.1\r\nHost: x\r\n\r\n", "METHOD TARGET HTTP/1.1"),
    "two spaces": (b"POST  /fast HTTP/1.1\r\nHost: x\r\n\r\n", "METHOD TARGET HTTP/1.1"),
    "space in the target": (b"POST /fast x HTTP/1.1\r\nHost: x\r\n\r\n", "METHOD TARGET HTTP/1.1"),
    "method that is no token": (b"PO(ST /fast HTTP/1.1\r\nHost: x\r\n\r\n", "malformed"),
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
    """Each head that two parsers could read differently is refused with the reason, and never handled."""
    data, word = MALFORMED_HEADS[name]
    async with open_engine() as engine:
        async with open_client(engine.port) as client:
            await client.send(data + b"POST /fast HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
            assert word in await read_refusal(client, 400)
        assert (engine.handled, engine.handed_over) == (0, [])


@pytest.mark.parametrize("name", MALFORMED_BODIES)
async def test_malformed_body_gets_400_and_the_end(name: str) -> None:
    """Each chunked body whose end is ambiguous is refused, in one piece or cut at any byte."""
    data, word = MALFORMED_BODIES[name]
    async with open_engine() as engine:
        for cut in [0, *range(1, min(len(data), 12))]:
            async with open_client(engine.port) as client:
                await client.send(CHUNKED + data[:cut])
                await trio.testing.wait_all_tasks_blocked()
                await client.send(data[cut:])
                assert word in await read_refusal(client, 400)


async def test_refusal_reaches_a_client_that_keeps_sending() -> None:
    """The answer to a malformed head or a too large body is not lost to a reset by the kernel (RFC 9112 §9.6)."""
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
