"""What a subject is to the suite."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from attrs import field, frozen

from benchmarks.tool_processes import Target

__all__ = ["Address", "MissingSubjectError", "Start", "Subject", "ask_version"]


class MissingSubjectError(Exception):
    """The subject is not installed; the message says what was looked for."""


@frozen
class Address:
    """The fake upstream, as a subject is to reach it."""

    scheme: str
    port: int
    ca_file: Path
    host: str = "127.0.0.1"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}:{self.port}"


@frozen(kw_only=True)
class Start:
    """How to start a subject, and how to talk to it once it listens. ``environ`` is added to the suite's own."""

    command: tuple[str, ...]
    target: Target
    environ: dict[str, str] = field(factory=dict)
    cwd: Path | None = None


class Subject(Protocol):
    """A gateway under test."""

    @property
    def name(self) -> str: ...

    @property
    def start_seconds(self) -> float:
        """How long it may take until it listens."""
        ...

    @property
    def has_tls(self) -> bool:
        """Whether the suite knows how to give it a TLS upstream."""
        ...

    def version(self) -> str:
        """Raises :exc:`MissingSubjectError` when it is not installed."""
        ...

    def prepare(self, directory: Path, port: int, upstream: Address) -> Start:
        """Write its configuration into ``directory``, which is its own and empty.

        Raises :exc:`MissingSubjectError` when it cannot be built.
        """
        ...


def ask_version(command: Sequence[str], seconds: float = 30) -> str:
    """The first line that ``command`` prints, on either output."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MissingSubjectError(str(error)) from error
    lines = (done.stdout + done.stderr).strip().splitlines()
    if done.returncode or not lines:
        raise MissingSubjectError(f"`{' '.join(command)}` failed")
    return lines[0].strip()
