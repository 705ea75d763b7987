"""Noticing the hang-ups of all clients with one epoll instance.

A client's socket is registered once, for as long as its connection lives, edge-triggered and for EPOLLRDHUP alone. So
data that the client sends wakes nobody up, pipelined requests included, and watching over an exchange costs neither a
task nor a system call. A client that only closes its sending side has left, too, as for nginx and Go's server.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from contextlib import suppress

import trio

MAX_HANGUPS_PER_PASS = 256

LOOK_SECONDS = 0.05
"""The time between two looks at the sockets that the kernel refused to watch."""


class WatchedClient:
    """A client's socket under watch. Whoever sets ``on_gone`` is called once, when the client leaves."""

    __slots__ = ("is_gone", "on_gone")

    def __init__(self) -> None:
        self.is_gone = False
        self.on_gone: Callable[[], None] | None = None

    def note_gone(self) -> None:
        """Tell that the client has left; only the first call does anything."""
        if not self.is_gone:
            self.is_gone = True
            if self.on_gone is not None:
                self.on_gone()

    async def wait_gone(self) -> None:
        """Return once the client has left. Takes the place of ``on_gone`` meanwhile."""
        gone = trio.Event()
        self.on_gone = gone.set
        try:
            if not self.is_gone:
                await gone.wait()
        finally:
            self.on_gone = None


class HangupWatch:
    """Watches over the clients of one process. :meth:`run` must be running."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._clients: dict[int, WatchedClient] = {}
        # Sockets that epoll does not take: the kernel bounds the watches of a user (fs.epoll.max_user_watches).
        self._refused = select.poll()
        self._refused_count = 0

    def register(self, sock: socket.socket) -> WatchedClient:
        """Watch ``sock`` until :meth:`forget`."""
        client = WatchedClient()
        try:
            self._epoll.register(sock.fileno(), select.EPOLLRDHUP | select.EPOLLET)
        except OSError:
            self._refused.register(sock.fileno(), select.POLLRDHUP)
            self._refused_count += 1
        self._clients[sock.fileno()] = client
        return client

    def forget(self, sock: socket.socket) -> None:
        """End the watch. To be called before ``sock`` is closed: its number may belong to another socket afterwards."""
        if self._clients.pop(sock.fileno(), None) is None:
            return
        if self._refused_count:
            with suppress(KeyError):
                self._refused.unregister(sock.fileno())
                self._refused_count -= 1
        with suppress(OSError):
            self._epoll.unregister(sock.fileno())

    async def run(self) -> None:
        """Tell hang-ups, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._look_at_refused)
            while True:
                await trio.lowlevel.wait_readable(self._epoll.fileno())
                self._tell(self._epoll.poll(0, MAX_HANGUPS_PER_PASS))

    async def _look_at_refused(self) -> None:
        while True:
            await trio.sleep(LOOK_SECONDS if self._refused_count else 1.0)
            if self._refused_count:
                self._tell(self._refused.poll(0))

    def _tell(self, ready: list[tuple[int, int]]) -> None:
        for descriptor, _ in ready:
            client = self._clients.get(descriptor)
            if client is not None:
                client.note_gone()

    def close(self) -> None:
        """Close the epoll instance."""
        self._epoll.close()
