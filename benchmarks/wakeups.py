"""CPU time of one wake-up: a thread in epoll_wait(2), compared to a Trio task. Run ``python -m benchmarks.wakeups``.

These figures are the reason why the relay's fast path has a thread of its own (docs/design.md §2). A child process
writes one byte every millisecond; this process measures its own CPU time per byte.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import trio

WAKEUPS = 1500
GAP_SECONDS = 0.001


@contextmanager
def open_ticking_epoll() -> Iterator[tuple[select.epoll, socket.socket]]:
    """Open an epoll instance with one socket that receives a byte every millisecond."""
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    with reader, writer, select.epoll() as epoll:
        epoll.register(reader, select.EPOLLIN)
        # A process, not a thread: its CPU time must not count in `time.process_time`.
        child = os.fork()
        if child == 0:
            for _ in range(WAKEUPS):
                time.sleep(GAP_SECONDS)
                writer.send(b".")
            os._exit(0)
        try:
            yield epoll, reader
        finally:
            os.waitpid(child, 0)


def measure_thread() -> float:
    """Return CPU µs per wake-up of a thread in epoll_wait."""
    with open_ticking_epoll() as (epoll, reader):
        began = time.process_time()
        for _ in range(WAKEUPS):
            epoll.poll()
            reader.recv(1)
        return (time.process_time() - began) / WAKEUPS * 1e6


async def measure_task() -> float:
    """Return CPU µs per wake-up of a Trio task that waits for the same epoll instance."""
    with open_ticking_epoll() as (epoll, reader):
        began = time.process_time()
        for _ in range(WAKEUPS):
            await trio.lowlevel.wait_readable(epoll.fileno())
            epoll.poll(0)
            reader.recv(1)
        return (time.process_time() - began) / WAKEUPS * 1e6


def measure_thread_tick() -> float:
    """Return CPU µs per ``time.sleep`` of a millisecond."""
    began = time.process_time()
    for _ in range(WAKEUPS):
        time.sleep(GAP_SECONDS)
    return (time.process_time() - began) / WAKEUPS * 1e6


async def measure_task_tick() -> float:
    """Return CPU µs per ``trio.sleep`` of a millisecond."""
    began = time.process_time()
    for _ in range(WAKEUPS):
        await trio.sleep(GAP_SECONDS)
    return (time.process_time() - began) / WAKEUPS * 1e6


def main() -> None:
    """Print the four figures, measured on one pinned core."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    print(f"wake-up for an event: thread {measure_thread():5.1f} µs, Trio task {trio.run(measure_task):5.1f} µs of CPU")
    print(
        f"tick of 1 ms:         thread {measure_thread_tick():5.1f} µs, Trio task {trio.run(measure_task_tick):5.1f} µs"
    )


if __name__ == "__main__":
    main()
