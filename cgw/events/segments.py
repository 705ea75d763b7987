"""Segments: the files of the event log, each appended to by one process.

The name tells the state, so that a listing of the folder shows everything and a rename changes it atomically::

    <UTC start>-<random id>.open.ndjson   locked (flock) by the process that appends to it
           │  size, age, shutdown; or adopted: its process died, the lock is free
           ▼
    <UTC start>-<random id>.ndjson        sealed: never changes again
    <UTC start>-<random id>.torn          what followed the last newline of an adopted segment
    <UTC start>-<random id>.summary.json  sums of a sealed segment, written by its first reader

The name without its suffixes is the segment's identity: it stays the same when the segment is sealed.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import secrets
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from attrs import frozen

from cgw.errors import explain_os_error

logger = logging.getLogger("cgw.events")

OPEN_SUFFIX = ".open.ndjson"
SEALED_SUFFIX = ".ndjson"
TORN_SUFFIX = ".torn"
SUMMARY_SUFFIX = ".summary.json"

_PROBE = b" " * (2**16 - 1) + b"\n"
"""Written to a new segment and removed again: a full disk may create a file and take nothing else."""


@frozen(order=True)
class Segment:
    """One segment as it was listed. Names sort by start time."""

    folder: Path
    name: str
    is_open: bool

    @property
    def path(self) -> Path:
        return self.folder / (self.name + (OPEN_SUFFIX if self.is_open else SEALED_SUFFIX))

    def beside(self, suffix: str) -> Path:
        """Return the path of the sealed segment, or of a file that belongs to it."""
        return self.folder / (self.name + suffix)


def list_segments(folder: Path) -> list[Segment]:
    """Return all segments, the earliest started first. Raises :exc:`OSError` when the folder cannot be read."""
    names: dict[str, bool] = {}
    for entry in os.listdir(folder):
        if entry.endswith(OPEN_SUFFIX):
            names.setdefault(entry.removesuffix(OPEN_SUFFIX), True)
        elif entry.endswith(SEALED_SUFFIX):
            # A listing that runs while a segment is renamed may hold both of its names.
            names[entry.removesuffix(SEALED_SUFFIX)] = False
    return [Segment(folder, name, is_open) for name, is_open in sorted(names.items())]


class OpenSegment:
    """A segment that this process appends to, used by one thread at a time. Every method blocks on the disk.

    With ``has_sync`` it is synced before it is sealed.
    """

    def __init__(self, segment: Segment, descriptor: int, *, has_sync: bool) -> None:
        self.segment = segment
        self.descriptor = descriptor
        self.started = time.monotonic()
        self.length = self.synced_length = 0
        self._checked_length = 0  # when the file was last seen in its place
        self._has_sync = has_sync

    def append(self, data: bytes) -> float:
        """Append whole lines with one write, all or nothing; return the seconds that it took.

        Raises :exc:`OSError` when they could not be written. Nothing may be appended after that: cutting off what was
        written may have failed.
        """
        started = time.perf_counter()
        written = os.write(self.descriptor, data)  # when it raises, nothing was written
        if written != len(data):
            os.ftruncate(self.descriptor, self.length)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # a short write to a file: there is no more space
        self.length += written
        return time.perf_counter() - started

    def append_and_sync(self, data: bytes) -> float:
        """Append as :meth:`append` does, then sync; the seconds are without the sync, which always takes its time."""
        seconds = self.append(data)
        self.sync()
        return seconds

    def sync(self) -> None:
        """Wait until everything appended is on the disk. Raises :exc:`OSError`."""
        length = self.length  # read first: lines are appended while a thread does this
        os.fdatasync(self.descriptor)
        self.synced_length = length

    def is_in_place(self) -> bool:
        """Return whether the file still has its name; true also when that cannot be told."""
        length = self.length  # read first, as above
        try:
            if not is_same_file(self.segment.path, self.descriptor):
                return False
        except OSError:
            return True
        self._checked_length = length
        return True

    def read_lost(self) -> list[bytes]:
        """Return the lines that were appended since the file was last seen in its place, if nobody can read them."""
        if os.fstat(self.descriptor).st_nlink:
            return []  # the file has another name
        lost = os.pread(self.descriptor, self.length - self._checked_length, self._checked_length)
        return lost.splitlines(keepends=True)

    def seal(self) -> None:
        """Close the file, which unlocks it, and do with it what is done with the segment of a process that died.

        Raises :exc:`OSError`; the file is closed in any case, and adopted later.
        """
        # Locked until it has its new name, and longer where the shipper shares the lock: nobody else is to adopt it.
        try:
            if self._has_sync:
                self.sync()
            if is_same_file(self.segment.path, self.descriptor):  # otherwise it was removed by hand
                with suppress(FileNotFoundError):
                    _rename_sealed(self.segment, self.descriptor)
        finally:
            os.close(self.descriptor)


def create_segment(folder: Path, *, has_sync: bool = False) -> OpenSegment:
    """Create and lock a new segment in ``folder``, which is created too, once the disk has taken some bytes of it.

    With ``has_sync`` its name survives a power cut, too, without which synced lines would be lost. Raises
    :exc:`OSError`, leaving nothing behind.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    while True:
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{secrets.token_hex(4)}"
        segment = Segment(folder, name, is_open=True)
        descriptor = os.open(segment.path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_APPEND | os.O_CLOEXEC, 0o600)
        # Between creating and locking, another process may have taken it for a dead one's and deleted it.
        if _lock(segment.path, descriptor):
            break
        os.close(descriptor)
    try:
        if os.write(descriptor, _PROBE) != len(_PROBE):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.ftruncate(descriptor, 0)
        if has_sync:
            _sync_folder(folder)
    except OSError:
        with suppress(OSError):
            segment.path.unlink()
        os.close(descriptor)
        raise
    return OpenSegment(segment, descriptor, has_sync=has_sync)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lock(path: Path, descriptor: int) -> bool:
    """Lock an open file without waiting; return whether that succeeded and the file still has this path."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return is_same_file(path, descriptor)


def is_same_file(path: Path, descriptor: int) -> bool:
    """Return whether ``path`` names the file that ``descriptor`` has open."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except (FileNotFoundError, NotADirectoryError):
        return False


