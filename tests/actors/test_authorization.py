"""Reading tokens from headers, and checking the access of actors."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgw.actors.authorization import check_access, extract_token
from cgw.errors import Headers, Refusal
from cgw.model import Actor
from cgw.wire.messages import index_headers


@pytest.mark.parametrize(
    ("headers", "token"),
    [
        ([], ""),
        ([(b"authorization", b"Bearer abc")], "abc"),
        ([(b"authorization", b"bEARER   abc ")], "abc"),
        ([(b"x-api-key", b" abc ")], "abc"),
        ([(b"authorization", b""), (b"x-api-key", b"abc")], "abc"),
        ([(b"x-api-key", b""), (b"authorization", b"Bearer abc")], "abc"),
        ([(b"x-api-key", b"other"), (b"authorization", b"Bearer abc")], "abc"),
        ([(b"x-api-key", b"")], ""),
        ([(b"x-goog-api-key", b" abc")], "abc"),
        ([(b"x-goog-api-key", b"other"), (b"x-api-key", b"abc")], "abc"),
    ],
)
def test_a_token_is_found_in_either_header(headers: Headers, token: str) -> None:
    """Authorization wins over x-api-key; an empty header counts as absent."""
    assert extract_token(index_headers(headers).get) == token


SPACES = st.text(" \t", max_size=3).map(str.encode)


@given(st.binary(min_size=1).map(bytes.strip).filter(bool), SPACES, SPACES, SPACES)
def test_the_usual_spelling_is_read_as_any_other(token: bytes, before: bytes, between: bytes, after: bytes) -> None:
    """``Bearer`` is looked for first, as nearly all clients write it; the token is that of the general way."""
    usual, other = (before + name + b" " + between + token + after for name in (b"Bearer", b"bEARER"))
    read = extract_token({b"authorization": usual}.get)
    assert read == extract_token({b"authorization": other}.get) == token.decode("utf-8", "surrogateescape")


@pytest.mark.parametrize(
    ("query", "token"),
    [
        (b"key=abc", "abc"),
        (b"alt=sse&key=a%2Dc&key=other", "a-c"),
        (b"key=&monkey=x&key=abc", "abc"),
        (b"key", ""),
        (b"", ""),
    ],
)
def test_a_token_is_found_in_the_query_where_that_is_given(query: bytes, token: str) -> None:
    """The query counts after all fields."""
    assert extract_token(index_headers([]).get, query) == token
    assert extract_token({b"x-goog-api-key": b"own"}.get, query) == "own"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b"abc", "token type missing in Authorization header"),
        (b"Bearer", "token type missing in Authorization header"),
        (b"Basic dXNlcjpwYXNz", "invalid token type Basic"),
        (b"token abc", "invalid token type token"),
        (b"sgp_0123456789abcdef Bearer", "invalid token type ****"),
        (b"\xff\xfe abc", "invalid token type ****"),
    ],
)
def test_a_malformed_authorization_is_refused(value: bytes, text: str) -> None:
    """It is a 400 with the reference's text (§4), which never contains a possible token."""
    with pytest.raises(Refusal) as caught:
        extract_token({b"authorization": value, b"x-api-key": b"abc"}.get)
    assert (caught.value.status, caught.value.message) == (400, text)


@given(st.binary(max_size=60))
def test_any_authorization_gives_a_token_or_a_refusal(value: bytes) -> None:
    """No bytes in the header cause another error, or appear in the refusal's text."""
    try:
        token = extract_token({b"authorization": value}.get)
    except Refusal as refusal:
        assert refusal.status == 400
        credentials = value.strip().partition(b" ")[2].strip()
        assert len(credentials) < 8 or credentials not in refusal.message.encode()
    else:
        assert token.encode("utf-8", "surrogateescape") in value


def actor(*, access_enabled: bool = False, actor_id: str = "acme", **grants: bool) -> Actor:
    endpoint_access = {f"/v1/{path}": granted for path, granted in grants.items()}
    return Actor(id=actor_id, name="", source="static", access_enabled=access_enabled, endpoint_access=endpoint_access)


@pytest.mark.parametrize(
    ("subject", "path"),
    [
        (actor(access_enabled=True), "/v1/completions/openai"),
        (actor(access_enabled=True, attribution=False), "/v1/attribution"),
        (actor(attribution=True), "/v1/attribution"),
        (actor(attribution=True), b"//v1/attribution/more"),
        (actor(a=False, attribution=True), "/v1/attribution"),
    ],
)
def test_access_is_granted(subject: Actor, path: str | bytes) -> None:
    """An actor with access may use all paths; one without may use the paths that it is granted."""
    check_access(subject, path)


@pytest.mark.parametrize(
    ("subject", "path"),
    [
        (actor(), "/v1/completions/openai"),
        (actor(attribution=True), "/v1/completions/openai"),
        (actor(attribution=True, actor_id=""), "/v1/attribution"),
        (actor(a=True, attribution=False), "/v1/attribution"),
    ],
)
def test_access_is_refused(subject: Actor, path: str) -> None:
    """Without access it is a 403; the longest prefix decides, and an actor without id is granted nothing."""
    with pytest.raises(Refusal) as caught:
        check_access(subject, path)
    assert (caught.value.status, caught.value.message) == (403, "Cody Gateway access not enabled")
