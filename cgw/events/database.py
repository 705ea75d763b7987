"""The spool's SQLite file: how it is opened, checked, set aside, migrated, and written to. Synchronous throughout.

Durability: WAL with ``synchronous=NORMAL``. A commit is a write to the WAL file and no fsync, so it costs some tens
of microseconds and survives the death of the process (``kill -9``), because the kernel holds the bytes; a power cut
or a kernel crash may lose the last commits, never the file. ``FULL`` would fsync on every commit (milliseconds on
ordinary disks) for the power cut's sake: not worth it to a gateway whose host is gone together with its streams.

Several processes may share one file: SQLite's locks serialise the commits, and a lock file next to it serialises
opening and setting aside (turning WAL on is not safe to race).
"""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from cgw.errors import ConfigError

logger = logging.getLogger("cgw.events")

Row = tuple[str, str, str, str, str, str]
"""``id, name, source, identifier, created_at, metadata`` of one event, as stored."""

SCHEMA_VERSION = 1
APPLICATION_ID = 0x63677773  # "cgws": tells our file from somebody else's database

# ``seq`` is the order of commits; ``created_at`` is ISO 8601 in UTC of fixed width, so it sorts as text and SQLite's
# date functions read it. No index but the id's: each one costs every commit a page, and readers scan anyhow.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE events (
            seq INTEGER PRIMARY KEY,
            id TEXT NOT NULL UNIQUE,
            name TEXT NOT NULL,
            source TEXT NOT NULL,
            identifier TEXT NOT NULL,
            created_at TEXT NOT NULL,
            metadata TEXT NOT NULL,
            shipped_at TEXT
        )""",
    ),
)

INSERT = "INSERT OR IGNORE INTO events (id, name, source, identifier, created_at, metadata) VALUES (?, ?, ?, ?, ?, ?)"

CHECKED_BYTES = 32 * 2**20
"""A file up to this size is checked as a whole when it is opened (0.1 s or so); in a larger one damage is found when
it is met, and handled in the same way."""

CHECKPOINT_PAGES = 1000
BACKSTOP_PAGES = 8000  # SQLite's own checkpoint, inside a commit, for when ours finds no idle moment

CORRUPTION_CODES = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def is_corruption(error: sqlite3.Error) -> bool:
    """True if ``error`` says that the file is damaged or no database."""
    code = getattr(error, "sqlite_errorcode", None)  # absent on errors of the Python module itself
    return code is not None and code & 0xFF in CORRUPTION_CODES


class SpoolDatabase:
    """An open spool file, used by one thread at a time."""

    def __init__(self, path: Path, busy_timeout_seconds: float) -> None:
        """Open ``path``, creating the folder and the file; a damaged file is set aside and a fresh one started.

        Raises :exc:`~cgw.errors.ConfigError` where no spool can be had: an unwritable folder, a database that is
        not cgw's, or a schema newer than this cgw. Blocks on the disk: call it off the Trio thread.
        """
        self.path = path = path.absolute()
        self._busy_timeout_seconds = busy_timeout_seconds
        self._dirty_pages = 0
        with self._naming_problems():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._open()

    @contextmanager
    def _naming_problems(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise ConfigError([f"The event spool {self.path} cannot be used: {describe(error)}."]) from error

    def _open(self) -> None:
        with hold_lock(self.path, self._busy_timeout_seconds):
            try:
                self._connect()
            except sqlite3.DatabaseError as error:
                if not is_corruption(error):
                    raise
                set_aside(self.path, describe(error))
                self._connect()

    def _connect(self) -> None:
        with suppress(FileExistsError):  # a file of our own making is readable by its owner only
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        connection = sqlite3.connect(
            self.path, timeout=self._busy_timeout_seconds, isolation_level=None, check_same_thread=False
        )
        try:
            self._prepare(connection)
            status = os.stat(self.path)
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        self._identity = (status.st_dev, status.st_ino)

    def _prepare(self, connection: sqlite3.Connection) -> None:
        version = read_version(connection, self.path)
        mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raise ConfigError([f"The event spool {self.path} is on a file system where SQLite cannot use WAL."])
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(f"PRAGMA wal_autocheckpoint = {BACKSTOP_PAGES}")
        if os.stat(self.path).st_size <= CHECKED_BYTES:
            verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if verdict != "ok":
                error = sqlite3.DatabaseError(verdict)
                error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
                raise error
        # Also when there is nothing to migrate: this is where a file that can only be read is found out.
        connection.execute("BEGIN IMMEDIATE")
        for statements in MIGRATIONS[version:]:
            for statement in statements:
                connection.execute(statement)
        if version < SCHEMA_VERSION:
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        connection.execute("COMMIT")

    def insert(self, rows: Sequence[Row]) -> int:
        """Commit ``rows`` in one transaction, all or none, and say how many were new (ids already there are not).

        A file that was deleted, replaced or found damaged meanwhile is replaced by a fresh one first. Raises
        :exc:`sqlite3.Error`, :exc:`OSError` or :exc:`~cgw.errors.ConfigError` when nothing was committed.
        """
        if not self._is_in_place():
            logger.error("The event spool %s was removed or replaced; starting a new file", self.path)
            self._reopen()
        try:
            return self._insert(rows)
        except sqlite3.DatabaseError as error:
            if not is_corruption(error):
                raise
            self._replace_damaged(error)
            return self._insert(rows)

    def _insert(self, rows: Sequence[Row]) -> int:
        connection = self._connection
        before = connection.total_changes
        if len(rows) == 1:
            connection.execute(INSERT, rows[0])  # a transaction by itself: two statements fewer
        else:
            connection.execute("BEGIN IMMEDIATE")
            try:
                connection.executemany(INSERT, rows)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:  # SQLite ends it itself after some errors, such as a full disk
                    connection.execute("ROLLBACK")
                raise
        self._dirty_pages += 3 + len(rows)  # an estimate: the leaves of the table and of the id's index
        return connection.total_changes - before

    def _is_in_place(self) -> bool:
        try:
            status = os.stat(self.path)
        except FileNotFoundError:
            return False
        return (status.st_dev, status.st_ino) == self._identity

    def _reopen(self) -> None:
        self._connection.close()
        self._open()

    def _replace_damaged(self, error: sqlite3.Error) -> None:
        with hold_lock(self.path, self._busy_timeout_seconds):
            if self._is_in_place():  # else another process was faster
                set_aside(self.path, describe(error))
        self._reopen()

    def checkpoint_if_due(self) -> None:
        """Move the WAL's pages into the file once there are many; never waits for readers or other writers.

        Done between commits, because it costs fsyncs (about 10 ms), which no caller should have to wait for.
        """
        if self._dirty_pages >= CHECKPOINT_PAGES:
            self._dirty_pages = 0
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def close(self) -> None:
        """Close the file; the last process to do so folds the WAL into it."""
        self._connection.close()


def read_version(connection: sqlite3.Connection, path: Path) -> int:
    """The schema version of the spool at ``path``, 0 for an empty file.

    Raises :exc:`~cgw.errors.ConfigError` when it is newer than this cgw knows, or not cgw's at all.
    """
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    application: int = connection.execute("PRAGMA application_id").fetchone()[0]
    tables: int = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if application != APPLICATION_ID and (tables or version):
        raise ConfigError([f"{path} is a SQLite database, but not an event spool of cgw."])
    if version > SCHEMA_VERSION:
        raise ConfigError(
            [f"The event spool {path} has schema version {version}; this cgw knows {SCHEMA_VERSION} and older."]
        )
    return version


def describe(error: BaseException) -> str:
    """What went wrong, in the system's own words, without a path (it stands beside)."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


@contextmanager
def hold_lock(path: Path, timeout_seconds: float) -> Iterator[None]:
    """Hold the lock file beside ``path``. Raises :exc:`TimeoutError` when another process keeps it too long."""
    descriptor = os.open(path.with_name(path.name + ".lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + timeout_seconds
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError("another process has been opening it for too long") from None
                time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)


def set_aside(path: Path, reason: str) -> Path:
    """Rename a damaged spool, with its WAL, to ``<name>.corrupt-<UTC time>`` and say so at error level."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    target = path.with_name(f"{path.name}.corrupt-{stamp}")
    for suffix in ("-wal", "-shm", ""):
        with suppress(FileNotFoundError):
            os.replace(path.with_name(path.name + suffix), target.with_name(target.name + suffix))
    logger.error("The event spool %s is damaged (%s); set aside as %s, starting a new one", path, reason, target.name)
    return target
