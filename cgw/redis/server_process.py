"""A server process whose life is tied to ours."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import trio

# Run by a fresh interpreter that then becomes the server: a function between fork and exec of this process
# (preexec_fn) could deadlock on a lock that another thread holds. PR_SET_PDEATHSIG (1) outlives the exec. If the
# gateway died before it was set, the process has another parent by now and must not stay.
_LAUNCHER = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, {signal}, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""

_POLL_SECONDS = 0.01
_STALE_SECONDS = 2.0


class StoreProcess:
    """A running server. On Linux the kernel kills it when the thread that started it ends, however that happens."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    @classmethod
    def spawn(cls, command: Sequence[str], log_file: Path) -> StoreProcess:
        """Start ``command`` in a session of its own (so that Ctrl-C reaches only us), its output in ``log_file``.

        Raises :exc:`OSError`.
        """
        # SIGKILL, not SIGTERM: it works on a stopped process too, and the append-only file is in the kernel's hands.
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
        """The exit status, or ``None`` while it runs."""
        return self._process.poll()

    async def wait(self) -> int:
        """Wait for the end of the process; returns its exit status. Cancel-safe."""
        await self._wait_by_handle()
        while (status := self._process.poll()) is None:  # noqa: ASYNC110 - nothing tells us where there are no handles
            await trio.sleep(_POLL_SECONDS)
        return status

    async def _wait_by_handle(self) -> None:
        """Wait for the process by a handle to it; returns at once where the system gives none."""
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
        """Ask the process to end; kill it if it has not after ``seconds``. Returns when it is gone."""
        if self._process.poll() is None:
            self._process.terminate()
            with trio.move_on_after(seconds):
                await self.wait()
            self._process.kill()
        self._process.wait()


def end_stale_process(pid_file: Path, folder: Path, names: Sequence[str]) -> None:
    """Kill the server that a gateway before us left running in ``folder``, if its pid file names one.

    Only a process that is one of ``names`` and works in ``folder`` is touched: pids are used again. Waits up to
    2 s for its end. Does nothing where there is no ``/proc``.
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
    return os.path.basename(os.readlink(process / "exe")).removesuffix(" (deleted)")


def _is_running(process: Path) -> bool:
    """Whether the process is there and no zombie."""
    try:
        return (process / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()[0] not in {"Z", "X"}
    except (OSError, IndexError):
        return False
