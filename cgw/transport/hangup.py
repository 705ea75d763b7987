"""Noticing that a peer has left, even behind bytes that nobody has read yet."""

from __future__ import annotations

import select
import socket

import trio


async def wait_hangup(sock: trio.socket.SocketType) -> None:
    """Return once the peer has closed its sending side, or the connection is broken.

    Bytes that the peer sent before are left in the kernel's buffer, unread: a pipelined request is no hang-up.
    Nobody else may wait for ``sock`` to become readable in the meantime, unless such bytes are there already.
    Cancel-safe: nothing is left behind.
    """
    try:
        if not await sock.recv(1, socket.MSG_PEEK):
            return
    except OSError:
        return
    await wait_hangup_behind_data(sock)


async def wait_hangup_behind_data(sock: trio.socket.SocketType) -> None:
    """Like :func:`wait_hangup`, beside somebody else who reads from ``sock``.

    It costs an epoll instance of its own, since the socket itself is readable, or waited for, already: what Trio
    waits for is that epoll, and that one knows of nothing but the hang-up (``EPOLLRDHUP``, epoll_ctl(2)).
    """
    watch = select.epoll()
    try:
        watch.register(sock.fileno(), select.EPOLLRDHUP)
        await trio.lowlevel.wait_readable(watch.fileno())
    finally:
        watch.close()
