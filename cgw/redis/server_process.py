"""A server process that ends with this one, however this one ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import trio

# Run by a new interpreter that then becomes the server by exec. Python code between fork and exec of this process
# (preexec_fn) could deadlock on a lock that another thread held. PR_SET_PDEATHSIG (1) survives the exec. If the
# gateway ended before it was set, no signal will come: the process has another parent by then, and must end itself.
_LAUNCHER = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, {signal}, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""

_POLL_SECONDS = 0.01
_STALE_SECONDS = 2.0


class ServerProcess:
    """A running server. On Linux the kernel kills it when the thread that started it ends, for whatever reason."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    @classmethod
    def spawn(cls, command: Sequence[str], log_file: Path) -> ServerProcess:
        """Start ``command`` in a new session (so that Ctrl-C does not reach it), with its output in ``log_file``.

        Raises :exc:`OSError`.
        """
        # SIGKILL, not SIGTERM: it also ends a stopped process, and loses nothing, because what was written to the
        # append-only file is in the page cache.
        launcher = _LAUNCHER.format(signal=int(signal.SIGKILL))
        tied = [sys.executable, "-I", "-S", "-c", launcher, str(os.getpid()), *command]
        with log_file.open("wb") as log:
            process = subprocess.Popen(
                tied if sys.platform == "linux" else list(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return cls(process)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def poll(self) -> int | None:
        """Return the exit status, or ``None`` while the process runs."""
        return self._process.poll()

    async def wait(self) -> int:
        """Wait for the end of the process and return its exit status. Cancel-safe."""
        await self._wait_by_handle()
        while (status := self._process.poll()) is None:  # noqa: ASYNC110 - no event without pidfd
            await trio.sleep(_POLL_SECONDS)
        return status

    async def _wait_by_handle(self) -> None:
        """Wait for the process by its pidfd; return at once where the system has none (macOS, Linux before 5.3)."""
        if sys.platform != "linux":
            return
        try:
            handle = os.pidfd_open(self.pid)
        except OSError:
            return
        try:
            await trio.lowlevel.wait_readable(handle)
        finally:
            os.close(handle)

    async def stop(self, seconds: float) -> None:
        """Send SIGTERM, and SIGKILL after ``seconds``; return when the process has ended.

        Call it in a shielded scope: when it is cancelled, the process may still be running.
        """
        if self._process.poll() is None:
            self._process.terminate()
            with trio.move_on_after(seconds):
                await self.wait()
            self._process.kill()
        # Blocks for a moment at most: the process has ended, or has SIGKILL.
        self._process.wait()


def end_stale_process(pid_file: Path, folder: Path, names: Sequence[str]) -> None:
    """Kill the server that an earlier gateway left running in ``folder``, if its pid file names one.

    The operating system reuses pids, so only a process whose program is one of ``names`` and whose working directory
    is ``folder`` is killed. Blocks up to 2 s for its end. Does nothing where there is no ``/proc``.
    """
    try:
        pid = int(pid_file.read_text("ascii"))
        process = Path("/proc") / str(pid)
        is_ours = _program_name(process) in names and (process / "cwd").resolve() == folder.resolve()
    except (OSError, ValueError):
        return
    if not is_ours:
        return
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    deadline = time.monotonic() + _STALE_SECONDS
    while _is_running(process) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)


def _program_name(process: Path) -> str:
    # The kernel adds the suffix when the binary was replaced, as by an upgrade, while it runs.
    return os.path.basename(os.readlink(process / "exe")).removesuffix(" (deleted)")


def _is_running(process: Path) -> bool:
    """Return True if the process exists and is not a zombie."""
    try:
        # The state follows the program's name, which is in parentheses and may contain any character.
        return (process / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()[0] not in {"Z", "X"}
    except (OSError, IndexError):
        return False
