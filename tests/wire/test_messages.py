"""Heads of requests and responses: look-ups of fields, and the path."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgw.wire.messages import RequestHead, ResponseHead, find_header

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
