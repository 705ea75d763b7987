"""Vectors are passed on as they came: splitting a flat list never changes, loses or invents a number."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgw.errors import UpstreamProtocolError
from cgw.providers.embeddings.embedder import RawAnswer
from cgw.providers.embeddings.kserve import KServeEmbedder, build_kserve_endpoint
from cgw.providers.embeddings.openai import OpenAIEmbedder
from cgw.providers.embeddings.vectors import Vectors, build_pieces, build_row_splitter
from cgw.providers.upstream_requests import Endpoint

numbers = st.floats(allow_nan=False, allow_infinity=False) | st.integers()


@given(st.lists(st.lists(numbers, min_size=3, max_size=3), min_size=1), st.sampled_from([",", ", ", " ,\n "]))
def test_rows_are_the_flat_list(rows: list[list[float]], comma: str) -> None:
    """Every row of a flat list comes out with its numbers, however they are written and separated."""
    flat = f"[ {comma.join(json.dumps(number) for row in rows for number in row)} ]"
    split = list(build_row_splitter(3)(flat.encode()))
    assert [json.loads(row) for row in split] == rows


@given(st.lists(numbers).filter(lambda values: len(values) % 3 or not values))
def test_lists_that_are_not_whole_rows_are_refused(values: list[float]) -> None:
    """§8.5: a list that cannot be divided by the length of a vector is an error, not a crash."""
    with pytest.raises(UpstreamProtocolError):
        list(build_row_splitter(3)(json.dumps(values).encode()))


@pytest.mark.parametrize("flat", ["", "null", "{}", '"1,2,3"', "[[1,2,3]]", "[1,null,3]", '[1,"2",3]', "[1,2,true]"])
def test_what_is_no_list_of_numbers_is_refused(flat: str) -> None:
    """Anything but numbers in a flat list is an error."""
    with pytest.raises(UpstreamProtocolError):
        list(build_row_splitter(3)(flat.encode()))


@given(
    st.binary()
    | st.text().map(str.encode)
    | st.recursive(st.none() | numbers | st.text(), st.lists).map(
        lambda value: json.dumps({"outputs": value, "data": value, "model": "m"}).encode()
    )
)
def test_answers_of_any_shape_are_read_or_refused(body: bytes) -> None:
    """No body of an upstream makes a reader raise anything but its own error."""
    endpoint = build_kserve_endpoint("http://a.example/infer", "token")
    for embedder in (KServeEmbedder(endpoint), OpenAIEmbedder(endpoint)):
        try:
            answer: RawAnswer = embedder.read_answer(body)
            rows = list(answer.rows)
        except UpstreamProtocolError:
            continue
        assert all(row.startswith(b"[") or row == b"null" for row in rows)


def test_pieces_are_the_response() -> None:
    """The pieces together are the response's JSON, with the numbers' own digits."""
    body = b"".join(build_pieces(Vectors([b"[1.50]", b"null"], 'm"x', 7), 1))
    assert body.startswith(b'{"embeddings":[{"index":0,"data":[1.50]},')
    assert json.loads(body) == {
        "embeddings": [{"index": 0, "data": [1.5]}, {"index": 1, "data": None}],
        "model": 'm"x',
        "dimensions": 1,
    }


def test_the_endpoint_is_the_whole_url() -> None:
    """The setting has the path of the model; nothing is added to it."""
    endpoint: Endpoint = build_kserve_endpoint("https://a.example/v2/models/m/infer", "token")
    assert endpoint.target == b"/v2/models/m/infer"
    assert "token" not in repr(endpoint)
