"""The metrics of exchanges, read from records: numbers, labels, and bounds on both."""

from __future__ import annotations

from typing import Any

import pytest

from cgw.telemetry.exchange_record import ExchangeRecord, Moment, Outcome, RequestKind, begin_times
from cgw.telemetry.metrics import MAX_SERIES, OTHER, HistogramValue
from cgw.telemetry.metrics_exchanges import MAX_KINDS, MAX_MODELS, ExchangeMetrics, describe_code
from cgw.wire.trace_context import begin_trace

CHAT = {
    "kind": RequestKind.EXCHANGE,
    "method": "POST",
    "path": "/v1/completions/openai",
    "route": "/v1/completions/openai",
    "outcome": Outcome.OK,
    "started_at": 1_700_000_000.0,
    "status": 200,
    "actor": "acme-actor",
    "source": "actors-file",
    "feature": "chat_completions",
    "provider": "openai",
    "model": "openai/gpt-4o",
    "stream": True,
    "upstream_status": 200,
    "request_bytes": 100,
    "response_bytes": 1000,
    "prompt_tokens": 10,
    "completion_tokens": 21,
}

MOMENTS = {
    Moment.ADMITTED: 0.010,
    Moment.FIRST_CHUNK: 0.510,
    Moment.RELAYED: 2.510,
    Moment.ENDED: 2.515,
}
"""An exchange of 2.515 s, 15 ms of which are cgw's."""


def build_record(moments: dict[Moment, float] = MOMENTS, **changes: Any) -> ExchangeRecord:
    """A record of a streamed chat completion, with ``changes``."""
    times = begin_times(1000.0)
    for moment, seconds in moments.items():
        times[moment] = 1000.0 + seconds
    return ExchangeRecord(trace=begin_trace(), times=times, **{**CHAT, **changes})


def read_values(metrics: ExchangeMetrics) -> dict[tuple[str, ...], float | HistogramValue]:
    """Return all readings by name and labels."""
    return {(reading.metric.name, *reading.labels): reading.value for reading in metrics.read()}


def test_a_streamed_exchange_is_in_every_metric() -> None:
    """Its times, tokens and bytes, under OpenTelemetry's and the reference's names."""
    metrics = ExchangeMetrics()
    record = build_record()
    metrics.note([record])
    values = read_values(metrics)
    route = "/v1/completions/openai"
    genai = ("chat", "openai", "gpt-4o")
    assert values["cgw_exchanges", route, "ok", "2xx"] == 1
    assert values["cgw_request_body_bytes", route] == 100
    assert values["cgw_response_bytes", route] == 1000
    assert values["cgw_upstream_responses", "openai", "2xx"] == 1
    sums = {key: value.sum for key, value in values.items() if isinstance(value, HistogramValue)}
    assert sums == pytest.approx(
        {
            ("cgw_exchange_duration_seconds", route, "ok"): 2.515,
            ("cgw_first_byte_seconds", route): 0.510,
            ("cody_gateway_latency_overhead", "openai", "chat_completions", "true"): 15,
            ("gen_ai_client_operation_duration_seconds", *genai, ""): 2.5,
            ("gen_ai_server_time_to_first_token_seconds", *genai): 0.5,
            ("gen_ai_server_time_per_output_token_seconds", *genai): 0.1,
            ("gen_ai_client_token_usage", *genai, "input"): 10,
            ("gen_ai_client_token_usage", *genai, "output"): 21,
        }
    )
    duration = values["cgw_exchange_duration_seconds", route, "ok"]
    assert isinstance(duration, HistogramValue)
    (exemplar,) = [one for one in duration.exemplars if one is not None]
    assert exemplar.trace_id == record.request_id
    assert (exemplar.value, exemplar.at) == pytest.approx((2.515, 1_700_000_002.515))


def test_what_never_reached_an_upstream_is_in_no_metric_of_one() -> None:
    """A refusal counts as an exchange, without overhead, tokens, or a response of an upstream."""
    metrics = ExchangeMetrics()
    refused = {"outcome": Outcome.REFUSED, "status": 429, "upstream_status": None, "prompt_tokens": None}
    metrics.note([build_record({Moment.ENDED: 0.003}, **refused, completion_tokens=None)])
    values = read_values(metrics)
    assert values["cgw_exchanges", "/v1/completions/openai", "refused", "4xx"] == 1
    assert {name for name, *labels in values if labels} == {
        "cgw_exchanges",
        "cgw_exchange_duration_seconds",
        "cgw_request_body_bytes",
        "cgw_response_bytes",
    }


