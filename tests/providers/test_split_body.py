"""Large bodies that are split around their list: they are read and changed as those that are not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cgw.errors import Refusal
from cgw.providers import split_body as module
from cgw.providers.json_body import change_fields, decode_object, encode_with_messages
from cgw.providers.split_body import MAX_ENDS, split_body
from tests.wire.test_json_members import BLANKS, NAMES, VALUES

LISTS = st.sampled_from(
    [
        b"[]",
        b'[{"role":"user","content":"],\\"a\\":1}"}]',
        b'[{"content":"\\\\"} , [1],{"messages":[2]}]',
        b'["]}", "\\u00e9"]',
        b'[1] , "messages" : [2]',
        b'[1],"a":[2]',
        b'["\\ud83d"]',
        b"[1,]",
        b"{}",
        b'"x]"',
    ]
)
ODD_VALUES = [
    b'["]"]', b'[{"a":[]}]', b'"messages\\":["', b'{"messages":[1]}',
]  # fmt: skip
FIELDS = st.tuples(
    NAMES | st.sampled_from(["model", "user", "messages", "m\u0065ssages", "a"]), VALUES | st.sampled_from(ODD_VALUES)
)


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Draw a body with a list of messages among other fields; it need not be valid."""
    fields = [
        json.dumps(name).encode() + draw(BLANKS) + b":" + draw(BLANKS) + value
        for name, value in draw(st.lists(FIELDS, max_size=4))
    ]
    fields.insert(draw(st.integers(0, len(fields))), b'"messages"' + draw(BLANKS) + b":" + draw(BLANKS) + draw(LISTS))
    return draw(BLANKS) + b"{" + (draw(BLANKS) + b"," + draw(BLANKS)).join(fields) + draw(BLANKS) + b"}" + draw(BLANKS)


@settings(max_examples=1000)
@given(bodies(), st.dictionaries(st.sampled_from(["user", "model", "a"]), st.sampled_from(["v", None]), max_size=2))
@example(b'{"messages":[1],"messages":[2]}', {})
def test_a_split_body_is_what_it_was_split_from(body: bytes, changes: dict[str, Any]) -> None:
    """It has the same value, and changes to the same bytes; a field that is there twice is refused as well."""
    split = split_body(body, "messages")
    if split is None:
        return
    assert split.fill(split.skeleton) == body
    expected: object
    try:
        expected = change_fields(body, changes)
    except Refusal as refusal:
        expected = refusal.message
    found: object
    try:
        found = change_fields(split, changes)
    except Refusal as refusal:
        found = refusal.message
    assert found == expected
    if isinstance(expected, bytes):
        assert split.raw == decode_object(body)
        assert json.loads(encode_with_messages(split.raw, split)) == split.raw


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","messages":[{"content":"x"}]}',
        b'{ "messages" : [ {"content":"],\\"a\\":[]}"} ] , "tools" : [ [] ] , "stream":true }\r\n',
    ],
)
def test_usual_bodies_are_split(body: bytes) -> None:
    """The list is found among fields with lists of their own, and with what looks like its end inside a text."""
    split = split_body(body, "messages")
    assert split is not None
    assert json.loads(bytes(split.value)) == json.loads(body)["messages"]


@pytest.mark.parametrize(
    "where", ['{"metadata":{"messages":[1],"a":0},"messages":"%s"}', '{"messages":[1],"messages":"%s"}']
)
def test_another_list_cannot_pass_for_the_one_that_counts(where: str) -> None:
    """Whatever a client has learned of earlier placeholders, also spelled otherwise, it stands for no list."""
    usual = split_body(b'{"messages":[1]}', "messages")
    assert usual is not None
    mark = json.loads(usual.placeholder)
    for spelled in (mark, mark[:-1] + f"\\u{ord(mark[-1]):04x}"):
        assert split_body((where % spelled).encode(), "messages") is None


def test_few_ends_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes a pass over what is behind it, so their number is bounded; so are the bytes that are searched."""
    nested = b'{"messages":[' + b"[]," * MAX_ENDS + b'[{"a":[],"b":[]}' + b',{"a":[],"b":[]}' * MAX_ENDS + b"]]}"
    assert split_body(nested, "messages") is None
    body = b'{"messages":[1],"a":"%b"}'
    assert split_body(body % (b"x" * 50), "messages") is not None
    monkeypatch.setattr(module, "WINDOW_BYTES", 50)
    assert split_body(body % (b"x" * 50), "messages") is None
