"""Signals sent to ``cgw serve`` as a process of its own, from its first moments on."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import httpx
import pytest
import trio

from cgw.actors.tokens import hash_token
from tests.support.gateway import TOKEN, build_actors, build_environ
from tests.support.process import open_gateway_process, start_cgw, wait_ended
from tests.support.requests import HEADERS
from tests.support.waiting import wait_until

NOWHERE = "http://127.0.0.1:9"


NEW_NAMESPACE = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child")


def can_make_pid_namespaces() -> bool:
    """Return whether ``unshare`` works here; containers often forbid it."""
    return (
        shutil.which("unshare") is not None
        and subprocess.call([*NEW_NAMESPACE, "true"], stderr=subprocess.DEVNULL) == 0
    )


def start_as_pid_1(environ: Mapping[str, str], log_path: Path) -> subprocess.Popen[bytes]:
    """Start ``cgw serve`` as PID 1 of a namespace of its own; it writes ``begun`` to its log first."""
    command = ["sh", "-c", 'echo begun; exec "$@"', "sh", sys.executable, "-m", "cgw", "serve"]
    variables = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path.cwd()), **environ}
    with log_path.open("wb") as log:
        return subprocess.Popen(
            [*NEW_NAMESPACE, *command], env=variables, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )


async def wait_status(client: httpx.AsyncClient, path: str, status: int) -> None:
    """Ask for ``path`` until its answer has ``status``."""
    with trio.fail_after(10):
        while (await client.get(path)).status_code != status:  # noqa: ASYNC110 - it is another process's state
            await trio.sleep(0.01)


async def test_hup_quit_and_usr1_do_not_end_the_process(tmp_path: Path) -> None:
    """SIGHUP reads the actors file, SIGQUIT logs stacks, SIGUSR1 toggles debug logging; all is served meanwhile."""
    log_path = tmp_path / "log"
    async with (
        open_gateway_process(build_environ(tmp_path, NOWHERE), log_path) as gateway,
        httpx.AsyncClient(base_url=gateway.url, headers=HEADERS) as client,
    ):
        assert (await client.get("/v1/limits")).status_code == 200
        (tmp_path / "actors.toml").write_text(build_actors().replace(hash_token(TOKEN), hash_token("another")))
        gateway.process.send_signal(signal.SIGHUP)
        await wait_status(client, "/v1/limits", 401)
        (tmp_path / "actors.toml").write_text("wrong")
        gateway.process.send_signal(signal.SIGHUP)
        await wait_until(lambda: "actors file: not reloaded, what was in force stays" in log_path.read_text())
        gateway.process.send_signal(signal.SIGQUIT)
        await wait_until(lambda: "Server.run" in log_path.read_text())
        gateway.process.send_signal(signal.SIGUSR1)
        await wait_until(lambda: "the log level is DEBUG now" in log_path.read_text())
        gateway.process.send_signal(signal.SIGUSR1)
        await wait_until(lambda: "the log level is INFO now" in log_path.read_text())
        assert (await client.get("/-/readyz")).text == "readyz: ok"
        gateway.terminate()
        assert await gateway.wait() == 0
    assert "Traceback" not in log_path.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_at_any_moment_of_the_start_ends_it(tmp_path: Path, number: signal.Signals) -> None:
    """Whenever it comes, the process ends soon, without a traceback and with no child left."""
    for index, delay_seconds in enumerate((0.0, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.2)):
        data_dir = tmp_path / str(index)
        data_dir.mkdir()
        process = start_cgw(build_environ(data_dir, NOWHERE), data_dir / "log")
        try:
            await trio.sleep(delay_seconds)
            process.send_signal(number)
            await wait_ended(process, 10)
        finally:
            process.kill()  # does nothing to one that has ended
            process.wait()
        log = (data_dir / "log").read_text()
        # Before cgw's first line runs, the signal has the interpreter's own effect.
        own = {-signal.SIGTERM, 130, -signal.SIGINT, 1} if delay_seconds <= 0.2 else set()
        assert process.returncode in {0, *own}, (delay_seconds, log)
        if process.returncode == 0:
            assert "Traceback" not in log, (delay_seconds, log)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_early_signal_counts_where_python_drops_exceptions(number: signal.Signals) -> None:
    """Where an exception is printed and dropped, as in the weak references of import locks, a signal still ends it."""
    code = f"""
