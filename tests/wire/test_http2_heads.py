"""HTTP/2 header fields as request heads: as strict as HTTP/1.1, and every other input is refused."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cgw.errors import Refusal
from cgw.wire.http2_heads import (
    MalformedFields,
    check_trailers,
    parse_request_fields,
    read_content_length,
    select_response_fields,
)
from cgw.wire.server_codec import parse_request

PSEUDO = [(b":method", b"POST"), (b":scheme", b"https"), (b":authority", b"x:8"), (b":path", b"/a?b")]
TOKENS = st.text("abcXY!#-_", min_size=1, max_size=5).map(str.encode)
NAMES = st.one_of(
    st.text("abc-_!", min_size=1, max_size=5).map(str.encode),
    st.sampled_from([b"content-length", b"cookie", b"te", b"host", b"connection", b"expect", b"A", b"a:b", b"", b":a"]),
)
VALUES = st.one_of(st.sampled_from([b"", b"5", b"x:8", b"trailers", b"a b", b"a\xff"]), st.binary(max_size=6))
PATHS = st.one_of(st.just(b"/"), st.binary(max_size=8).map(lambda tail: b"/" + tail), st.binary(max_size=4))
REQUESTS = st.builds(
    lambda method, path, fields: [(b":method", method), *PSEUDO[1:3], (b":path", path), *fields],
    st.one_of(st.sampled_from([b"GET", b"POST", b"get", b"CONNECT"]), TOKENS, st.binary(max_size=3)),
    PATHS,
    st.lists(st.tuples(NAMES, VALUES), max_size=4),
)


@given(REQUESTS)
@example([*PSEUDO, (b"a", b"b\r\nc: d")])
@example([PSEUDO[0], PSEUDO[1], PSEUDO[2], (b":path", b"/a HTTP/1.1\r\nx: y")])
def test_accepted_heads_are_the_same_in_http1(fields: list[tuple[bytes, bytes]]) -> None:
    """A head that is accepted, written as HTTP/1.1, is read as just that head: nothing can be smuggled upstream."""
    try:
        head = parse_request_fields(fields, 65536)
    except (MalformedFields, Refusal):
        return
    lines = [head.method + b" " + head.target + b" HTTP/1.1", *(name + b": " + value for name, value in head.headers)]
    again, _ = parse_request(b"\r\n".join([*lines, b"", b""]))
    assert (again.method, again.target) == (head.method, head.target)
    assert list(again.headers) == list(head.headers)


@given(st.lists(st.tuples(st.binary(max_size=12), st.binary(max_size=12)), max_size=8))
def test_no_fields_raise_anything_else(fields: list[tuple[bytes, bytes]]) -> None:
    """Any fields lead to a head, a refusal or MalformedFields, never to another exception."""
    for parse in (lambda: parse_request_fields(fields, 100), lambda: check_trailers(fields)):
        with contextlib.suppress(MalformedFields, Refusal):
            parse()


def test_content_length_is_read() -> None:
    """The length that a head announces, as a number."""
    assert read_content_length(parse_request_fields([*PSEUDO, (b"content-length", b"007")], 65536)) == 7
    assert read_content_length(parse_request_fields(PSEUDO, 65536)) is None


def test_host_stands_in_for_the_authority() -> None:
    """A client that translates from HTTP/1.1 may send ``host`` instead (RFC 9113 §8.3.1), or both alike."""
    for fields in ([*PSEUDO[:2], PSEUDO[3], (b"host", b"x:8")], [*PSEUDO, (b"host", b"x:8")]):
        assert parse_request_fields(fields, 65536).headers == ((b"host", b"x:8"),)


@given(st.lists(st.tuples(st.binary(max_size=5), st.binary(max_size=5)), max_size=4))
def test_fields_of_answers_are_valid_or_refused(headers: list[tuple[bytes, bytes]]) -> None:
    """Sent fields never contain line ends or NUL, nor upper case in names."""
    try:
        fields = select_response_fields(200, headers)
    except ValueError:
        return
    for name, value in fields[1:]:
        assert name == name.lower()
        assert not set(name + value) & set(b"\r\n\0")


def test_fields_of_one_connection_are_not_sent() -> None:
    """RFC 9113 §8.2.2: a client takes a response with them for malformed."""
    headers = [(b"Connection", b"close"), (b"keep-alive", b"5"), (b"upgrade", b"h2c"), (b"Content-Type", b"a")]
    assert select_response_fields(200, headers) == [(b":status", b"200"), (b"content-type", b"a")]


@pytest.mark.parametrize("authority", [b"x", b"x:80", b"[::1]:80", b"a-b.c_d~e"])
def test_authorities_of_all_kinds_are_taken(authority: bytes) -> None:
    """Names, ports and IPv6 addresses."""
    fields = [*PSEUDO[:2], (b":authority", authority), PSEUDO[3]]
    assert parse_request_fields(fields, 65536).headers[0] == (b"host", authority)
