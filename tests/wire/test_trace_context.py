"""The ids of requests, and the caller's context."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgw.wire.messages import RequestHead
from cgw.wire.trace_context import CallerContext, RequestTrace, begin_trace, build_traceparent, read_caller

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"


def read(**fields: str) -> CallerContext | None:
    headers = {name.replace("_", "-").encode(): value.encode("latin-1") for name, value in fields.items()}
    return read_caller(headers.get)


def test_each_request_has_ids_of_its_own() -> None:
    """A request keeps its ids; another one has others, and none are the caller's."""
    headers = [(b"traceparent", f"00-{TRACE}-{SPAN}-01".encode())]
    first, second = (RequestHead(b"GET", b"/", headers).trace for _ in range(2))
    assert re.fullmatch("[0-9a-f]{32}", first.trace_id)
    assert re.fullmatch("[0-9a-f]{16}", first.span_id)
    assert len({first.trace_id, second.trace_id, TRACE, first.span_id, second.span_id, SPAN}) == 6
    assert first.caller == CallerContext(TRACE, SPAN, is_sampled=True)
    head = RequestHead(b"GET", b"/", headers)
    assert head.trace is head.trace


def test_the_client_is_told_the_ids() -> None:
    """The request's id is the trace's."""
    assert RequestTrace(TRACE, SPAN).build_fields() == [
        (b"x-cgw-request-id", TRACE.encode()),
        (b"x-trace", TRACE.encode()),
        (b"x-trace-span", SPAN.encode()),
    ]


@pytest.mark.parametrize(
    ("value", "is_sampled"),
    [(f"00-{TRACE}-{SPAN}-01", True), (f"00-{TRACE}-{SPAN}-02", False), (f"cc-{TRACE}-{SPAN}-01-what-will-be", True)],
)
def test_traceparent(value: str, is_sampled: bool) -> None:
    """The examples of the specification, and a version to come."""
    assert read(traceparent=value) == CallerContext(TRACE, SPAN, is_sampled)


@pytest.mark.parametrize(
    "value",
    [
        "",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-01\n",
    ],
)
def test_traceparent_that_is_not_valid_is_ignored(value: str) -> None:
    """Then Cloud Trace's field counts, as without one."""
    assert read(traceparent=value) is None
    assert read(traceparent=value, x_cloud_trace_context=f"{TRACE}/1;o=1") == CallerContext(
        TRACE, f"{1:016x}", is_sampled=True
    )


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (f"{TRACE.upper()}/74;o=1", CallerContext(TRACE, f"{74:016x}", is_sampled=True)),
        (f"{TRACE}/74", CallerContext(TRACE, f"{74:016x}", is_sampled=False)),
        (f"{TRACE}/{2**64 - 1};o=0", CallerContext(TRACE, "f" * 16, is_sampled=False)),
        (f"{TRACE}/{2**64};o=1", None),
        (f"{TRACE}/0;o=1", None),
        (f"{TRACE};o=1", None),
        (f"{'0' * 32}/1", None),
    ],
)
def test_cloud_trace_context(value: str, expected: CallerContext | None) -> None:
    """Google's older form: the span in decimal digits."""
    assert read(x_cloud_trace_context=value) == expected


@given(st.binary(max_size=100), st.binary(max_size=100))
def test_any_bytes_are_read(parent: bytes, cloud: bytes) -> None:
    """Whatever a caller sends, the request has ids."""
    trace = begin_trace({b"traceparent": parent, b"x-cloud-trace-context": cloud})
    assert len(trace.trace_id) + len(trace.span_id) == 48


@pytest.mark.parametrize(
    ("fields", "is_wanted"),
    [
        ({}, False),
        ({"traceparent": f"00-{TRACE}-{SPAN}-01"}, True),
        ({"traceparent": f"00-{TRACE}-{SPAN}-00"}, False),
        ({"x-cloud-trace-context": f"{TRACE}/1;o=1"}, True),
        ({"x-sourcegraph-should-trace": "true"}, True),
        ({"x-sourcegraph-should-trace": "1", "traceparent": f"00-{TRACE}-{SPAN}-00"}, True),
        ({"x-sourcegraph-should-trace": "false", "traceparent": f"00-{TRACE}-{SPAN}-01"}, False),
        ({"x-sourcegraph-should-trace": "perhaps"}, False),
    ],
)
def test_a_caller_can_ask_to_be_traced(fields: dict[str, str], is_wanted: bool) -> None:
    """By the reference's field, which counts most, or by sampling its own trace."""
    headers = {name.encode(): value.encode() for name, value in fields.items()}
    assert begin_trace(headers).is_wanted is is_wanted


def test_what_is_sent_on_is_what_is_read() -> None:
    """The context that cgw builds is one that it would accept as a caller's."""
    trace = begin_trace()
    for is_sampled in (True, False):
        value = build_traceparent(trace, is_sampled=is_sampled).decode()
        assert read(traceparent=value) == CallerContext(trace.trace_id, trace.span_id, is_sampled)
