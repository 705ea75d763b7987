"""The cost of an exchange's log line, in counts that do not vary: calls, wake-ups of the log's thread."""

from __future__ import annotations

import io

from cgw.telemetry.exchange_log import log_exchanges
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
    """A line is filled in and encoded once, without a LogRecord or a look through it, and wakes up the thread once."""
    records = [build_numbered(number) for number in range(LINES)]
    counter = CallCounter()
    with open_logging(io.StringIO(), secrets=["a provider's key"]) as logs:
        log_exchanges(records)  # prepares what is kept: the shape of all, and the texts of each caller
        with counter.count():
            log_exchanges(records)
    assert logs.statistics().written == 2 * LINES
    calls = counter.calls
    assert calls["msgspec.json.Encoder.encode"] == LINES
    assert calls["cgw.telemetry.masking:may_change"] == 0
    assert calls["logging:makeRecord"] == 0
    assert calls["cgw.telemetry.json_lines:render"] == 0
    # Each put into the queue that the thread waits for wakes it up: only the first line may, if the thread waits yet.
    assert calls["_queue.SimpleQueue.put"] <= 1
    assert sum(calls.values()) <= LINES * 10 + 40, calls


def test_calls_of_a_new_caller() -> None:
    """The first line of a caller costs a look through its texts and their encoding, and not more than that."""
    records = [build_numbered(number) for number in range(LINES)]
    counter = CallCounter()
    with open_logging(io.StringIO(), secrets=["a provider's key"]):
        log_exchanges([build_numbered(LINES)])
        with counter.count():
            log_exchanges(records)
    assert counter.calls["cgw.telemetry.masking:may_change"] == LINES
    assert sum(counter.calls.values()) <= LINES * 33 + 40, counter.calls
