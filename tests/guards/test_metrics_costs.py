"""The cost of counting an exchange and a reply of Redis, in counts that do not vary: calls."""

from __future__ import annotations

from cgw.redis.command_latency import CommandLatency
from cgw.redis.handshake import pack_command
from cgw.telemetry.metrics_exchanges import ExchangeMetrics
from cgw.telemetry.readers import BATCH
from tests.support.counting import CallCounter
from tests.telemetry.test_metrics_exchanges import build_record

EXCHANGES = 1024
"""A multiple of a batch."""


def test_calls_of_an_exchange() -> None:
    """Labels are looked up once per kind of exchange; after that an exchange is a look-up, and its observations."""
    metrics = ExchangeMetrics()
    records = [build_record() for _ in range(EXCHANGES)]
    counter = CallCounter()
    with counter.count():
        for first in range(0, EXCHANGES, BATCH):
            metrics.note(records[first : first + BATCH])
    calls = counter.calls
    assert calls["cgw.telemetry.metrics_exchanges:_build"] == 1
    # Each of the eight distributions is counted once in a batch.
    assert calls["cgw.telemetry.metrics:count_gathered"] == EXCHANGES // BATCH * 8
    assert sum(calls.values()) <= EXCHANGES * 20, calls


def test_calls_of_a_reply() -> None:
    """The command is read once per script; after that a reply is a look-up, and one observation."""
    latency = CommandLatency()
    data = pack_command(("EVALSHA", "a" * 40, "1", "key", "argument"))
    counter = CallCounter()
    with counter.count():
        for _ in range(EXCHANGES):
            latency.find(data)[False].observe(1)
    assert counter.calls["cgw.redis.command_latency:read_command"] == 1
    assert sum(counter.calls.values()) <= EXCHANGES * 4 + 50, counter.calls
    (reading,) = [one for one in latency.read() if one.labels == ("evalsha", "false")]
    assert sum(reading.value.counts) == EXCHANGES  # type: ignore[union-attr]
