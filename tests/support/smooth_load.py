"""Many streams with evenly spaced events through a gateway, and the delay of each event."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import trio
from attrs import define, field, frozen

from cgw.testing.bare_relay import BareGateway, open_bare_gateway
from cgw.transport.flat_relay import FlatRelay
from cgw.wire.messages import Origin
from tests.support.raw_server import open_raw_server
from tests.support.waiting import wait_until

REQUEST = b"POST /%b HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT_BYTES = 200
_LINE = b"%x\r\n" % EVENT_BYTES
CHUNK_BYTES = len(_LINE) + EVENT_BYTES + 2


@frozen
class Delays:
    """The delays of events, in milliseconds, and their number."""

    count: int
    median_ms: float
    p99_ms: float

    @classmethod
    def of(cls, seconds: list[float]) -> Delays:
        """Return the delays of a sample, given in seconds."""
        ordered = sorted(seconds)
        return cls(len(ordered), ordered[len(ordered) // 2] * 1000, ordered[int(len(ordered) * 0.99)] * 1000)

    def __str__(self) -> str:
        return f"{self.count} events, p50 {self.median_ms:.2f} ms, p99 {self.p99_ms:.2f} ms"


@define
class Stage:
    """A gateway on the fast path whose upstream leaves every stream open, so that the test can send its events.

    ``upstreams`` has the upstream's end of each open stream, by its target.
    """

    gateway: BareGateway
    flat: FlatRelay
    upstreams: dict[bytes, socket.socket] = field(factory=dict)
    closed: set[bytes] = field(factory=set)

    def ask(self, name: bytes) -> socket.socket:
        """Open a stream; return the client's end."""
        client = socket.create_connection(("127.0.0.1", self.gateway.port))
        client.sendall(REQUEST % name)
        return client

    async def wait_open(self, count: int, *, seconds: float = 20) -> None:
        """Wait until ``count`` streams are on the fast path."""
        await wait_until(lambda: self.flat.statistics().streams == count, seconds=seconds)


@asynccontextmanager
async def open_stage(*, tick_seconds: float = 0.001) -> AsyncIterator[Stage]:
    """Run upstream, gateway and relay for the length of the block."""
    flat = FlatRelay(tick_seconds=tick_seconds)

    async def begin(stream: trio.SocketStream) -> None:
        data = b""
        while not data.endswith(b"{}"):
            more = await stream.receive_some(65536)
            if not more:
                return
            data += more
        name = data.split(b" ", 2)[1][1:]
        await stream.send_all(HEAD)
        with stream.socket.dup() as duplicate:
            stage.upstreams[name] = socket.socket(fileno=duplicate.detach())
        try:
            await stream.receive_some(1)  # leave it open until the gateway closes it
        finally:
            stage.upstreams.pop(name).close()
            stage.closed.add(name)

    async with (
        open_raw_server(begin) as port,
        open_bare_gateway(Origin("http", "127.0.0.1", port), flat=flat, stops_with_client=True) as gateway,
    ):
        stage = Stage(gateway, flat)
        yield stage
    flat.close()


@contextmanager
def closing_all(sockets: list[socket.socket]) -> Iterator[None]:
    """Close the sockets at the end of the block."""
    try:
        yield
    finally:
        for sock in sockets:
            sock.close()


@asynccontextmanager
async def open_smooth_streams(stage: Stage, count: int) -> AsyncIterator[list[tuple[socket.socket, socket.socket]]]:
    """Open ``count`` streams; yield the upstream's and the client's end of each, the client's past the head."""
    clients: list[socket.socket] = []
    with closing_all(clients):
        clients += [await trio.to_thread.run_sync(stage.ask, b"smooth-%d" % index) for index in range(count)]
        await stage.wait_open(count)
        for client in clients:
            data = b""
            while not data.endswith(b"\r\n\r\n"):
                data += client.recv(65536)
            client.setblocking(False)
        yield [(stage.upstreams[b"smooth-%d" % index], client) for index, client in enumerate(clients)]


def measure_delays(
    streams: list[tuple[socket.socket, socket.socket]], *, seconds: float, events_per_second: float
) -> Delays:
    """Send events on all streams at fixed times, whether earlier ones have arrived or not; return their delays.

    Runs in a thread of its own. ``events_per_second`` is the rate of each stream.
    """
    poll = select.epoll()
    clients = {client.fileno(): client for _, client in streams}
    pending = dict.fromkeys(clients, b"")
    for descriptor in clients:
        poll.register(descriptor, select.EPOLLIN)
    interval = 1 / (events_per_second * len(streams))
    total = int(seconds / interval)
    delays: list[float] = []
    start, sent = time.perf_counter(), 0
    deadline = start + seconds + 20
    while len(delays) < total and time.perf_counter() < deadline:
        due = start + sent * interval
        while sent < total and time.perf_counter() >= due:
            stamp = b"%.9f" % time.perf_counter()
            streams[sent % len(streams)][0].send(_LINE + stamp.ljust(EVENT_BYTES) + b"\r\n")
            sent += 1
            due = start + sent * interval
        timeout = 0.5 if sent == total else max(0.0, due - time.perf_counter())
        for descriptor, _ in poll.poll(timeout):
            data = pending[descriptor] + clients[descriptor].recv(65536)
            now = time.perf_counter()
            while len(data) >= CHUNK_BYTES:
                delays.append(now - float(data[len(_LINE) : len(_LINE) + EVENT_BYTES]))
                data = data[CHUNK_BYTES:]
            pending[descriptor] = data
    poll.close()
    if len(delays) != total:
        raise AssertionError(f"{len(delays)} of {total} events arrived")
    return Delays.of(delays)
