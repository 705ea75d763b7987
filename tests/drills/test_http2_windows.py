"""Clients of HTTP/2 that open no window: large answers stay with the providers, and cost cgw no memory."""

from __future__ import annotations

import json
from pathlib import Path

import trio
from h2.settings import SettingCodes

from tests.support.gateway import build_environ
from tests.support.http2 import Http2Client
from tests.support.process import open_gateway_process
from tests.support.raw_server import open_raw_server, read_request
from tests.support.requests import build_body
from tests.support.waiting import wait_until

PATH = "/openai/v1/chat/completions"
ANSWERS = 50
ANSWER_BYTES = 20 * 1024 * 1024
MOST_GROWTH_BYTES = 12 * 1024 * 1024


def read_resident_bytes(pid: int) -> int:
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) * 1024


async def test_a_window_of_0_on_large_answers_costs_no_memory(tmp_path: Path) -> None:
    """50 answers of 20 MB whose client opens no window: the gateway grows by less than 12 MiB, and serves others."""
    asked = 0
    part = b"x" * 65_536

    async def answer(stream: trio.SocketStream) -> None:
        nonlocal asked
        if await read_request(stream) is None:
            return  # cgw only looked whether the provider's host is there
        asked += 1
        await stream.send_all(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % ANSWER_BYTES
        )
        for _ in range(ANSWER_BYTES // len(part)):
            await stream.send_all(part)

    async with (
        open_raw_server(answer) as port,
        open_gateway_process(build_environ(tmp_path, f"http://127.0.0.1:{port}"), tmp_path / "log") as gateway,
    ):
        # First one answer that is read by nobody: what a first exchange allocates for good is not counted.
        warm = Http2Client(await trio.open_tcp_stream("127.0.0.1", gateway.port))
        warm.connection.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 0})
        body = json.dumps(build_body(PATH, stream=False)).encode()
        await warm.post(PATH, body)
        await wait_until(lambda: asked == 1, seconds=10)
        await trio.sleep(0.5)
        before = read_resident_bytes(gateway.process.pid)
        client = Http2Client(await trio.open_tcp_stream("127.0.0.1", gateway.port))
        client.connection.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 0})
        for _ in range(ANSWERS):
            await client.post(PATH, body)
        await wait_until(lambda: asked == 1 + ANSWERS, seconds=20)
        await trio.sleep(2)
        growth = read_resident_bytes(gateway.process.pid) - before
        assert growth < MOST_GROWTH_BYTES, growth
        client.stream.socket.close()
        warm.stream.socket.close()
