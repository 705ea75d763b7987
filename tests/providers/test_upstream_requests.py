"""Upstream requests: the endpoint's prepared head, and the fields and the query of a client."""

from __future__ import annotations

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from cgw.errors import Headers
from cgw.providers.upstream_requests import Endpoint
from cgw.wire.messages import encode_head

ENDPOINT = Endpoint.parse("https://api.test/base", "/v1/messages", ((b"x-api-key", b"KEY"),))
TOKENS = st.sampled_from([b"", b"a", b"a=b&c=d", b"\xff"])


@given(st.booleans(), TOKENS, st.lists(st.tuples(st.just(b"anthropic-beta"), TOKENS), max_size=2), st.binary())
def test_the_prepared_head_is_that_of_the_fields(is_stream: bool, query: bytes, headers: Headers, body: bytes) -> None:
    """A head that was encoded in advance is the one that would be encoded from the request's fields."""
    request = ENDPOINT.build_request(body, is_stream=is_stream, query=query, headers=headers)
    assert encode_head(request) == encode_head(evolve(request, head_start=None))


@pytest.mark.parametrize(("query", "headers"), [(b"a\nb", []), (b"", [(b"anthropic-beta", b"a\r\nb: c")])])
def test_a_client_cannot_split_the_request(query: bytes, headers: Headers) -> None:
    """A line feed in the query or in a field is refused."""
    with pytest.raises(ValueError, match="contains a line feed"):
        ENDPOINT.build_request(b"", is_stream=False, query=query, headers=headers)


def test_the_key_does_not_show() -> None:
    """Neither an endpoint's nor a request's ``repr`` contains the key."""
    assert "KEY" not in repr(ENDPOINT)
    assert "KEY" not in repr(ENDPOINT.build_request(b"", is_stream=False, query=b"a"))
