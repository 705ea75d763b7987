"""Noticing that a peer has left, even behind bytes that nobody has read yet."""

from __future__ import annotations

import select
import socket

import trio


async def wait_hangup(sock: socket.socket) -> None:
    """Return once the peer has closed its sending side, or the connection is broken.

    Bytes that the peer sent before are left in the kernel's buffer, unread: a pipelined request is no hang-up.
    ``sock`` is non-blocking, and nobody else may wait for it to become readable in the meantime. Cancel-safe: nothing
    is left behind.
    """
    while True:
        await trio.lowlevel.wait_readable(sock)
        try:
            if not sock.recv(1, socket.MSG_PEEK):
                return
        except BlockingIOError:
            continue
        except OSError:
            return
        await wait_hangup_behind_data(sock.fileno())
        return


async def wait_hangup_behind_data(descriptor: int) -> None:
    """Like :func:`wait_hangup`, where there are bytes to read, or beside somebody else who reads.

    It costs an epoll instance of its own, since the socket itself is readable, or waited for, already: what Trio
    waits for is that epoll, and that one knows of nothing but the hang-up (``EPOLLRDHUP``, epoll_ctl(2)).
    """
    watch = select.epoll()
    try:
        watch.register(descriptor, select.EPOLLRDHUP)
        await trio.lowlevel.wait_readable(watch.fileno())
    finally:
        watch.close()
