"""The embedded store: private, persistent, one per directory, and ended with its gateway."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

import cgw
from cgw.errors import ConfigError, StoreUnavailable
from cgw.redis.embedded import find_server, open_embedded_redis
from cgw.redis.opening import Store, open_redis
from cgw.redis.server_process import ServerProcess
from cgw.redis.store_folder import MAX_SOCKET_PATH_BYTES
from tests.support.redis_server import wait_until

GATEWAY = """
import sys, trio
from pathlib import Path
from cgw.redis.embedded import open_embedded_redis
from cgw.redis.opening import open_redis

async def main():
    async with open_embedded_redis(Path(sys.argv[1])) as url, open_redis(url, timeout_seconds=5) as redis:
        await redis.commands.set("kept", "yes")
        print((Path(sys.argv[1]) / "store" / "server.pid").read_text().strip(), flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


def _server_pid(data_dir: Path) -> int:
    return int((data_dir / "store" / "server.pid").read_text("ascii"))


@contextmanager
def _run(command: list[str], folder: Path, *, stdout: int = subprocess.DEVNULL) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process in ``folder``; it is killed at the end of the block."""
    environment = os.environ | {"PYTHONPATH": str(Path(cgw.__file__).parents[1])}
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=stdout) as process:
        try:
            yield process
        finally:
            process.kill()


async def _has_state(pid: int, state: str) -> bool:
    """Return True if the process has this state in /proc; a process that does not exist counts as a zombie."""
    await trio.lowlevel.checkpoint()
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0] == state
    except FileNotFoundError:
        return state == "Z"


async def _is_gone(pid: int) -> bool:
    return await _has_state(pid, "Z")


async def _answers(redis: Store) -> bool:
    try:
        return bool(await redis.execute_command("PING") == b"PONG")
    except StoreUnavailable:
        return False


async def test_private_to_this_user(tmp_path: Path) -> None:
    """The store listens on a socket that only its owner can use, and on no port."""
    async with open_embedded_redis(tmp_path / "data") as url, open_redis(url, timeout_seconds=5) as redis:
        assert url == f"unix://{tmp_path}/data/store/server.sock"
        assert await redis.execute_command("CONFIG GET", "port") == {b"port": b"0"}
        for path in (tmp_path / "data", tmp_path / "data" / "store", tmp_path / "data" / "store" / "server.sock"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o700


async def test_data_outlives_the_gateway(tmp_path: Path) -> None:
    """Data is there again at the next start, and no server runs in between."""
    async with open_embedded_redis(tmp_path) as url, open_redis(url, timeout_seconds=5) as redis:
        await redis.commands.set("kept", "yes")
        pid = _server_pid(tmp_path)
    assert await _is_gone(pid)
    async with open_embedded_redis(tmp_path) as url, open_redis(url, timeout_seconds=5) as redis:
        assert await redis.commands.get("kept") == b"yes"


async def test_server_that_ends_is_restarted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A killed server is restarted with its data at the same address, and the log says so."""
    async with open_embedded_redis(tmp_path) as url, open_redis(url, timeout_seconds=5) as redis:
        await redis.commands.set("kept", "yes")
        first = _server_pid(tmp_path)
        os.kill(first, signal.SIGKILL)
        await wait_until(lambda: _is_gone(first))
        await wait_until(lambda: _answers(redis))
        assert await redis.commands.get("kept") == b"yes"
        assert _server_pid(tmp_path) != first
    assert "the embedded store ended unexpectedly (status -9)" in caplog.text


async def test_one_gateway_at_a_time(tmp_path: Path) -> None:
    """A second gateway on the same directory gets one sentence with the pid of the first and the settings to change."""
    async with open_embedded_redis(tmp_path):
        with pytest.raises(ConfigError) as refused:
            async with open_embedded_redis(tmp_path):
                raise AssertionError("opened")
    assert str(refused.value) == (
        f"data directory {tmp_path} is in use by another cgw (pid {os.getpid()}); "
        "set CODY_GATEWAY_DATA_DIR or REDIS_ENDPOINT"
    )
    async with open_embedded_redis(tmp_path):
        pass


async def test_long_paths_work(tmp_path: Path) -> None:
    """If the path is too long for a socket, the socket is in another private folder, which is removed at the end."""
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    async with open_embedded_redis(deep) as url, open_redis(url, timeout_seconds=5) as redis:
        socket = Path(url.removeprefix("unix://"))
        assert len(os.fsencode(socket)) <= MAX_SOCKET_PATH_BYTES
        assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
        await redis.commands.set("kept", "yes")
    assert not socket.parent.exists()
    async with open_embedded_redis(deep) as url, open_redis(url, timeout_seconds=5) as redis:
        assert await redis.commands.get("kept") == b"yes"


async def test_short_folder_that_is_not_private_is_not_used(tmp_path: Path) -> None:
    """When others can enter the usual short folder, another private one is created."""
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    async with open_embedded_redis(deep) as url:
        usual = Path(url.removeprefix("unix://")).parent
    usual.mkdir(mode=0o755)
    try:
        async with open_embedded_redis(deep) as url:
            assert Path(url.removeprefix("unix://")).parent != usual
    finally:
        usual.rmdir()


async def test_directory_that_cant_be_created(tmp_path: Path) -> None:
    """A data directory that is a file is one sentence."""
    (tmp_path / "file").write_text("x", "ascii")
    with pytest.raises(ConfigError, match=r"data directory .*/file can't be used: File exists; set CODY_GATEWAY_DATA"):
        async with open_embedded_redis(tmp_path / "file"):
            raise AssertionError("opened")


def test_server_from_path_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """valkey-server or redis-server in PATH is preferred to the packaged server."""
    monkeypatch.setenv("PATH", str(tmp_path))
    packaged = find_server()
    assert os.access(packaged, os.X_OK)
    for name in ("redis-server", "valkey-server"):
        (tmp_path / name).write_text("#!/bin/sh\n", "ascii")
        (tmp_path / name).chmod(0o755)
        assert find_server() == tmp_path / name
    assert packaged.parent != tmp_path


async def test_server_that_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that ends at once is reported with the end of its log, and the directory is unlocked."""
    broken = tmp_path / "bin" / "valkey-server"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho 'Fatal: bad day'\nexit 3\n", "ascii")
    broken.chmod(0o755)
    with monkeypatch.context() as patched:
        patched.setenv("PATH", f"{broken.parent}:/bin:/usr/bin")
        with pytest.raises(StoreUnavailable, match=r"(?s)ended with status 3; the end of its log:\nFatal: bad day"):
            async with open_embedded_redis(tmp_path / "data"):
                raise AssertionError("opened")
    async with open_embedded_redis(tmp_path / "data"):
        pass


async def test_killed_gateway_leaves_no_orphan(tmp_path: Path) -> None:
    """kill -9 on the gateway ends its server too, and the next start finds the data."""
    with _run([sys.executable, "-c", GATEWAY, str(tmp_path)], tmp_path, stdout=subprocess.PIPE) as gateway:
        assert gateway.stdout is not None
        pid = int(gateway.stdout.readline())
        assert not await _is_gone(pid)
        gateway.kill()
    await wait_until(lambda: _is_gone(pid), seconds=1)
    async with open_embedded_redis(tmp_path) as url, open_redis(url, timeout_seconds=5) as redis:
        assert await redis.commands.get("kept") == b"yes"


async def test_terminal_signals_reach_only_the_gateway(tmp_path: Path) -> None:
    """The server runs in another session, so that Ctrl-C does not end it before the gateway has settled."""
    async with open_embedded_redis(tmp_path):
        assert os.getsid(_server_pid(tmp_path)) != os.getsid(0)


async def test_stale_server_is_ended(tmp_path: Path) -> None:
    """A server that an earlier gateway left running in the directory is killed before a new one starts."""
    folder = tmp_path / "store"
    folder.mkdir(mode=0o700)
    command = [str(find_server()), "--port", "0", "--unixsocket", str(folder / "old.sock"), "--dir", str(folder)]
    with _run(command, folder) as stale:
        (folder / "server.pid").write_text(f"{stale.pid}\n", "ascii")
        await wait_until(lambda: _has_become(stale.pid, "valkey-server", "redis-server"))
        async with open_embedded_redis(tmp_path):
            assert stale.wait(timeout=1) == -signal.SIGKILL


async def _has_become(pid: int, *names: str) -> bool:
    await trio.lowlevel.checkpoint()
    return os.path.basename(os.readlink(f"/proc/{pid}/exe")) in names


async def test_foreign_process_is_left_alone(tmp_path: Path) -> None:
    """When the pid in the pid file belongs to another process by now, that process is not killed."""
    (tmp_path / "store").mkdir(mode=0o700)
    with _run(["/bin/sleep", "60"], tmp_path / "store") as other:
        (tmp_path / "store" / "server.pid").write_text(f"{other.pid}\n", "ascii")
        async with open_embedded_redis(tmp_path):
            assert other.poll() is None


async def test_stopped_server_is_killed_in_time(tmp_path: Path) -> None:
    """A server that does not react to SIGTERM is killed after the timeout."""
    process = ServerProcess.spawn(["/bin/sleep", "60"], tmp_path / "log")
    os.kill(process.pid, signal.SIGSTOP)
    await wait_until(lambda: _has_state(process.pid, "T"))
    started = trio.current_time()
    await process.stop(0.05)
    assert process.poll() == -signal.SIGKILL
    assert trio.current_time() - started < 1


async def test_cancelled_start_leaves_nothing(tmp_path: Path) -> None:
    """When the start is cancelled, the server is stopped."""
    with trio.CancelScope() as scope:
        scope.cancel()
        async with open_embedded_redis(tmp_path):
            raise AssertionError("opened")
    assert scope.cancelled_caught
    assert await _is_gone(_server_pid(tmp_path))
