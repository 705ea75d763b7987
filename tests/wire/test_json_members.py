"""Top-level members of JSON objects: found in the bytes, and replaced there."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgw.wire.json_members import MAX_MEMBERS, UnusualObject, find_members, replace_members

BLANKS = st.text(" \t\r\n", max_size=3).map(str.encode)
NUMBERS = st.one_of(
    st.integers().map(str),
    st.integers(min_value=10**25, max_value=10**40).map(str),
    st.sampled_from(["-0", "1e400", "0.1000000000000000055511151231257827", "1E+2", "12345678901234567890.5"]),
)


def _escape_all(text: str) -> str:
    """Return ``text`` in JSON with every character escaped."""
    units = text.encode("utf-16-be")
    return '"' + "".join(f"\\u{units[at]:02X}{units[at + 1]:02x}" for at in range(0, len(units), 2)) + '"'


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
STRINGS = TEXT.flatmap(
    lambda text: st.sampled_from([json.dumps(text), json.dumps(text, ensure_ascii=False), _escape_all(text)])
)
SCALARS = st.one_of(STRINGS, NUMBERS, st.sampled_from(["null", "true", "false", '"}"', '"\\",\\"a\\":1"', "[]", "{}"]))


def _join(parts: list[bytes], ends: bytes, blanks: list[bytes]) -> bytes:
    return (
        ends[:1]
        + b",".join(blanks[0] + part + blanks[1] for part in parts)
        + (blanks[2] if not parts else b"")
        + ends[1:]
    )


def _nest(inner: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    blanks = st.lists(BLANKS, min_size=3, max_size=3)
    pairs = st.tuples(STRINGS.map(str.encode), BLANKS, inner).map(lambda pair: pair[0] + b":" + pair[1] + pair[2])
    # Deeper inside, a name may occur twice.
    return st.one_of(
        st.builds(_join, st.lists(inner, max_size=4), st.just(b"[]"), blanks),
        st.builds(_join, st.lists(pairs, max_size=4), st.just(b"{}"), blanks),
    )


VALUES = st.recursive(SCALARS.map(str.encode), _nest, max_leaves=12)
NAMES = st.one_of(st.sampled_from(["model", "user", "messages", 'a"b', "\\", "é"]), TEXT)
MEMBERS = st.lists(st.tuples(NAMES, VALUES), max_size=8, unique_by=lambda member: member[0])


@st.composite
def objects(draw: st.DrawFn) -> tuple[bytes, list[tuple[str, bytes]]]:
    """Draw an object with odd blanks and escapes, and its members: each with its bytes from key to value."""
    members, texts = draw(MEMBERS), []
    for name, value in members:
        key = draw(st.sampled_from([json.dumps(name), json.dumps(name, ensure_ascii=False), _escape_all(name)]))
        texts.append((name, key.encode() + draw(BLANKS) + b":" + draw(BLANKS) + value))
    body = draw(BLANKS) + b"{" + draw(BLANKS)
    for index, (_, text) in enumerate(texts):
        body += (draw(BLANKS) + b"," + draw(BLANKS) if index else b"") + text
    return body + draw(BLANKS) + b"}" + draw(BLANKS), texts


@given(objects())
def test_members_are_found_as_they_stand(drawn: tuple[bytes, list[tuple[str, bytes]]]) -> None:
    """Each member is found under its decoded name, with exactly its bytes, in order."""
    body, texts = drawn
    found = find_members(body)
    assert [(name, body[member.start : member.end]) for name, member in found.items()] == texts


@given(objects(), st.dictionaries(NAMES, st.one_of(st.none(), VALUES), max_size=4))
def test_only_what_is_changed_changes(
    drawn: tuple[bytes, list[tuple[str, bytes]]], changes: dict[str, bytes | None]
) -> None:
    """The result is the object with the changes, and every member that is not among them has its own bytes."""
    body, texts = drawn
    changed = replace_members(body, find_members(body), changes)
    expected: dict[str, bytes] = {name: text for name, text in texts if changes.get(name, b"") is not None}
    found = find_members(changed)
    added = [name for name, value in changes.items() if value is not None and name not in dict(texts)]
    assert list(found) == [*expected, *added]
    for name, member in found.items():
        if name in changes:
            assert changed[member.value_start : member.end] == changes[name]
        else:
            assert changed[member.start : member.end] == expected[name]
    # What stands in front of the first member and behind the last one, too.
    assert changed.partition(b"{")[0] == body.partition(b"{")[0]
    assert changed.rpartition(b"}")[2] == body.rpartition(b"}")[2]


@given(objects(), st.sampled_from(["model", "zz"]))
def test_replacing_keeps_every_other_byte(drawn: tuple[bytes, list[tuple[str, bytes]]], name: str) -> None:
    """A value that is replaced is cut out and nothing else; a member that is added stands before the last brace."""
    body, _ = drawn
    members = find_members(body)
    changed = replace_members(body, members, {name: b"7"})
    if name in members:
        member = members[name]
        assert changed == body[: member.value_start] + b"7" + body[member.end :]
    else:
        end = max((member.end for member in members.values()), default=body.index(b"{") + 1)
        addition = (b"," if members else b"") + b'"' + name.encode() + b'":7'
        assert changed == body[:end] + addition + body[end:]


@given(objects())
def test_without_changes_the_body_is_the_same_object(drawn: tuple[bytes, list[tuple[str, bytes]]]) -> None:
    """Nothing is copied where nothing is to be changed."""
    body, texts = drawn
    absent = {"not there": None} if "not there" not in dict(texts) else {}
    assert replace_members(body, find_members(body), absent) is body


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b'{"a":1,"a":2}', "a"),
        (b'{"a":1,"a":1}', "a"),
        (b'{"a":12,"b":3,"a":1}', "a"),
        (b'{"a":"x","b":{},"\\u0061":"x"}', "a"),
        (b'{"a":[1,2],"b":1,"b":[1]}', "b"),
        (b'{"a":1,"a":{"b":","}}', "a"),
    ],
)
def test_a_name_that_occurs_twice_is_unusual(body: bytes, name: str) -> None:
    """Two members of one name are refused, however the name is written and whichever value is longer."""
    with pytest.raises(UnusualObject) as unusual:
        find_members(body)
    assert unusual.value.name == name


@given(objects(), st.data())
def test_repeated_members_never_pass(drawn: tuple[bytes, list[tuple[str, bytes]]], data: st.DataObject) -> None:
    """Wherever a second member of a name stands, and whatever its value, the object is refused."""
    body, texts = drawn
    if not texts:
        return
    name, _ = data.draw(st.sampled_from(texts))
    end = max(member.end for member in find_members(body).values())
    repeated = body[:end] + b"," + json.dumps(name).encode() + b":" + data.draw(VALUES) + body[end:]
    with pytest.raises(UnusualObject):
        find_members(repeated)


def test_the_number_of_members_is_bounded() -> None:
    """An object of very many members is refused, before they are looked at."""
    body = b"{" + b",".join(b'"%d":1' % index for index in range(MAX_MEMBERS + 1)) + b"}"
    with pytest.raises(UnusualObject):
        find_members(body)


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"1", b'{"a"', b'{"a":}', b'{"a":1}x', b"{" * 100_000, b'{"a":' * 100_000]
)
def test_anything_else_is_no_object(body: bytes) -> None:
    """What is not one JSON object raises one of the errors that the caller expects."""
    with pytest.raises((msgspec.MsgspecError, ValueError, RecursionError)):
        find_members(body)


def test_many_removed_members_leave_a_valid_object() -> None:
    """Members may be removed at the start, in the middle, at the end, and all of them."""
    body = b'{ "a":1 , "b":2 ,"c":3, "d":4 }'
    names = ["a", "b", "c", "d"]
    for bits in range(16):
        gone: dict[str, Any] = {name: None for index, name in enumerate(names) if bits >> index & 1}
        changed = replace_members(body, find_members(body), gone)
        assert json.loads(changed) == {name: at + 1 for at, name in enumerate(names) if name not in gone}