def adopt_segments(folder: Path) -> int:
    """Seal the open segments whose processes died, each once over all processes; return how many.

    What follows the last newline, a line that its process did not finish, is moved to a ``.torn`` file. Problems
    with one segment are logged and do not keep the others from being sealed. Raises :exc:`OSError` when the folder
    cannot be read.
    """
    adopted = 0
    for segment in list_segments(folder):
        if segment.is_open:
            try:
                adopted += _adopt(segment)
            except FileNotFoundError:
                continue  # its process sealed it meanwhile
            except OSError as error:
                logger.error("event segment %s cannot be adopted: %s", segment.path, explain_os_error(error))
    return adopted


def _adopt(segment: Segment) -> bool:
    descriptor = os.open(segment.path, os.O_RDWR | os.O_CLOEXEC)
    try:
        if not _lock(segment.path, descriptor):
            return False
        return _rename_sealed(segment, descriptor)
    finally:
        os.close(descriptor)


def _rename_sealed(segment: Segment, descriptor: int) -> bool:
    """Give a locked segment its name as a sealed one; delete an empty one, and return false."""
    size = os.fstat(descriptor).st_size
    length = _find_end_of_lines(descriptor, size)
    if length < size:
        _set_aside_torn(segment, descriptor, length, size)
    if length:
        os.rename(segment.path, segment.beside(SEALED_SUFFIX))
    else:
        os.unlink(segment.path)
    return length > 0


def _find_end_of_lines(descriptor: int, size: int) -> int:
    """Return the offset after the last newline of an open file, 0 when it has none."""
    step = 2**16
    end = size
    while end > 0:
        start = max(0, end - step)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def _set_aside_torn(segment: Segment, descriptor: int, length: int, size: int) -> None:
    torn = os.pread(descriptor, min(size - length, 2**20), length)
    if torn.strip(b" \0"):
        # Before the cut: a death in between leaves the piece in both files, never in none.
        segment.beside(TORN_SUFFIX).write_bytes(torn)
        logger.warning("event segment %s ends in an unfinished line of %d bytes; it is kept in %s", segment.name,
                       size - length, segment.beside(TORN_SUFFIX).name)  # fmt: skip
    os.ftruncate(descriptor, length)
