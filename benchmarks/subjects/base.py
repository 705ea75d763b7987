"""The protocol of subjects, and the records that they exchange with the suite."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from attrs import field, frozen

from benchmarks.tool_processes import Target

__all__ = ["Address", "MissingSubjectError", "Start", "Subject", "ask_version"]


class MissingSubjectError(Exception):
    """The subject is not installed. The message names the program or file that was not found."""


@frozen
class Address:
    """The address of the fake upstream, for a subject's configuration, and that of a collector of traces."""

    scheme: str
    port: int
    ca_file: Path
    host: str = "127.0.0.1"
    collector_url: str = ""

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}:{self.port}"


@frozen(kw_only=True)
class Start:
    """A command that starts a subject, and the target of requests. ``environ`` is added to the suite's environment.

    ``metrics`` are the header fields for its metrics, if it has any.
    """

    command: tuple[str, ...]
    target: Target
    environ: dict[str, str] = field(factory=dict)
    cwd: Path | None = None
    metrics: dict[str, str] | None = None


class Subject(Protocol):
    """A gateway under test."""

    @property
    def name(self) -> str: ...

    @property
    def start_seconds(self) -> float:
        """Deadline until it accepts connections."""
        ...

    @property
    def has_tls(self) -> bool:
        """``True`` if :meth:`prepare` can configure a TLS upstream."""
        ...

    @property
    def has_http2(self) -> bool:
        """``True`` if it serves HTTP/2 in clear text, on ``Target.http2_port``."""
        ...

    def version(self) -> str:
        """Return name and version. Raises :exc:`MissingSubjectError` when it is not installed."""
        ...

    def prepare(self, directory: Path, port: int, upstream: Address) -> Start:
        """Write its configuration into ``directory``, which is empty and not shared.

        Raises :exc:`MissingSubjectError` when it cannot be built.
        """
        ...


def ask_version(command: Sequence[str], seconds: float = 30) -> str:
    """Return the first line that ``command`` prints, on either output.

    Raises :exc:`MissingSubjectError` when it cannot be run or fails.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MissingSubjectError(str(error)) from error
    lines = (done.stdout + done.stderr).strip().splitlines()
    if done.returncode or not lines:
        raise MissingSubjectError(f"`{' '.join(command)}` failed with status {done.returncode}")
    return lines[0].strip()
