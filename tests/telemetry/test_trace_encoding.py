"""Spans of exchanges, decoded by OpenTelemetry's own classes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from cgw.telemetry.exchange_record import ExchangeRecord, Moment, Outcome, RequestKind
from cgw.telemetry.otlp_wire import (
    MAX_TEXT_CHARACTERS,
    build_double_encoder,
    build_integer_encoder,
    build_request,
    build_text_encoder,
    encode_attributes,
    encode_text,
)
from cgw.telemetry.trace_encoding import MAX_CACHED, CallSpan, TraceEncoder
from tests.support.collectors import read_attributes
from tests.support.exchange_records import CALLER, build_exchange, build_times, build_trace

TEXTS = st.text(st.characters(), max_size=2 * MAX_TEXT_CHARACTERS)
VALUES = (
    TEXTS
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.lists(TEXTS, max_size=3).map(tuple)
)


def keep(text: str) -> str:
    """Mask nothing."""
    return text


def decode(*encoded: bytes) -> list[Span]:
    """Decode spans, as they are in a request."""
    request = ExportTraceServiceRequest.FromString(build_request(b"", encode_text(1, "cgw"), encoded))
    assert request.resource_spans[0].scope_spans[0].scope.name == "cgw"
    return list(request.resource_spans[0].scope_spans[0].spans)


def encode(record: ExchangeRecord) -> list[Span]:
    """Return the spans of a record."""
    return decode(TraceEncoder(keep).encode_exchange(record))


def shorten(value: Any) -> Any:
    """Return what is to come out for an attribute's value."""
    if isinstance(value, str):
        return value[:MAX_TEXT_CHARACTERS].encode("utf-8", "replace").decode()
    return [shorten(one) for one in value] if isinstance(value, tuple) else value


@given(st.dictionaries(TEXTS, VALUES, max_size=5))
def test_attributes_of_every_kind_are_decoded_as_they_were(attributes: dict[str, Any]) -> None:
    """Texts (shortened, without lone surrogates), booleans, integers, doubles and lists survive."""
    span = Span.FromString(encode_attributes(9, attributes))
    decoded = []
    for pair in span.attributes:
        kind = pair.value.WhichOneof("value")
        value = getattr(pair.value, kind or "string_value")
        decoded.append((pair.key, [one.string_value for one in value.values] if kind == "array_value" else value))
    assert decoded == [(shorten(name), shorten(value)) for name, value in attributes.items()]


@given(st.integers(0, 2**63 - 1), st.floats(allow_nan=False), st.text(st.characters(codec="ascii"), max_size=200))
def test_prepared_encoders_write_what_the_general_one_does(number: int, fraction: float, text: str) -> None:
    """The encoders that know their attribute's name write the same bytes."""
    assert build_integer_encoder(9, "a.b")(number) == encode_attributes(9, {"a.b": number})
    assert build_double_encoder(9, "a.b")(fraction) == encode_attributes(9, {"a.b": fraction})
    assert build_text_encoder(9, "a.b")(text) == encode_attributes(9, {"a.b": text})


def test_the_root_span_has_the_records_ids_and_the_caller_as_a_link() -> None:
    """The root is a server span without a parent, with the ids that the client was told; the caller is a link."""
    trace = build_trace(CALLER)
    root = encode(build_exchange(trace=trace))[0]
    assert (root.trace_id.hex(), root.span_id.hex(), root.parent_span_id) == (trace.trace_id, trace.span_id, b"")
    assert root.kind == Span.SPAN_KIND_SERVER
    assert root.name == "POST /v1/completions/anthropic-messages"
    assert root.flags & 1
    (link,) = root.links
    assert (link.trace_id.hex(), link.span_id.hex()) == (CALLER.trace_id, CALLER.span_id)
    assert link.flags & 1
    assert root.start_time_unix_nano == 1_800_000_000_000_000_000
    assert root.end_time_unix_nano - root.start_time_unix_nano == pytest.approx(1.1e9, abs=1000)


