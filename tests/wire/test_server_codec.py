"""The fast codec of a server writes responses that h11 reads as they were meant."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgw.errors import Headers
from cgw.wire.messages import RequestHead
from cgw.wire.server_codec import BodyMismatch, FastCodec

NAMES = st.sampled_from([b"x-a", b"content-type", b"x-content-length", b"date"])
VALUES = st.sampled_from([b"", b"1", b"text/plain", b"content-length: 7", b"a\tb", b"\xe9"])
FIELDS = st.lists(st.tuples(NAMES, VALUES), max_size=6)
LENGTHS = st.none() | st.integers(0, 3) | st.just(10**17)


def open_codec(method: bytes = b"POST", *fields: tuple[bytes, bytes]) -> FastCodec:
    """Return the codec for a request with ``fields``."""
    return FastCodec(RequestHead(method, b"/", ((b"host", b"x"), *fields)))


def read_head(data: bytes, method: str) -> h11.Response:
    """Return the response's head as h11's client reads it."""
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method=method, target="/", headers=[("host", "x")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(data)
    event = connection.next_event()
    assert isinstance(event, h11.Response)
    return event


@given(st.sampled_from([200, 204, 304, 404, 503, 529, 599]), FIELDS, FIELDS, LENGTHS, st.booleans(), st.booleans())
def test_heads_are_read_as_they_were_meant(
    status: int, before: Headers, after: Headers, length: int | None, is_last: bool, is_head: bool
) -> None:
    """h11 reads status and fields of each head, with the framing and the ``Connection`` that belong to it."""
    own = [] if length is None else [(b"content-length", b"%d" % length)]
    headers = [*before, *own, *after]
    method = "HEAD" if is_head else "GET"
    codec = open_codec(method.encode())
    response = read_head(codec.begin(status, headers, is_last=is_last), method)
    expected = list(headers)
    if length is None and status not in (204, 304):
        expected.append((b"transfer-encoding", b"chunked"))
    if is_last:
        expected.append((b"connection", b"close"))
    assert (response.status_code, list(response.headers)) == (status, expected)
    has_body = not is_head and status not in (204, 304) and length != 0
    if has_body and length is not None:
        with pytest.raises(BodyMismatch):
            codec.end()
        assert not codec.is_reusable
        return
    assert codec.end() == (b"0\r\n\r\n" if has_body else b"")
    assert codec.is_reusable is not is_last


@pytest.mark.parametrize("field", [(b"x", b"a\nb"), (b"x", b"a\r\ncontent-length: 0"), (b"x\n", b"a")])
def test_a_line_feed_in_a_field_is_refused(field: tuple[bytes, bytes]) -> None:
    """A field cannot add another one, whatever it contains (response splitting)."""
    with pytest.raises(ValueError, match="line feed"):
        open_codec().begin(200, [field], is_last=False)


def test_a_body_is_read_in_pieces_and_what_follows_is_kept() -> None:
    """The body ends at its length; bytes beyond belong to the next request."""
    codec = open_codec(b"POST", (b"content-length", b"5"))
    assert (codec.body_bytes, codec.is_request_complete) == (5, False)
    codec.feed(b"ab")
    codec.feed(b"cdeGET")
    assert (codec.is_request_complete, codec.unread, codec.take_body()) == (True, b"GET", b"abcde")


@pytest.mark.parametrize(("value", "is_kept"), [(b"keep-alive", True), (b"close", False), (b"x, Close", False)])
def test_the_client_can_ask_for_the_connection_to_be_closed(value: bytes, is_kept: bool) -> None:
    """``Connection: close`` of a request, also as one of several tokens, is answered with the same."""
    codec = open_codec(b"GET", (b"connection", value))
    head = codec.begin(200, [(b"content-length", b"0")], is_last=False)
    codec.end()
    assert (b"connection: close" not in head, codec.is_reusable) == (is_kept, is_kept)


def test_a_response_before_the_end_of_its_request_closes_the_connection() -> None:
    """The rest of the request's body would be taken for another request."""
    codec = open_codec(b"POST", (b"content-length", b"5"))
    assert b"connection: close" in codec.begin(413, [(b"content-length", b"0")], is_last=False)
    codec.end()
    codec.feed(b"abcde")
    assert not codec.is_reusable
