"""Bytecodes and frames of one exchange: exact counts, which neither a busy machine nor a slow one changes.

A bytecode takes about 20 ns, a frame some 60 ns more; time within C (parsing JSON, hashing, system calls) is not in the
counts. cgw runs under ``sys.monitoring``, twenty times slower than usual, with 32 clients that ask without a pause.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import msgspec
from attrs import frozen

from benchmarks.binaries import REPOSITORY, Tools
from benchmarks.bytecodes import counting_server
from benchmarks.machine import Cores
from benchmarks.processes import Child, ChildError, free_port, wait_until_answers
from benchmarks.subjects.base import Address
from benchmarks.subjects.own import Cgw
from benchmarks.tool_processes import Target, UpstreamProcess

__all__ = ["FIRST_VERSION", "Counts", "Row", "count_bytecodes"]

FIRST_VERSION = (3, 12)
"""The version of Python that brought ``sys.monitoring``."""

CLIENTS = 32
WARM_REQUESTS = 10
REQUESTS, STREAMS = 10, 5
"""Counted, of each client."""
STREAM_EVENTS = 20
SETTLE_SECONDS = 0.5
"""What an exchange costs once its client has the answer, its log line above all, is counted, too."""
ANSWER_SECONDS = 60.0
DUMP_SECONDS = 10.0

SETTINGS = {"CODY_GATEWAY_REDIS_TIMEOUT": "30s"}
"""While it counts, the gateway is so slow that Redis would seem to be away, and other code would be counted."""

WHOLE = {"stream": 0, "first": 0, "bytes": 400}
STREAM = {"stream": 1, "events": STREAM_EVENTS, "interval": 30_000_000, "first": 0}
"""Paced so that even a gateway under monitoring reads one event at a time, as usual."""


@frozen
class Row:
    """The counts of one function or file, for each exchange. ``line`` is 0 for a file."""

    file: str
    function: str
    line: int
    bytecodes: float
    frames: float


@frozen
class Counts:
    """The counts of a run, for each of its ``exchanges``; ``rows`` are functions."""

    exchanges: int
    rows: list[Row]

    @property
    def bytecodes(self) -> float:
        return sum(row.bytecodes for row in self.rows)

    @property
    def frames(self) -> float:
        return sum(row.frames for row in self.rows)

    def group(self, by: Literal["file", "function"]) -> list[Row]:
        """Return the rows, or their sums by file, those with the most bytecodes first."""
        rows = self.rows
        if by == "file":
            totals: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
            for row in rows:
                totals[row.file][0] += row.bytecodes
                totals[row.file][1] += row.frames
            rows = [Row(file, "", 0, bytecodes, frames) for file, (bytecodes, frames) in totals.items()]
        return sorted(rows, key=lambda row: row.bytecodes, reverse=True)


def count_bytecodes(
    tools: Tools,
    cores: Cores,
    directory: Path,
    *,
    is_stream: bool = False,
    checkout: Path = REPOSITORY,
    settings: Mapping[str, str] | None = None,
) -> Counts:
    """Count what cgw of ``checkout`` runs. ``settings`` are added to it, ``directory`` is for its files.

    Raises :exc:`~benchmarks.processes.ChildError`, and :exc:`RuntimeError` before Python 3.12.
    """
    if sys.version_info < FIRST_VERSION:
        raise RuntimeError("bytecodes are counted by sys.monitoring, which Python has since version 3.12")
    path, port = directory / "counts.json", free_port()
    with UpstreamProcess(tools.upstream, cores.upstream, directory / "upstream.log") as upstream:
        upstream.behave("a", STREAM if is_stream else WHOLE)
        address = Address(upstream.scheme, upstream.port, directory / "ca.pem")
        start = Cgw(checkout=checkout, environ={**SETTINGS, **(settings or {})}).prepare(directory, port, address)
        command = [sys.executable, counting_server.__file__, str(path)]
        # The script's own folder stays off the path, so that nothing but cgw is found by the suite's names.
        environ = {**os.environ, **start.environ, "PYTHONSAFEPATH": "1"}
        with Child(
            "cgw", command, cores=cores.subject, environ=environ, cwd=checkout, log=directory / "cgw.log"
        ) as child:
            wait_until_answers(child, port, 30)
            exchanges = _serve(child, start.target, is_stream=is_stream)
            rows = _read_counts(path)
    return Counts(exchanges, [_describe(row, exchanges, checkout) for row in rows])


def _serve(child: Child, target: Target, *, is_stream: bool) -> int:
    """Have clients ask, count all but the first requests of each, and return how many were counted."""
    request = _build_request(target, is_stream=is_stream)
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(CLIENTS) as threads:
        address = "127.0.0.1", target.port
        clients = [stack.enter_context(socket.create_connection(address, ANSWER_SECONDS)) for _ in range(CLIENTS)]

        def ask_all(requests: int) -> None:
            # Iterated over, so that an exception of any is raised here.
            for _ in threads.map(lambda client: _ask(client, request, requests), clients):
                pass

        ask_all(WARM_REQUESTS)
        time.sleep(SETTLE_SECONDS)
        os.kill(child.pid, signal.SIGRTMIN)
        ask_all(STREAMS if is_stream else REQUESTS)
        time.sleep(SETTLE_SECONDS)
        os.kill(child.pid, signal.SIGRTMIN + 1)
    return CLIENTS * (STREAMS if is_stream else REQUESTS)


def _build_request(target: Target, *, is_stream: bool) -> bytes:
    messages = [{"role": "user", "content": "x" * 200}]
    request = {"model": target.model, "messages": messages, "max_tokens": 100}
    body = json.dumps(request | ({"stream": True} if is_stream else {}), separators=(",", ":")).encode()
    lines = [f"POST {target.path} HTTP/1.1", "host: localhost", *target.headers, f"content-length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


def _ask(client: socket.socket, request: bytes, requests: int) -> None:
    for _ in range(requests):
        client.sendall(request)
        response = http.client.HTTPResponse(client)
        response.begin()
        body = response.read()
        if response.status != 200:
            raise ChildError(f"cgw answered {response.status} while bytecodes were counted: {body[:200]!r}")


def _read_counts(path: Path) -> list[tuple[str, str, int, int, int]]:
    deadline = time.monotonic() + DUMP_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            raise ChildError("the gateway did not write its counts")
        time.sleep(0.02)
    return msgspec.json.decode(path.read_bytes(), type=list[tuple[str, str, int, int, int]])


def _describe(row: tuple[str, str, int, int, int], exchanges: int, checkout: Path) -> Row:
    file, function, line, bytecodes, frames = row
    for folder in (f"{checkout}/", "/site-packages/", f"/python{sys.version_info[0]}.{sys.version_info[1]}/"):
        file = file.rpartition(folder)[2]
    return Row(file, function, line, bytecodes / exchanges, frames / exchanges)
