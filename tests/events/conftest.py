"""What the tests of the event log share: a folder for it, events, and processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import cgw
from cgw.events.lines import render_line
from cgw.events.reading import read_events
from cgw.model import EventName, UsageEvent
from tests.support.disk import Disk, install_disk

StartPython = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "events"


@pytest.fixture
def start_python() -> Iterator[StartPython]:
    """Return a function that starts a Python script in a process that does not outlive the test."""
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


def read_metadata(event: UsageEvent) -> dict[str, Any]:
    """Return the metadata of an event as it is stored."""
    metadata: dict[str, Any] = json.loads(render_line(event))["metadata"]
    return metadata


def build_event(identifier: str = "acme", **metadata: Any) -> UsageEvent:
    """Return a completion's event."""
    return UsageEvent(EventName.COMPLETIONS_FINISHED, "static", identifier, metadata)


def read_identifiers(folder: Path) -> list[str]:
    """Return the identifier of each recorded event."""
    return [event.identifier for event in read_events(folder)]


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """A disk whose pace the test sets."""
    return install_disk(monkeypatch)
