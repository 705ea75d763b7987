"""TLS to upstreams: trusted certificates, and ends with and without close_notify."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trustme

from cgw.errors import UpstreamError, UpstreamUnreachable
from cgw.transport.upstream import UpstreamDeadlines, UpstreamPool, build_tls_context
from tests.support.raw_server import open_raw_server
from tests.support.upstream_requests import HELLO, OK, build_request, fetch

TlsHandler = Callable[[trio.SSLStream[trio.SocketStream]], Awaitable[None]]


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
async def tls_pool(authority: trustme.CA, tmp_path: Path) -> AsyncIterator[UpstreamPool]:
    """Return a pool that trusts the tests' own authority besides the system's."""
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    pool = UpstreamPool(build_tls_context(str(ca_file)), UpstreamDeadlines())
    yield pool
    pool.close_idle()


@asynccontextmanager
async def open_tls_server(authority: trustme.CA, handler: TlsHandler, name: str = "127.0.0.1") -> AsyncIterator[int]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name).configure_cert(context)

    async def handle(stream: trio.SocketStream) -> None:
        await handler(trio.SSLStream(stream, context, server_side=True))

    async with open_raw_server(handle) as port:
        yield port


async def answer_tls(stream: trio.SSLStream[trio.SocketStream], *answers: bytes) -> None:
    for answer in answers:
        await stream.receive_some(65536)
        await stream.send_all(answer)


async def test_tls_upstream_is_reused(authority: trustme.CA, tls_pool: UpstreamPool) -> None:
    """A CA file makes its authority trusted; unsolicited session tickets do not make a connection unusable."""

    async def handle(stream: trio.SSLStream[trio.SocketStream]) -> None:
        await answer_tls(stream, HELLO, HELLO, HELLO)

    async with open_tls_server(authority, handle) as port:
        for _ in range(3):
            assert (await fetch(tls_pool, build_request(port, scheme="https")))[1] == b"hello"
        statistics = tls_pool.statistics()
        assert (statistics.opened, statistics.reused, statistics.retried) == (1, 2, 0)


@pytest.mark.parametrize(
    ("is_trusted", "name", "words"),
    [(False, "127.0.0.1", "self-signed certificate|unable to get local issuer"), (True, "elsewhere.test", "mismatch")],
    ids=["unknown authority", "another's name"],
)
async def test_bad_certificate_is_unreachable(
    authority: trustme.CA, tls_pool: UpstreamPool, is_trusted: bool, name: str, words: str
) -> None:
    """An unknown authority or another host's certificate is refused with the reason, and no request is sent."""
    received = b""
    pool = tls_pool if is_trusted else UpstreamPool(build_tls_context(None), UpstreamDeadlines())

    async def handle(stream: trio.SSLStream[trio.SocketStream]) -> None:
        nonlocal received
        received = bytes(await stream.receive_some(1000))

    async with open_tls_server(authority, handle, name) as port:
        with pytest.raises(UpstreamUnreachable, match=f"the certificate is not valid: .*({words})"):
            await fetch(pool, build_request(port, scheme="https"))
    assert received == b""


@pytest.mark.parametrize("answer", [b"", HELLO], ids=["closes", "speaks plain HTTP"])
async def test_upstream_without_tls_is_unreachable(tls_pool: UpstreamPool, answer: bytes) -> None:
    """A failed handshake is an error that says so."""

    async def handle(stream: trio.SocketStream) -> None:
        await stream.receive_some(65536)
        await stream.send_all(answer)

    async with open_raw_server(handle) as port:
        with pytest.raises(UpstreamUnreachable, match=f"TLS with 127.0.0.1:{port} failed: "):
            await fetch(tls_pool, build_request(port, scheme="https"))


@pytest.mark.parametrize("says_goodbye", [True, False])
async def test_tls_truncation_shows(authority: trustme.CA, tls_pool: UpstreamPool, says_goodbye: bool) -> None:
    """A body that ends with its connection is complete only with close_notify: a FIN can be forged (RFC 9112 §9.8)."""

    async def handle(stream: trio.SSLStream[trio.SocketStream]) -> None:
        await answer_tls(stream, OK + b"\r\nhello")
        if says_goodbye:
            await stream.aclose()

    async with open_tls_server(authority, handle) as port:
        request = build_request(port, scheme="https")
        if says_goodbye:
            assert (await fetch(tls_pool, request))[1] == b"hello"
        else:
            with pytest.raises(UpstreamError, match="reset"):
                await fetch(tls_pool, request)


async def test_stale_tls_connection_is_replaced_once(authority: trustme.CA, tls_pool: UpstreamPool) -> None:
    """A kept TLS connection that ends before the first byte, with or without close_notify, leads to one retry."""
    requests = 0

    async def handle(stream: trio.SSLStream[trio.SocketStream]) -> None:
        nonlocal requests
        while await stream.receive_some(65536):
            requests += 1
            if requests in (2, 5):
                if requests == 5:
                    await stream.aclose()
                return
            await stream.send_all(HELLO)

    async with open_tls_server(authority, handle) as port:
        for _ in range(4):
            assert (await fetch(tls_pool, build_request(port, scheme="https")))[1] == b"hello"
        assert (requests, tls_pool.statistics().retried) == (6, 2)


def test_ca_file_must_hold_certificates(tmp_path: Path) -> None:
    """A CA file that is missing or not valid PEM raises OSError."""
    with pytest.raises(FileNotFoundError):
        build_tls_context(str(tmp_path / "missing.pem"))
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("no certificate")
    with pytest.raises(ssl.SSLError):
        build_tls_context(str(wrong))
