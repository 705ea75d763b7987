"""A real Redis or Valkey server for tests, with the options that the test needs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import trio
from attrs import frozen

from cgw.redis.address import RedisAddress
from cgw.redis.embedded import find_server
from cgw.redis.handshake import ask, connect


@frozen
class RedisServer:
    """A running server: its unix socket, and its process to send signals to."""

    path: Path
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        """Its address as cgw takes it."""
        return f"unix://{self.path}"

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the server's process."""
        os.kill(self.process.pid, number)


@contextmanager
def run_redis_server(folder: Path, *options: str) -> Iterator[RedisServer]:
    """Run a server without TCP port or persistence in ``folder`` (its path must be short); killed at the end."""
    path = folder / "redis.sock"
    with run_server_process(
        path, "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(folder), *options
    ) as server:
        yield server


@contextmanager
def run_server_process(path: Path, *arguments: str) -> Iterator[RedisServer]:
    """Run a server that will listen on the unix socket ``path``, and wait until it does; killed at the end."""
    path.unlink(missing_ok=True)
    with path.with_suffix(".log").open("wb") as log:
        process = subprocess.Popen([str(find_server()), *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        _wait_listening(path, process)
        yield RedisServer(path, process)
    finally:
        process.kill()
        process.wait()


def _wait_listening(path: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(path))
            except OSError:
                time.sleep(0.002)
            else:
                return
    raise AssertionError(f"the server did not start: {path.with_suffix('.log').read_text('utf-8', 'replace')}")


async def ask_server(place: Path | RedisAddress, *command: str | int) -> object:
    """Return the reply of one server, over a new connection; error replies are raised."""
    address = RedisAddress(path=str(place)) if isinstance(place, Path) else place
    connection = await connect(address, 10, 10)
    try:
        with trio.fail_after(10):
            reply: object = await ask(connection, *command)
    finally:
        await trio.aclose_forcefully(connection.stream)
    if isinstance(reply, Exception):
        raise reply
    return reply


async def wait_until(holds: Callable[[], Awaitable[bool]], seconds: float = 5.0) -> None:
    """Call ``holds`` every 5 ms until it returns True; raise :exc:`trio.TooSlowError` after ``seconds``."""
    with trio.fail_after(seconds):
        while not await holds():  # noqa: ASYNC110 - the event is in another process
            await trio.sleep(0.005)


@contextmanager
def run_tcp_server(folder: Path, port: int = 0) -> Iterator[int]:
    """Run a server that also listens on a TCP port of the loopback (0: a free one), and yield that."""
    if not port:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
    path = folder / "redis.sock"
    with run_server_process(path, "--port", str(port), "--unixsocket", str(path), "--save", "", "--dir", str(folder)):
        yield port
