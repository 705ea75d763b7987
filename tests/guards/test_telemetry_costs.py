"""The cost of traces and error reports on the Trio thread, in counts that do not vary: calls, and wake-ups."""

from __future__ import annotations

from cgw.telemetry.masking import SecretMask
from cgw.telemetry.readers import BATCH
from cgw.telemetry.sentry import open_error_reports
from cgw.telemetry.settings import OtlpSettings, TraceSettings
from cgw.telemetry.trace_encoding import TraceEncoder
from cgw.telemetry.traces import open_tracing
from tests.support.collectors import open_receiver
from tests.support.counting import CallCounter
from tests.support.exchange_records import build_exchange

RECORDS = 100


async def test_an_exchange_wakes_no_thread() -> None:
    """Spans are encoded among others, and the exporter is woken up for a batch of them."""
    records = [build_exchange() for _ in range(RECORDS)]
    counter = CallCounter()
    with open_receiver() as receiver:
        otlp = OtlpSettings(endpoint=receiver.url)
        async with open_tracing(TraceSettings(), otlp, environment="test", mask=SecretMask()) as tracing:
            assert tracing is not None
            with counter.count():
                for first in range(0, RECORDS, BATCH):
                    tracing(records[first : first + BATCH])
        assert len(receiver.spans()) == RECORDS * 10
    calls = counter.calls
    assert calls["_queue.SimpleQueue.put"] <= 1
    # Encoding (see below); the lengths of method, path and user agent; what a batch, and the first of a kind, cost.
    assert sum(calls.values()) <= RECORDS * (45 + 5) + 1000, calls


def test_a_trace_is_encoded_in_few_calls() -> None:
    """Ten spans take fewer calls than a general encoder takes for one: attributes and children are prepared."""
    records = [build_exchange() for _ in range(RECORDS)]
    encoder, counter = TraceEncoder(SecretMask()), CallCounter()
    for record in records:
        encoder.encode_exchange(record)  # prepares what all of them share
    with counter.count():
        for record in records:
            encoder.encode_exchange(record)
    calls = counter.calls
    assert calls["cgw.telemetry.masking:__call__"] == 0
    assert calls["cgw.telemetry.trace_encoding:_build_shape"] == 0
    assert sum(calls.values()) <= RECORDS * 45, calls


def test_exchanges_that_went_well_cost_no_call_of_error_reports() -> None:
    """The reader looks at status and outcome, and calls nothing."""
    records = [build_exchange() for _ in range(RECORDS)]
    counter = CallCounter()
    with open_receiver() as receiver:
        dsn = receiver.url.replace("http://", "http://key@") + "/1"
        with open_error_reports(dsn, environment="test", mask=SecretMask()) as reports:
            assert reports is not None
            with counter.count():
                reports(records)
        assert receiver.events() == []
    assert sum(counter.calls.values()) <= 5, counter.calls
