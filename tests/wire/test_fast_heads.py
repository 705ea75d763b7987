"""The fast parser reads heads as h11 does, or leaves them to it."""

from __future__ import annotations

from typing import Any

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cgw.wire import fast_heads
from cgw.wire.fast_heads import MAX_FIELDS, MAX_KNOWN_LINES, parse_fast_request, parse_fast_response
from cgw.wire.heads import parse_request_head
from cgw.wire.messages import find_header

REQUEST = b"POST /v1/completions/openai?x=y HTTP/1.1\r\nHost: x\r\nContent-Length: 12\r\nX-Empty:\r\nB:  c d \r\n\r\n"
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\nX: \xe9\r\n\r\n"

LINES = st.sampled_from(
    [
        b"Host: x",
        b"host:y",
        b"Content-Length: 5",
        b"content-length: 05",
        b"Content-Length: +5",
        b"Content-Length: 5, 5",
        b"Transfer-Encoding: chunked",
        b"Transfer-Encoding: Chunked",
        b"Transfer-Encoding: gzip",
        b"Connection: close",
        b"Connection: keep-alive, X",
        b"Expect: 100-continue",
        b"Upgrade: websocket",
        b"X: y",
        b"X: \x80\xff",
        b"X:",
        b"X: \t ",
        b" folded",
        b"X : y",
        b"X: a\x00b",
        b"X: a\nb",
        b"X: a\rb",
        b"\xe9: y",
        b": y",
        b"no colon",
    ]
)
STARTS = st.sampled_from(
    [
        b"POST / HTTP/1.1",
        b"GET /a?b HTTP/1.1",
        b"POST http://x/ HTTP/1.1",
        b"POST / HTTP/1.0",
        b"POST  / HTTP/1.1",
        b"post / HTTP/1.1",
        b"CONNECT x HTTP/1.1",
        b"POST /\xe9 HTTP/1.1",
        b"POST /",
        b"P\x00ST / HTTP/1.1",
    ]
)
STATUSES = st.sampled_from(
    [
        b"HTTP/1.1 200 OK",
        b"HTTP/1.1 529 ",
        b"HTTP/1.1 404",
        b"HTTP/1.0 200 OK",
        b"HTTP/1.1 100 Continue",
        b"HTTP/1.1 20 OK",
        b"HTTP/1.1 200OK",
        b"HTTP/2 200",
        b"HTTP/1.1 204 No Content",
        b"HTTP/1.1 200 a\x00b",
    ]
)


KNOWN: list[dict[bytes, Any]] = [
    fast_heads._known_lines,
    fast_heads._known_request_lines,
    fast_heads._known_status_lines,
]


def mutate(data: bytes, position: int, octet: int) -> bytes:
    """Replace one byte of ``data``."""
    position %= len(data)
    return data[:position] + bytes([octet]) + data[position + 1 :]


def forget() -> None:
    """Forget all lines that were read."""
    for known in KNOWN:
        known.clear()


def check_request(data: bytes) -> None:
    """If the fast parser reads ``data``, h11 and its checks read it the same way; also once it knows the lines."""
    forget()
    head = parse_fast_request(data)
    again = parse_fast_request(data)
    assert head == again
    if head is not None and again is not None:
        assert head == parse_request_head(data, h11.Connection(h11.SERVER))
        # What equality of heads leaves out.
        assert again.path == head.path
        assert all(again.header(name) == find_header(head.headers, name) for name, _ in head.headers)
        assert again.trace != head.trace


