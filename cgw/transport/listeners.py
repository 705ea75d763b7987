"""Listening sockets of the public port: bound here, or passed by systemd."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from typing import Any

import trio

from cgw.transport.arrival import ask_for_arrivals

BACKLOG = 2048
"""Connections that the kernel completes before they are accepted; ``net.core.somaxconn`` may lower it."""

FIRST_PASSED_DESCRIPTOR = 3
"""SD_LISTEN_FDS_START of sd_listen_fds(3)."""

_UNSUPPORTED = {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}
"""Errors of an address whose family this machine does not have (IPv6 in many containers)."""


async def open_listeners(
    host: str, port: int, *, backlog: int = BACKLOG, reuse_port: bool = False
) -> list[trio.SocketListener]:
    """Listen on ``host`` (a name, an address, or ``""`` for all), one listener per address that it stands for.

    ``::`` serves IPv4 as well (RFC 3493 §5.3). ``reuse_port`` shares the port with other processes of this user that do
    the same. Raises :exc:`OSError` when the port is taken or the name is unknown.
    """
    flags = socket.AI_PASSIVE
    found = await trio.socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=flags)
    listeners: list[trio.SocketListener] = []
    unsupported: OSError | None = None
    try:
        for family, _, _, _, address in found:
            try:
                listeners.append(_open_listener(family, address, backlog, is_dual=host == "::", reuse_port=reuse_port))
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise
                unsupported = error
        if not listeners:
            raise unsupported or OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    except BaseException:
        for listener in listeners:
            listener.socket.close()
        raise
    return listeners


def _open_listener(family: int, address: Any, backlog: int, *, is_dual: bool, reuse_port: bool) -> trio.SocketListener:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            # Before bind(2), and on every socket of the group, or the kernel refuses the second one.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            # Set in both cases: the system's default (net.ipv6.bindv6only) is the administrator's to change.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not is_dual)
        sock.bind(address)
        sock.listen(backlog)
        return _wrap(sock)
    except BaseException:
        sock.close()
        raise


def _wrap(sock: socket.socket) -> trio.SocketListener:
    # Accepted sockets inherit both. A response's last, small segment never waits for an acknowledgement.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # The kernel takes the time of packets only while some socket asks for it: here one does all the time.
    ask_for_arrivals(sock)
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))


def adopt_listeners(count: int, *, first: int = FIRST_PASSED_DESCRIPTOR) -> list[trio.SocketListener]:
    """Take the ``count`` listening sockets that were passed from descriptor ``first`` on (sd_listen_fds(3)).

    They are closed on exec from now on. Raises :exc:`OSError` that names the descriptor which is not a listening TCP
    socket; none is closed then.
    """
    adopted: list[socket.socket] = []
    try:
        adopted.extend(_adopt(descriptor) for descriptor in range(first, first + count))
    except OSError:
        for sock in adopted:
            sock.detach()
        raise
    return [_wrap(sock) for sock in adopted]


def _adopt(descriptor: int) -> socket.socket:
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError as error:
        raise OSError(error.errno, f"descriptor {descriptor} is not a socket: {error.strerror}") from None
    is_tcp = sock.type == socket.SOCK_STREAM and sock.family in (socket.AF_INET, socket.AF_INET6)
    is_listening = False
    with contextlib.suppress(OSError):
        is_listening = bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    if not (is_tcp and is_listening):
        sock.detach()
        raise OSError(errno.EINVAL, f"descriptor {descriptor} is not a listening TCP socket")
    # systemd passes descriptors without FD_CLOEXEC; a child (the embedded server) must not hold the port.
    sock.set_inheritable(False)
    return sock
