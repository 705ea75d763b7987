"""Transports, with and without TLS: reading without waiting, closing, cancellation, and messages of TLS itself."""

from __future__ import annotations

import os
import re
import select
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
import trustme

from cgw.transport.sockets import BUFFER_BYTES, PlainTransport, Scratch, Transport
from cgw.transport.tls import TlsTransport
from tests.support.tls_peer import HOST, TlsAuthority, TlsPeer

LARGE = bytes(range(256)) * 16_384  # 4 MiB

VERSIONS = {"TLS 1.2": ssl.TLSVersion.TLSv1_2, "TLS 1.3": ssl.TLSVersion.TLSv1_3}
KINDS = ["plain", *VERSIONS]


@pytest.fixture(scope="module")
def authority() -> TlsAuthority:
    return TlsAuthority()


class Peer:
    """The other end of a transport, with TLS if the transport has it."""

    def __init__(self, stream: trio.SocketStream, tls: TlsPeer | None) -> None:
        self.stream = stream
        self.tls = tls

    def encode(self, data: bytes) -> bytes:
        return data if self.tls is None else self.tls.encrypt(data)

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(self.encode(data))

    async def receive(self) -> bytes:
        data = bytes(await self.stream.receive_some(65536))
        return data if self.tls is None else self.tls.feed(data)


Connect = Callable[[str], Awaitable[tuple[Transport, Peer]]]


@pytest.fixture
async def connect(authority: TlsAuthority) -> AsyncIterator[Connect]:
    """Return a function that opens a transport of a kind, and its peer, over loopback."""
    async with AsyncExitStack() as stack:

        async def open_pair(kind: str) -> tuple[Transport, Peer]:
            return await stack.enter_async_context(open_transport(authority, kind))

        yield open_pair


@asynccontextmanager
async def open_transport(authority: TlsAuthority, kind: str) -> AsyncIterator[tuple[Transport, Peer]]:
    listener = socket.create_server(("127.0.0.1", 0))
    ours = socket.create_connection(listener.getsockname())
    theirs = listener.accept()[0]
    listener.close()
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(theirs))
    transport: Transport = PlainTransport(ours)
    tls: TlsPeer | None = None
    if kind != "plain":
        tls = TlsPeer(authority.build_server_context(VERSIONS[kind]))
        transport = tls_transport = TlsTransport(ours, authority.build_client_context(), HOST, Scratch())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tls.do_handshake, stream)
            await tls_transport.do_handshake()
    try:
        yield transport, Peer(stream, tls)
    finally:
        transport.close()
        stream.socket.close()


def is_readable(transport: Transport) -> bool:
    """Return whether epoll reports the transport's socket as readable."""
    epoll = select.epoll()
    try:
        epoll.register(transport.fileno(), select.EPOLLIN | select.EPOLLRDHUP)
        return bool(epoll.poll(0.05))
    finally:
        epoll.close()


async def receive(transport: Transport) -> bytes:
    buffer = bytearray(BUFFER_BYTES)
    return bytes(buffer[: await transport.receive_some(buffer)])


@pytest.mark.parametrize("kind", KINDS)
async def test_quiet_is_open_and_silent(connect: Connect, kind: str) -> None:
    """A connection is quiet until the peer sends data or ends; TLS 1.3's session tickets do not count."""
    transport, peer = await connect(kind)
    buffer = bytearray(BUFFER_BYTES)
    assert transport.is_quiet(buffer)
    assert transport.is_quiet(buffer)
    await peer.send(b"x")
    assert not transport.is_quiet(buffer)
    assert transport.is_quiet(buffer)  # it has been read
    peer.stream.socket.close()
    assert not transport.is_quiet(buffer)
    assert not transport.is_quiet(buffer)


@pytest.mark.parametrize("kind", KINDS)
async def test_idle_connection_still_works(connect: Connect, kind: str) -> None:
    """Checking whether a connection is quiet does not disturb the exchange after it."""
    transport, peer = await connect(kind)
    buffer = bytearray(BUFFER_BYTES)
    for turn in range(3):
        assert transport.is_quiet(buffer)
        await transport.send_all(b"ping %d" % turn)
        assert await peer.receive() == b"ping %d" % turn
        await peer.send(b"pong %d" % turn)
        assert await receive(transport) == b"pong %d" % turn


