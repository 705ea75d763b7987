"""Records of exchanges that never ran."""

from __future__ import annotations

from cgw.telemetry.exchange_record import ExchangeRecord, Moment, Outcome, RequestKind, Times, begin_times
from cgw.wire.trace_context import RequestTrace

TRACE = RequestTrace("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")


def build_times(
    duration_ms: float = 12.4, first_byte_ms: float | None = None, upstream_ms: float | None = None
) -> Times:
    """Return the times of an exchange that started at 0; the upstream was asked at once."""
    times = begin_times(0.0)
    times[Moment.ENDED] = duration_ms / 1000
    times[Moment.FIRST_CHUNK] = None if first_byte_ms is None else first_byte_ms / 1000
    if upstream_ms is not None:
        times[Moment.ADMITTED], times[Moment.RELAYED] = 0.0, upstream_ms / 1000
    return times


def build_record(
    outcome: Outcome = Outcome.OK,
    *,
    duration_ms: float = 12.4,
    first_byte_ms: float | None = None,
    upstream_ms: float | None = None,
    **changes: object,
) -> ExchangeRecord:
    """Return the record of an exchange, with ``changes`` of its other fields."""
    fields: dict[str, object] = {
        "trace": TRACE,
        "kind": RequestKind.EXCHANGE,
        "method": "POST",
        "path": "/v1/completions/openai",
        "status": 200,
        "outcome": outcome,
        "started_at": 1.0,
        "times": build_times(duration_ms, first_byte_ms, upstream_ms),
    }
    return ExchangeRecord(**fields | changes)  # type: ignore[arg-type]
