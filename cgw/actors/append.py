"""Appending an entry to the actors file, so that a gateway that reads it never finds a broken one.

The new content is checked first, written to a file beside it and renamed over it. The old file stays as it was when
anything fails.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from cgw.actors.actors_file import ActorsFile
from cgw.actors.settings import ActorSettings
from cgw.errors import ConfigError
from cgw.file_lock import hold_folder_lock

LOCK_SECONDS = 10.0


def append_entry(path: Path, entry: str) -> None:
    """Append ``entry`` (TOML) to the actors file at ``path``, which is created if it is missing. Blocks.

    Mode and owner stay; a symbolic link is followed, and stays. Calls in several processes wait for each other, for up
    to 10 s. Raises :exc:`~cgw.errors.ConfigError`, and changes nothing, when the file is wrong already, when it would
    be with the entry (an id that is there already), or when it cannot be written.
    """
    target = Path(os.path.realpath(path))
    try:
        with hold_folder_lock(target.parent, timeout_seconds=LOCK_SECONDS):
            _append(path, target, entry)
    except BlockingIOError:
        raise ConfigError([f"{path}: another process is writing it: try again"]) from None
    except OSError as error:
        raise ConfigError([f"{path}: cannot be written: {error.strerror}: nothing was changed"]) from None


def _append(path: Path, target: Path, entry: str) -> None:
    old, status = _read(target)
    # The settings of the short-term rate do not matter here: their defaults are valid for every quota.
    settings = ActorSettings()
    actors_file = ActorsFile(path, settings.concurrency_percentage, settings.concurrency_interval_ms)
    separator = b"" if not old else b"\n" if old.endswith(b"\n") else b"\n\n"
    new = old + separator + entry.encode("utf-8")
    try:
        actors_file.parse(new)
    except ConfigError as error:
        raise ConfigError([f"{problem}: nothing was written to the file" for problem in error.problems]) from None
    _replace(target, new, status)


def _read(target: Path) -> tuple[bytes, os.stat_result | None]:
    """Return the content of ``target`` and what identifies this version of it; nothing if there is no such file."""
    try:
        # Not blocking, in case that it is a pipe.
        descriptor = os.open(target, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return b"", None
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        return file.read(), status


def _replace(target: Path, content: bytes, old: os.stat_result | None) -> None:
    """Put ``content`` in the place of ``target`` in one step, with the mode and owner of ``old``."""
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    # A new file gets the mode that the umask leaves, as from a shell's `>>`: it has hashes, no tokens.
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with open(descriptor, "wb") as file:
            if old is not None:
                # Before the mode, since a change of owner clears some of its bits. Fails, and so changes nothing, where
                # this user may not give files away.
                if (old.st_uid, old.st_gid) != _read_owner(descriptor):
                    os.fchown(descriptor, old.st_uid, old.st_gid)
                os.fchmod(descriptor, stat.S_IMODE(old.st_mode))
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        _check_unchanged(target, old)
        os.replace(temporary, target)
    except BaseException:  # whatever ended it: the file as it was stays, and nothing beside it
        with suppress(OSError):
            temporary.unlink()
        raise
    _sync_folder(target.parent)


def _check_unchanged(target: Path, old: os.stat_result | None) -> None:
    """Raise :exc:`OSError` if ``target`` is not ``old`` any more: somebody saved it in an editor, without the lock."""
    try:
        now: os.stat_result | None = target.stat()
    except FileNotFoundError:
        now = None
    if (now and (now.st_ino, now.st_mtime_ns, now.st_size)) != (old and (old.st_ino, old.st_mtime_ns, old.st_size)):
        raise OSError(errno.ESTALE, "it was changed meanwhile")


def _read_owner(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_uid, status.st_gid


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)  # the rename itself
    finally:
        os.close(descriptor)