@pytest.mark.parametrize("kind", KINDS)
async def test_reset_is_not_quiet(connect: Connect, kind: str) -> None:
    """A connection that was reset is not quiet; checking it does not raise."""
    transport, peer = await connect(kind)
    assert transport.is_quiet(bytearray(BUFFER_BYTES))
    reset(peer.stream)
    assert not transport.is_quiet(bytearray(BUFFER_BYTES))


def reset(stream: trio.SocketStream) -> None:
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    stream.socket.close()


@pytest.mark.parametrize("kind", KINDS)
async def test_close_wakes_a_reader(connect: Connect, kind: str) -> None:
    """Closing a transport ends a waiting read with an error; closing it again does nothing."""
    transport, _ = await connect(kind)

    async def wait() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await receive(transport)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        transport.close()
    transport.close()
    assert transport.fileno() == -1


@pytest.mark.parametrize("kind", KINDS)
async def test_close_wakes_a_writer(connect: Connect, kind: str) -> None:
    """Closing a transport ends a waiting write with an error."""
    transport, _ = await connect(kind)

    async def wait() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await transport.send_all(LARGE * 4)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        transport.close()


@pytest.mark.parametrize("kind", KINDS)
async def test_much_goes_both_ways_at_once(connect: Connect, kind: str) -> None:
    """Four MiB in each direction at the same time arrive whole."""
    transport, peer = await connect(kind)
    got = {"transport": b"", "peer": b""}

    async def read_transport() -> None:
        while len(got["transport"]) < len(LARGE):
            got["transport"] += await receive(transport)

    async def read_peer() -> None:
        while len(got["peer"]) < len(LARGE):
            got["peer"] += await peer.receive()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_transport)
        nursery.start_soon(read_peer)
        nursery.start_soon(transport.send_all, LARGE)
        nursery.start_soon(peer.send, LARGE)
    assert got == {"transport": LARGE, "peer": LARGE}


@pytest.mark.parametrize("kind", KINDS)
async def test_cancelled_reader_loses_nothing(connect: Connect, kind: str) -> None:
    """Data that comes after a cancelled read, even in the middle of a record, is returned by the next one."""
    transport, peer = await connect(kind)
    data = peer.encode(b"hello")
    for position in range(len(data)):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive, transport)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        if kind == "plain":
            await peer.stream.send_all(data[position : position + 1])
            assert await receive(transport) == data[position : position + 1]
        else:
            await peer.stream.send_all(data[position : position + 1])
    if kind != "plain":
        assert await receive(transport) == b"hello"


@pytest.mark.parametrize("kind", KINDS)
async def test_cancelled_writer_stops(connect: Connect, kind: str) -> None:
    """A cancelled write has written a prefix of its data, and the transport can be closed."""
    transport, peer = await connect(kind)
    assert transport.is_quiet(
        bytearray(BUFFER_BYTES)
    )  # reads what is there: for unread data the kernel would send a reset
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(transport.send_all, LARGE * 4)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    assert scope.cancelled_caught
    transport.close()
    got = b""
    while data := bytes(await peer.stream.receive_some(65536)):
        got += data if peer.tls is None else peer.tls.feed(data)
    assert got
    assert (LARGE * 4).startswith(got)


@pytest.mark.parametrize("kind", VERSIONS)
async def test_end_behind_data_is_seen_by_epoll(connect: Connect, kind: str) -> None:
    """A close_notify that came together with data makes the socket readable, even if the peer leaves it open."""
    transport, peer = await connect(kind)
    assert peer.tls is not None
    await peer.stream.send_all(peer.encode(b"hello") + peer.tls.build_close_notify())
    assert await receive(transport) == b"hello"
    assert is_readable(transport)
    assert transport.receive_nowait(bytearray(BUFFER_BYTES)) == 0
    assert not transport.is_quiet(bytearray(BUFFER_BYTES))


@pytest.mark.parametrize("kind", VERSIONS)
async def test_broken_record_behind_data_is_raised_after_it(connect: Connect, kind: str) -> None:
    """Data before a record that was tampered with is returned; after it every read raises."""
    transport, peer = await connect(kind)
    good, bad = peer.encode(b"hello"), bytearray(peer.encode(b"again"))
    bad[-1] ^= 1
    await peer.stream.send_all(good + bad)
    assert await receive(transport) == b"hello"
    assert is_readable(transport)
    for _ in range(2):
        with pytest.raises(OSError, match=r"SSL|EOF|bad record|decryption failed"):
            await receive(transport)


