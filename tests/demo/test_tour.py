"""The whole tour in a process of its own, as a user runs it, with its output in a pipe."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from cgw.testing.script import DEFAULT_ANSWER, split_tokens

ROOT = Path(__file__).parents[2]
TOKENS = len(split_tokens(DEFAULT_ANSWER))


class Demo:
    """A running tour and its output so far."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.output = ""
        self.errors = b""

    async def read_errors(self) -> None:
        assert self.process.stderr is not None
        async for data in self.process.stderr:
            self.errors += bytes(data)

    async def read_until(self, text: str) -> None:
        """Read standard output until it contains ``text``; fail when it ends before."""
        assert self.process.stdout is not None
        while text not in self.output:
            data = bytes(await self.process.stdout.receive_some())
            assert data, f"{text!r} is missing in {self.output!r} (standard error: {self.errors!r})"
            self.output += data.decode()

    async def read_all(self) -> int:
        """Read standard output to its end; return the exit status."""
        assert self.process.stdout is not None
        async for data in self.process.stdout:
            self.output += bytes(data).decode()
        return await self.process.wait()

    @property
    def folder(self) -> Path:
        """The tour's data folder, from its output."""
        found = re.search(r"^data folder +(\S+)", self.output, re.MULTILINE)
        assert found is not None
        return Path(found[1])

    def assert_nothing_is_left(self) -> None:
        """Check that the folder is gone, and every process that was started with a path in it."""
        assert not self.folder.exists()
        needle = str(self.folder).encode()
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                command = path.read_bytes()
            except OSError:  # that process has just ended
                continue
            assert needle not in command


@asynccontextmanager
async def open_demo(arguments: str) -> AsyncIterator[Demo]:
    """Run the tour with ``arguments`` for up to a minute, in a process group of its own, as shells do."""
    code = f"import sys; from cgw.demo.tour import run_demo; sys.exit(run_demo({arguments}))"
    environ = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "TTY_COMPATIBLE")}
    process = await trio.lowlevel.open_process(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    demo = Demo(process)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(demo.read_errors)
            try:
                yield demo
            finally:
                if process.returncode is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    with trio.CancelScope(shield=True):
                        await process.wait()


def find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


async def test_the_tour_shows_answer_limits_event_and_overhead_and_leaves_nothing() -> None:
    """``--once`` prints every part in plain text, exits 0, and leaves no folder and no process."""
    async with open_demo(f"once=True, port={find_free_port()}") as demo:
        started = trio.current_time()
        status = await demo.read_all()
        seconds = trio.current_time() - started
    assert status == 0, demo.errors
    text = " ".join(demo.output.split())
    assert DEFAULT_ANSWER in text
    assert re.search(rf"{TOKENS} tokens in \d\.\d\d s: the first after \d+ ms", text)
    assert "x-cody-resolved-model anthropic/claude-sonnet-4-5" in text
    assert "x-ratelimit-limit 1000 x-ratelimit-remaining 999" in text
    assert "name CompletionsFinished" in text
    assert f"completion_token_count {TOKENS}" in text
    assert f"completion_character_count {len(DEFAULT_ANSWER)}" in text
    assert "usage_quality exact" in text
    assert re.search(r"-?\d+\.\d\d ms: the first byte of a body takes \d+\.\d\d ms through cgw", text)
    assert "/v1/completions/openai" in text
    assert "\x1b" not in demo.output
    assert demo.errors == b""
    assert seconds < 15  # about 5 on an idle machine
    demo.assert_nothing_is_left()


async def test_pasted_lines_work_and_ctrl_c_ends_it_well() -> None:
    """Every ``curl`` and SDK snippet works as printed; then SIGINT ends the tour, which prints a count."""
    async with open_demo(f"once=False, port={find_free_port()}") as demo:
        await demo.read_until("open until Ctrl-C")
        blocks = re.findall(r"^# (.+)\n((?:.+\n)+)", demo.output, re.MULTILINE)
        assert [title for title, code in blocks if code.startswith("import ")] == [
            "Anthropic's SDK (pip install anthropic)",
            "OpenAI's SDK (pip install openai)",
        ]
        outputs: dict[str, str] = {}

        async def paste(title: str, code: str) -> None:
            command = [sys.executable, "-c", code] if code.startswith("import ") else ["sh", "-c", code]
            finished = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
            outputs[title] = finished.stdout.decode()
            assert finished.returncode == 0, (title, finished.stderr)

        has_curl = shutil.which("curl") is not None
        async with trio.open_nursery() as nursery:
            for title, code in blocks:
                if has_curl or not code.startswith("curl"):
                    nursery.start_soon(paste, title, code)
        # Ctrl-C reaches the whole group: the tour and its embedded store alike.
        os.killpg(demo.process.pid, signal.SIGINT)
        status = await demo.read_all()
    assert status == 0, demo.errors
    completions = 6 if has_curl else 2
    assert f"Served {completions} completions after the tour." in demo.output
    for title, output in outputs.items():
        if "SDK" in title:
            assert output == DEFAULT_ANSWER
        elif "limits" in title:
            assert '"chat_completions"' in output
        else:
            assert output.rstrip().endswith(('data: {"type":"message_stop"}', "data: [DONE]")), title
    log = demo.errors.decode()
    # Not "200 ok": openai hangs up once it has read `[DONE]`, before the body's last chunk.
    assert log.count("POST /") == len(re.findall(r"POST /\S+ status=200 ", log)) == completions
    assert "Traceback" not in log
    for token in re.findall(r"(?:cgw|sgd)_[0-9a-f]{64}", demo.output):
        assert token not in log
    demo.assert_nothing_is_left()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_in_mid_tour_ends_it_at_once(number: signal.Signals) -> None:
    """A signal during the stream ends the tour without messages, with status 130, and leaves nothing."""
    async with open_demo(f"once=True, port={find_free_port()}") as demo:
        await demo.read_until("Hello from")
        os.killpg(demo.process.pid, number)
        status = await demo.read_all()
    assert status == 130
    assert demo.errors == b""
    assert "CompletionsFinished" not in demo.output
    demo.assert_nothing_is_left()


async def test_a_taken_port_is_one_sentence_and_exit_status_1() -> None:
    """A port that another program uses is named on standard error, without a traceback."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with open_demo(f"once=True, port={port}") as demo:
            status = await demo.read_all()
    assert status == 1
    assert demo.errors.decode() == (
        f"cgw demo: port {port} cannot be used (Address already in use); --port names another\n"
    )


async def test_a_closed_pipe_ends_the_tour_without_messages() -> None:
    """If standard output is closed (``| head``), the tour ends without a traceback."""
    async with open_demo(f"once=True, port={find_free_port()}") as demo:
        await demo.read_until("Hello from")
        assert demo.process.stdout is not None
        await demo.process.stdout.aclose()
        status = await demo.process.wait()
    assert status == 1
    assert demo.errors == b""
    demo.assert_nothing_is_left()
