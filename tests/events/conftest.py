"""Fixtures of the event spool: its path, queries on it, and a disk that blocks."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

import cgw


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool" / "events.sqlite"


@pytest.fixture
def query(path: Path) -> Callable[[str], list[tuple[object, ...]]]:
    """Return a function that queries the spool through a connection of its own, as an operator would."""

    def run(sql: str) -> list[tuple[object, ...]]:
        with closing(sqlite3.connect(path)) as connection:
            return connection.execute(sql).fetchall()

    return run


@pytest.fixture
def hold_writes(path: Path) -> Callable[[], object]:
    """Return a context manager during which no other connection can commit to the spool."""

    @contextmanager
    def hold() -> Iterator[None]:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield
            connection.execute("ROLLBACK")

    return hold


@pytest.fixture
def start_python() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Return a function that starts a Python script in a process that does not outlive the test."""
    processes: list[subprocess.Popen[str]] = []

    def start(script: str, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", script, *arguments],
            cwd=Path(cgw.__file__).parents[1],
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