def test_the_root_span_has_the_attributes_of_http_and_generative_ai() -> None:
    """Names are those of the semantic conventions; numbers are numbers."""
    attributes = read_attributes(encode(build_exchange())[0].attributes)
    assert attributes["http.request.method"] == "POST"
    assert attributes["http.route"] == attributes["url.path"] == "/v1/completions/anthropic-messages"
    assert attributes["http.response.status_code"] == 200
    assert attributes["gen_ai.operation.name"] == "chat"
    assert attributes["gen_ai.provider.name"] == attributes["gen_ai.system"] == "anthropic"
    assert attributes["gen_ai.request.model"] == "claude-sonnet-4"
    assert attributes["gen_ai.usage.input_tokens"] == 1234
    assert attributes["gen_ai.usage.output_tokens"] == 345
    assert attributes["actor.id"] == "alice"
    assert attributes["cgw.outcome"] == "ok"
    assert attributes["cgw.event.id"] == "0199e7e0-0000-7000-8000-000000000000"
    assert attributes["cgw.time_to_first_byte"] == pytest.approx(0.7)
    assert attributes["cgw.overhead"] == pytest.approx(1.1 - 0.4)


def test_every_phase_is_a_child_that_begins_where_the_one_before_ended() -> None:
    """A stream over a new connection has nine children, in order and without gaps, all of the root."""
    root, *children = encode(build_exchange())
    assert [child.name for child in children] == [
        *("authenticate", "receive", "prepare", "admit", "connect", "first byte", "relay", "record", "settle")
    ]
    assert {(child.trace_id, child.parent_span_id) for child in children} == {(root.trace_id, root.span_id)}
    assert len({child.span_id for child in (root, *children)}) == 10
    starts = [child.start_time_unix_nano for child in children]
    ends = [child.end_time_unix_nano for child in children]
    assert starts == [root.start_time_unix_nano, *ends[:-1]]
    assert ends[-1] <= root.end_time_unix_nano
    assert all(child.status.code == Status.STATUS_CODE_UNSET for child in children)


@pytest.mark.parametrize(
    ("changes", "names", "failed"),
    [
        ({"times": build_times(Moment.STARTED), "outcome": Outcome.REFUSED, "status": 401}, ["authenticate"], 0),
        (
            {"times": build_times(Moment.PREPARED), "outcome": Outcome.REFUSED, "status": 429},
            ["authenticate", "receive", "prepare", "admit"],
            3,
        ),
        (
            {
                "times": build_times(Moment.SETTLED, without=(Moment.CONNECTED, Moment.ANSWERED, Moment.FIRST_CHUNK)),
                "outcome": Outcome.UPSTREAM_UNREACHABLE,
                "is_reused": None,
            },
            ["authenticate", "receive", "prepare", "admit", "connect", "record", "settle"],
            4,
        ),
        (
            {
                "times": build_times(Moment.SETTLED, without=(Moment.CONNECTED, Moment.ANSWERED, Moment.FIRST_CHUNK)),
                "outcome": Outcome.TIMEOUT,
                "is_reused": None,
            },
            ["authenticate", "receive", "prepare", "admit", "first byte", "record", "settle"],
            4,
        ),
        (
            {"times": build_times(Moment.SETTLED, without=(Moment.CONNECTED, Moment.FIRST_CHUNK)), "is_reused": True},
            ["authenticate", "receive", "prepare", "admit", "first byte", "relay", "record", "settle"],
            None,
        ),
        (
            {"times": build_times(Moment.FIRST_CHUNK), "outcome": Outcome.SHUTDOWN},
            ["authenticate", "receive", "prepare", "admit", "connect", "first byte", "relay"],
            6,
        ),
    ],
)
def test_the_phase_in_which_an_exchange_failed_is_marked(
    changes: dict[str, Any], names: list[str], failed: int | None
) -> None:
    """Phases that never began are not there; the one that was under way has the status of an error."""
    _, *children = encode(build_exchange(**changes))
    assert [child.name for child in children] == names
    marked = [index for index, child in enumerate(children) if child.status.code == Status.STATUS_CODE_ERROR]
    assert marked == ([] if failed is None else [failed])


