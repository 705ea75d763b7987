"""Streams that a flat relay carries, on socket pairs whose other ends are the test's."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

import trio
import trio.testing
from attrs import define, field

from cgw.transport.flat_relay import Carried, FlatRelay
from cgw.transport.sockets import PlainTransport
from cgw.wire.framers import ChunkedFramer
from cgw.wire.windows import BodyWindowCollector


@define(eq=False)
class Leg:
    """One stream: its upstream's and its client's end, and the scope that it is carried in."""

    upstream: socket.socket
    client: socket.socket
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    collector: BodyWindowCollector = field(factory=BodyWindowCollector)
    carried: Carried | None = None

    def received(self) -> bytes:
        """What has come to the client since the last look."""
        data = b""
        with suppress(BlockingIOError):
            while more := self.client.recv(1_000_000):
                data += more
        return data


@asynccontextmanager
async def open_legs(
    flat: FlatRelay, count: int, *, on_first: Callable[[int], None] = lambda _: None, in_thread: bool = False
) -> AsyncIterator[list[Leg]]:
    """``count`` streams that ``flat`` carries; it runs, and all sockets are closed in the end, its own included."""
    legs: list[Leg] = []

    async def carry(index: int, reader: socket.socket, writer: socket.socket) -> None:
        leg = legs[index]
        framer = ChunkedFramer(leg.collector, {})
        with leg.scope:
            leg.carried = await flat.carry(PlainTransport(reader), writer, framer, lambda _: on_first(index))

    with open_pairs(count) as pairs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flat.run if in_thread else flat.run_without_thread)
            for index, (upstream, reader, writer, client) in enumerate(pairs):
                legs.append(Leg(upstream, client))
                nursery.start_soon(carry, index, reader, writer)
            await trio.testing.wait_all_tasks_blocked()
            yield legs
            nursery.cancel_scope.cancel()
    flat.close()


@contextmanager
def open_pairs(count: int) -> Iterator[list[tuple[socket.socket, socket.socket, socket.socket, socket.socket]]]:
    """``count`` times upstream and reader, writer and client: non-blocking, and closed in the end."""
    pairs = [(*socket.socketpair(), *socket.socketpair()) for _ in range(count)]
    try:
        for end in (end for ends in pairs for end in ends):
            end.setblocking(False)
        yield pairs
    finally:
        for end in (end for ends in pairs for end in ends):
            end.close()
