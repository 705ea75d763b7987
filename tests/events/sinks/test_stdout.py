"""The sink ``stdout``: pipes that are read, stuck and closed."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator

import pytest
import trio

from cgw.events.lines import render_line
from cgw.events.sinks import stdout
from cgw.events.sinks.sink import SinkUnavailable
from cgw.events.sinks.stdout import StdoutSink, open_stdout_sink
from tests.events.conftest import build_event

LINES = [render_line(build_event(f"e{number}")) for number in range(1000)]


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read, write = os.pipe()
    yield read, write
    for descriptor in (read, write):
        try:
            os.close(descriptor)
        except OSError:
            continue


def read_all(descriptor: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += os.read(descriptor, 2**16)
    return data


async def test_a_slow_reader_gets_all_lines(pipe: tuple[int, int]) -> None:
    """More than the pipe holds; the sink waits in a thread, not the service."""
    read, write = pipe
    sink = StdoutSink(write)
    whole = b"".join(LINES)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sink.send, LINES, "id")
        await trio.sleep(0.05)
        assert await trio.to_thread.run_sync(read_all, read, len(whole)) == whole


async def test_a_stuck_reader_is_an_outage(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """And when it reads again, the batch goes on where it stopped: no line is torn, none comes twice."""
    monkeypatch.setattr(stdout, "SEND_SECONDS", 0.1)
    read, write = pipe
    sink = StdoutSink(write)
    whole = b"".join(LINES)
    with pytest.raises(SinkUnavailable, match="standard output takes nothing"):
        await sink.send(LINES, "id")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sink.send, LINES, "id")
        assert await trio.to_thread.run_sync(read_all, read, len(whole)) == whole


async def test_another_batch_after_a_torn_one_begins_a_line(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a restart of the shipper with other batches."""
    monkeypatch.setattr(stdout, "SEND_SECONDS", 0.1)
    read, write = pipe
    size = fcntl.fcntl(write, 1031, 4096)  # F_SETPIPE_SZ
    sink = StdoutSink(write)
    with pytest.raises(SinkUnavailable):
        await sink.send([b"x" * (size + 10) + b"\n"], "one")
    assert os.read(read, 2**20) == b"x" * size
    await sink.send([b"y\n"], "two")
    assert os.read(read, 2**20) == b"\ny\n"


async def test_a_closed_reader_is_an_outage(pipe: tuple[int, int]) -> None:
    """Not the end of the process."""
    read, write = pipe
    os.close(read)
    with pytest.raises(SinkUnavailable, match="standard output takes nothing: Broken pipe"):
        await StdoutSink(write).send(LINES, "id")


async def test_without_a_standard_output_it_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Descriptor 1 may be a socket then: nothing is written to it."""
    monkeypatch.setattr(sys, "__stdout__", None)
    async with open_stdout_sink() as sink:
        with pytest.raises(SinkUnavailable, match="standard output is closed"):
            await sink.send(LINES, "id")


async def test_cancelling_leaves_a_stuck_thread_behind(pipe: tuple[int, int]) -> None:
    """The end of the service does not wait for the reader."""
    _, write = pipe
    with trio.fail_after(2):
        with trio.move_on_after(0.1):
            await StdoutSink(write).send(LINES, "id")