import os, weakref
from cgw.service.early_signals import handle_early_signals
handle_early_signals()
class Lock: pass
lock = Lock()
reference = weakref.ref(lock, lambda _: os.kill(os.getpid(), {int(number)}))
del lock
print("goes on", flush=True)
"""
    ended = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, timeout=20)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"", b"")


@pytest.mark.skipif(not can_make_pid_namespaces(), reason="no PID namespaces here")
async def test_sigterm_ends_pid_1_while_it_starts(tmp_path: Path) -> None:
    """As PID 1 of a container, where a signal without a handler is ignored, SIGTERM ends the start as well."""
    log_path = tmp_path / "log"
    process = start_as_pid_1(build_environ(tmp_path, NOWHERE), log_path)
    try:
        await wait_until(lambda: "begun" in log_path.read_text())
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        await wait_until(lambda: catches(int(child), signal.SIGTERM))  # amid the imports
        os.kill(int(child), signal.SIGTERM)
        assert await wait_ended(process, 10) == 0, log_path.read_text()
        assert "is serving" not in log_path.read_text()
    finally:
        process.kill()
        process.wait()


def start_ignoring_sigterm(environ: Mapping[str, str], log_path: Path, *more: str) -> subprocess.Popen[bytes]:
    """Start ``cgw serve`` with SIGTERM ignored: the kernel drops it until there is a handler, as for PID 1."""
    command = ["sh", "-c", "trap '' TERM; exec \"$@\"", "sh", sys.executable, *more, "-m", "cgw", "serve"]
    variables = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path.cwd()), **environ}
    with log_path.open("wb") as log:
        return subprocess.Popen(command, env=variables, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def catches(pid: int, number: signal.Signals) -> bool:
    """Return whether the process has a handler for a signal."""
    caught = int(Path(f"/proc/{pid}/status").read_text().partition("SigCgt:")[2].split()[0], 16)
    return bool(caught >> (number - 1) & 1)


async def test_sigterm_is_handled_before_anything_slow_is_imported(tmp_path: Path) -> None:
    """From the handler on, SIGTERM ends a process that ignored it before; by then nothing of weight was imported."""
    log_path = tmp_path / "log"
    process = start_ignoring_sigterm(build_environ(tmp_path, NOWHERE), log_path, "-X", "importtime")
    try:
        await wait_until(lambda: catches(process.pid, signal.SIGTERM))
        process.send_signal(signal.SIGTERM)
        assert await wait_ended(process, 10) == 0
    finally:
        process.kill()
        process.wait()
    log = log_path.read_text()
    assert "is serving" not in log
    imported = [line.rpartition("|")[2].strip() for line in log.splitlines() if line.startswith("import time:")]
    before = imported[: imported.index("cgw.service.early_signals")]
    # In the order of their ends: whatever the handlers need, and what the interpreter itself has imported.
    assert {name for name in before if name.startswith("cgw")} == {"cgw", "cgw.service"}
    slow = {"attr", "click", "trio", "typing", "logging", "asyncio", "ssl", "socket"}
    assert slow.isdisjoint(name.partition(".")[0] for name in before), before


async def test_a_second_sigterm_ends_the_drain_delay(tmp_path: Path) -> None:
    """During the delay all is served and readiness fails; the second signal cuts at once, with status 0."""
    more = {"CODY_GATEWAY_DRAIN_DELAY": "1h", "CODY_GATEWAY_DRAIN_TIMEOUT": "1h"}
    async with (
        open_gateway_process(build_environ(tmp_path, NOWHERE, more=more), tmp_path / "log") as gateway,
        httpx.AsyncClient(base_url=gateway.url) as client,
    ):
        gateway.terminate()
        await wait_status(client, "/-/readyz", 503)
        async with httpx.AsyncClient(base_url=gateway.url) as another:
            assert (await another.get("/-/healthz")).text == "healthz: ok"
        gateway.terminate()
        assert await gateway.wait() == 0
    assert "SIGTERM again" in (tmp_path / "log").read_text()
