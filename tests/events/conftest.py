"""What the tests of the event log share: a folder for it, events, and processes of their own."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import cgw
from cgw.events.reading import read_events
from cgw.model import EventName, UsageEvent

StartPython = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "events"


@pytest.fixture
def start_python() -> Iterator[StartPython]:
    """Start a Python script in a process of its own, which does not outlive the test."""
    processes: list[subprocess.Popen[str]] = []

    def start(script: str, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", script, *arguments],
            cwd=Path(cgw.__file__).parents[1],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def build_event(identifier: str = "acme", **metadata: Any) -> UsageEvent:
    """Return a completion's event."""
    return UsageEvent(EventName.COMPLETIONS_FINISHED, "static", identifier, metadata)


def read_identifiers(folder: Path) -> list[str]:
    """Return the identifier of each recorded event."""
    return [event.identifier for event in read_events(folder)]


class Disk:
    """Stands between the process and its regular files: writes may take long or stop, syncs are seen or fail."""

    def __init__(self, write: Callable[[int, bytes], int], fdatasync: Callable[[int], None]) -> None:
        self._write, self._fdatasync = write, fdatasync
        self._is_open = threading.Event()
        self._is_open.set()
        self.write_seconds = 0.0
        self.sync_error: OSError | None = None
        self.synced_bytes: list[int] = []

    def write(self, descriptor: int, data: bytes) -> int:
        """Take the place of :func:`os.write`."""
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            time.sleep(self.write_seconds)
            self._is_open.wait()
        return self._write(descriptor, data)

    def fdatasync(self, descriptor: int) -> None:
        """Take the place of :func:`os.fdatasync`."""
        if self.sync_error is not None:
            raise self.sync_error
        size = os.fstat(descriptor).st_size
        self._fdatasync(descriptor)
        self.synced_bytes.append(size)

    @contextmanager
    def stalled(self) -> Iterator[None]:
        """Let no write return while the block runs."""
        self._is_open.clear()
        try:
            yield
        finally:
            self._is_open.set()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """A disk whose pace the test sets."""
    disk = Disk(os.write, os.fdatasync)
    monkeypatch.setattr(os, "write", disk.write)
    monkeypatch.setattr(os, "fdatasync", disk.fdatasync)
    return disk