@pytest.mark.parametrize("moment", list(Moment))
@pytest.mark.parametrize("outcome", list(Outcome))
def test_spans_are_well_formed_wherever_an_exchange_ends(moment: Moment, outcome: Outcome) -> None:
    """Ids are unique, and no span ends before it starts or after the root."""
    root, *children = encode(build_exchange(times=build_times(moment), outcome=outcome))
    assert len({span.span_id for span in (root, *children)}) == len(children) + 1
    for child in children:
        assert root.start_time_unix_nano <= child.start_time_unix_nano <= child.end_time_unix_nano
        assert child.end_time_unix_nano <= root.end_time_unix_nano


@pytest.mark.parametrize(
    ("outcome", "status", "is_error"),
    [
        (Outcome.OK, 200, False),
        (Outcome.OK, 500, True),
        (Outcome.REFUSED, 429, False),
        (Outcome.REFUSED, 503, True),
        (Outcome.CLIENT_GONE, 200, False),
        (Outcome.UPSTREAM_BROKE, 200, True),
        (Outcome.INTERNAL_ERROR, 500, True),
    ],
)
def test_faults_and_5xx_are_errors_and_refusals_are_not(outcome: Outcome, status: int, is_error: bool) -> None:
    """The status of the root follows the conventions for servers: what the client did wrong is no error."""
    for error in (None, "the reason"):
        root = encode(build_exchange(outcome=outcome, status=status, error=error))[0]
        assert (root.status.code == Status.STATUS_CODE_ERROR) is is_error
        assert ("error.type" in read_attributes(root.attributes)) is is_error
        if error is not None:
            assert error in (root.status.message, read_attributes(root.attributes).get("cgw.refusal"))


def test_texts_from_outside_are_masked() -> None:
    """Path, method, model, actor, user agent and errors pass through the mask."""
    encoder = TraceEncoder(lambda text: text.replace("canary", "[masked]"))
    changes = dict.fromkeys(("path", "method", "model", "actor", "user_agent", "error"), "a/canary")
    encoded = encoder.encode_exchange(build_exchange(**changes, route=None))
    call = encoder.encode_call(CallSpan("GraphQL", "ab" * 16, "cd" * 8, None, 1, 2, error="canary"))
    assert b"canary" not in encoded + call


def test_a_control_request_has_a_root_span_alone() -> None:
    """Requests that are no exchanges have no phases, and no path in their name."""
    record = build_exchange(kind=RequestKind.CONTROL, route=None, path="/nowhere/17", status=404)
    (root,) = encode(record)
    assert root.name == "POST"


def test_the_cache_of_attributes_is_bounded() -> None:
    """A flood of different callers does not grow the cache without end."""
    encoder = TraceEncoder(keep)
    for number in range(2 * MAX_CACHED):
        encoder.encode_exchange(build_exchange(user_agent=f"agent {number}", path=f"/{number}"))
    assert len(encoder._cache) <= MAX_CACHED


def test_a_call_is_a_client_span_below_the_exchange() -> None:
    """A call has its server and error, and the exchange's root span as parent."""
    trace = build_trace()
    call = CallSpan("GraphQL: X", trace.trace_id, "cd" * 8, trace.span_id, 5, 9, "example.com", "answered 500")
    (span,) = decode(TraceEncoder(keep).encode_call(call))
    assert span.kind == Span.SPAN_KIND_CLIENT
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (trace.trace_id, trace.span_id)
    assert (span.name, span.start_time_unix_nano, span.end_time_unix_nano) == ("GraphQL: X", 5, 9)
    assert read_attributes(span.attributes) == {"server.address": "example.com"}
    assert (span.status.code, span.status.message) == (Status.STATUS_CODE_ERROR, "answered 500")
