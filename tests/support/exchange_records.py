"""Records of exchanges, as the gateway builds them."""

from __future__ import annotations

from typing import Any

from cgw.telemetry.exchange_record import ExchangeRecord, Moment, Outcome, RequestKind, begin_times
from cgw.wire.trace_context import CallerContext, RequestTrace, begin_trace

CALLER = CallerContext("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", is_sampled=True)


def build_trace(caller: CallerContext | None = None) -> RequestTrace:
    """Build new ids, with the context of a caller."""
    ids = begin_trace()
    return RequestTrace(ids.trace_id, ids.span_id, caller)


def build_times(until: Moment, *, without: tuple[Moment, ...] = (), start: float = 1000.0) -> list[float | None]:
    """Build the times of an exchange that got to ``until`` and ended then: a tenth of a second for each moment."""
    times = begin_times(start)
    for moment in Moment:
        if moment <= until and moment not in without:
            times[moment] = start + moment / 10
    times[Moment.ENDED] = start + (until + 1) / 10
    return times


def build_exchange(**changes: Any) -> ExchangeRecord:
    """Build the record of a stream that ended well, with ``changes``."""
    values: dict[str, Any] = {
        "trace": build_trace(),
        "kind": RequestKind.EXCHANGE,
        "method": "POST",
        "path": "/v1/completions/anthropic-messages",
        "route": "/v1/completions/anthropic-messages",
        "outcome": Outcome.OK,
        "started_at": 1.8e9,
        "times": build_times(Moment.SETTLED),
        "status": 200,
        "actor": "alice",
        "source": "static",
        "feature": "chat_completions",
        "provider": "anthropic",
        "model": "anthropic/claude-sonnet-4",
        "stream": True,
        "upstream_status": 200,
        "is_reused": False,
        "request_bytes": 4000,
        "response_bytes": 120_000,
        "chunks": 300,
        "prompt_tokens": 1234,
        "completion_tokens": 345,
        "usage_quality": "exact",
        "event_id": "0199e7e0-0000-7000-8000-000000000000",
        "user_agent": "cody/1.0",
    }
    return ExchangeRecord(**{**values, **changes})
