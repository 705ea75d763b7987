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
from cgw.providers.embeddings.vectors import (
    MIN_LIST_BYTES,
    HollowBody,
    Vectors,
    build_pieces,
    build_row_splitter,
    find_lists,
)
from cgw.providers.upstream_requests import Endpoint

numbers = st.floats(allow_nan=False, allow_infinity=False) | st.integers()


@given(st.lists(st.lists(numbers, min_size=3, max_size=3), min_size=1), st.sampled_from([",", ", ", " ,\n "]))
def test_rows_are_the_flat_list(rows: list[list[float]], comma: str) -> None:
    """Every row of a flat list comes out with its numbers, however they are written and separated."""
    flat = f"[ {comma.join(json.dumps(number) for row in rows for number in row)} ]"
    split = list(build_row_splitter(3)(flat.encode(), (0, len(flat))))
    assert [json.loads(row) for row in split] == rows


@given(st.lists(numbers).filter(lambda values: len(values) % 3 or not values))
def test_lists_that_are_not_whole_rows_are_refused(values: list[float]) -> None:
    """§8.5: a list that cannot be divided by the length of a vector is an error, not a crash."""
    with pytest.raises(UpstreamProtocolError):
        list(build_row_splitter(3)(json.dumps(values).encode(), (0, len(json.dumps(values)))))


@pytest.mark.parametrize(
    "flat", ["[]", "[ ]", "[{}]", '["1,2,3"]', "[[1,2,3]]", "[1,null,3]", '[1,"2",3]', "[1,2,true]"]
)
def test_what_is_no_list_of_numbers_is_refused(flat: str) -> None:
    """Anything but numbers in a flat list is an error."""
    with pytest.raises(UpstreamProtocolError):
        list(build_row_splitter(3)(flat.encode(), (0, len(flat))))


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
            answer: RawAnswer = embedder.read_answer(HollowBody(body, list(find_lists(body))))
            rows = list(answer.rows)
        except UpstreamProtocolError:
            continue
        assert all(row.startswith(b"[") or row == b"null" for row in rows)


texts = st.text(alphabet='ab"{}', max_size=100)
json_values = st.recursive(st.none() | numbers | texts, lambda inner: st.lists(inner) | st.dictionaries(texts, inner))


@given(json_values, st.lists(st.lists(numbers, min_size=30, max_size=40), max_size=4))
def test_skeleton_and_lists_are_the_text(other: object, vectors: list[list[float]]) -> None:
    """Whatever stands beside them, long lists are found, and all else is decoded as it was."""
    body = json.dumps({"other": other, "data": [{"embedding": vector} for vector in vectors]}).encode()
    hollow = HollowBody(body, list(find_lists(body)))
    skeleton = json.loads(hollow.skeleton)
    assert len(skeleton["data"]) == len(vectors)
    for item, vector in zip(skeleton["data"], vectors, strict=True):
        marker = item["embedding"]
        if marker == vector:
            assert len(json.dumps(vector)) < MIN_LIST_BYTES  # short numbers
            continue
        start, end = hollow.find(marker)
        assert json.loads(body[start:end]) == vector


def test_brackets_in_strings_are_an_error_at_worst() -> None:
    """A list that begins in one string and ends in another leaves a skeleton that is no JSON, never other numbers."""
    body = json.dumps({"outputs": [{"data": [1] * 768}], "a": "[" + "x" * 99, "b": "]"}).encode()
    hollow = HollowBody(body, list(find_lists(body)))
    with pytest.raises(UpstreamProtocolError):
        KServeEmbedder(build_kserve_endpoint("http://a.example/infer", "token")).read_answer(hollow)


def test_many_brackets_take_no_time() -> None:
    """A text of brackets is looked through up to a bound; what is left of it is for the decoder to refuse."""
    body = b"[]" * 50_000 + b"[" + b"1," * 99 + b"1]"
    assert list(find_lists(body)) == []
    assert HollowBody(body, []).skeleton == body


@pytest.mark.parametrize("marker", [[], ["a"], ["1"], ["-1"], ["0", "0"], ["9" * 99], ["²"]])
def test_markers_of_an_upstream_are_refused(marker: list[str]) -> None:
    """What an upstream sends in the place of numbers is never taken for a place in the text."""
    with pytest.raises(UpstreamProtocolError):
        HollowBody(b"[]", [(0, 2)]).find(marker)


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
