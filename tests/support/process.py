"""``cgw serve`` in a child process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from attrs import define

from tests.support.waiting import wait_until

START_SECONDS = 20.0
_SERVING = re.compile(r"is serving on http://127\.0\.0\.1:(\d+)")


@define
class GatewayProcess:
    """A running ``cgw serve``, its port, and its log file."""

    process: subprocess.Popen[bytes]
    port: int
    log_path: Path

    @property
    def url(self) -> str:
        """The base URL."""
        return f"http://127.0.0.1:{self.port}"

    def kill(self) -> None:
        """Send SIGKILL."""
        self.process.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Send SIGTERM, which drains."""
        self.process.send_signal(signal.SIGTERM)

    async def wait(self, seconds: float = 20) -> int:
        """Wait for its end; return the exit status."""
        return await wait_ended(self.process, seconds)


async def wait_ended(process: subprocess.Popen[bytes], seconds: float = 20) -> int:
    """Wait until ``process`` has ended; return its exit status."""
    await wait_until(lambda: process.poll() is not None, seconds=seconds)
    return process.wait()


def start_cgw(
    environ: Mapping[str, str], log_path: Path, *arguments: str, script: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start ``cgw`` with only the settings in ``environ``; its standard error goes to ``log_path``.

    ``script`` is what to run instead of the module ``cgw``.
    """
    program = ("-m", "cgw") if script is None else (str(script),)
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ}
    with log_path.open("wb") as log:
        return subprocess.Popen(
            [sys.executable, *program, *(arguments or ("serve",))],
            env={**inherited, **environ},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )


@asynccontextmanager
async def open_gateway_process(
    environ: Mapping[str, str], log_path: Path, script: Path | None = None
) -> AsyncIterator[GatewayProcess]:
    """Run ``cgw serve`` for the length of the block, which begins when it serves; kill it at the end."""
    process = start_cgw(environ, log_path, script=script)
    try:
        yield GatewayProcess(process, await wait_until_serving(process, log_path), log_path)
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(process.wait)


async def wait_until_serving(process: subprocess.Popen[bytes], log_path: Path) -> int:
    """Wait until ``process`` serves, and return the port. Raises :exc:`RuntimeError` when it ends before."""
    found: list[str] = []

    def is_serving() -> bool:
        if process.poll() is not None:
            raise RuntimeError(f"cgw ended at once: {log_path.read_text()}")
        found[:] = _SERVING.findall(log_path.read_text())
        return bool(found)

    await wait_until(is_serving, seconds=START_SECONDS)
    return int(found[0])
