"""Processes of the suite's own tools: the fake upstream for a whole run, the load generator for each measurement."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
from attrs import frozen
from msgspec import Struct

from benchmarks.binaries import REPOSITORY
from benchmarks.histogram import Histogram
from benchmarks.processes import Child, ChildError

__all__ = ["LoadReport", "Target", "UpstreamProcess", "UpstreamStats", "WindowCounts", "run_load"]

COMMAND_SECONDS = 10.0


class WindowCounts(Struct):
    """Counts of the time in which the window was open."""

    started: int
    finished: int
    events: int


class LoadReport(Struct):
    """The load generator's report. ``cancels`` are pairs of exchange and time (CLOCK_MONOTONIC, ns)."""

    window_ns: int
    started: int
    finished: int
    events: int
    last_status: int
    window: WindowCounts
    errors: dict[str, int]
    cancels: list[tuple[int, int]]
    latency: Histogram
    first_event: Histogram
    duration: Histogram


class UpstreamStats(Struct):
    """Counts of the fake upstream since its last reset. ``late`` has the delay of each event after it was due."""

    requests: int
    events: int
    late: Histogram


@frozen
class Target:
    """The destination of requests: port, path, headers as ``name: value``, and the model named in the body.

    ``http2_port`` serves HTTP/2 in clear text to clients with prior knowledge; 0 if there is none.
    """

    port: int
    path: str = "/v1/chat/completions"
    headers: tuple[str, ...] = ()
    model: str = "gpt-4o"
    http2_port: int = 0


class UpstreamProcess:
    """The fake upstream's process. Each command is one line, and waits for one line of answer."""

    def __init__(
        self, command: Sequence[str], cores: Sequence[int], log: Path, tls: tuple[Path, Path] | None = None
    ) -> None:
        arguments = ["--cert", str(tls[0]), "--key", str(tls[1])] if tls else []
        self._child = Child("upstream", [*command, *arguments], cores=cores, log=log, has_pipes=True, cwd=REPOSITORY)
        self.scheme = "https" if tls else "http"
        try:
            self.port = int(self._read().removeprefix("port "))
        except BaseException:
            self._child.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.close()

    @property
    def pid(self) -> int:
        return self._child.pid

    def behave(self, profile: str, settings: Mapping[str, int]) -> None:
        """Set how requests are answered from now on. ``profile`` is ``a``, or ``b`` for slow readers."""
        self._ask(f"set {profile} " + " ".join(f"{name}={value}" for name, value in settings.items()))

    def end(self) -> None:
        """End every stream that is open now correctly, at its next event."""
        self._ask("end")

    def reset(self) -> None:
        """Set counts and closes back to zero."""
        self._ask("reset")

    def stats(self) -> UpstreamStats:
        return msgspec.json.decode(self._ask("stats"), type=UpstreamStats)

    def closes(self) -> list[tuple[int, int]]:
        """Return exchanges whose connection was closed before the answer's end, with the time (CLOCK_MONOTONIC, ns)."""
        return msgspec.json.decode(self._ask("closes"), type=list[tuple[int, int]])

    def _ask(self, line: str) -> str:
        self._child.send_line(line)
        return self._read()

    def _read(self) -> str:
        return self._child.read_line(time.monotonic() + COMMAND_SECONDS)


def run_load(
    command: Sequence[str],
    target: Target,
    settings: Mapping[str, int | float | str],
    *,
    first_id: int = 0,
    cores: Sequence[int],
    log: Path,
    at_window: Callable[[bool, int], None] = lambda is_open, pid: None,
) -> LoadReport:
    """Run one load.

    Its exchanges are numbered from ``first_id``, so that they differ from those of an earlier load that end late.
    ``at_window`` is called when the window opens (``True``) and when it closes, with the load's pid.

    Raises :exc:`~benchmarks.processes.ChildError` when it takes 10 s longer than its phases.
    """
    port = target.http2_port if "http2" in settings else target.port
    arguments = ["--port", str(port), "--path", target.path, "--model", target.model]
    arguments += ["--first-id", str(first_id)]
    for header in target.headers:
        arguments += ["--header", header]
    for name, value in settings.items():
        arguments += [f"--{name}", str(value)]
    phases = ("ramp-ms", "warm-ms", "open-limit-ms", "window-ms", "drain-ms")
    limit_seconds = sum(int(settings.get(name, 2000)) for name in phases) / 1000 + 10
    deadline = time.monotonic() + limit_seconds
    with Child("load", [*command, *arguments], cores=cores, log=log, has_pipes=True, cwd=REPOSITORY) as child:
        while not (line := child.read_line(deadline)).startswith("{"):
            if line.startswith("window-"):
                at_window(line.startswith("window-open"), child.pid)
        try:
            return msgspec.json.decode(line, type=LoadReport)
        except msgspec.MsgspecError as error:
            raise ChildError(f"the load generator's report has not the expected format: {error}") from error
