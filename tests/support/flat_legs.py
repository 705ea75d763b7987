"""Streams of a flat relay on socket pairs whose other ends belong to the test."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

import trio
import trio.testing
from attrs import define, field

from cgw.transport.flat_relay import FlatRelay
from cgw.transport.flat_stream import StreamOutcome
from cgw.transport.sockets import PlainTransport
from cgw.wire.framers import ChunkedFramer, ChunkSizes
from cgw.wire.windows import BodyWindowCollector


@define(eq=False)
class Leg:
    """One stream: the upstream's and the client's end, and the scope that it is forwarded in."""

    upstream: socket.socket
    client: socket.socket
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    collector: BodyWindowCollector = field(factory=BodyWindowCollector)
    outcome: StreamOutcome | None = None

    def received(self) -> bytes:
        """Return what the client has received since the last call."""
        data = b""
        with suppress(BlockingIOError):
            while more := self.client.recv(1_000_000):
                data += more
        return data


@asynccontextmanager
async def open_legs(
    flat: FlatRelay, count: int, *, on_first: Callable[[int], None] = lambda _: None, in_thread: bool = False
) -> AsyncIterator[list[Leg]]:
    """Run ``flat`` with ``count`` streams. At the end all sockets and ``flat`` are closed."""
    legs: list[Leg] = []

    async def forward(index: int, reader: socket.socket, writer: socket.socket) -> None:
        leg = legs[index]
        framer = ChunkedFramer(leg.collector, ChunkSizes())
        with leg.scope:
            leg.outcome = await flat.forward(PlainTransport(reader), writer, framer, lambda _: on_first(index))

    with open_pairs(count) as pairs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flat.run if in_thread else flat.run_without_thread)
            for index, (upstream, reader, writer, client) in enumerate(pairs):
                legs.append(Leg(upstream, client))
                nursery.start_soon(forward, index, reader, writer)
            await trio.testing.wait_all_tasks_blocked()
            yield legs
            nursery.cancel_scope.cancel()
    flat.close()


@contextmanager
def open_pairs(count: int) -> Iterator[list[tuple[socket.socket, socket.socket, socket.socket, socket.socket]]]:
    """Open ``count`` times the sockets upstream and reader, writer and client: non-blocking, closed at the end."""
    pairs = [(*socket.socketpair(), *socket.socketpair()) for _ in range(count)]
    try:
        for end in (end for ends in pairs for end in ends):
            end.setblocking(False)
        yield pairs
    finally:
        for end in (end for ends in pairs for end in ends):
            end.close()
