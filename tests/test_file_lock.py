"""File locks: one holder at a time, released when the block or the process ends."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cgw.file_lock import hold_file_lock

HOLD_FOREVER = """
import pathlib, sys, time
from cgw.file_lock import hold_file_lock
with hold_file_lock(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The path of a lock file that does not exist yet."""
    return tmp_path / "lock"


def test_second_holder_is_refused(path: Path) -> None:
    """A lock that is held raises at once without a timeout; when the block has ended, it can be held again."""
    with hold_file_lock(path), pytest.raises(BlockingIOError), hold_file_lock(path):
        pass
    with hold_file_lock(path):
        pass


def test_lock_is_released_when_the_block_raises(path: Path) -> None:
    """An error in the block comes out unchanged, and the lock is free."""
    with pytest.raises(LookupError, match="mine"), hold_file_lock(path):
        raise LookupError("mine")
    with hold_file_lock(path):
        pass


def test_timeout_is_the_longest_wait(path: Path) -> None:
    """With a timeout, a lock that stays held raises after about that time."""
    with hold_file_lock(path):
        start = time.monotonic()
        with pytest.raises(BlockingIOError), hold_file_lock(path, timeout_seconds=0.1):
            pass
        assert 0.1 <= time.monotonic() - start < 2


def test_lock_that_is_released_in_time_is_taken(path: Path) -> None:
    """With a timeout, the lock is held as soon as the other holder has released it."""
    is_held, is_released = threading.Event(), threading.Event()

    def hold() -> None:
        with hold_file_lock(path):
            is_held.set()
            is_released.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    assert is_held.wait(10)
    threading.Timer(0.05, is_released.set).start()
    with hold_file_lock(path, timeout_seconds=10):
        assert is_released.is_set()
    holder.join()


def test_lock_of_a_killed_process_is_free(path: Path) -> None:
    """The kernel releases the lock of a process that is killed."""
    command = [sys.executable, "-c", HOLD_FOREVER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(BlockingIOError), hold_file_lock(path):
            pass
        process.kill()
    with hold_file_lock(path):
        pass


def test_lock_file_is_private_and_keeps_its_content(path: Path) -> None:
    """The file is created for its owner alone; the descriptor can write to it, and what it has stays."""
    with hold_file_lock(path) as descriptor:
        os.write(descriptor, b"pid 1")
        assert not os.get_inheritable(descriptor)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with hold_file_lock(path) as descriptor:
        assert os.read(descriptor, 100) == b"pid 1"


def test_file_that_cannot_be_opened_raises(tmp_path: Path) -> None:
    """A lock file in a missing directory is an OSError of another kind."""
    with pytest.raises(FileNotFoundError), hold_file_lock(tmp_path / "missing" / "lock"):
        pass