@pytest.mark.parametrize("kind", VERSIONS)
async def test_missing_close_notify_is_an_error(connect: Connect, kind: str) -> None:
    """A TLS connection that ends without close_notify raises, after the data before the end was returned."""
    transport, peer = await connect(kind)
    await peer.send(b"hello")
    peer.stream.socket.close()
    assert await receive(transport) == b"hello"
    for _ in range(2):
        with pytest.raises(ssl.SSLEOFError):
            await receive(transport)


@pytest.mark.parametrize("kind", VERSIONS)
async def test_one_read_takes_all_records_of_a_segment(connect: Connect, kind: str) -> None:
    """Many small records and a large one behind them are returned at once: no data stays where epoll cannot see it."""
    transport, peer = await connect(kind)
    plain = b"".join(b"event %d\n" % turn for turn in range(500))
    data = b"".join(peer.encode(line + b"\n") for line in plain.splitlines()) + peer.encode(b"z" * 16_384)
    got, position = b"", 0
    for size in (1, 40_000, 7, len(data)):
        await peer.stream.send_all(data[position : position + size])
        position += size
        await trio.testing.wait_all_tasks_blocked()
        while is_readable(transport):
            try:
                got += read_nowait(transport)
            except BlockingIOError:
                break
    assert got == plain + b"z" * 16_384
    assert transport.is_quiet(bytearray(BUFFER_BYTES))


def read_nowait(transport: Transport) -> bytes:
    buffer = bytearray(BUFFER_BYTES)
    return bytes(buffer[: transport.receive_nowait(buffer)])


@pytest.mark.skipif(
    shutil.which("openssl") is None and "CI" not in os.environ,
    reason="needs the openssl command, the only one that updates keys; CI installs it",
)
async def test_keys_are_updated_while_idle(authority: TlsAuthority, tmp_path: Path) -> None:
    """A server may update keys on an idle connection, which stays usable (RFC 8446 §4.6.3)."""
    async with open_openssl_server(authority.certificate, tmp_path) as (port, server):
        assert server.stdin is not None
        assert server.stdout is not None
        sock = socket.create_connection(("127.0.0.1", port))
        transport = TlsTransport(sock, authority.build_client_context(), HOST, Scratch())
        try:
            await transport.do_handshake()
            for turn in range(3):
                await transport.send_all(b"ping %d\n" % turn)
                # OpenSSL answers a request for new keys with its next write.
                answer = [b"<<< TLS 1.3, Handshake [length 0005], KeyUpdate"] if turn else []
                await read_until(server.stdout, *answer, b"ping %d\n" % turn)
                assert transport.is_quiet(bytearray(BUFFER_BYTES))
                await server.stdin.send_all(b"K\n")  # openssl-s_server(1): update keys, and ask for an update
                await trio.lowlevel.wait_readable(transport.sock)
                assert transport.is_quiet(bytearray(BUFFER_BYTES))
                await server.stdin.send_all(b"hello %d\n" % turn)
                assert await receive(transport) == b"hello %d\n" % turn
        finally:
            transport.close()


@asynccontextmanager
async def open_openssl_server(certificate: trustme.LeafCert, folder: Path) -> AsyncIterator[tuple[int, trio.Process]]:
    pem = folder / "server.pem"
    certificate.private_key_and_cert_chain_pem.write_to_path(pem)
    command = ["openssl", "s_server", "-accept", "127.0.0.1:0", "-tls1_3", "-msg", "-cert", str(pem), "-key", str(pem)]
    server = await trio.lowlevel.open_process(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        assert server.stdout is not None
        started = await read_until(server.stdout, b"ACCEPT", b"\n")
        found = re.search(rb"ACCEPT .*:(\d+)", started)
        assert found is not None
        yield int(found[1]), server
    finally:
        server.kill()
        with trio.CancelScope(shield=True):
            await server.wait()
        for pipe in (server.stdin, server.stdout):
            if pipe is not None:
                await pipe.aclose()


async def read_until(stream: trio.abc.ReceiveStream, *marks: bytes) -> bytes:
    """Read up to all of ``marks``, one after the other; return what was read."""
    data, position = b"", 0
    with trio.fail_after(10):
        for mark in marks:
            while (found := data.find(mark, position)) < 0:
                more = await stream.receive_some(65536)
                assert more, f"ended without {mark!r}: {data!r}"
                data += bytes(more)
            position = found + len(mark)
    return data