def check_response(data: bytes) -> None:
    """If the fast parser reads ``data``, h11 reads it the same way; also once it knows the lines."""
    forget()
    head = parse_fast_response(data)
    assert parse_fast_response(data) == head
    if head is None:
        return
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="POST", target="/", headers=[("host", "x"), ("content-length", "0")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(data)
    event = connection.next_event()
    assert isinstance(event, h11.Response)
    # h11 also writes the coding's name in lower case.
    headers = [(name, value.lower() if name == b"transfer-encoding" else value) for name, value in head.headers]
    assert (event.status_code, list(event.headers)) == (head.status, headers)


@settings(max_examples=400)
@given(STARTS, st.lists(LINES, max_size=6))
def test_requests_are_read_as_h11_reads_them(start: bytes, lines: list[bytes]) -> None:
    """Every request head that the fast parser accepts is accepted by h11 and its checks with the same result."""
    check_request(b"\r\n".join([start, b"Host: z", *lines, b"", b""]))
    check_request(b"\r\n".join([start, *lines, b"", b""]))


@settings(max_examples=400)
@given(STATUSES, st.lists(LINES, max_size=6))
def test_responses_are_read_as_h11_reads_them(status: bytes, lines: list[bytes]) -> None:
    """Every response head that the fast parser accepts is accepted by h11 with the same result."""
    check_response(b"\r\n".join([status, b"Content-Length: 3", *lines, b"", b""]))
    check_response(b"\r\n".join([status, *lines, b"", b""]))


@settings(max_examples=400)
@given(st.integers(0, 200), st.integers(0, 255))
def test_any_changed_byte_is_read_as_h11_reads_it(position: int, octet: int) -> None:
    """One wrong byte anywhere in a good head never makes the two parsers disagree."""
    check_request(mutate(REQUEST, position, octet))
    check_response(mutate(RESPONSE, position, octet))


def test_usual_heads_are_parsed() -> None:
    """Heads as SDKs and providers send them are read by the fast parser."""
    head = parse_fast_request(REQUEST)
    assert head is not None
    assert (head.path, head.header(b"x-empty"), head.header(b"b")) == (b"/v1/completions/openai", b"", b"c d")
    assert parse_fast_response(RESPONSE) is not None


@pytest.mark.parametrize("tail", [b" " * 60_000 + b"\x7f", b"a " * 30_000 + b"\x7f", b"a" * 60_000 + b"\x7f"])
def test_hostile_heads_are_rejected_at_once(tail: bytes) -> None:
    """Heads that are made to cause backtracking are rejected in one pass."""
    data = b"POST / HTTP/1.1\r\nHost: x\r\nA: " + tail + b"\r\n\r\n"
    assert parse_fast_request(data) is None


def test_lines_are_remembered_except_for_secrets_and_long_ones() -> None:
    """A known line is read as it was the first time; tokens, keys, cookies and long lines are not kept."""
    kept = b"X-Kept: once  "
    lines = [b"Host: x", kept, b"Authorization: Bearer 1", b"x-api-key: 2", b"Cookie: 3", b"X-Long: " + b"4" * 200]
    data = b"\r\n".join([b"GET / HTTP/1.1", *lines, b"", b""])
    first, second = parse_fast_request(data), parse_fast_request(data)
    assert first is not None
    assert second is not None
    assert first == second
    assert (second.header(b"x-kept"), second.header(b"authorization")) == (b"once", b"Bearer 1")
    assert set(lines) & set(fast_heads._known_lines) == {b"Host: x", kept}


def test_a_known_line_does_not_depend_on_the_head_it_was_read_in() -> None:
    """Lines that are known from good heads are refused where a head with them is malformed or ambiguous."""
    forget()
    check = [b"Host: x", b"Content-Length: 5", b"Transfer-Encoding: chunked", b"X: y"]
    for line in check[1:]:
        parse_fast_request(b"\r\n".join([b"POST / HTTP/1.1", b"Host: x", line, b"", b""]))
        parse_fast_response(b"\r\n".join([b"HTTP/1.1 200 OK", line, b"", b""]))
    assert set(check) <= fast_heads._known_lines.keys()
    for lines in ([b"Host: x", b"Host: x"], [b"X: y"], check, [b"Host: x", check[1], check[1]], [b"Host: x", check[2]]):
        assert parse_fast_request(b"\r\n".join([b"POST / HTTP/1.1", *lines, b"", b""])) is None
    for lines in ([b"X: y"], check, [check[1], check[1]], [check[2], check[2]]):
        assert parse_fast_response(b"\r\n".join([b"HTTP/1.1 200 OK", *lines, b"", b""])) is None
    # What ends a head is not a line of it, and belongs to no line.
    for tail in (b"", b"\r\n", b"\r\n\n", b"\r\n\r\n\r\n", b"\n\r\n"):
        assert parse_fast_request(b"POST / HTTP/1.1\r\nHost: x" + tail) is None


def test_targets_with_a_query_are_not_remembered() -> None:
    """A query may hold a key: only request lines without one are kept."""
    forget()
    for target in (b"/v1?key=secret", b"/v1"):
        assert parse_fast_request(b"GET " + target + b" HTTP/1.1\r\nHost: x\r\n\r\n") is not None
    assert list(fast_heads._known_request_lines) == [b"GET /v1 HTTP/1.1"]


def test_the_number_of_remembered_lines_is_bounded() -> None:
    """Lines that are all different do not fill the memory, and are read correctly."""
    for number in range(2 * MAX_KNOWN_LINES):
        head = parse_fast_request(b"GET /%d HTTP/1.1\r\nhost: x\r\nx-id: %d\r\n\r\n" % (number, number))
        assert head is not None
        assert (head.path, head.header(b"x-id")) == (b"/%d" % number, b"%d" % number)
        assert parse_fast_response(b"HTTP/1.1 200 %d\r\ncontent-length: 0\r\n\r\n" % number) is not None
        assert max(map(len, KNOWN)) <= MAX_KNOWN_LINES


def test_the_number_of_fields_is_bounded() -> None:
    """A head with more fields than the limit is left to h11."""
    fields = b"a: b\r\n" * (MAX_FIELDS - 1)
    assert parse_fast_request(b"GET / HTTP/1.1\r\nhost: x\r\n" + fields + b"\r\n") is not None
    assert parse_fast_request(b"GET / HTTP/1.1\r\nhost: x\r\n" + fields + b"a: b\r\n\r\n") is None
