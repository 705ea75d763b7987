"""The files of an embedded store: its folder in the data directory, its socket, and the lock on the directory."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from attrs import frozen

from cgw.errors import DISK_FULL_ERRORS, ConfigError
from cgw.file_lock import hold_file_lock

MAX_SOCKET_PATH_BYTES = 100
"""Addresses of unix sockets hold 108 bytes on Linux and 104 on macOS; a server may add a suffix while it starts."""

REMEDY = "set CODY_GATEWAY_DATA_DIR or REDIS_ENDPOINT"
SOCKET_NAME = "server.sock"
_PROBE = bytes(64 * 1024)  # more than what a file system may keep for small files


@frozen
class StoreFolder:
    """The folder of one embedded store, and its socket, which is elsewhere if the folder's path is too long."""

    folder: Path
    socket: Path

    @property
    def pid_file(self) -> Path:
        """The file that names the server's process."""
        return self.folder / "server.pid"

    @property
    def log_file(self) -> Path:
        """The file that the server's output goes to."""
        return self.folder / "server.log"

    def is_disk_full(self) -> bool:
        """Return whether the disk takes no more data. Blocks."""
        probe = self.folder / "probe"
        try:
            probe.write_bytes(_PROBE)
        except OSError as error:
            return error.errno in DISK_FULL_ERRORS
        finally:
            with suppress(OSError):
                probe.unlink()
        return False

    def read_log_tail(self, lines: int = 8) -> str:
        """Return the last lines of the server's log."""
        try:
            text = self.log_file.read_text("utf-8", "replace")
        except OSError as error:
            return f"(its log can't be read: {error.strerror})"
        return "\n".join(text.splitlines()[-lines:]) or "(nothing)"


@contextmanager
def lock_data_dir(data_dir: Path) -> Iterator[None]:
    """Keep other gateways from using ``data_dir`` for the length of the block; create it if it is missing.

    Raises :exc:`~cgw.errors.ConfigError` if another process has it, or if it can't be used.
    """
    lock_file = data_dir / "store.lock"
    with ExitStack() as stack:
        try:
            data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = stack.enter_context(hold_file_lock(lock_file))
        except BlockingIOError as error:
            owner = lock_file.read_text("ascii", "replace").strip() or "unknown"
            raise ConfigError(
                [f"data directory {data_dir} is in use by another cgw (pid {owner}); {REMEDY}"]
            ) from error
        except OSError as error:
            raise ConfigError([f"data directory {data_dir} can't be used: {error.strerror}; {REMEDY}"]) from error
        # For the message above only: the lock is the kernel's, and a stale pid in the file does no harm.
        with suppress(OSError):  # also for it alone: a full disk
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode("ascii"), 0)
        yield


@contextmanager
def open_store_folder(data_dir: Path) -> Iterator[StoreFolder]:
    """Create the store's folder, and another one for the socket if the path would be too long; remove that one again.

    Raises :exc:`~cgw.errors.ConfigError` if the folder can't be used.
    """
    folder = data_dir.absolute() / "store"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        folder.chmod(0o700)  # it may exist with other permissions, and the umask applies to mkdir
    except OSError as error:
        raise ConfigError([f"the store's folder {folder} can't be used: {error.strerror}"]) from error
    socket = folder / SOCKET_NAME
    # In bytes, not characters: that is what the address of a socket holds.
    if len(os.fsencode(socket)) <= MAX_SOCKET_PATH_BYTES:
        yield StoreFolder(folder, socket)
        return
    short = _make_short_folder(folder)
    try:
        yield StoreFolder(folder, short / SOCKET_NAME)
    finally:
        # The server has ended by now, so at most its socket is left in there.
        shutil.rmtree(short, ignore_errors=True)


def list_socket_folders(data_dir: Path) -> tuple[Path, Path]:
    """Return the folders that the socket of the store in ``data_dir`` may be in."""
    folder = data_dir.absolute() / "store"
    return folder, _name_short_folder(folder)


def is_private(folder: Path) -> bool:
    """Return True if ``folder`` is a directory of this user (no link to one) that nobody else can enter."""
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and stat.S_IMODE(found.st_mode) == 0o700


def _make_short_folder(folder: Path) -> Path:
    """Create a private folder with a short path, the same at every start, so that none accumulate after kills."""
    short = _name_short_folder(folder)
    try:
        short.mkdir(mode=0o700)
    except FileExistsError:
        # Any user can create files in the temporary directory: use what is there only if it is private.
        # A folder of another user, or a link to one: take one with a random name instead.
        if not is_private(short):
            short = Path(tempfile.mkdtemp(prefix="cgw-"))
    return short


def _name_short_folder(folder: Path) -> Path:
    # By user and by data directory, so that gateways do not share it.
    name = f"cgw-{os.getuid()}-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]}"
    return Path(tempfile.gettempdir()) / name
