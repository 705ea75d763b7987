"""Sockets whose data comes with the time of its arrival."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

from cgw.transport.arrival import CONTROL_BYTES, ask_for_arrivals, read_arrival


def open_timed_listener() -> socket.socket:
    """Listen on a free port of 127.0.0.1; accepted sockets tell when data came."""
    listener = socket.create_server(("127.0.0.1", 0))
    ask_for_arrivals(listener)
    return listener


@contextmanager
def open_timed_sockets() -> Iterator[None]:
    """Have the kernel take the time of packets within the block.

    It begins a moment after the first socket of any process asks for it, and ends with the last one.
    """
    with open_timed_listener() as listener, socket.create_connection(listener.getsockname()) as peer:
        accepted = listener.accept()[0]
        with accepted:
            for _ in range(5000):
                peer.sendall(b"x")
                if read_arrival(accepted.recvmsg(1, CONTROL_BYTES)[1]):
                    break
                time.sleep(0.001)
            else:
                raise AssertionError("the kernel does not tell when data came")
            yield
