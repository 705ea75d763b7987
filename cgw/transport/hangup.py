"""Waiting for a peer to leave, even while data that it sent before has not been read."""

from __future__ import annotations

import select
import socket

import trio

POLL_SECONDS = 0.02


async def wait_hangup(sock: socket.socket) -> None:
    """Return once the peer has closed its sending side, or the connection is broken.

    Data that the peer sent before stays in the kernel's buffer: a pipelined request does not count as leaving.
    ``sock`` is non-blocking, and no other task may wait for it to become readable in the meantime. Cancel-safe.
    """
    while True:
        await trio.lowlevel.wait_readable(sock)
        try:
            # MSG_PEEK tells data from an end without taking the data from whoever reads the next request.
            if not sock.recv(1, socket.MSG_PEEK):
                return
        except BlockingIOError:
            continue
        except OSError:
            return
        await wait_hangup_behind_data(sock.fileno())
        return


async def wait_hangup_behind_data(descriptor: int) -> None:
    """Like :func:`wait_hangup`, but for a socket that has unread data, or that another task reads from.

    It costs an epoll instance for as long as it waits. When there is no descriptor left for that, it looks from time to
    time instead.
    """
    # Trio can't wait for a hang-up alone: the socket is readable already, or has a waiting task. So Trio waits for an
    # epoll instance that reports nothing but EPOLLRDHUP of the socket (epoll_ctl(2)).
    try:
        watch = select.epoll()
    except OSError:
        await _poll_hangup(descriptor)
        return
    try:
        watch.register(descriptor, select.EPOLLRDHUP)
        await trio.lowlevel.wait_readable(watch.fileno())
    finally:
        watch.close()


async def _poll_hangup(descriptor: int) -> None:
    poll = select.poll()  # has no descriptor of its own
    poll.register(descriptor, select.POLLRDHUP)
    while not poll.poll(0):  # noqa: ASYNC110 - there is no event to wait for
        await trio.sleep(POLL_SECONDS)
