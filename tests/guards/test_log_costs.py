"""The cost of an exchange's log line, in counts that do not vary: calls, wake-ups of the log's thread."""

from __future__ import annotations

import io

from cgw.telemetry.exchange_log import log_exchange
from cgw.telemetry.exchange_record import ExchangeRecord
from cgw.telemetry.logs import open_logging
from tests.support.counting import CallCounter
from tests.support.records import build_record

LINES = 20


def build_numbered(number: int) -> ExchangeRecord:
    return build_record(
        path="/v1/completions/anthropic-messages",
        actor=f"user-{number}",
        source="static",
        feature="chat_completions",
        model="anthropic/claude-3-5-sonnet",
        stream=True,
        upstream_status=200,
        response_bytes=number,
        remote_ip="192.0.2.7",
        user_agent="node-fetch/1.0 (+https://github.com/bitinn/node-fetch)",
    )


def test_calls_of_a_line() -> None:
    """A line is encoded once and looked through once, without a LogRecord, and wakes up the thread for the first."""
    records = [build_numbered(number) for number in range(LINES)]
    counter = CallCounter()
    with open_logging(io.StringIO(), secrets=["a provider's key"]) as logs, counter.count():
        for record in records:
            log_exchange(record)
    assert logs.statistics().written == LINES
    calls = counter.calls
    assert calls["msgspec.json.Encoder.encode"] == LINES
    assert calls["cgw.telemetry.masking:may_change"] == LINES
    assert calls["logging:makeRecord"] == 0
    assert calls["cgw.telemetry.log_lines:render_carefully"] == 0
    # Each put into the queue that the thread waits for wakes it up. Only the first line may, if the thread waits yet.
    assert calls["_queue.SimpleQueue.put"] <= 1
    assert sum(calls.values()) <= LINES * 36, calls
