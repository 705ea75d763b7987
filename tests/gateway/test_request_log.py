"""Every request leaves a line in the log: unknown routes and malformed heads, too, and no flood of lines."""

from __future__ import annotations

import logging
import re

import h2.connection
import httpx
import pytest
import trio
import trio.testing
from trio.testing import MockClock

from cgw.gateway.request_log import LINES_PER_SECOND, MAX_PATH_CHARACTERS, RefusalLog
from cgw.lifetime import open_background_task
from cgw.service.lifecycle import Service
from cgw.telemetry.exchange_record import ExchangeRecord, Outcome
from cgw.telemetry.readers import Readers
from cgw.transport.client_side import RefusedHead
from cgw.wire.trace_context import begin_trace
from tests.support.gateway import TOKEN
from tests.support.limits import open_http
from tests.support.raw_client import ask, open_client
from tests.support.waiting import wait_until


def find_lines(caplog: pytest.LogCaptureFixture) -> list[ExchangeRecord]:
    """Return the lines of requests that were no exchanges and not answered well: those are for debugging."""
    records = [record for record in caplog.records if record.name == "cgw.request" and record.levelno > logging.DEBUG]
    return [record.msg for record in records if isinstance(record.msg, ExchangeRecord)]


def find_counts(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the lines that count further refusals."""
    return [record.getMessage() for record in caplog.records if "more requests were refused" in record.getMessage()]


@pytest.mark.parametrize("http2", [False, True], ids=["HTTP/1.1", "HTTP/2"])
async def test_unknown_routes_leave_a_line(gateway: Service, caplog: pytest.LogCaptureFixture, http2: bool) -> None:
    """The log shows which routes clients look for: method, path without its query, status, client; probes don't."""
    caplog.set_level(logging.DEBUG, "cgw.request")
    async with (
        open_http(gateway) as own,
        httpx.AsyncClient(base_url=gateway.url, headers=own.headers, http1=not http2, http2=http2) as client,
    ):
        await client.post("/openai/v1/batches?api-version=secret", json={})
        await client.get("/v1/models", headers={"user-agent": "curious/1"})
        await client.get("/openai/v1/chat/completions")
        await client.get("/v1/limits")
        await client.get("/-/healthz")
    await wait_until(lambda: len(find_lines(caplog)) == 3)
    lines = find_lines(caplog)
    assert [(line.method, line.path, line.status, line.outcome) for line in lines] == [
        ("POST", "/openai/v1/batches", 404, Outcome.REFUSED),
        ("GET", "/v1/models", 404, Outcome.REFUSED),
        ("GET", "/openai/v1/chat/completions", 405, Outcome.REFUSED),
    ]
    assert (lines[1].user_agent, lines[1].remote_ip) == ("curious/1", "127.0.0.1")
    assert lines[0].response_bytes
    assert {line.protocol for line in lines} == {"HTTP/2" if http2 else "HTTP/1.1"}
    debug_lines = [
        record for record in caplog.records if (record.name, record.levelno) == ("cgw.request", logging.DEBUG)
    ]
    paths = [record.msg.path for record in debug_lines if isinstance(record.msg, ExchangeRecord)]
    assert paths == ["/v1/limits", "/-/healthz"]


async def test_a_client_that_leaves_an_unfinished_request_leaves_a_line(
    gateway: Service, caplog: pytest.LogCaptureFixture
) -> None:
    """A request to the control app whose body never came is logged as its client's."""
    caplog.set_level(logging.INFO, "cgw.request")
    async with open_client(gateway.port) as client:
        await client.send(b"POST /v1/nowhere HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n")
    await wait_until(lambda: len(find_lines(caplog)) == 1)
    (line,) = find_lines(caplog)
    assert (line.path, line.status, line.outcome) == ("/v1/nowhere", None, Outcome.CLIENT_GONE)


MALFORMED = [
    (b"POST /openai/v1/chat/completions?key=secret HTTP/1.1\r\n\r\n", 400, "POST", "/openai/v1/chat/completions"),
    (b"GET /a HTTP/3.0\r\nhost: x\r\n\r\n", 400, "GET", "/a"),
    (b"\x16\x03\x01\x02\x00\x01\x00", 400, "-", "-"),
    (b"x-api-key: " + TOKEN.encode() + b"\r\n\r\n", 400, "-", "-"),
    (b"Bearer " + TOKEN.encode() + b" x\r\n\r\n", 400, "-", "-"),
    (b"GET /" + b"a" * 70_000, 414, "GET", "/" + "a" * (MAX_PATH_CHARACTERS - 1)),
    (b"GET / HTTP/1.1\r\na: " + b"b" * 70_000 + b"\r\n\r\n", 431, "GET", "/"),
]


async def test_malformed_heads_leave_a_line(gateway: Service, caplog: pytest.LogCaptureFixture) -> None:
    """A refused head is logged with the reason, and with method and path if it has them; nothing else of it is."""
    caplog.set_level(logging.INFO, "cgw.request")
    for data, status, _, _ in MALFORMED:
        assert (await ask(gateway.port, data)).status == status
    gateway.gateway.readers.flush()
    lines = find_lines(caplog)
    assert [(line.status, line.method, line.path) for line in lines] == [case[1:] for case in MALFORMED]
    assert all(line.error and line.remote_ip == "127.0.0.1" for line in lines)
    assert not [line for line in lines if TOKEN in repr(line) or "secret" in repr(line)]


async def test_malformed_http2_heads_leave_a_line(gateway: Service, caplog: pytest.LogCaptureFixture) -> None:
    """Also where the protocol has no response: a stream error, and an error that ends the connection."""
    caplog.set_level(logging.INFO, "cgw.request")
    config = h2.config.H2Configuration(
        client_side=True, validate_outbound_headers=False, normalize_outbound_headers=False
    )
    async with open_client(gateway.port) as client:
        connection = h2.connection.H2Connection(config)
        connection.initiate_connection()
        head = [(":method", "GET"), (":scheme", "http"), (":authority", "x"), (":path", "/a"), ("Upper", "case")]
        connection.send_headers(1, head, end_stream=True)
        await client.send(connection.data_to_send())
        await wait_until(lambda: len(find_lines(caplog)) == 1)
        await client.send(b"\0\0\1\0\0\0\0\0\0x")  # DATA on stream 0
        await wait_until(lambda: len(find_lines(caplog)) == 2)
    lines = find_lines(caplog)
    assert [line.status for line in lines] == [None, None]
    assert all("malformed HTTP/2 request" in (line.error or "") for line in lines)


async def test_a_flood_of_malformed_heads_is_a_few_lines(gateway: Service, caplog: pytest.LogCaptureFixture) -> None:
    """Beyond some lines each second, heads are counted by status, and no refusal is missing from the counts."""
    caplog.set_level(logging.INFO, "cgw.request")
    count = 20 * LINES_PER_SECOND
    started = trio.current_time()
    for _ in range(count):
        await ask(gateway.port, b"GET /a HTTP/3.0\r\n\r\n")
    seconds = trio.current_time() - started

    def count_all() -> int:
        counted = (re.findall(r"(\d+) more requests", text) for text in find_counts(caplog))
        return len(find_lines(caplog)) + sum(int(number) for numbers in counted for number in numbers)

    await wait_until(lambda: count_all() == count)
    assert len(find_lines(caplog)) <= LINES_PER_SECOND * (seconds + 1)
    assert len(find_counts(caplog)) <= seconds + 1


async def test_lines_are_counted_by_second(mock_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """The first of a second have lines; the count of the others comes at its end, or when the service ends."""
    caplog.set_level(logging.INFO, "cgw.request")
    refusals = RefusalLog(Readers())

    def refuse(count: int, status: int | None = 400) -> None:
        for _ in range(count):
            refusals.note(RefusedHead(status, "malformed", b"GET", b"/", "192.0.2.1", begin_trace()))

    async with open_background_task(refusals.run):
        await trio.testing.wait_all_tasks_blocked()
        refuse(LINES_PER_SECOND + 5)
        refuse(2, 503)
        refuse(1, None)
        assert (len(find_lines(caplog)), find_counts(caplog)) == (LINES_PER_SECOND, [])
        mock_clock.jump(1)
        await trio.testing.wait_all_tasks_blocked()
        assert find_counts(caplog) == [
            "8 more requests were refused on their heads: 5 with 400, 2 with 503, 1 with a stream error"
        ]
        refuse(LINES_PER_SECOND)
        assert len(find_lines(caplog)) == 2 * LINES_PER_SECOND
        mock_clock.jump(5)
        await trio.testing.wait_all_tasks_blocked()
        refuse(LINES_PER_SECOND + 1)
    assert len(find_lines(caplog)) == 3 * LINES_PER_SECOND
    assert find_counts(caplog)[1:] == ["1 more requests were refused on their heads: 1 with 400"]
