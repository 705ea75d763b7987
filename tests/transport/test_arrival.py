"""When data came, as the kernel tells it: over TCP with and without TLS, and what stands for it elsewhere."""

from __future__ import annotations

import os
import socket
import ssl
import struct
import time
from collections.abc import Iterator

import pytest
import trio
import trio.lowlevel
import trio.testing

from cgw.transport.arrival import (
    MAX_WAIT_SECONDS,
    Ancillary,
    ask_for_arrivals,
    find_arrival,
    measure_wait,
    read_arrival,
)
from cgw.transport.client_side import ClientSide
from cgw.transport.http2_client import Http2Client
from cgw.transport.sockets import BUFFER_BYTES, PlainTransport, Scratch, Transport
from cgw.transport.tls import TlsTransport
from tests.support.arrivals import open_timed_listener, open_timed_sockets
from tests.support.http2_engine import open_frames, open_http2_engine
from tests.support.http_engine import open_engine
from tests.support.raw_client import open_client
from tests.support.tls_peer import HOST, TlsAuthority, TlsPeer

SECONDS = 0.05
"""The time for which data waits in these tests: as if the loop were busy meanwhile."""

REQUEST = b"POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"
TOLERANCE = 0.001
"""The kernel's clock of packets and Python's are the same, but not read in one instant."""


@pytest.fixture(autouse=True)
def ready() -> Iterator[None]:
    with open_timed_sockets():
        yield


def send_and_keep_busy(stream: trio.SocketStream, data: bytes) -> None:
    """Send ``data``, and let no task run for a while: neither the one that reads it, nor any other."""
    assert os.write(stream.socket.fileno(), data) == len(data)
    time.sleep(SECONDS)


async def read_late(transport: Transport) -> float:
    """Read what has been sent, after a while, and return for how long it had waited."""
    began_at = trio.current_time() - SECONDS  # it was sent before
    time.sleep(SECONDS)  # noqa: ASYNC251 - the loop is to be busy
    buffer = bytearray(BUFFER_BYTES)
    assert buffer[: await transport.receive_some(buffer)] == b"data"
    now = trio.current_time()
    return now - find_arrival(transport.ancillary, now, began_at)


async def test_data_in_a_socket() -> None:
    """Each read tells of its own data; one that found nothing forgets nothing."""
    with open_timed_listener() as listener, socket.create_connection(listener.getsockname()) as peer:
        transport = PlainTransport(listener.accept()[0])
        for _ in range(2):
            peer.sendall(b"data")
            assert await read_late(transport) >= SECONDS
            assert transport.is_quiet(bytearray(BUFFER_BYTES))
        transport.close()


async def test_data_of_tls() -> None:
    """The ciphertext's arrival is that of the data."""
    authority = TlsAuthority()
    with socket.create_server((HOST, 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        ask_for_arrivals(ours)
        theirs = trio.SocketStream(trio.socket.from_stdlib_socket(listener.accept()[0]))
    transport = TlsTransport(ours, authority.build_client_context(), HOST, Scratch())
    peer = TlsPeer(authority.build_server_context(ssl.TLSVersion.TLSv1_3))
    async with theirs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.do_handshake, theirs)
            await transport.do_handshake()
        await theirs.send_all(peer.encrypt(b"data"))
        assert await read_late(transport) >= SECONDS
        transport.close()


async def test_a_socket_without_times() -> None:
    """A kernel that tells nothing, as for other kinds of sockets, leaves the time of reading."""
    ours, theirs = socket.socketpair()
    transport = PlainTransport(ours)
    with theirs:
        theirs.sendall(b"data")
        assert await read_late(transport) == 0.0
    transport.close()


def test_times_that_cannot_be() -> None:
    """A time before the earliest that is possible gives way to that; one in the future, or long ago, to the present."""

    def tell(at: float) -> Ancillary:
        return [(socket.SOL_SOCKET, 35, struct.pack("@ll", int(at), int(at % 1 * 1e9)))]

    assert read_arrival(tell(2.5)) == 2.5
    assert read_arrival(tell(2.5), 3.0) == 3.0
    now = time.time()
    assert find_arrival(tell(now - 2), 100.0, 97.0) == pytest.approx(98.0, abs=0.5)
    assert find_arrival(tell(now - 2), 100.0, 99.0) == 99.0
    assert find_arrival(tell(now - 2 * MAX_WAIT_SECONDS), 200.0, 0.0) == 200.0
    assert find_arrival(tell(now + 2000), 100.0, 97.0) == 100.0


@pytest.mark.parametrize(
    ("arrived_at", "waited"), [(99.0, 1.0), (100.0, 0.0), (101.0, 0.0), (100.0 - MAX_WAIT_SECONDS, 0.0), (0.0, 0.0)]
)
def test_a_wall_clock_that_was_set(arrived_at: float, waited: float) -> None:
    """Data from the future, or from long ago, has waited for no time that is known."""
    assert measure_wait(arrived_at, 100.0) == waited


async def test_requests_of_http1() -> None:
    """A request came with its first piece; one that was read with the request before it has no time of its own."""
    arrivals: list[float] = []

    async def note(client: ClientSide) -> None:
        arrivals.append(client.head.arrived_at)
        await client.receive_body()
        await client.send_response(200, [], b"")

    async with open_engine(note) as engine, open_client(engine.port) as client:
        await client.ask(REQUEST)  # as every later request, the next finds the connection waiting
        began_at = time.time()
        send_and_keep_busy(client.stream, REQUEST[:9])
        await trio.testing.wait_all_tasks_blocked()
        send_and_keep_busy(client.stream, REQUEST[9:] + REQUEST)
        await client.read_answer()
        await client.read_answer()
    assert began_at - TOLERANCE <= arrivals[1] <= time.time() - 2 * SECONDS
    assert arrivals[2] == 0.0


async def test_a_request_that_waits_for_the_one_before_it() -> None:
    """It has waited for cgw only from the end of that one on, although it came earlier."""
    arrivals: list[float] = []
    ends: list[float] = []

    async def serve(client: ClientSide) -> None:
        arrivals.append(client.head.arrived_at)
        await client.receive_body()
        await trio.sleep(SECONDS)
        ends.append(time.time())
        await client.send_response(200, [], b"")

    async with open_engine(serve) as engine, open_client(engine.port) as client:
        await client.send(REQUEST)
        while not arrivals:
            await trio.lowlevel.checkpoint()
        await client.send(REQUEST)
        await client.read_answer()
        await client.read_answer()
    assert arrivals[1] >= ends[0]


async def test_requests_of_http2() -> None:
    """Each came with the frames that were read last."""
    arrivals: list[float] = []

    async def note(client: Http2Client) -> None:
        arrivals.append(client.head.arrived_at)
        await client.send_response(200, [], b"")

    async with open_http2_engine(note) as engine, open_frames(engine.port) as client:
        await client.wait_pong()
        began_at = time.time()
        send_and_keep_busy(client.stream, client.request(1))
        await client.wait_answer(1)
    assert began_at - TOLERANCE <= arrivals[0] <= time.time() - SECONDS