def test_an_upstream_that_fails_is_counted_by_the_cause() -> None:
    """A 500, a 429, and no answer at all are told apart; the operation has OpenTelemetry's error type."""
    metrics = ExchangeMetrics()
    metrics.note([build_record(upstream_status=500, status=500)])
    metrics.note([build_record(upstream_status=429, status=503)])
    metrics.note([build_record(upstream_status=None, status=504, outcome=Outcome.TIMEOUT)])
    values = read_values(metrics)
    responses = {labels[1]: value for (name, *labels), value in values.items() if name == "cgw_upstream_responses"}
    assert responses == {"5xx": 1, "429": 1, "none": 1}
    errors = {labels[3] for name, *labels in values if name == "gen_ai_client_operation_duration_seconds"}
    assert errors == {"500", "429", "timeout"}


def test_models_are_bounded_to_those_that_answered() -> None:
    """A name that no upstream knows gets no label, and neither does the one after the last that fits."""
    metrics = ExchangeMetrics()
    metrics.note([build_record(model="openai/no-such-model", upstream_status=404, status=404)])
    for number in range(MAX_MODELS + 20):
        metrics.note([build_record(model=f"openai/model-{number}")])
    models = {labels[2] for name, *labels in read_values(metrics) if name == "gen_ai_client_token_usage"}
    assert models == {OTHER, *(f"model-{number}" for number in range(MAX_MODELS))}


def test_a_flood_of_labels_is_bounded() -> None:
    """Whatever records say, a metric has so many label sets, what is remembered is bounded, and both are counted."""
    metrics = ExchangeMetrics()
    for number in range(MAX_KINDS + 1000):
        metrics.note([build_record(route=f"/route/{number}", provider=f"p{number}", feature=f"f{number}")])
    series: dict[str, int] = {}
    for name, *_ in read_values(metrics):
        series[name] = series.get(name, 0) + 1
    assert max(series.values()) == MAX_SERIES + 1
    collapsed = {metric.name: count for metric, count in metrics.count_collapsed()}
    assert collapsed["cgw_exchanges"] == MAX_KINDS + 1000 - MAX_SERIES
    values = read_values(metrics)
    counts = [value for (name, *_), value in values.items() if name == "cgw_exchanges" and isinstance(value, int)]
    assert sum(counts) == MAX_KINDS + 1000


def test_no_actor_is_in_a_metric() -> None:
    """Neither the actor's id nor a path that a client made up."""
    metrics = ExchangeMetrics()
    metrics.note([build_record(route=None, path="/made/up", stale=True)])
    assert not {"acme-actor", "/made/up"} & {label for _, *labels in read_values(metrics) for label in labels}
    assert read_values(metrics)["cgw_exchanges_with_stale_actor", "actors-file"] == 1


def test_a_bug_is_counted() -> None:
    """From zero on, so that the first one shows in a rate."""
    metrics = ExchangeMetrics()
    assert read_values(metrics)[("cgw_internal_errors",)] == 0
    metrics.note([build_record(outcome=Outcome.INTERNAL_ERROR, status=500, bug=RuntimeError("a bug"))])
    assert read_values(metrics)[("cgw_internal_errors",)] == 1


@pytest.mark.parametrize(
    ("status", "outcome", "code"),
    [
        (200, Outcome.OK, "2xx"),
        (200, Outcome.CLIENT_GONE, "2xx"),
        (429, Outcome.REFUSED, "429"),
        (404, Outcome.OK, "4xx"),
        (529, Outcome.OK, "5xx"),
        (None, Outcome.TIMEOUT, "none"),
        (None, Outcome.UPSTREAM_UNREACHABLE, "none"),
        (None, Outcome.CLIENT_GONE, "client_gone"),
    ],
)
def test_codes_tell_whose_fault_it_is(status: int | None, outcome: Outcome, code: str) -> None:
    """A 429 calls for something else than a 500, and a client that left is no failure of the upstream."""
    assert describe_code(build_record(upstream_status=status, outcome=outcome)) == code
