"""Noticing the hang-ups of all clients with one epoll instance.

A client's socket is registered once, for as long as its connection lives, edge-triggered and for EPOLLRDHUP alone. So
data that the client sends wakes nobody up, pipelined requests included, and watching over an exchange costs neither a
task nor a system call.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from contextlib import suppress

import trio

MAX_HANGUPS_PER_PASS = 256


class WatchedClient:
    """A client's socket under watch. ``on_gone`` is called once, from :meth:`HangupWatch.run`, when it has left."""

    __slots__ = ("is_gone", "on_gone")

    def __init__(self) -> None:
        self.is_gone = False
        self.on_gone: Callable[[], None] | None = None


class HangupWatch:
    """Watches over the clients of one process. :meth:`run` must be running."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._clients: dict[int, WatchedClient] = {}

    def register(self, sock: socket.socket) -> WatchedClient | None:
        """Watch ``sock`` until :meth:`forget`; return ``None`` where the kernel takes no more."""
        client = WatchedClient()
        try:
            self._epoll.register(sock.fileno(), select.EPOLLRDHUP | select.EPOLLET)
        except OSError:
            return None
        self._clients[sock.fileno()] = client
        return client

    def forget(self, sock: socket.socket) -> None:
        """End the watch. To be called before ``sock`` is closed: its number may belong to another socket afterwards."""
        if self._clients.pop(sock.fileno(), None) is not None:
            with suppress(OSError):
                self._epoll.unregister(sock.fileno())

    async def run(self) -> None:
        """Tell hang-ups, until cancelled."""
        while True:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            for descriptor, _ in self._epoll.poll(0, MAX_HANGUPS_PER_PASS):
                client = self._clients.get(descriptor)
                if client is not None and not client.is_gone:
                    client.is_gone = True
                    if client.on_gone is not None:
                        client.on_gone()

    def close(self) -> None:
        """Close the epoll instance."""
        self._epoll.close()
