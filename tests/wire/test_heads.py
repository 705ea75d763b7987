"""Request heads: well-formed ones are parsed, ambiguous ones are refused."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgw.errors import Refusal
from cgw.wire.heads import find_head_end, parse_request_head, select_response_headers

GOOD = b"POST /v1/completions/openai HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n"


def parse(data: bytes):  # type: ignore[no-untyped-def]
    return parse_request_head(data, h11.Connection(h11.SERVER))


def test_good_head_is_parsed() -> None:
    """A well-formed head yields its method, target and lower-case fields."""
    head = parse(GOOD)
    assert (head.method, head.path, head.header(b"content-length")) == (b"POST", b"/v1/completions/openai", b"2")


def test_absolute_form_target_loses_its_authority() -> None:
    """RFC 9112 §3.2.2: a target in absolute form names the same route."""
    head = parse(b"POST http://h:1/v1/limits?a=b HTTP/1.1\r\nHost: h:1\r\n\r\n")
    assert head.path == b"/v1/limits"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"POST / HTTP/1.1\nHost: x\n\n", id="bare LF"),
        pytest.param(b"POST / HTTP/1.1\r\nHost: x\r\nA: b\rc\r\n\r\n", id="bare CR"),
        pytest.param(b"POST / HTTP/1.1\r\nHost: x\r\nA: b\x00c\r\n\r\n", id="NUL"),
        pytest.param(b"POST / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n", id="obs-fold"),
        pytest.param(b"POST / HTTP/1.1\r\nHost : x\r\n\r\n", id="space before colon"),
        pytest.param(b"POST / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", id="two hosts"),
        pytest.param(b"POST / HTTP/1.1\r\n\r\n", id="no host"),
        pytest.param(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +5\r\n\r\n", id="signed length"),
        pytest.param(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", id="two lengths"),
        pytest.param(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n", id="unknown coding"),
        pytest.param(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", id="two codings"),
        pytest.param(
            b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n", id="TE and CL"
        ),
        pytest.param(b"POST / HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", id="TE in HTTP/1.0"),
        pytest.param(b"POST / HTTP/2.0\r\nHost: x\r\n\r\n", id="version 2 in text"),
        pytest.param(b"POST /a b HTTP/1.1\r\nHost: x\r\n\r\n", id="space in target"),
        pytest.param(b"POST /\r\nHost: x\r\n\r\n", id="HTTP/0.9"),
        pytest.param(b"\x16\x03\x01\x02\r\n\r\n", id="TLS hello"),
    ],
)
def test_malformed_head_gets_400_and_close(data: bytes) -> None:
    """Heads that two parsers could read differently are refused, and their connection has to close."""
    with pytest.raises(Refusal) as caught:
        parse(data)
    assert (caught.value.status, caught.value.must_close) == (400, True)


def test_too_many_fields_get_431() -> None:
    """More than a hundred header fields are refused."""
    fields = b"".join(b"a%d: b\r\n" % index for index in range(101))
    with pytest.raises(Refusal) as caught:
        parse(b"POST / HTTP/1.1\r\nHost: x\r\n" + fields + b"\r\n")
    assert caught.value.status == 431


def test_too_long_target_gets_414() -> None:
    """A request target of more than 8 KiB is refused."""
    with pytest.raises(Refusal) as caught:
        parse(b"POST /" + b"a" * 8192 + b" HTTP/1.1\r\nHost: x\r\n\r\n")
    assert caught.value.status == 414


@given(st.binary(max_size=300))
def test_no_head_raises_anything_but_a_refusal(data: bytes) -> None:
    """Arbitrary bytes are parsed or refused with 4xx; no other exception is raised."""
    statuses = [200]
    try:
        parse(data + b"\r\n\r\n")
    except Refusal as refusal:
        statuses.append(refusal.status)
    assert statuses[-1] in (200, 400, 414, 431)


@given(st.binary(max_size=60))
def test_head_end_is_found_at_the_first_blank_line(tail: bytes) -> None:
    """Data behind the blank line does not change the end of the head."""
    assert find_head_end(GOOD + tail) == len(GOOD)
    assert find_head_end(GOOD[:-1]) == -1


def test_response_fields_of_one_hop_stay_behind() -> None:
    """Hop-by-hop fields, those that Connection names, cookies and alt-svc are left out; the rest stays in order."""
    headers = [
        (b"a", b"1"),
        (b"connection", b"close, X-Secret"),
        (b"x-secret", b"2"),
        (b"set-cookie", b"3"),
        (b"alt-svc", b"4"),
        (b"transfer-encoding", b"chunked"),
        (b"b", b"5"),
        (b"a", b"6"),
    ]
    assert select_response_headers(headers) == [(b"a", b"1"), (b"b", b"5"), (b"a", b"6")]
    assert select_response_headers(headers, [b"a"]) == [(b"b", b"5")]
