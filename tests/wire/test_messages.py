"""Heads of requests and responses: look-ups of fields, and the path."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgw.wire.messages import Origin, RequestHead, ResponseHead, UpstreamRequest, encode_head, find_header

NAMES = st.sampled_from([b"a", b"b", b"c"])


@given(st.lists(st.tuples(NAMES, st.binary(max_size=2))), NAMES)
def test_a_look_up_finds_the_first_field_of_the_name(headers: list[tuple[bytes, bytes]], name: bytes) -> None:
    """The look-ups of heads and the search in a list of fields return the same."""
    expected = find_header(headers, name)
    assert RequestHead(b"GET", b"/", headers).header(name) == expected
    assert ResponseHead(200, tuple(headers)).header(name) == expected


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"/a/b?c=/d", b"/a/b"),
        (b"http://x/a?b", b"/a"),
        (b"http://x", b"/"),
        (b"*", b"*"),
        (b"/a?b=http://x/c", b"/a"),
        (b"/http://x/a", b"/http://x/a"),
    ],
)
def test_the_path_is_that_of_the_target(target: bytes, path: bytes) -> None:
    """Query and authority are not part of the path."""
    assert RequestHead(b"GET", target, ()).path == path


def test_the_head_of_an_upstream_request_is_encoded() -> None:
    """``host`` and ``content-length`` are added to the request's own fields."""
    request = UpstreamRequest(Origin("https", "x.test", 8443), b"/v1?a=b", ((b"accept", b"*/*"),), b"12345")
    assert (
        encode_head(request)
        == b"POST /v1?a=b HTTP/1.1\r\nhost: x.test:8443\r\naccept: */*\r\ncontent-length: 5\r\n\r\n"
    )


@pytest.mark.parametrize(
    ("target", "field"),
    [(b"/\nx", (b"a", b"b")), (b"/", (b"a", b"b\nc")), (b"/", (b"a\n", b"b")), (b"/", (b"a", b"\r\n"))],
)
def test_a_head_cannot_be_split(target: bytes, field: tuple[bytes, bytes]) -> None:
    """A line feed in the target or in a field is refused."""
    with pytest.raises(ValueError, match="contains a line feed"):
        encode_head(UpstreamRequest(Origin("http", "x", 80), target, (field,), b""))
