"""Child processes that always end with their block, descendants included. Every wait has a deadline."""

from __future__ import annotations

import contextlib
import os
import select
import selectors
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.machine import process_tree

__all__ = ["Child", "ChildError", "free_port", "pinned", "wait_until_answers"]

TERM_GRACE_SECONDS = 4.0
KILL_GRACE_SECONDS = 5.0


class ChildError(Exception):
    """A child could not be started, ended early, or missed a deadline."""


@contextlib.contextmanager
def pinned(cores: Sequence[int]) -> Iterator[None]:
    """Pin this thread, and children started in the block, to ``cores``; restore the thread's own cores afterwards."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def free_port() -> int:
    """Return a port of 127.0.0.1 that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class Child:
    """A process in a session of its own. Leaving the block ends it and its descendants: SIGTERM, then SIGKILL.

    If ``setpriv`` is installed, the child also gets SIGTERM when this process is killed and cannot clean up.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        cores: Sequence[int],
        environ: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        log: Path | None = None,
        has_pipes: bool = False,
    ) -> None:
        self.name = name
        setpriv = shutil.which("setpriv")
        wrapped = [setpriv, "--pdeathsig", "TERM", "--", *command] if setpriv else list(command)
        pipe = subprocess.PIPE if has_pipes else None
        self._log = log
        with contextlib.ExitStack() as stack:
            output = stack.enter_context(log.open("ab")) if log else subprocess.DEVNULL
            try:
                with pinned(cores):
                    self._process = subprocess.Popen(
                        wrapped,
                        stdin=pipe or subprocess.DEVNULL,
                        stdout=pipe or output,
                        stderr=output,
                        env=dict(environ) if environ is not None else None,
                        cwd=cwd,
                        start_new_session=True,  # Ctrl-C in the terminal then reaches only this process, which ends it
                        bufsize=0,  # `read_line` reads the descriptor itself, so nothing may sit in a buffer
                    )
            except OSError as error:
                raise ChildError(f"{name}: {error}") from error
        self._buffer = bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def send_line(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
        except OSError as error:
            raise ChildError(f"{self.name} no longer reads commands: {self._read_log_end()}") from error

    def read_line(self, deadline: float) -> str:
        """Return the next line of its output. ``deadline`` is a time of ``time.monotonic``.

        Raises :exc:`ChildError` when no line comes in time, or the output ends.
        """
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while (end := self._buffer.find(b"\n")) < 0:
                left = deadline - time.monotonic()
                if left <= 0 or not selector.select(left):
                    raise ChildError(f"{self.name} printed nothing before the deadline")
                got = os.read(self._process.stdout.fileno(), 1 << 20)
                if not got:
                    raise ChildError(f"{self.name} ended: {self._read_log_end()}")
                self._buffer += got
        line = self._buffer[:end].decode()
        del self._buffer[: end + 1]
        return line

    def close(self) -> None:
        """End the process and its descendants. Takes up to 14 s."""
        # Listed first: once their parent is gone, descendants in sessions of their own can no longer be found. A pidfd
        # stays with the process, so another one that gets the same pid later is not killed.
        descendants = [_open_pidfd(pid) for pid in process_tree(self.pid)[1:]] if self.is_alive else []
        try:
            # The whole group first: most children end their own children when they get SIGTERM.
            self._signal_group(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(TERM_GRACE_SECONDS)
        finally:
            self._signal_group(signal.SIGKILL)
            deadline = time.monotonic() + KILL_GRACE_SECONDS
            for pidfd in descendants:
                if pidfd is not None:
                    _kill(pidfd, deadline)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(KILL_GRACE_SECONDS)
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe:
                    pipe.close()

    def _signal_group(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def _read_log_end(self) -> str:
        if self._log is None or not self._log.exists():
            return "it printed no message"
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return " / ".join(lines[-3:]) or "it printed no message"

    def describe_end(self) -> str:
        return f"{self.name} ended with status {self._process.poll()}: {self._read_log_end()}"


def _open_pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except OSError:  # the process has ended
        return None


def _kill(pidfd: int, deadline: float) -> None:
    """Kill a process and wait until it has ended or the deadline has passed; close ``pidfd``."""
    try:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        # A pidfd is readable once its process has ended; `wait` is only for own children, not for descendants.
        select.select([pidfd], [], [], max(deadline - time.monotonic(), 0))
    finally:
        os.close(pidfd)


def wait_until_answers(child: Child, port: int, seconds: float) -> None:
    """Wait until ``port`` accepts connections. Raises :exc:`ChildError` when the child ends or after ``seconds``."""
    deadline = time.monotonic() + seconds
    while True:
        if not child.is_alive:
            raise ChildError(child.describe_end())
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise ChildError(f"{child.name} did not listen on port {port} within {seconds:g} s") from None
            time.sleep(0.02)
        else:
            return
